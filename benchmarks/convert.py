"""What does a record cost on its way into a shard, beside decoding alone and webdataset's ShardWriter?

Ours decodes every image to check it and writes tar, index and table, hashed and synced; the peers do less.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import webdataset

from benchmarks.timing import compare, print_costs
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.procedural import draw_recordio
from shardgen.sources import RecordIOSource, open_recordio
from shardgen.tags import no_tags


def main(smoke: bool = False) -> None:
    """Print the table; `smoke` only shows that it runs."""
    identities = 20 if smoke else 400
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_recordio(folder / "raw", 0, range(identities), images=10)
        source = open_recordio(folder / "raw")
        peers = {
            "decoding alone (OpenCV)": _decode_only(source),
            "facemix shard, one process": _ours(source, folder),
            "decoding + webdataset ShardWriter": _shard_writer(source, folder),
        }
        costs = compare(peers, rounds=1 if smoke else 5)
    print_costs(f"{len(source)} JPEGs of 112x112, one process, per record", costs, "decoding alone (OpenCV)")


def _decode_only(source: RecordIOSource) -> Callable[[], int]:
    def run() -> int:
        images = (source.read(record) for record in range(len(source)))
        return sum(cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) is not None for one in images)

    return run


def _ours(source: RecordIOSource, folder: Path) -> Callable[[], int]:
    config = ShardConfig(name="drawn", origin="authentic", shard_samples=1000)

    def run() -> int:
        out = Path(tempfile.mkdtemp(dir=folder)) / "set"
        return convert(source, no_tags(len(source)), out, config).num_samples

    return run


def _shard_writer(source: RecordIOSource, folder: Path) -> Callable[[], int]:
    decode = _decode_only(source)

    def run() -> int:
        out = tempfile.mkdtemp(dir=folder)
        with webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=1000, verbose=0) as writer:
            for record, label in enumerate(source.labels.tolist()):
                fields = json.dumps({"identity": label}).encode()
                writer.write({"__key__": f"{record:08x}", "jpg": source.read(record), "json": fields})
        return decode()

    return run
