"""How long until the first batch of 42.5 M samples is planned, what does each later one take, and what stays in memory?

Simulated shard sets of the size of WebFace42M (2.06 M identities): real manifests and tables, tars of holes. Each
mix is opened in processes of its own, files in the page cache, and beside it the same mix of 4,000 samples.

The peer is DALI's webdataset reader, which plans nothing but keeps a list of all samples too. It is opened on the first
million only, and the table says what all would take in proportion.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.simulated import SimulatedSet, simulate, write_indices
from benchmarks.timing import apart, print_table

BATCH = 512
_LATER_BATCHES = 500
_FAR_BATCH = 2_000_000
_DALI_SHARDS = 100

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Plan:
    sets: Sequence[SimulatedSet]
    identities: int
    """Of each set, in the mix that caps them."""


_LARGE = _Plan(
    (
        SimulatedSet("web", "authentic", 40_000_000, 1_940_000),
        SimulatedSet("generated", "synthetic", 2_000_000, 110_000),
        SimulatedSet("diffused", "synthetic", 500_000, 10_000),
    ),
    identities=10_000,
)
_SMALL = _Plan(
    (
        SimulatedSet("web", "authentic", 3_000, 200),
        SimulatedSet("generated", "synthetic", 600, 30),
        SimulatedSet("diffused", "synthetic", 400, 20),
    ),
    identities=20,
)


def _mixes(folder: Path, plan: _Plan) -> dict[str, dict[str, Any]]:
    """Return what is measured, as recipes say it."""

    def sets(**options: Any) -> dict[str, Any]:
        return {one.name: {"path": str(folder / one.name), **options} for one in plan.sets}

    shares = zip(sets(balance="ethnicity").items(), ("70%", "20%", "10%"), strict=True)
    return {
        "natural": {"sets": sets()},
        "70:30, four groups equal": {"sets": {name: {**one, "share": share} for (name, one), share in shares}},
        f"{plan.identities:,} identities a set, by identity": {
            "sets": sets(identities=plan.identities, sampling="identity")
        },
        "2 images an identity": {"sets": sets(), "per_identity": 2},
        "windows of 16 shards": {"sets": sets(), "window_shards": 16},
    }


def main(smoke: bool = False) -> None:
    """Print the tables; `smoke` only shows that they come about."""
    sizes, rounds = ([_SMALL], 1) if smoke else ([_LARGE, _SMALL], 3)
    with tempfile.TemporaryDirectory() as name:
        measured: list[tuple[str, _Measured]] = []
        for number, plan in enumerate(sizes):
            folder = Path(name) / f"{number}"
            simulate(folder, plan.sets)
            measured += _take_turns(_mixes(folder, plan), rounds).items()
        _print_opening(measured)
        _print_batches(measured)
        web = Path(name) / "0" / sizes[0].sets[0].name
        _print_limits([one for _, one in measured], _Dali(**_apart("dali", str(web), write_indices(web, _DALI_SHARDS))))


def _take_turns(mixes: Mapping[str, Any], rounds: int) -> dict[str, "_Measured"]:
    """Measure all mixes once a round; return of each the run that opened in the median time."""
    runs: dict[str, list[_Measured]] = {mix: [] for mix in mixes}
    for _ in range(rounds):
        for mix, fields in mixes.items():
            runs[mix].append(_Measured(**_apart("plan", fields)))
    return {mix: sorted(taken, key=lambda one: one.open_seconds)[rounds // 2] for mix, taken in runs.items()}


@dataclass(frozen=True)
class _Measured:
    """What one process needed; memory is what came on top of its imports."""

    num_samples: int
    catalog_seconds: float
    strata_seconds: float
    open_cpu_seconds: float
    """Of both."""
    resident_bytes: int
    peak_bytes: int
    first_seconds: float
    later_seconds: Sequence[float]
    later_cpu_seconds: float
    """Of all later ones together."""
    far_seconds: float

    @property
    def open_seconds(self) -> float:
        """Time until batches can be asked for."""
        return self.catalog_seconds + self.strata_seconds


def _measure(mix_fields: Mapping[str, Any]) -> _Measured:
    from pipeline.catalog import open_catalog
    from pipeline.config import MixConfig
    from pipeline.plan import Plan

    mix = MixConfig.model_validate(mix_fields)
    before, cpu = _memory("VmRSS"), time.process_time()
    catalog, catalog_seconds = _timed(lambda: open_catalog({name: one.path for name, one in mix.sets.items()}))
    plan, strata_seconds = _timed(lambda: Plan(catalog, mix, seed=0, batch_size=BATCH))
    open_cpu_seconds = time.process_time() - cpu
    _, first_seconds = _timed(lambda: plan.batch(0))
    cpu = time.process_time()
    later = [_timed(partial(plan.batch, number))[1] for number in range(1, 1 + _LATER_BATCHES)]
    later_cpu_seconds = time.process_time() - cpu
    _, far_seconds = _timed(lambda: plan.batch(_FAR_BATCH))
    return _Measured(
        num_samples=len(catalog),
        catalog_seconds=catalog_seconds,
        strata_seconds=strata_seconds,
        open_cpu_seconds=open_cpu_seconds,
        resident_bytes=_memory("VmRSS") - before,
        peak_bytes=_memory("VmHWM") - before,
        first_seconds=first_seconds,
        later_seconds=later,
        later_cpu_seconds=later_cpu_seconds,
        far_seconds=far_seconds,
    )


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _memory(line: str) -> int:
    """Return bytes of this process: `VmRSS` is what is resident, `VmHWM` the most that ever was."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(one.split()[1]) for one in status if one.startswith(line))


@dataclass(frozen=True)
class _Dali:
    """What DALI's webdataset reader needed to open."""

    num_samples: int
    seconds: float
    resident_bytes: int


def _measure_dali(folder: str, num_samples: int) -> _Dali:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def graph() -> object:
        indices = sorted(Path(folder).glob("*.idx"))
        image, _ = fn.readers.webdataset(  # type: ignore[misc]
            paths=[str(index.with_suffix(".tar")) for index in indices],
            index_paths=[str(index) for index in indices],
            ext=["jpg", "json"],
            random_shuffle=True,
            initial_fill=1,
            missing_component_behavior="error",
        )
        return image

    pipe = graph()
    before = _memory("VmRSS")
    _, seconds = _timed(pipe.build)
    return _Dali(num_samples, seconds, _memory("VmRSS") - before)


def _apart(what: str, *arguments: Any) -> dict[str, Any]:
    """Measure in a process of its own."""
    return apart("benchmarks.plan", what, json.dumps(arguments))


def _print_opening(measured: Sequence[tuple[str, _Measured]]) -> None:
    print("\nOpening, each time in a new process, the median run; memory on top of what imports take\n")
    rows = [
        [
            mix,
            f"{one.num_samples:,}",
            *(f"{seconds:.2f}" for seconds in (one.catalog_seconds, one.strata_seconds, one.open_cpu_seconds)),
            *(f"{num_bytes / 2**20:,.0f}" for num_bytes in (one.resident_bytes, one.peak_bytes)),
            f"{one.resident_bytes / one.num_samples:.1f}",
        ]
        for mix, one in measured
    ]
    print_table(
        ["mix", "samples", "catalog s", "strata s", "CPU s", "resident MiB", "peak MiB", "bytes a sample"], rows
    )


def _print_batches(measured: Sequence[tuple[str, _Measured]]) -> None:
    print(f"\nPlanning batches of {BATCH}; later ones are 1 to {_LATER_BATCHES}\n")
    rows = [
        [
            mix,
            f"{one.num_samples:,}",
            f"{one.first_seconds * 1e3:.1f}",
            f"{one.later_cpu_seconds / len(one.later_seconds) * 1e6:.0f}",
            f"{statistics.median(one.later_seconds) * 1e6:.0f}",
            f"{max(one.later_seconds) * 1e6:.0f}",
            f"{one.far_seconds * 1e3:.1f}",
        ]
        for mix, one in measured
    ]
    far = f"batch {_FAR_BATCH:,}, ms"
    print_table(["mix", "samples", "first, ms", "CPU us", "later, median us", "worst us", far], rows)


def _print_limits(measured: Sequence[_Measured], dali: _Dali) -> None:
    """Set the worst mix of all against the limits."""
    largest = max(one.num_samples for one in measured)
    catalog = statistics.median(one.catalog_seconds for one in measured if one.num_samples == largest)
    slowest_open = max(one.open_seconds for one in measured)
    most_bytes = max(one.resident_bytes / one.num_samples for one in measured if one.num_samples == largest)
    rows: list[tuple[str, float, float, float | None]] = [
        ("opening the catalog (median), s", catalog, 5.0, dali.seconds * largest / dali.num_samples),
        ("opening it and laying out the strata, s", slowest_open, 5.0, dali.seconds * largest / dali.num_samples),
        ("resident, bytes a sample", most_bytes, 32.0, dali.resident_bytes / dali.num_samples),
        ("first batch, ms", max(1e3 * max(one.first_seconds, one.far_seconds) for one in measured), 1000.0, None),
        ("later batches, median ms", max(1e3 * statistics.median(one.later_seconds) for one in measured), 2.0, None),
    ]
    print(f"\n{largest:,} samples; DALI's webdataset reader measured on {dali.num_samples:,}\n")
    columns = ["", "slowest or largest mix", "limit", "part of the limit", "DALI's reader", "DALI's by ours"]
    print_table(columns, [_against_limit(*row) for row in rows])


def _against_limit(what: str, ours: float, limit: float, dali: float | None) -> list[str]:
    peer = ["-", "-"] if dali is None else [f"{dali:.3g}", f"{dali / ours:.1f}"]
    return [what, f"{ours:.3g}", f"{limit:g}", f"{ours / limit:.2f}", *peer]


if __name__ == "__main__":
    work: Mapping[str, Callable[..., Any]] = {"plan": _measure, "dali": _measure_dali}
    print(json.dumps(asdict(work[sys.argv[1]](*json.loads(sys.argv[2])))))
