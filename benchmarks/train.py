"""What does a step of training cost, beside the incumbent's way to take it, and does the loader keep up with it?

Every backbone in both ways, each in a process of its own; they take turns in every round.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import get_args

import torch

from benchmarks.timing import apart, print_table
from benchmarks.train_peers import INCUMBENT, OURS, Job, Measured, flops_per_image
from pipeline.loader import resolve_device
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.inputs.folders import open_folder
from shardgen.procedural import draw_folder
from shardgen.tags import no_tags
from train.config import EncoderConfig
from train.updates import autocast_dtype

_PEER = "InsightFace's way"
_WAYS = {"facemix": OURS, _PEER: INCUMBENT}

_Row = tuple[str, str]
"""Backbone and way."""


@dataclass(frozen=True)
class _Size:
    """How much is measured."""

    backbones: Sequence[str]
    batch: int
    threads: int
    """On a CPU one: of several, each waits for the slowest, so that other work on the machine decides."""
    seconds: float
    """Of each measurement."""
    rounds: int
    identities: int = 10_000
    """Of the head."""
    faces: int = 2000
    """Drawn for the loaders, 8 an identity."""


_SOME = ("iresnet_mini", "iresnet18", "iresnet50", "mobilefacenet", "vit_t")
_ALL = get_args(EncoderConfig.model_fields["backbone"].annotation)
_GPU = _Size(_ALL, batch=128, threads=os.cpu_count() or 1, seconds=5.0, rounds=1)
_CPU = _Size(_SOME, batch=16, threads=1, seconds=3.0, rounds=3)
_SMOKE = _Size(("iresnet_mini", "mobilefacenet"), batch=8, threads=1, seconds=0.0, rounds=1, identities=100, faces=64)


def main(smoke: bool = False) -> None:
    """Print the table; `smoke` only shows that it comes about."""
    device = resolve_device("auto")
    size = _SMOKE if smoke else _GPU if device.type == "cuda" else _CPU
    with tempfile.TemporaryDirectory() as folder:
        measured = take_turns(_jobs(size, _draw(Path(folder), size.faces)), size.rounds)
    dtype = autocast_dtype("auto", device) or torch.float32
    peak = max(one.matmul_flops for one in measured.values())
    print(f"\nBatches of {size.batch}, CosFace over {size.identities:,} identities; peak is what a large product of")
    print(f"{dtype} matrices reaches, {peak / 1e9:,.0f} GFLOP/s; x is by {_PEER}\n")
    _print(measured, {backbone: flops_per_image(backbone, size.identities) for backbone in size.backbones}, peak)


def _draw(folder: Path, num_faces: int) -> Path:
    draw_folder(folder, 0, range(num_faces // 8), range(8))
    source = open_folder(folder / "images")
    config = ShardConfig(name="drawn", origin="synthetic", check="header", shard_samples=num_faces // 8)
    convert(source, no_tags(len(source)), folder / "set", config)
    return folder / "set"


def _jobs(size: _Size, shards: Path) -> dict[_Row, Job]:
    return {
        (backbone, name): Job(backbone, way, str(shards), size.batch, size.identities, size.threads, size.seconds)
        for backbone in size.backbones
        for name, way in _WAYS.items()
    }


def take_turns(jobs: Mapping[_Row, Job], rounds: int) -> dict[_Row, Measured]:
    """Run all jobs once a round and return the medians."""
    runs: dict[_Row, list[Measured]] = {row: [] for row in jobs}
    for _ in range(rounds):
        for row, job in jobs.items():
            runs[row].append(Measured(**apart("benchmarks.train_peers", json.dumps(asdict(job)))))
    return {row: _median(taken) for row, taken in runs.items()}


def _median(runs: Sequence[Measured]) -> Measured:
    return Measured(*map(statistics.median, zip(*map(astuple, runs), strict=True)))


def _print(measured: Mapping[_Row, Measured], flops: Mapping[str, float], peak: float) -> None:
    rows = []
    for (backbone, way), one in measured.items():
        peer, rate = measured[backbone, _PEER], flops[backbone] * one.images_per_second
        rows.append(
            [
                f"{backbone}, {way}",
                f"{one.images_per_second:.1f}",
                f"{one.images_per_second / peer.images_per_second:.2f}",
                f"{one.loaded_images_per_second:.1f}",
                f"{one.loaded_images_per_second / peer.loaded_images_per_second:.2f}",
                f"{one.waiting_share:.1%}",
                f"{flops[backbone] / 1e9:.2f}",
                f"{rate / 1e9:.1f}",
                f"{rate / peak:.1%}",
                f"{one.peak_bytes / 2**20:.0f}",
            ]
        )
    columns = ["img/s", "x", "with loader", "x", "waiting", "GFLOP/image", "GFLOP/s", "of peak", "peak MiB"]
    print_table(["", *columns], rows)
