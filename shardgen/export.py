"""A finished set given back to other programs: as RecordIO, as a folder of images, or as pairs in a `.bin`.

Images go out identity after identity, in one by key, which is the order of the input. Each is compared
with the hash in its table on the way, and everything is made in `OUT.unfinished` and published by one
rename: what is there is whole, and its images are the set's, byte by byte.
"""

import csv
import json
import logging
import os
import pickle
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.files import becoming, sync_folder, writing_durably
from shardgen.images import read_header, sniff
from shardgen.manifest import MANIFEST, hash_file
from shardgen.pairs import Pairs
from shardgen.recordio import MAX_EXACT_LABEL, write_insightface
from shardgen.sample import content_hash
from shardgen.shardset import ShardSet

MADE_OF = "export.json"
"""First file of an export: what it was made of. It also tells an unfinished export from others' files."""
IDENTITIES = "identities.csv"
TAGS = "tags.csv"
_ROW = "#row"  # no tag axis can be named so
_CHUNK_ROWS = 1 << 12
_REPORT_SECONDS = 5.0
_MAX_NAME_BYTES = 200  # file systems end at 255
# Not hidden, not ours to escape, no character that ends a line or a path; csv readers strip spaces.
_SAFE_PART = re.compile(r"[^\s.%/\x00-\x1f\x7f-\x9f][^/\x00-\x1f\x7f-\x9f]*")
_IMAGE_FILE = re.compile(r"[0-9a-f]{1,15}\.[a-z]+")

_log = logging.getLogger("facemix.shard")


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    out: str
    form: str
    set: str
    revision: int
    num_images: int
    num_identities: int
    notes: Sequence[str] = ()
    """What else a person should know, a line each."""

    def lines(self) -> list[str]:
        """Return what a person reads."""
        return [
            f"{self.out} ({self.form}): {self.num_images} images of {self.num_identities} identities "
            f"from {self.set}, revision {self.revision}",
            *(f"  {note}" for note in self.notes),
        ]


def export_recordio(source: Path, out: Path) -> Exported:
    """Write a set as `train.rec`, `train.idx` and `property` in InsightFace's layout.

    Identities are numbered from 0 in the set's order; `identities.csv` names them, `tags.csv` holds the
    tags by record key. `property` holds the most frequent image size, height first. Raises `UsageError`
    when `out` holds something or the set is too large for float32 labels, `DataError` for damaged images.
    """
    shards, table = _open(source)
    names = [shards.manifest.identities[number] for number in table["identity"].unique().to_pylist()]
    last_label = len(table) + len(names) + 1
    if last_label > MAX_EXACT_LABEL:
        raise UsageError(
            f"{source}: {len(table)} images of {len(names)} identities need record keys up to {last_label}, "
            f"float32 labels are exact to {MAX_EXACT_LABEL}; export a folder instead"
        )
    with _publishing(out, source, shards, "recordio") as folder:
        people = groupby(_faces(shards, table), key=lambda face: face[0]["identity"])
        write_insightface(folder, (map(itemgetter(1), faces) for _, faces in people), _common_size(shards, table))
        _write_csv(folder / IDENTITIES, ["identity", "name"], enumerate(names))
        if axes := list(shards.manifest.axes):
            rows = enumerate(_rows(table), start=1)
            _write_csv(folder / TAGS, ["path", *axes], ([key, *_tags_of(shards, row)] for key, row in rows))
    return _exported(out, shards, "recordio", len(table), len(names))


def export_folder(source: Path, out: Path) -> Exported:
    """Write a set as `<identity>/<key>.<extension>`, with the tags by path in `tags.csv`.

    An identity that cannot name a folder gets another one (see `folder_of`), and `identities.csv` tells
    which. Raises `UsageError` when `out` holds something, `DataError` for damaged images.
    """
    shards, table = _open(source)
    renamed: list[tuple[str, str]] = []
    num_identities = 0
    with _publishing(out, source, shards, "folder") as folder:
        with (folder / TAGS).open("w", newline="", encoding="utf-8") as stream:
            tags = csv.writer(stream)
            tags.writerow(["path", *shards.manifest.axes])
            for number, faces in groupby(_faces(shards, table), key=lambda face: face[0]["identity"]):
                identity = shards.manifest.identities[number]
                home = folder_of(identity)
                num_identities += 1
                renamed += [(home, identity)] * (home != identity)
                (folder / home).mkdir(parents=True, exist_ok=True)
                for row, image in faces:
                    path = f"{home}/{row['key']}.{sniff(image)}"
                    (folder / path).write_bytes(image)
                    tags.writerow([path, *_tags_of(shards, row)])
        if not shards.manifest.axes:
            (folder / TAGS).unlink()
        if renamed:
            _write_csv(folder / IDENTITIES, ["folder", "identity"], renamed)
    notes = [f"{len(renamed)} identities cannot name a folder; {IDENTITIES} tells theirs"] if renamed else []
    return _exported(out, shards, "folder", len(table), num_identities, notes)


def export_bin(source: Path, out: Path, pairs: Pairs) -> Exported:
    """Write pairs of a set's images as InsightFace's pickle of (images, answers).

    Raises `UsageError` when `out` exists, `DataError` for damaged images or when all answers are the same.
    """
    if out.exists():
        raise UsageError(f"{out} exists; choose another file, or delete it first")
    num_same = int(pairs.same.sum())
    if num_same in (0, len(pairs.same)):
        raise DataError(
            f"{num_same} of {len(pairs.same)} pairs are of one identity; verification needs pairs of both kinds"
        )
    shards = ShardSet(source)
    table = shards.table(["key", "identity", "content_hash"])
    used = np.unique(pairs.rows)
    chosen = table.take(pa.array(used)).append_column(_ROW, pa.array(used))
    images = {row[_ROW]: image for row, image in _faces(shards, chosen)}  # pickle writes each object once
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing_durably(out) as stream:
        pickle.dump(([images[row] for row in pairs.rows.ravel().tolist()], pairs.same.tolist()), stream, protocol=4)
    notes = [f"{len(pairs.same)} pairs, {num_same} of one identity; {pairs.note}"]
    return _exported(out, shards, "bin", len(used), len(chosen["identity"].unique()), notes)


def folder_of(identity: str) -> str:
    """Return the relative path of an identity's folder: different for each, never outside, never hidden.

    It is the name itself wherever that can be a path, and else starts with `%`: percent-encoded, or
    with a hash where that would be too long.
    """
    parts = identity.split("/")
    safe = (
        all(map(_SAFE_PART.fullmatch, parts))
        and not any(map(_IMAGE_FILE.fullmatch, parts[1:]))  # would be taken for an image of the folder above
        and parts[0] not in (MADE_OF, IDENTITIES, TAGS)
        and len(identity.encode()) <= _MAX_NAME_BYTES
    )
    if safe:
        return identity
    quoted = quote(identity, safe="")
    if len(quoted) > _MAX_NAME_BYTES:
        return f"%~{blake2b(identity.encode(), digest_size=16).hexdigest()}~{quoted[:100]}"
    return quoted if quoted.startswith("%") else f"%{ord(quoted[0]):02X}{quoted[1:]}" if quoted else "%"


def _open(source: Path) -> tuple[ShardSet, pa.Table]:
    """Return the set, and its samples by identity and key with their positions in it."""
    shards = ShardSet(source)
    table = shards.table(["key", "identity", "width", "height", "content_hash", *shards.manifest.axes])
    table = table.append_column(_ROW, pa.array(np.arange(len(table))))
    return shards, table.sort_by([("identity", "ascending"), ("key", "ascending")])


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=_CHUNK_ROWS):
        yield from batch.to_pylist()


def _faces(shards: ShardSet, table: pa.Table) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the rows of a table, each with its image; raise `DataError` when that is not the one converted."""
    begun = reported = time.monotonic()
    for number, row in enumerate(_rows(table)):
        image = shards.image(row[_ROW])
        if content_hash(image) != row["content_hash"]:
            raise DataError(
                f"{shards.folder}: the image of sample {row['key']} is not the one that was converted; "
                f"see `facemix verify {shards.folder} --deep`"
            )
        yield row, image
        if (now := time.monotonic()) - reported > _REPORT_SECONDS:
            reported = now
            _log.info("%d of %d images, %.0f images/s", number + 1, len(table), (number + 1) / (now - begun))


def _tags_of(shards: ShardSet, row: dict[str, Any]) -> list[str]:
    return [values[row[axis]] for axis, values in shards.manifest.axes.items()]


def _common_size(shards: ShardSet, table: pa.Table) -> tuple[int, int]:
    """Return the most frequent (height, width), the smallest of several; the first image's where nobody looked."""
    sizes = table.group_by(["height", "width"]).aggregate([([], "count_all")])
    most = sizes.sort_by([("count_all", "descending"), ("height", "ascending"), ("width", "ascending")]).to_pylist()[0]
    if most["height"]:
        return most["height"], most["width"]
    header = read_header(shards.image(table[_ROW][0].as_py()))
    return header.height, header.width


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(header)
        lines.writerows(rows)


@contextmanager
def _publishing(out: Path, source: Path, shards: ShardSet, form: str) -> Iterator[Path]:
    """Give the folder to write to; after the body sync it and rename it to `out`."""
    with becoming(out) as unfinished:
        _clear(unfinished)
        manifest = hash_file(source if source.is_file() else source / MANIFEST)
        made_of = {"form": form, "set": shards.name, "revision": shards.manifest.revision, "manifest": manifest.sha256}
        (unfinished / MADE_OF).write_text(json.dumps(made_of) + "\n")
        yield unfinished
        for folder, _, files in os.walk(unfinished):
            for name in [".", *files]:
                sync_folder(Path(folder, name))


def _clear(unfinished: Path) -> None:
    """Remove what a stopped export left, all but the file that says so; it starts afresh."""
    left = list(unfinished.iterdir())
    if left and unfinished / MADE_OF not in left:
        raise UsageError(f"{unfinished} holds something that is no unfinished export; delete it, or choose another OUT")
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MADE_OF:
            path.unlink()


def _exported(
    out: Path, shards: ShardSet, form: str, num_images: int, num_identities: int, notes: Sequence[str] = ()
) -> Exported:
    revision = shards.manifest.revision
    return Exported(str(out), form, shards.name, revision, num_images, num_identities, notes)
