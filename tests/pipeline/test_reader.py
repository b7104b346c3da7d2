"""Encoded images out of shards: by our reader, and by DALI's own."""

import ctypes
import mmap
import os
import resource
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn

from pipeline import reader
from pipeline.catalog import open_catalog
from pipeline.reader import ShardReader
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError, UsageError
from shardgen.inputs.folders import open_folder
from shardgen.manifest import FileInfo, hash_file
from shardgen.tags import no_tags
from tests.support import cut_in_half, exchange, extend


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
    read = ShardReader(catalog).read(np.arange(len(catalog)))
    assert read == [path.read_bytes() for path in photographs] * 2


def test_samples_come_in_the_order_asked_for_and_as_often(small_set: Path) -> None:
    catalog = open_catalog({"drawn": small_set})
    shards = ShardReader(catalog)
    whole = shards.read(np.arange(len(catalog)))
    assert len(set(whole)) == 32
    asked = np.array([31, 0, 12, 12, 5, 31])
    assert shards.read(asked) == [whole[sample] for sample in asked]
    assert shards.read(asked[:0]) == []


def num_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_reader_that_is_no_more_leaves_no_file_open(small_set: Path) -> None:
    catalog, before = open_catalog({"drawn": small_set}), num_open_files()
    shards = ShardReader(catalog)
    shards.read(np.arange(32))
    assert num_open_files() == before + len(catalog.shards)
    del shards
    assert num_open_files() == before


def test_a_shard_is_opened_only_when_a_sample_of_it_is_asked_for(small_set: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_set, tmp_path / "set")
    catalog = open_catalog({"drawn": folder})
    (folder / "000001.tar").unlink()
    every = np.arange(len(catalog))
    shards, _, _ = catalog.places(every)
    assert len(ShardReader(catalog).read(every[shards != 1])) == 22
    with pytest.raises(DataError, match=r"000001.tar cannot be read any more \(No such file.*put it back"):
        ShardReader(catalog).read(every[shards == 1])


@pytest.fixture
def own_set(small_set: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_set, tmp_path / "own")


def edit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content)


HARMS = [
    (Path.unlink, "cannot be read any more"),
    (cut_in_half, "is [0-9]+ bytes now, its manifest says [0-9]+"),
    (extend, "is [0-9]+ bytes now"),
    (edit, "has SHA-256 .* now, its manifest says"),
    (exchange, "has SHA-256"),
]


@pytest.mark.parametrize(("harm", "message"), HARMS)
def test_a_shard_that_changes_while_it_is_in_use_is_noticed(
    own_set: Path, harm: Callable[[Path], None], message: str
) -> None:
    shards = ShardReader(open_catalog({"drawn": own_set}))
    shards.read(np.arange(32))
    harm(own_set / "000001.tar")
    with pytest.raises(DataError, match=f"000001.tar {message}.*put it back as it was, then resume") as caught:
        shards.read(np.arange(32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rewrite", ["renamed", "touched", "in place"])
def test_a_shard_that_is_put_back_with_the_same_bytes_is_read_on(own_set: Path, rewrite: str) -> None:
    shards = ShardReader(open_catalog({"drawn": own_set}))
    before = shards.read(np.arange(32))
    path = own_set / "000001.tar"
    if rewrite == "renamed":
        shutil.copy(path, own_set / "copy")
        (own_set / "copy").replace(path)
    elif rewrite == "touched":
        os.utime(path, ns=(0, 0))
    else:
        path.write_bytes(path.read_bytes())
    assert shards.read(np.arange(32)) == before


def damage_unseen(path: Path) -> None:
    """Change a byte in the middle and nothing that a look would show."""
    edit(path)
    os.utime(path, ns=(0, 0))


def test_a_shard_of_the_right_size_is_taken_unless_hashes_are_asked_for(own_set: Path) -> None:
    damage_unseen(own_set / "000002.tar")
    catalog = open_catalog({"drawn": own_set})
    assert len(ShardReader(catalog).read(np.arange(32))) == 32
    with pytest.raises(DataError, match=r"000002.tar has SHA-256"):
        ShardReader(catalog, "hash").read(np.arange(32))


def test_verifying_hashes_once_and_only_the_shards_of_the_samples(
    own_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> FileInfo:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(reader, "hash_file", counted)
    damage_unseen(own_set / "000002.tar")
    shards = ShardReader(open_catalog({"drawn": own_set}))
    for _ in range(2):
        shards.verify(np.array([0, 1, 15, 2]))
    assert hashed == ["000000.tar", "000001.tar"]
    with pytest.raises(DataError, match=r"000002.tar has SHA-256"):
        shards.verify(np.array([25]))


def test_more_shards_than_files_may_be_open_are_named_before_they_fail(
    small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog({"drawn": small_set})
    limits = {"soft": 20, "hard": 1000}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits["soft"], limits["hard"]))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.update(soft=new[0], hard=new[1]))
    ShardReader(catalog)
    assert 4 + 200 < limits["soft"] <= limits["hard"] == 1000
    limits["hard"] = 100
    with pytest.raises(UsageError, match=r"4 shards are more than the 100 files .*ulimit"):
        ShardReader(catalog)


def test_a_sample_is_described_by_its_name_its_set_and_its_shard(small_set: Path) -> None:
    catalog = open_catalog({"one": small_set, "other": small_set})
    described = ShardReader(catalog).describe(32 + 13)
    shards, offsets, _ = catalog.places(np.array([13]))
    with tarfile.open(small_set / f"{int(shards[0]):06}.tar") as tar:
        (name,) = (member.name for member in tar if member.offset_data == offsets[0])
    assert described == f"{name} of set other in {small_set}/{int(shards[0]):06}.tar"


def resident(path: Path, offset: int, size: int) -> bool:
    """Whether bytes of a file are in memory, by what the system says without reading them."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        begin = offset & -mmap.PAGESIZE
        pages = (ctypes.c_ubyte * -(-(offset + size - begin) // mmap.PAGESIZE))()
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        status = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(address + begin), ctypes.c_size_t(offset + size - begin), pages
        )
    assert status == 0
    return all(page & 1 for page in pages)


def evict(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.parametrize("asked", [[3], [9, 3, 3, 2], [0, 31], list(range(32)), []])
def test_what_is_read_ahead_is_in_memory_soon_and_nothing_else(own_set: Path, asked: list[int]) -> None:
    catalog = open_catalog({"drawn": own_set})
    shards, offsets, sizes = (column.tolist() for column in catalog.places(np.arange(32)))
    places = [
        (catalog.shards[shard].path, offset, size) for shard, offset, size in zip(shards, offsets, sizes, strict=True)
    ]
    for path in own_set.glob("*.tar"):
        evict(path)
    if any(resident(*place) for place in places):
        pytest.skip("this file system keeps everything in memory")
    ShardReader(catalog).read_ahead(np.array(asked, np.int64))
    deadline = time.monotonic() + 20
    while not all(resident(*places[sample]) for sample in asked):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    touched = {sample for sample in range(32) if resident(*places[sample])}
    assert touched <= {near for sample in asked for near in (sample - 1, sample, sample + 1)}


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
