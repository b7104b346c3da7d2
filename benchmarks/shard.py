"""What does a record cost on its way into a shard, beside a plain copy and the writers that people use now?

Three tables: one process that checks headers, against other writers; all cores that decode every image, against
decoding alone; and sets of growing size, whose records should cost the same and need no more memory.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.environments import runnable
from benchmarks.timing import Cost, Run, apart, print_costs, print_table, take_turns
from shardgen.procedural import draw_face, encode
from shardgen.recordio import write_insightface

_IMAGES_OF_IDENTITY = 10
_NEEDED_BYTES = 20_000  # of disk for a record: its place in the .rec and in the set made of it, and some air
_COPY, _OURS, _SHARD_WRITER = (
    "plain copy of the .rec",
    "facemix shard --check header",
    "webdataset ShardWriter jpg+json",
)
_WRITERS = {  # row of the table -> (peer, environment or "" for our own)
    _COPY: ("copy", ""),
    "copy, hashed and synced": ("promises", ""),
    _OURS: ("facemix, headers", ""),
    "MosaicML MDSWriter": ("mds", "mds"),
    "MXNet MXIndexedRecordIO": ("mxnet", "mxnet"),
    "tarfile, USTAR, jpg+json": ("tarfile", ""),
    "webdataset ShardWriter jpg+cls": ("webdataset jpg+cls", ""),
    _SHARD_WRITER: ("webdataset jpg+json", ""),
}


@dataclass(frozen=True)
class _Plan:
    distinct_faces: int
    writers: int
    """Records for the first table."""
    decoding: tuple[int, int]
    """Two sizes, so that the start of the workers and each record's own cost can be told apart."""
    growth: Sequence[int]
    rounds: int
    growth_rounds: int


_FULL = _Plan(2000, 20_000, (20_000, 100_000), (10_000, 100_000, 1_000_000), rounds=5, growth_rounds=2)
_SMOKE = _Plan(40, 200, (100, 200), (100, 200), rounds=1, growth_rounds=1)


@dataclass(frozen=True)
class _Inputs:
    folder: Path
    faces: Sequence[bytes]

    def rec(self, records: int) -> Path:
        """Return InsightFace's `train.rec` of so many records, written on first use; the faces repeat."""
        folder = self.folder / f"{records}"
        if not folder.exists():
            write_insightface(folder, (self._of_identity(one) for one in range(records // _IMAGES_OF_IDENTITY)))
        return folder / "train.rec"

    def _of_identity(self, identity: int) -> list[bytes]:
        first = identity * _IMAGES_OF_IDENTITY
        return [self.faces[image % len(self.faces)] for image in range(first, first + _IMAGES_OF_IDENTITY)]


def main(smoke: bool = False) -> None:
    """Print the tables; `smoke` only shows that they come about, with the environments that are there."""
    plan = _SMOKE if smoke else _FULL
    faces = [encode(draw_face(0, *divmod(face, _IMAGES_OF_IDENTITY))) for face in range(plan.distinct_faces)]
    print(f"{len(faces)} distinct drawn JPEGs of 112x112, {sum(map(len, faces)) / len(faces):.0f} bytes on average")
    with tempfile.TemporaryDirectory() as name:
        inputs = _Inputs(Path(name), faces)
        _compare_writers(inputs, plan, smoke)
        _compare_with_decoding(inputs, plan)
        _compare_sizes(inputs, plan)


def _compare_writers(inputs: _Inputs, plan: _Plan, smoke: bool) -> None:
    peers = runnable(_WRITERS, build=not smoke)
    costs = take_turns(
        {row: partial(_run, inputs, peer, plan.writers, python) for row, peer, python in peers}, plan.rounds
    )
    print(f"\n{plan.writers} records, one process, no decoding, per record; ratios are of CPU time\n")
    rows = [[row, *_figures(cost), *_ratios(cost, costs)] for row, cost in costs.items()]
    print_table(["", "CPU us", "wall us", "records/s per core", "x ShardWriter jpg+json", "x copy"], rows)
    print(
        "\nOnly facemix also checks each image's header, hashes images and shards, writes DALI's index and a table, "
        "and waits for the disk."
    )


def _compare_with_decoding(inputs: _Inputs, plan: _Plan) -> None:
    limit, ours, (few, many) = "decoding alone (OpenCV, threads)", "facemix shard --check decode", plan.decoding
    peers = {
        limit: partial(_run, inputs, "decode", few),
        f"{ours}, {few} records": partial(_run, inputs, "facemix, decoding", few),
        f"{ours}, {many} records": partial(_run, inputs, "facemix, decoding", many),
    }
    costs = take_turns(peers, plan.rounds)
    of_few, of_many = (costs[f"{ours}, {count} records"] for count in plan.decoding)
    each = _each_further(few, of_few, many, of_many)
    costs[f"{ours}, each record from {few} to {many}"] = each
    print_costs(f"Every image decoded, {os.cpu_count()} cores, per record", costs, limit)
    cpu, wall = ((of - one) * few / 1e6 for of, one in ((of_few.cpu_us, each.cpu_us), (of_few.wall_us, each.wall_us)))
    print(f"\nStarting and ending, workers included: {wall:.1f} s, {cpu:.1f} s of CPU time.")


def _each_further(few: int, of_few: Cost, many: int, of_many: Cost) -> Cost:
    """Return what a record costs once everything has started."""

    def slope(small: float, large: float) -> float:
        return (large * many - small * few) / (many - few)

    return Cost(
        cpu_us=slope(of_few.cpu_us, of_many.cpu_us),
        system_us=slope(of_few.system_us, of_many.system_us),
        wall_us=slope(of_few.wall_us, of_many.wall_us),
        peak_bytes=of_many.peak_bytes,
    )


def _compare_sizes(inputs: _Inputs, plan: _Plan) -> None:
    free_bytes = shutil.disk_usage(inputs.folder)[2]
    sizes = [size for size in plan.growth if size * _NEEDED_BYTES <= free_bytes]
    for size in plan.growth[len(sizes) :]:
        print(f"\n{size} records are left out: the disk has {free_bytes} bytes free, {size * _NEEDED_BYTES} are needed")
    ours, copy = _WRITERS[_OURS][0], _WRITERS[_COPY][0]
    costs = take_turns(
        {(peer, size): partial(_run, inputs, peer, size) for size in sizes for peer in (ours, copy)}, plan.growth_rounds
    )
    figures = [_growth_figures(costs[ours, size], costs[copy, size]) for size in sizes]
    rows = [[f"{size}", *(f"{figure:.1f}" for figure in row)] for size, row in zip(sizes, figures, strict=True)]
    ratios = [  # the kernel samples what is its own, so a short run can show none outside of it
        f"{last / first:.2f}" if first else "-" for first, last in zip(figures[0], figures[-1], strict=True)
    ]
    print(f"\n{_OURS}, one process, by the size of the set\n")
    columns = ["records", "CPU us", "of it outside the kernel", "wall us", "peak MiB", "plain copy, CPU us"]
    print_table(columns, [*rows, ["last by first", *ratios]])


def _growth_figures(ours: Cost, copy: Cost) -> list[float]:
    return [ours.cpu_us, ours.cpu_us - ours.system_us, ours.wall_us, ours.peak_bytes / 2**20, copy.cpu_us]


def _run(inputs: _Inputs, peer: str, records: int, python: str = sys.executable) -> Run:
    """Measure a peer in a process of its own and delete what it wrote."""
    rec, warm_rec = inputs.rec(records), inputs.rec(_IMAGES_OF_IDENTITY)
    with tempfile.TemporaryDirectory(dir=inputs.folder) as out:
        return Run(**apart("benchmarks.peers", peer, str(rec), str(warm_rec), out, python=python))


def _figures(cost: Cost) -> list[str]:
    return [f"{cost.cpu_us:.1f}", f"{cost.wall_us:.1f}", f"{1e6 / cost.cpu_us:,.0f}"]


def _ratios(cost: Cost, costs: Mapping[str, Cost]) -> list[str]:
    return [f"{costs[name].cpu_us / cost.cpu_us:.2f}" for name in (_SHARD_WRITER, _COPY)]
