"""Faces to unit embeddings: L2(f(x) + f(flip x)), summed before normalising, as the papers do.

They are a stream: batches in the order of the faces, of which each rank of several makes its slice and is given the
whole. So whoever writes the stream to a disk needs memory for one batch of every rank, however many faces there are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.catalog import Catalog
from pipeline.config import LoaderConfig
from pipeline.loader import decode_images, load_in_order, normalised
from pipeline.reader import ShardReader
from shardgen.errors import DataError

Embed = Callable[[torch.Tensor], torch.Tensor]
"""`[batch, 3, size, size] float32` in [-1, 1], RGB -> `[batch, embedding]`."""
Embeddings = npt.NDArray[np.float32]
"""`[images, embedding]`, rows of length 1 unless said otherwise."""

NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Ranks:
    """This process among those that embed together."""

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Embeddings], Embeddings] = lambda rows: rows
    """Returns the rows of all processes, rank after rank, given each one's own; all must ask."""


ALONE = Ranks()


def embed_set(
    embed: Embed,
    catalog: Catalog,
    loader: LoaderConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    normalise: bool = True,
) -> Embeddings:
    """Return the embedding of every sample of a catalog, in its order; raise as `set_batches` does."""
    return whole(set_batches(embed, catalog, loader, device, ranks, normalise), len(catalog))


def embed_images(
    embed: Embed,
    encoded: Sequence[bytes],
    loader: LoaderConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    normalise: bool = True,
) -> Embeddings:
    """Return the embeddings of encoded image files that are in memory; raise as `image_batches` does."""
    return whole(image_batches(embed, encoded, loader, device, ranks, normalise), len(encoded))


def set_batches(
    embed: Embed,
    catalog: Catalog,
    loader: LoaderConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    normalise: bool = True,
) -> Iterator[Embeddings]:
    """Yield the embeddings of all samples of a catalog in its order, `[batch, embedding]`, on every rank all of them.

    A rank embeds batches of `loader.batch_size`. With `normalise` false, rows stay f(x) + f(flip x). Raises `DataError`
    naming an image that does not decode, or the first whose embeddings are not finite or of length zero.
    """
    own = _own_rows(len(catalog), loader.batch_size, ranks)
    images = (batch.images for batch in load_in_order(catalog, own, loader, device))
    return _embedded(embed, images, len(catalog), ranks, normalise, ShardReader(catalog).describe)


def image_batches(
    embed: Embed,
    encoded: Sequence[bytes],
    loader: LoaderConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    normalise: bool = True,
) -> Iterator[Embeddings]:
    """Yield the embeddings of encoded image files that are in memory, as `set_batches` does.

    Raises `DecodingFailed` when an image does not decode.
    """
    own = _own_rows(len(encoded), loader.batch_size, ranks)
    images = decode_images([encoded[row] for row in own], loader, device)
    return _embedded(embed, images, len(encoded), ranks, normalise, "image {}".format)


def _own_rows(num_rows: int, batch_size: int, ranks: Ranks) -> npt.NDArray[np.int64]:
    """Return the rows that this rank embeds: a batch of each round, in which every rank has as many.

    The last round is padded with the last row, by fewer than there are ranks.
    """
    size = ranks.world_size
    padded = np.minimum(np.arange(-(-num_rows // size) * size), num_rows - 1)
    rounds = np.split(padded, range(size * batch_size, len(padded), size * batch_size))
    return np.concatenate([one.reshape(size, -1)[ranks.rank] for one in rounds])


def _embedded(
    embed: Embed,
    batches: Iterable[torch.Tensor],
    num_rows: int,
    ranks: Ranks,
    normalise: bool,
    describe: Callable[[int], str],
) -> Iterator[Embeddings]:
    num_done = 0
    for images in batches:
        rows = ranks.gather(_forward(embed, images, normalise))[: num_rows - num_done]
        if len(useless := np.flatnonzero(~has_direction(rows))):
            examples = ", ".join(describe(num_done + row) for row in useless[:NUM_EXAMPLES].tolist())
            raise DataError(
                f"{len(useless)} of the first {num_done + len(rows)} embeddings are not finite or of length zero "
                f"({examples}); the encoder has diverged, or is not made for such images"
            )
        yield rows
        num_done += len(rows)


@torch.inference_mode()
def _forward(embed: Embed, images: torch.Tensor, normalise: bool) -> Embeddings:
    images = normalised(images)
    total = embed(images).float() + embed(images.flip(3)).float()
    rows: Embeddings = (functional.normalize(total) if normalise else total).cpu().numpy()
    return rows


def has_direction(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return which rows can be compared by their cosine: those of finite length above 0."""
    lengths = np.linalg.norm(rows, axis=1)
    usable: npt.NDArray[np.bool_] = np.isfinite(lengths) & (lengths > 0)
    return usable


def whole(batches: Iterable[Embeddings], num_rows: int) -> Embeddings:
    """Return all rows at once, without ever holding them twice."""
    whole = np.empty((num_rows, 0), np.float32)
    start = 0
    for rows in batches:
        if not start:
            whole = np.empty((num_rows, rows.shape[1]), np.float32)
        whole[start : start + len(rows)] = rows
        start += len(rows)
    return whole
