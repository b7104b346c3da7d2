"""Embeddings are made once for a model and data, and again when what is kept is not what it should be."""

import json
import logging
import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from eval.embed import Embeddings, Ranks, embed_images, embed_set
from eval.embedding_cache import Embedder, cached
from eval.models import Model
from pipeline.catalog import open_catalog
from pipeline.config import LoaderConfig
from shardgen.errors import DataError, UsageError
from shardgen.files import locked
from shardgen.procedural import draw_face, encode
from tests.processes import in_two_processes
from tests.support import Killed, stop_before
from train.distributed import World, gathered, join, leave

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LOADER = LoaderConfig(batch_size=5, image_size=112, threads=1)
MODEL, DATA = "12" * 32, "ab" * 32
ROWS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


def embed(images: torch.Tensor) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(images[..., : images.shape[-1] // 3], (4, 2)).flatten(1).exp()


class Making:
    """Counts how often embeddings are made."""

    def __init__(self, rows: Embeddings = ROWS) -> None:
        self.rows = rows
        self.times = 0

    def __call__(self) -> Iterator[Embeddings]:
        self.times += 1
        yield from np.split(self.rows, range(3, len(self.rows), 3))

    def cached(self, folder: Path, model: str = MODEL, data: str = DATA) -> Embeddings:
        return cached(folder, model, data, len(self.rows), self)


def test_embeddings_are_made_once(tmp_path: Path) -> None:
    making = Making()
    for _ in range(3):
        np.testing.assert_array_equal(making.cached(tmp_path / "cache"), ROWS)
    assert making.times == 1
    np.testing.assert_array_equal(np.load(tmp_path / "cache" / f"{MODEL[:16]}-{DATA[:16]}" / "embeddings.npy"), ROWS)


def test_another_model_and_other_data_have_embeddings_of_their_own(tmp_path: Path) -> None:
    all_of_them = [("12" * 32, "ab" * 32), ("34" * 32, "ab" * 32), ("12" * 32, "cd" * 32)]
    for number, (model, data) in enumerate(all_of_them):
        Making(ROWS + number).cached(tmp_path, model, data)
    for number, (model, data) in enumerate(all_of_them):
        making = Making()
        np.testing.assert_array_equal(making.cached(tmp_path, model, data), ROWS + number)
        assert making.times == 0


def test_hashes_that_only_begin_alike_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Making(ROWS + 1).cached(tmp_path)
    np.testing.assert_array_equal(Making().cached(tmp_path, data=DATA[:-1] + "0"), ROWS)
    assert "are of another model, other data or another facemix; they are made again" in caplog.text


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cache")
    Making().cached(folder)
    path = data.draw(st.sampled_from(sorted(folder.glob("*/*"))))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    making = Making()
    np.testing.assert_array_equal(making.cached(folder), ROWS)
    np.testing.assert_array_equal(making.cached(folder), ROWS)
    assert making.times <= 1
    if path.suffix == ".npy":
        assert making.times == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"not json", b"\xff"])
def test_a_damaged_record_is_named_and_replaced(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Making().cached(tmp_path)
    (about,) = tmp_path.glob("*/about.json")
    whole = about.read_bytes()
    about.write_bytes(content)
    np.testing.assert_array_equal(Making().cached(tmp_path), ROWS)
    assert about.read_bytes() == whole
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(about.parent) in record.getMessage()


def test_a_record_without_its_embeddings_is_of_no_use(tmp_path: Path) -> None:
    Making().cached(tmp_path)
    (rows,) = tmp_path.glob("*/*.npy")
    rows.unlink()
    np.testing.assert_array_equal(Making().cached(tmp_path), ROWS)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("operation", range(6))
def test_a_process_killed_while_it_writes_leaves_nothing_wrong(
    operation: int, damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damaged:
        Making(ROWS + 1).cached(tmp_path)
        (rows,) = tmp_path.glob("*/*.npy")
        rows.write_bytes(rows.read_bytes()[:-1])
    with monkeypatch.context() as patch:
        stop_before(patch, operation)
        with pytest.raises(Killed):
            Making().cached(tmp_path)
    np.testing.assert_array_equal(Making().cached(tmp_path), ROWS)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["about.json", "embeddings.npy"]


def test_what_killed_processes_left_is_cleared_away(tmp_path: Path) -> None:
    entry = tmp_path / f"{MODEL[:16]}-{DATA[:16]}"
    entry.mkdir()
    (entry / "embeddings.npy.12345.part").write_bytes(b"half")
    Making().cached(tmp_path)
    assert sorted(path.name for path in entry.iterdir()) == ["about.json", "embeddings.npy"]


def test_what_fails_while_it_is_made_is_not_kept(tmp_path: Path) -> None:
    def failing() -> Iterator[Embeddings]:
        yield ROWS[:3]
        raise DataError("an image does not decode")

    with pytest.raises(DataError, match="does not decode"):
        cached(tmp_path, MODEL, DATA, 10, failing)
    assert not list(tmp_path.glob("*/*"))


def test_memory_does_not_grow_with_the_number_of_faces(tmp_path: Path) -> None:
    batch = np.ones((256, 256), np.float32)
    tracemalloc.start()
    found = cached(tmp_path, MODEL, DATA, 256 * 100, lambda: (batch for _ in range(100)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    again = cached(tmp_path, MODEL, DATA, 256 * 100, Making())
    read_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == again.shape == (25600, 256)
    assert peak_bytes < 4 * batch.nbytes
    assert read_bytes < 40 * batch.nbytes


def test_torch_can_take_them_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    making = Making()
    torch.from_numpy(making.cached(tmp_path)).zero_()
    np.testing.assert_array_equal(making.cached(tmp_path), ROWS)
    assert making.times == 1


def test_a_folder_of_no_use_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"Not a directory: .*file.*; give a folder"):
        Making().cached(tmp_path / "file")

    def full() -> Iterator[Embeddings]:
        yield ROWS
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left on device; give a folder that has space"):
        cached(tmp_path, MODEL, DATA, 10, full)


def test_two_processes_do_not_make_the_same_at_once(tmp_path: Path) -> None:
    entry = tmp_path / f"{MODEL[:16]}-{DATA[:16]}"
    entry.mkdir()
    with locked(entry, ""), pytest.raises(UsageError, match="being made by another process; wait for it"):
        Making().cached(tmp_path)


@pytest.fixture(scope="module")
def faces() -> list[bytes]:
    return [encode(draw_face(0, identity, 0)) for identity in range(13)]


def test_sets_and_images_are_embedded_once_at_the_models_size(
    small_set: Path, faces: list[bytes], tmp_path: Path
) -> None:
    seen: list[torch.Size] = []

    def counted(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[2:])
        return embed(images)

    embedder = Embedder(Model(counted, 32, MODEL, "counted"), LOADER, CPU, tmp_path)
    catalog = open_catalog({"small": small_set})
    loader = LOADER.model_copy(update={"image_size": 32})
    expected = {
        "set": embed_set(embed, catalog, loader, CPU),
        "images": embed_images(embed, faces, loader, CPU),
        "sums": embed_images(embed, faces, loader, CPU, normalise=False),
    }
    for folder in (None, tmp_path, tmp_path):
        one = replace(embedder, folder=folder)
        num_seen = len(seen)
        np.testing.assert_array_equal(one.of_set(catalog), expected["set"])
        np.testing.assert_array_equal(one.of_images(faces, DATA), expected["images"])
        np.testing.assert_array_equal(one.of_images(faces, DATA, normalise=False), expected["sums"])
    assert len(seen) == num_seen, "the last time, everything was there"
    assert set(seen) == {(32, 32)}
    other = Embedder(Model(counted, 32, "34" * 32, "another"), LOADER, CPU, tmp_path)
    other.of_set(catalog)
    assert len(seen) > num_seen


def as_rank(rank: int, out: Path) -> None:
    """Of two: embed a set and images twice; note the embeddings and how many batches this rank has made."""
    num_batches = 0

    def counted(images: torch.Tensor) -> torch.Tensor:
        nonlocal num_batches
        num_batches += 1
        return embed(images)

    world = World(rank, 2, rank)
    join(world, CPU)
    ranks = Ranks(rank, 2, partial(gathered, world=world))
    embedder = Embedder(Model(counted, 32, MODEL, ""), LOADER, CPU, out / "cache", ranks)
    faces = pickle.loads((out / "faces").read_bytes())
    catalog = open_catalog({"small": Path((out / "set").read_text())})
    found = [embedder.of_set(catalog), embedder.of_images(faces, DATA)]
    first = num_batches
    found += [embedder.of_set(catalog), embedder.of_images(faces, DATA)]
    leave(world)
    np.savez(out / f"found.{rank}.npz", *found, num_batches=[first, num_batches])


def test_two_processes_share_the_work_and_each_has_what_one_would_make(
    small_set: Path, faces: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "faces").write_bytes(pickle.dumps(faces))
    (tmp_path / "set").write_text(str(small_set))
    in_two_processes(as_rank, tmp_path)
    alone = Embedder(Model(embed, 32, MODEL, ""), LOADER, CPU)
    expected = [alone.of_set(open_catalog({"small": small_set})), alone.of_images(faces, DATA)] * 2
    for rank in (0, 1):
        found = np.load(tmp_path / f"found.{rank}.npz")
        for number, rows in enumerate(expected):
            np.testing.assert_allclose(found[f"arr_{number}"], rows, atol=1e-6)
        # Of 32 and 13 images in batches of 5, each rank makes 4 and 2, twice for the mirror images.
        assert found["num_batches"].tolist() == [12, 12]
    assert len(list((tmp_path / "cache").glob("*/*"))) == 4
    assert json.loads(next((tmp_path / "cache").glob("*/about.json")).read_text())["model"] == MODEL
