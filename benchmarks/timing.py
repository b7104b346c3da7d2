"""CPU and wall time of peers, taken in turn so that a machine's drifting speed hits all alike.

Standard library only: peers that need other packages import this in environments of their own.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

_ROOT = Path(__file__).parents[1]

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Run:
    """One measured run of a peer."""

    items: int
    cpu_seconds: float
    """Of this process and of the children that it waited for, user and system time together."""
    system_seconds: float
    """The kernel's part of it."""
    wall_seconds: float
    peak_bytes: int
    """Most memory that this process or one of those children ever had resident."""


@dataclass(frozen=True)
class Cost:
    """What one item costs, in microseconds: medians over the rounds."""

    cpu_us: float
    system_us: float
    wall_us: float
    peak_bytes: int
    """Most memory of any process in any round."""


def timed(peer: Callable[[], int]) -> Run:
    """Run a peer, which returns its number of items."""
    user, system, wall = *_user_system_seconds(), time.perf_counter()
    items = peer()
    wall = time.perf_counter() - wall
    user, system = (after - before for after, before in zip(_user_system_seconds(), (user, system), strict=True))
    return Run(items, user + system, system, wall, _peak_bytes())


def _user_system_seconds() -> tuple[float, float]:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + children.ru_utime, own.ru_stime + children.ru_stime


def _peak_bytes() -> int:
    """`ru_maxrss` of this process would count what its parent held when it forked."""
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def take_turns(peers: Mapping[Name, Callable[[], Run]], rounds: int) -> dict[Name, Cost]:
    """Run all peers once a round and return the medians."""
    runs: dict[Name, list[Run]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            runs[name].append(peer())
    return {name: _median(taken) for name, taken in runs.items()}


def _median(runs: list[Run]) -> Cost:
    return Cost(
        cpu_us=1e6 * statistics.median(run.cpu_seconds / run.items for run in runs),
        system_us=1e6 * statistics.median(run.system_seconds / run.items for run in runs),
        wall_us=1e6 * statistics.median(run.wall_seconds / run.items for run in runs),
        peak_bytes=max(run.peak_bytes for run in runs),
    )


def apart(module: str, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
    """Run a module of the benchmarks in a process of its own, and return the JSON of the last line that it prints."""
    command = [python, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    fields: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return fields


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table whose first column is text."""
    print(f"| {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_costs(title: str, costs: Mapping[str, Cost], limit: str) -> None:
    """Print a Markdown table; fractions are the limit's cost by the peer's."""
    print(f"\n{title}\n")
    rows = [
        [name, f"{cost.cpu_us:.0f}", f"{cost.wall_us:.0f}", *_fractions(cost, costs[limit])]
        for name, cost in costs.items()
    ]
    print_table(["", "CPU us", "wall us", "CPU fraction", "wall fraction"], rows)


def _fractions(cost: Cost, limit: Cost) -> list[str]:
    return [f"{limit.cpu_us / cost.cpu_us:.2f}", f"{limit.wall_us / cost.wall_us:.2f}"]
