"""CPU and wall time of peers, taken in turn so that a machine's drifting speed hits all alike.

Standard library only: peers that need other packages import this in environments of their own.
"""

import resource
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

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


def compare(peers: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, Cost]:
    """Run each peer of this process once to warm up and then `rounds` times in turn."""
    for peer in peers.values():
        peer()
    return take_turns({name: partial(timed, peer) for name, peer in peers.items()}, rounds)


def print_costs(title: str, costs: Mapping[str, Cost], limit: str) -> None:
    """Print a Markdown table; fractions are the limit's cost by the peer's."""
    print(f"\n{title}\n\n| | CPU us | wall us | CPU fraction | wall fraction |\n|---|--:|--:|--:|--:|")
    for name, cost in costs.items():
        cpu, wall = costs[limit].cpu_us / cost.cpu_us, costs[limit].wall_us / cost.wall_us
        print(f"| {name} | {cost.cpu_us:.0f} | {cost.wall_us:.0f} | {cpu:.2f} | {wall:.2f} |")
