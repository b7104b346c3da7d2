"""Faces to unit embeddings, in order, with their mirror images."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from eval.embed import Embeddings, Ranks, embed_images, embed_set, set_batches
from pipeline.catalog import open_catalog
from pipeline.config import LoaderConfig
from pipeline.loader import decode_images, load_in_order
from pipeline.reader import ShardReader
from shardgen.errors import DataError
from shardgen.images import decode
from shardgen.procedural import draw_face, encode

CPU = torch.device("cpu")
Result = TypeVar("Result")


def looking_left(images: torch.Tensor) -> torch.Tensor:
    """Embeds without symmetry: `[batch, 3, size, size]` to `[batch, 24]`, the left third's mean colours."""
    return functional.adaptive_avg_pool2d(images[..., : images.shape[-1] // 3], (4, 2)).flatten(1).exp()


def expected(images: torch.Tensor) -> npt.NDArray[np.float32]:
    """Of images from 0 to 255."""
    images = images / 127.5 - 1
    total = (looking_left(images) + looking_left(images.flip(-1))).numpy()
    result: npt.NDArray[np.float32] = total / np.linalg.norm(total, axis=1, keepdims=True)
    return result


@pytest.fixture(scope="module")
def faces() -> list[bytes]:
    return [encode(draw_face(0, identity, 0)) for identity in range(7)]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_an_embedding_is_the_normalised_sum_of_face_and_mirror_image_in_the_given_order(
    batch_size: int, faces: list[bytes]
) -> None:
    loader = LoaderConfig(batch_size=batch_size, image_size=112)
    found = embed_images(looking_left, faces, loader, CPU)
    decoded = [decode(face) for face in faces]
    images = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(images), atol=5e-3)  # decoders round differently
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    nearest = (found @ expected(images).T).argmax(1)
    assert nearest.tolist() == list(range(len(faces)))


def test_a_face_and_its_mirror_image_embed_alike() -> None:
    face = draw_face(0, 3, 0)
    both = [cv2.imencode(".png", one)[1].tobytes() for one in (face, face[:, ::-1])]
    first, second = embed_images(looking_left, both, LoaderConfig(batch_size=2), CPU)
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_images_of_another_size_are_brought_to_the_encoders(faces: list[bytes]) -> None:
    loader = LoaderConfig(batch_size=4, image_size=32)
    seen: list[torch.Size] = []

    def embed(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[1:])
        return looking_left(images)

    found = embed_images(embed, faces, loader, CPU)
    assert set(seen) == {(3, 32, 32)}
    np.testing.assert_allclose(found, expected(torch.cat(list(decode_images(faces, loader, CPU)))), rtol=1e-4)


def test_a_set_is_embedded_in_the_order_of_its_catalog(small_set: Path) -> None:
    loader = LoaderConfig(batch_size=5, image_size=48)
    catalog = open_catalog({"small": small_set})
    found = embed_set(looking_left, catalog, loader, CPU)
    backwards = np.arange(len(catalog))[::-1].copy()
    batches = list(load_in_order(catalog, backwards, loader, CPU))
    assert torch.cat([batch.sample_ids for batch in batches]).tolist() == backwards.tolist()
    np.testing.assert_allclose(found[::-1], expected(torch.cat([batch.images for batch in batches])), rtol=1e-4)


def test_embedding_keeps_no_gradients_and_returns_float32_whatever_the_encoder(
    faces: list[bytes],
) -> None:
    weight = torch.ones(24, requires_grad=True)
    found = embed_images(
        lambda images: (looking_left(images) * weight).bfloat16(), faces, LoaderConfig(batch_size=7), CPU
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_sums_are_left_as_they_are_for_those_who_pool_them(faces: list[bytes]) -> None:
    loader = LoaderConfig(batch_size=3, image_size=48)
    sums = embed_images(looking_left, faces, loader, CPU, normalise=False)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    assert lengths.std() > 0.1
    np.testing.assert_allclose(sums / lengths, embed_images(looking_left, faces, loader, CPU), rtol=1e-5)


def on_ranks(world_size: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """What each of some ranks gets, which are threads here."""
    barrier = threading.Barrier(world_size, timeout=60)
    slots: list[Embeddings] = [np.empty((0, 0), np.float32)] * world_size

    def gathering(rank: int) -> Ranks:
        def gather(rows: Embeddings) -> Embeddings:
            slots[rank] = rows
            barrier.wait()
            everyone = np.concatenate(slots)
            barrier.wait()
            return everyone

        return Ranks(rank, world_size, gather)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, map(gathering, range(world_size))))


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 5), (3, 3), (4, 1), (9, 2)])
def test_ranks_share_the_faces_and_each_is_given_all_embeddings(
    world_size: int, batch_size: int, faces: list[bytes]
) -> None:
    loader = LoaderConfig(batch_size=batch_size, image_size=32, threads=1)
    seen: list[int] = []

    def embed(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return looking_left(images)

    found = on_ranks(world_size, lambda ranks: embed_images(embed, faces, loader, CPU, ranks))
    alone = embed_images(looking_left, faces, loader, CPU)
    for rows in found:
        np.testing.assert_allclose(rows, alone, atol=1e-6)
    assert max(seen) <= batch_size
    assert sum(seen) < 2 * (len(faces) + world_size), "but for less than one round, no face is embedded twice"


def test_the_embeddings_of_a_set_come_in_batches_of_all_ranks(small_set: Path) -> None:
    loader = LoaderConfig(batch_size=5, image_size=32, threads=1)
    catalog = open_catalog({"small": small_set})
    found = on_ranks(3, lambda ranks: list(set_batches(looking_left, catalog, loader, CPU, ranks)))
    assert [[len(rows) for rows in batches] for batches in found] == [[15, 15, 2]] * 3
    np.testing.assert_allclose(np.concatenate(found[1]), embed_set(looking_left, catalog, loader, CPU), atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_faces_whose_embedding_has_no_direction_are_counted_and_named(value: float, small_set: Path) -> None:
    def embed(images: torch.Tensor) -> torch.Tensor:
        rows = looking_left(images)
        rows[1:3] = value
        return rows

    catalog = open_catalog({"small": small_set})
    second, third = map(ShardReader(catalog).describe, (1, 2))
    with pytest.raises(DataError, match=f"^2 of the first 20 .*{re.escape(f'({second}, {third})')}.*diverged"):
        embed_set(embed, catalog, LoaderConfig(batch_size=20, image_size=32), CPU)
