"""Encoded images out of shards: by our reader, and by DALI's own."""

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
from shardgen.inputs.folders import open_folder
from shardgen.tags import no_tags


@pytest.fixture(scope="module")
def photographs(real_faces: Path) -> list[Path]:
    return sorted((real_faces / "utkface" / "images").iterdir())[:27]


@pytest.fixture(scope="module")
def real_set(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs in their order, in shards of 10."""
    root = tmp_path_factory.mktemp("real")
    (root / "faces").mkdir()
    for path in photographs:
        (root / "faces" / path.name).symlink_to(path)
    source = open_folder(root / "faces")
    config = ShardConfig(name="real", origin="authentic", shard_samples=10, order="source")
    convert(source, no_tags(len(source)), root / "set", config)
    return root / "set"


def test_a_read_gives_back_the_source_files_bytes(real_set: Path, photographs: list[Path]) -> None:
    catalog = open_catalog({"real": real_set, "again": real_set})
    read = [bytes(view) for view in ShardReader(catalog).read(np.arange(len(catalog)))]
    assert read == [path.read_bytes() for path in photographs] * 2


def test_samples_come_in_the_order_asked_for_and_as_often(small_set: Path) -> None:
    catalog = open_catalog({"drawn": small_set})
    reader = ShardReader(catalog)
    whole = [bytes(view) for view in reader.read(np.arange(len(catalog)))]
    assert len(set(whole)) == 32
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
            expected += [stream.read() for stream in map(tar.extractfile, tar) if stream]
    with Pipeline(batch_size=9, num_threads=1, device_id=None) as pipe:
        images, described = fn.readers.webdataset(  # type: ignore[misc]  # the stub says it returns nothing
            paths=[str(path) for path in tars],
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=["jpg;png", "json"],
            missing_component_behavior="error",
        )
        pipe.set_outputs(images, described)
    read: list[bytes] = []
    for _ in range(3):
        columns = pipe.run()
        read += [bytes(column.at(row)) for row in range(9) for column in columns]
    assert len(expected) == 2 * 27
    assert read == expected
