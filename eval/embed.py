"""Faces to unit embeddings: L2(f(x) + f(flip x)), summed before normalising, as the papers do."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.catalog import Catalog
from pipeline.config import LoaderConfig
from pipeline.loader import decode_images, load_in_order, normalised
from shardgen.errors import DataError

Embed = Callable[[torch.Tensor], torch.Tensor]
"""`[batch, 3, size, size] float32` in [-1, 1], RGB -> `[batch, embedding]`."""
Embeddings = npt.NDArray[np.float32]
"""`[images, embedding]`, rows of length 1."""


def embed_set(embed: Embed, catalog: Catalog, loader: LoaderConfig, device: torch.device) -> Embeddings:
    """Return the embedding of every sample of a catalog, in its order."""
    batches = load_in_order(catalog, np.arange(len(catalog)), loader, device)
    return _embed(embed, (batch.images for batch in batches))


def embed_images(embed: Embed, encoded: Sequence[bytes], loader: LoaderConfig, device: torch.device) -> Embeddings:
    """Return the embeddings of encoded image files that are in memory."""
    return _embed(embed, decode_images(encoded, loader, device))


def _embed(embed: Embed, batches: Iterable[torch.Tensor]) -> Embeddings:
    with torch.inference_mode():
        both = (embed(images) + embed(images.flip(3)) for images in map(normalised, batches))
        unit = [functional.normalize(total.float()).cpu().numpy() for total in both]
    embeddings = np.concatenate(unit)
    if not np.isfinite(embeddings).all():
        raise DataError("the encoder gives embeddings that are not finite; its training has diverged")
    return embeddings
