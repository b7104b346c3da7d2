"""Costs are medians of what was really spent, child processes included."""

import subprocess
import sys
from collections.abc import Callable

from benchmarks.timing import Cost, Run, take_turns, timed

BURN = "import time\nwhile time.process_time() < 0.2: pass"


def test_the_cpu_time_of_children_counts() -> None:
    run = timed(lambda: len(subprocess.run([sys.executable, "-c", BURN], check=True).args))
    assert run.items == 3
    assert run.cpu_seconds >= 0.2
    assert 0 <= run.system_seconds < run.cpu_seconds
    assert run.wall_seconds >= 0.2


def test_the_peak_is_what_was_resident() -> None:
    held = 64 << 20
    before = timed(lambda: 1).peak_bytes
    after = timed(lambda: len(bytes(before) + b"\1" * held)).peak_bytes
    assert after - before >= held


def test_peers_take_turns_and_costs_are_medians_per_item() -> None:
    seconds = iter([1.0, 10.0, 4.0, 40.0, 2.0, 20.0])
    order: list[str] = []

    def peer(name: str) -> Callable[[], Run]:
        def run() -> Run:
            order.append(name)
            spent = next(seconds)
            return Run(
                items=4, cpu_seconds=spent, system_seconds=spent / 2, wall_seconds=2 * spent, peak_bytes=int(spent)
            )

        return run

    costs = take_turns({"one": peer("one"), "ten": peer("ten")}, rounds=3)
    assert order == ["one", "ten"] * 3
    assert costs == {"one": Cost(0.5e6, 0.25e6, 1e6, 4), "ten": Cost(5e6, 2.5e6, 10e6, 40)}
