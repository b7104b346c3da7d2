"""What does an image cost on its way into a batch, beside decoding alone and the loaders that people use now?

Three tables: loaders that flip; augmentation, as what it adds to a loader's cost; and where our loader's time goes.
Every peer runs in a process of its own and takes its turn in every round.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks.environments import runnable
from benchmarks.loader_peers import BATCH, THREADS, Data, face_loader
from benchmarks.timing import Cost, Run, apart, print_costs, print_table, take_turns
from pipeline.stats import STAGES, Throughput
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.inputs.records import open_recordio
from shardgen.procedural import draw_face, encode
from shardgen.recordio import write_insightface
from shardgen.tags import no_tags

_LIMIT = "decoding alone (libjpeg-turbo)"
_OURS = "FaceLoader"
_OURS_FLOAT = f"{_OURS}, then float32"
_DALI = "DALI webdataset reader"
_LOADERS = {  # row of the table -> (peer, environment or "" for our own)
    _LIMIT: ("limit", ""),
    _OURS: ("facemix", ""),
    _OURS_FLOAT: ("facemix float", ""),
    f"{_OURS}, second pass from its cache": ("facemix cached", ""),
    _DALI: ("dali webdataset", ""),
    f"{_DALI}, float32": ("dali webdataset float", ""),
    "DALI mxnet reader": ("dali mxnet", ""),
    "SPDL + simplejpeg": ("spdl", "spdl"),
    "torch DataLoader + webdataset, simplejpeg": ("torch webdataset", ""),
    "torch DataLoader + webdataset, OpenCV, float32": ("torch webdataset float", ""),
    "InsightFace's data set in a torch DataLoader, float32": ("insightface", "insightface"),
}
_AUGMENTED = {  # augmentation -> (our peer, the usual way)
    "RandAugment(4, 16)": ("facemix randaugment", "torch pil randaugment"),
    "AdaFace's set": ("facemix adaface", "torch pil adaface"),
}


def main(smoke: bool = False) -> None:
    """Print the tables; `smoke` only shows that they come about, with the environments that are there."""
    images, distinct, rounds = (BATCH, 40, 1) if smoke else (32 * BATCH, 2000, 5)
    with tempfile.TemporaryDirectory() as folder:
        data, image_bytes = _make_data(Path(folder), images, distinct)
        costs = take_turns(dict(_peers(data, build=not smoke)), rounds)
        stages = {augment: _stages(data, augment) for augment in ("flip", "randaugment", "adaface")}
    loaders = {row: cost for row, cost in costs.items() if row in _LOADERS}
    title = f"{images} JPEGs of 112x112, {image_bytes:.0f} bytes on average"
    print_costs(f"{title}, batches of {BATCH}, {THREADS} threads, per image", loaders, _LIMIT)
    _print_ratios(loaders)
    _print_augmented(costs)
    _print_stages(stages)


def _make_data(folder: Path, images: int, distinct: int) -> tuple[Data, float]:
    """Write drawn faces, which repeat, as a `.rec` and as a shard set; return them and an image's mean size."""
    faces = [encode(draw_face(0, *divmod(face, 8))) for face in range(distinct)]
    write_insightface(
        folder, ([faces[(first + image) % distinct] for image in range(8)] for first in range(0, images, 8))
    )
    source = open_recordio(folder / "train.rec")
    config = ShardConfig(name="drawn", origin="synthetic", check="header", shard_samples=images // 8)
    convert(source, no_tags(len(source)), folder / "set", config)
    return Data(folder / "set", folder / "train.rec", images), sum(map(len, faces)) / distinct


def _peers(data: Data, build: bool) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Yield every peer that can run here, by its row in a table."""
    for row, peer, python in runnable(_LOADERS, build):
        yield row, partial(_run, peer, data, python)
    for ours, usual in _AUGMENTED.values():
        yield from ((peer, partial(_run, peer, data)) for peer in (ours, usual))


def _run(peer: str, data: Data, python: str = sys.executable) -> Run:
    arguments = [peer, str(data.shards), str(data.rec), str(data.images)]
    return Run(**apart("benchmarks.loader_peers", *arguments, python=python))


def _print_ratios(costs: Mapping[str, Cost]) -> None:
    """Print what a peer's image costs by what ours does, each with the same thing in the batch."""
    print(f"\nCPU time by that of {_OURS} with the same type of batch:\n")
    for row, cost in costs.items():
        ours = costs[_OURS_FLOAT if row.endswith("float32") else _OURS]
        print(f"- {row}: {cost.cpu_us / ours.cpu_us:.2f}")


def _print_augmented(costs: Mapping[str, Cost]) -> None:
    print("\nAugmented, then float32, CPU us an image\n")
    rows = []
    for name, (ours, usual) in _AUGMENTED.items():
        cost, plain, peer = costs[ours], costs[_OURS_FLOAT], costs[usual]
        ratios = [f"{peer.cpu_us / cost.cpu_us:.2f}", f"{peer.wall_us / cost.wall_us:.2f}"]
        rows.append([name, *(f"{us:.0f}" for us in (cost.cpu_us, cost.cpu_us - plain.cpu_us, peer.cpu_us)), *ratios])
    columns = ["", "FaceLoader", "of it augmentation", "torch DataLoader + PIL", "ratio", "ratio of wall time"]
    print_table(columns, rows)


def _stages(data: Data, augment: str) -> Throughput:
    """Take each image twice as fast as they come, and return what the second time cost."""
    loader = face_loader(data, augment)
    snapshots: list[Throughput] = []
    for _ in range(2):
        for _ in range(data.images // BATCH):
            next(loader)
        snapshots.append(loader.stats())
    loader.close()
    return snapshots[1] - snapshots[0]


def _print_stages(stages: Mapping[str, Throughput]) -> None:
    print(f"\nWhere {_OURS}'s making thread is; decode is waiting for DALI's threads, so near 1 they are the limit\n")
    rows = [
        [
            augment,
            *(f"{cost.images_per_second:.0f}", f"{cost.waiting_share:.2f}"),
            *(f"{cost.occupancy[stage]:.2f}" for stage in STAGES),
        ]
        for augment, cost in stages.items()
    ]
    print_table(["augment", "img/s", "waiting", *STAGES], rows)
