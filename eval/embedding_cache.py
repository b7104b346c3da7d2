"""Embeddings on a disk, by the hash of model and data: every set is embedded once, and every protocol reads it.

`<folder>/<model>-<data>/` (16 digits of each hash) holds `embeddings.npy` and, written after it, `about.json` with the
whole hashes and that of the file: what it does not vouch for, or of something else, is made again.
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import xxhash

from eval.embed import ALONE, Embeddings, Ranks, image_batches, set_batches, whole
from eval.models import Model, digest_of
from pipeline.catalog import Catalog
from pipeline.config import LoaderConfig
from shardgen.errors import UsageError
from shardgen.files import ASIDE, locked, write_durably, writing_durably

VERSION = 1
"""Of what a row is: another way of decoding or resizing faces makes it another."""

Make = Callable[[], Iterator[Embeddings]]
"""Begins to make embeddings, in batches."""

_Key = Mapping[str, str | int]
"""What kept embeddings have to be of."""

_ROWS, _ABOUT = "embeddings.npy", "about.json"
_PIECE_BYTES = 1 << 22
_log = logging.getLogger("facemix.eval")


@dataclass(frozen=True)
class Embedder:
    """A model with what it takes to embed with it."""

    model: Model
    loader: LoaderConfig
    """How images are read; their size is the model's."""
    device: torch.device
    folder: Path | None = None
    """Where embeddings are kept, the same for all ranks; None: in memory."""
    ranks: Ranks = ALONE

    def of_set(self, catalog: Catalog, normalise: bool = True) -> Embeddings:
        """Return the embeddings of all samples of a catalog; raise as `set_batches` and `cached` do."""
        make = partial(set_batches, self.model.embed, catalog, self._loader, self.device, self.ranks, normalise)
        return self._kept(catalog.digest, len(catalog), make, normalise)

    def of_images(self, encoded: Sequence[bytes], digest: str, normalise: bool = True) -> Embeddings:
        """Return those of image files in memory, given a hash of them all; raise as `image_batches` and `cached` do."""
        make = partial(image_batches, self.model.embed, encoded, self._loader, self.device, self.ranks, normalise)
        return self._kept(digest, len(encoded), make, normalise)

    @property
    def _loader(self) -> LoaderConfig:
        return self.loader.model_copy(update={"image_size": self.model.image_size})

    def _kept(self, data_digest: str, num_faces: int, make: Make, normalise: bool) -> Embeddings:
        if self.folder is None:
            return whole(make(), num_faces)
        data = data_digest if normalise else digest_of(data_digest, "not normalised")
        return cached(self.folder, self.model.digest, data, num_faces, make, self.ranks)


def cached(
    folder: Path, model_digest: str, data_digest: str, num_faces: int, make: Make, ranks: Ranks = ALONE
) -> Embeddings:
    """Return embeddings out of the folder, mapped into memory; if they are not there, make and keep them first.

    All ranks must ask and all are given them; the first writes. Raises `UsageError` when another process is making the
    same, or the folder is of no use.
    """
    entry = folder / f"{model_digest[:16]}-{data_digest[:16]}"
    key: _Key = {"version": VERSION, "model": model_digest, "data": data_digest}
    with _naming(folder):
        kept = _read(entry, key)
    if ranks.gather(np.array([[kept is not None]], np.float32)).all() and kept is not None:
        return kept
    if ranks.rank == 0:
        with _naming(folder):
            _write(entry, key, num_faces, make())
    else:
        deque(make(), maxlen=0)
    ranks.gather(np.zeros((1, 1), np.float32))  # until it is written
    if not (entry / _ROWS).exists():
        raise UsageError(f"cache {folder} is not the same folder for all ranks; give one that they share")
    return _mapped(entry)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cache {folder}: {error}; give a folder that has space and may be written to") from None


def _read(entry: Path, key: _Key) -> Embeddings | None:
    """Return what is kept, if it is there and as it was written."""
    if not (entry / _ABOUT).exists():
        return None
    try:
        about = json.loads((entry / _ABOUT).read_bytes())
        if {**about, **key} != about:
            fault = "of another model, other data or another facemix"
        elif about["xxh3_128"] != _hash_of(entry / _ROWS):
            fault = "not as they were written"
        else:
            return _mapped(entry)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        fault = "damaged"
    _log.warning("cached embeddings in %s are %s; they are made again", entry, fault)
    return None


def _mapped(entry: Path) -> Embeddings:
    """Return the array; it may be written to, without effect on the file, since torch warns of arrays that may not."""
    return np.asarray(np.load(entry / _ROWS, mmap_mode="c"))


def _hash_of(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _write(entry: Path, key: _Key, num_faces: int, batches: Iterator[Embeddings]) -> None:
    """Write embeddings as they come: by calls, not to a map, whose writer a full disk kills."""
    entry.mkdir(parents=True, exist_ok=True)
    with locked(entry, f"{entry} is being made by another process; wait for it, or give another folder"):
        for left in entry.glob(ASIDE):
            left.unlink()
        digest = xxhash.xxh3_128()
        with writing_durably(entry / _ROWS) as stream:
            for piece in _npy(num_faces, batches):
                digest.update(piece)
                stream.write(piece)
        about = {**key, "shape": _mapped(entry).shape, "xxh3_128": digest.hexdigest()}
        write_durably(entry / _ABOUT, json.dumps(about, indent=1).encode())


def _npy(num_faces: int, batches: Iterator[Embeddings]) -> Iterator[bytes]:
    """Yield the pieces of a NumPy file of rows that come in batches."""
    dtype = np.lib.format.dtype_to_descr(np.dtype(np.float32))
    for number, rows in enumerate(batches):
        if number == 0:
            header = BytesIO()
            shape = (num_faces, rows.shape[1])
            np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
            yield header.getvalue()
        yield rows.tobytes()
