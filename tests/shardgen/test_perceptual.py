"""Copies get close hashes, other photographs do not, and no close pair is missed."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardgen.errors import DataError, UsageError
from shardgen.images import Rgb, Unreadable, decode
from shardgen.inputs.records import open_recordio
from shardgen.perceptual import (
    LARGEST_DISTANCE,
    MAX_DISTANCE,
    Edges,
    Hashes,
    Rows,
    close_pairs,
    hash_images,
    nearest_edges,
    perceptual_hash,
)
from shardgen.shardset import ShardSet
from tests.support import make_set

Triples = set[tuple[int, int, int]]


def jpeg(rgb: Rgb, quality: int) -> bytes:
    return bytes(cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def resized(rgb: Rgb, size: int) -> Rgb:
    smaller: Rgb = cv2.resize(rgb, (size, size), interpolation=cv2.INTER_AREA)
    return smaller


def brighter(rgb: Rgb, levels: int) -> Rgb:
    return np.minimum(rgb.astype(np.int64) + levels, 255).astype(np.uint8)


def distances(hashes: Hashes) -> Rows:
    """Count the bits in which hashes differ, each against each."""
    bits = np.unpackbits(hashes, axis=1).astype(np.int64)
    return np.asarray((bits[:, None] != bits[None]).sum(2), np.int64)


def by_brute_force(hashes: Hashes, max_distance: int) -> Triples:
    between = distances(hashes)
    first, second = np.nonzero(np.triu(between <= max_distance, 1))
    return set(zip(first.tolist(), second.tolist(), between[first, second].tolist(), strict=True))


def triples(blocks: Iterator[Edges]) -> list[tuple[int, int, int]]:
    return [
        triple
        for block in blocks
        for triple in zip(block.first.tolist(), block.second.tolist(), block.distance.tolist(), strict=True)
    ]


def neighbours(seed: int, number: int, farthest: int) -> Hashes:
    """Draw hashes around three centres, up to so many bits away from them."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (3, 256), np.uint8)[rng.integers(0, 3, number)]
    for row in bits:
        row[rng.choice(256, rng.integers(0, farthest + 1), replace=False)] ^= 1
    return np.packbits(bits, axis=1)


def group_of(hashes: Hashes, max_distance: int) -> list[int]:
    """Return for each hash the first that a chain of close pairs leads to."""
    close = distances(hashes) <= max_distance
    reached = close
    for _ in hashes:
        reached = reached @ close
    return reached.argmax(1).tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def photographs(real_faces: Path) -> list[Rgb]:
    """24 people with 10 photographs each, 10 neighbours of one person."""
    source = open_recordio(real_faces / "orl")
    return [decode(source.read(record)) for record in range(len(source))]


@given(st.integers(0, 2**32 - 1), st.integers(0, LARGEST_DISTANCE), st.integers(1, 60))
def test_exactly_the_close_pairs_are_found_each_once(seed: int, max_distance: int, number: int) -> None:
    hashes = neighbours(seed, number, farthest=max_distance // 2 + 3)
    found = triples(close_pairs(hashes, max_distance))
    assert set(found) == by_brute_force(hashes, max_distance)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("max_distance", [0, 1, 7, MAX_DISTANCE, LARGEST_DISTANCE])
def test_a_pair_just_as_far_apart_as_allowed_is_found_wherever_its_bits_differ(max_distance: int) -> None:
    rng = np.random.default_rng(max_distance)
    centre = rng.integers(0, 2, 256, np.uint8)
    spread = np.linspace(0, 255, max_distance).astype(np.int64)  # as evenly over the pieces as can be
    for places in [spread, np.arange(max_distance), *(rng.choice(256, max_distance, replace=False) for _ in range(50))]:
        other = centre.copy()
        other[places] ^= 1
        hashes = np.packbits(np.stack([centre, other]), axis=1)
        assert triples(close_pairs(hashes, max_distance)) == [(0, 1, max_distance)]


def test_pairs_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardgen.perceptual._INDEXED", 16)
    monkeypatch.setattr("shardgen.perceptual._QUERIES", 7)
    hashes = neighbours(1, 100, farthest=12)
    found = triples(close_pairs(hashes))
    assert set(found) == by_brute_force(hashes, MAX_DISTANCE)
    assert len(set(found)) == len(found)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([3, 1 << 20]))
def test_the_nearest_edges_connect_what_chains_of_close_pairs_connect(seed: int, number: int, pending: int) -> None:
    hashes = neighbours(seed, number, farthest=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardgen.perceptual._QUERIES", 5)
        patch.setattr("shardgen.perceptual._PENDING", pending)
        edges = nearest_edges(hashes)
    groups = group_of(hashes, MAX_DISTANCE)
    assert len(edges) == number - len(set(groups))
    connected = list(range(number))
    for one, other in zip(edges.first.tolist(), edges.second.tolist(), strict=True):
        connected = [connected[one] if group == connected[other] else group for group in connected]
    assert [connected.index(group) for group in connected] == groups
    assert (edges.distance == distances(hashes)[edges.first, edges.second]).all()


def test_a_thousand_copies_give_a_thousand_edges_the_closest_ones() -> None:
    bits = np.zeros((1_001, 256), np.uint8)
    bits[1:, :10] = np.unpackbits(np.arange(1_000, dtype=">u2").view(np.uint8)).reshape(-1, 16)[:, 6:]
    edges = nearest_edges(np.packbits(bits, axis=1))
    assert len(edges) == 1_000
    assert edges.distance.max() == 1
    assert (edges.distance == 0).sum() == 1


@pytest.mark.parametrize("max_distance", [-1, 32])
def test_a_distance_that_says_nothing_is_refused(max_distance: int) -> None:
    with pytest.raises(UsageError, match=f"{max_distance} bits: .*give 0 to 31"):
        next(close_pairs(np.zeros((2, 32), np.uint8), max_distance))


@pytest.mark.parametrize("quality", [95, 75, 50])
def test_a_copy_that_was_encoded_again_is_close(photographs: list[Rgb], quality: int) -> None:
    hashes = np.stack([perceptual_hash(jpeg(rgb, q)) for rgb in photographs[::10] for q in (100, quality)])
    assert distances(hashes)[::2, 1::2].diagonal().max() <= MAX_DISTANCE


def test_a_copy_that_was_resized_brightened_and_encoded_again_is_close(photographs: list[Rgb]) -> None:
    changed = [jpeg(brighter(resized(resized(rgb, 96), 112), 20), 50) for rgb in photographs[::10]]
    hashes = np.stack([perceptual_hash(one) for one in [*(jpeg(rgb, 100) for rgb in photographs[::10]), *changed]])
    assert distances(hashes)[:24, 24:].diagonal().max() <= MAX_DISTANCE


def test_no_two_photographs_of_one_person_are_close(photographs: list[Rgb]) -> None:
    hashes = np.stack([perceptual_hash(jpeg(rgb, 100)) for rgb in photographs])
    assert len(photographs) == 240
    assert triples(close_pairs(hashes)) == []


def test_what_does_not_decode_has_no_hash() -> None:
    with pytest.raises(Unreadable):
        perceptual_hash(b"\xff\xd8\xff and no more")


def test_hashes_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardgen.perceptual._CHUNK", 5)
    parts = [
        (make_set(tmp_path / name, range(3), 4, seed=seed, shard_samples=5), np.arange(12)[:: 1 + seed])
        for seed, name in enumerate(["a", "b"])
    ]
    expected = [perceptual_hash(ShardSet(folder).image(row)) for folder, rows in parts for row in rows.tolist()]
    assert (hash_images(parts, 1) == expected).all()
    assert (hash_images(parts, 2) == expected).all()


def test_no_images_have_no_hashes() -> None:
    assert hash_images([], 4).shape == (0, 32)


def test_an_image_that_was_damaged_after_conversion_is_named_by_its_set(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", range(1), 1)
    table = ShardSet(folder).table(["offset", "size"]).to_pylist()[0]
    with (folder / "000000.tar").open("r+b") as tar:
        tar.seek(table["offset"])
        tar.write(bytes(table["size"]))
    with pytest.raises(DataError, match=r"set: an image does not decode.*facemix verify .* --deep"):
        hash_images([(folder, np.arange(1))], 1)
