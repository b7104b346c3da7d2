"""Programs that take every record of a `.rec` somewhere else, each in a process of its own.

`python -m benchmarks.peers NAME REC WARM_REC OUT` measures one and prints a `Run` as JSON. Imports and a pass
over the small WARM_REC come before the clock starts. Outside of functions stands the standard library only, for
each peer lives in the environment that its packages need.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

from benchmarks.timing import Run, timed

SHARD_RECORDS = 10_000
_WORDS_AND_HEADER = struct.Struct("<IIIfQQ")  # magic, length, flag, label, id, id2
_IMAGE_HEADER_BYTES = 24

Work = Callable[[Path], object]
"""Takes every record of one `.rec` into a folder."""


def _records(rec: Path) -> Iterator[tuple[int, bytes]]:
    """Yield label and image of each image record: the same reader for all peers, as plain as Python can."""
    with rec.open("rb") as stream:
        while head := stream.read(_WORDS_AND_HEADER.size):
            _, payload_bytes, flag, label, _, _ = _WORDS_AND_HEADER.unpack(head)
            image_bytes = payload_bytes - _IMAGE_HEADER_BYTES
            image = stream.read(image_bytes + -image_bytes % 4)
            if not flag:
                yield int(label), image[:image_bytes]


def _fields(record: int, label: int) -> dict[str, Any]:
    """Return what facemix writes into `<key>.json`."""
    return {
        "attributes": {"source": str(record + 1)},  # InsightFace's keys count from 1
        "dataset": "drawn",
        "identity": str(label),
        "origin": "synthetic",
        "tags": {},
    }


def _copy(rec: Path) -> Work:
    return lambda out: shutil.copyfile(rec, out / "copy.rec")


def _promises(rec: Path) -> Work:
    """Copy, hash by SHA-256 and sync: what a writer that keeps our promises pays before it does anything else."""

    def run(out: Path) -> None:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
        with rec.open("rb", buffering=0) as source, (out / "copy.rec").open("wb", buffering=0) as copy:
            while num_bytes := source.readinto(buffer):
                digest.update(buffer[:num_bytes])
                copy.write(buffer[:num_bytes])
            os.fsync(copy.fileno())

    return run


def _facemix(rec: Path, **options: Any) -> Work:
    from shardgen.config import ShardConfig
    from shardgen.convert import convert
    from shardgen.inputs.records import open_recordio
    from shardgen.tags import no_tags

    config = ShardConfig(name="drawn", origin="synthetic", shard_samples=SHARD_RECORDS, **options)

    def run(out: Path) -> None:
        source = open_recordio(rec)
        convert(source, no_tags(len(source)), out / "set", config)

    return run


def _decode(rec: Path, threads: int) -> Work:
    """Decode and nothing else; every thread has its share beforehand and lets go of the GIL in OpenCV."""
    import cv2
    import numpy as np

    images = [np.frombuffer(image, np.uint8) for _, image in _records(rec)]

    def decode(first: int) -> None:
        for image in images[first::threads]:
            cv2.imdecode(image, cv2.IMREAD_COLOR)

    def run(_: Path) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, range(threads)))

    return run


def _shard_writer(rec: Path, second: str) -> Work:
    import webdataset

    def run(out: Path) -> None:
        with webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=SHARD_RECORDS, verbose=0) as writer:
            for record, (label, image) in enumerate(_records(rec)):
                value = _fields(record, label) if second == "json" else label
                writer.write({"__key__": f"{record:08x}", "jpg": image, second: value})

    return run


def _tarfile(rec: Path) -> Work:
    def run(out: Path) -> None:
        samples = enumerate(_records(rec))
        for first in samples:
            with tarfile.open(out / f"{first[0]}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
                for record, (label, image) in chain([first], islice(samples, SHARD_RECORDS - 1)):
                    _add_member(archive, f"{record:08x}.jpg", image)
                    _add_member(archive, f"{record:08x}.json", json.dumps(_fields(record, label)).encode())

    return run


def _add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, BytesIO(content))


def _mxnet(rec: Path) -> Work:
    import mxnet

    def run(out: Path) -> None:
        writer = mxnet.recordio.MXIndexedRecordIO(str(out / "train.idx"), str(out / "train.rec"), "w")
        for record, (label, image) in enumerate(_records(rec)):
            header = mxnet.recordio.IRHeader(0, label, record, 0)
            writer.write_idx(record, mxnet.recordio.pack(header, image))
        writer.close()

    return run


def _mds(rec: Path) -> Work:
    writer_class = _import_mds_writer()

    def run(out: Path) -> None:
        with writer_class(out=str(out / "mds"), columns={"jpg": "bytes", "identity": "int"}) as writer:
            for label, image in _records(rec):
                writer.write({"jpg": image, "identity": label})

    return run


@cache
def _import_mds_writer() -> Any:
    """Import the writer without its package's `__init__`, which wants torch, torchvision and transformers.

    Writing uses none of them; torch is asked for ranks on import only.
    """
    for name in ("torch", "torch.distributed", "torch.utils", "torch.utils.data"):
        sys.modules[name] = Mock()
    found = importlib.util.find_spec("streaming")
    assert found is not None
    assert found.submodule_search_locations is not None
    (folder,) = found.submodule_search_locations
    for name, path in (("streaming", folder), ("streaming.base", f"{folder}/base")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [path]
    return importlib.import_module("streaming.base.format.mds.writer").MDSWriter


_CORES = os.cpu_count() or 1
PEERS: Mapping[str, Callable[[Path], Work]] = {
    "copy": _copy,
    "promises": _promises,
    "facemix, headers": partial(_facemix, check="header"),
    "facemix, decoding": partial(_facemix, check="decode", workers=_CORES),
    "decode": partial(_decode, threads=_CORES),
    "webdataset jpg+json": partial(_shard_writer, second="json"),
    "webdataset jpg+cls": partial(_shard_writer, second="cls"),
    "tarfile": _tarfile,
    "mxnet": _mxnet,
    "mds": _mds,
}


def _measure(name: str, rec: Path, warm_rec: Path, out: Path) -> Run:
    def run() -> int:
        work(out / "measured")
        return count

    for folder in ("warm", "measured"):
        (out / folder).mkdir()
    PEERS[name](warm_rec)(out / "warm")
    work, count = PEERS[name](rec), sum(1 for _ in _records(rec))  # counting warms the page cache too
    return timed(run)


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(sys.argv[1], *map(Path, sys.argv[2:])))))
