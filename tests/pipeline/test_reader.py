"""Encoded images out of shards: by our reader, and by DALI's own."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn

from pipeline.catalog import open_catalog
from pipeline.reader import ShardReader
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.images import EXTENSIONS
from shardgen.sources import open_folder
from shardgen.tags import no_tags


@pytest.fixture(scope="module")
def real_set(real_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 photographs in shards of 10."""
    root = tmp_path_factory.mktemp("real")
    (root / "faces").mkdir()
    for path in sorted((real_faces / "utkface" / "images").iterdir())[:27]:
        (root / "faces" / path.name).symlink_to(path)
    source, _ = open_folder(root / "faces")
    convert(source, no_tags(len(source)), root / "set", ShardConfig(name="real", origin="authentic", shard_samples=10))
    return root / "set"


def sources_of(folder: Path) -> dict[str, bytes]:
    """Return each key's source file, by the path that its json names."""
    files: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    name = json.load(stream)["attributes"]["source"]
                    raw = next(root / name for root in _roots(folder) if (root / name).exists())
                    files[member.name.removesuffix(".json")] = raw.read_bytes()
    return files


def _roots(folder: Path) -> list[Path]:
    return [folder.with_name(folder.name + ".raw") / "images", folder.with_name("faces")]


def test_a_read_gives_back_the_source_files_bytes(real_set: Path, small_set: Path) -> None:
    catalog = open_catalog({"real": real_set, "drawn": small_set})
    read = [bytes(view) for view in ShardReader(catalog).read(np.arange(len(catalog)))]
    assert read == [*sources_of(real_set).values(), *sources_of(small_set).values()]


def test_samples_come_in_the_order_asked_for_and_as_often(small_set: Path) -> None:
    catalog = open_catalog({"drawn": small_set})
    reader = ShardReader(catalog)
    whole = [bytes(view) for view in reader.read(np.arange(len(catalog)))]
    asked = np.array([31, 0, 12, 12, 5, 31])
    assert [bytes(view) for view in reader.read(asked)] == [whole[sample] for sample in asked]
    assert reader.read(asked[:0]) == []


def test_reading_copies_nothing_and_cannot_write(small_set: Path) -> None:
    reader = ShardReader(open_catalog({"drawn": small_set}))
    (first,), (again,) = reader.read(np.array([3])), reader.read(np.array([3]))
    assert np.shares_memory(first, again)
    assert not first.flags.writeable


def test_a_shard_is_opened_only_when_a_sample_of_it_is_asked_for(small_set: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_set, tmp_path / "set")
    catalog = open_catalog({"drawn": folder})
    (folder / "000001.tar").unlink()
    ids = np.flatnonzero(catalog.shard != 1)
    assert len(ShardReader(catalog).read(ids)) == len(ids) == 22
    with pytest.raises(FileNotFoundError):
        ShardReader(catalog).read(np.flatnonzero(catalog.shard == 1))


def test_dalis_own_reader_reads_our_shards_with_our_index(real_set: Path) -> None:
    tars = sorted(real_set.glob("*.tar"))
    expected: list[bytes] = []
    for path in tars:
        with tarfile.open(path) as tar:
            streams = [tar.extractfile(member) for member in tar]
            expected += [stream.read() for stream in streams if stream is not None]
    with Pipeline(batch_size=9, num_threads=1, device_id=None) as pipe:
        outputs = fn.readers.webdataset(
            paths=[str(path) for path in tars],
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=[";".join(sorted(EXTENSIONS)), "json"],
            missing_component_behavior="error",
        )
        pipe.set_outputs(*outputs)
    read: list[bytes] = []
    for _ in range(3):
        images, described = pipe.run()
        read += [bytes(column.at(i)) for i in range(9) for column in (images, described)]
    assert len(expected) == 2 * 27
    assert read == expected
