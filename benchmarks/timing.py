"""CPU and wall time of peers, taken in turn so that a machine's drifting speed hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one item costs: medians over the rounds, in microseconds."""

    cpu_us: float
    wall_us: float


def compare(peers: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, Cost]:
    """Run each peer once to warm up and then `rounds` times in turn; a peer returns its number of items."""
    for peer in peers.values():
        peer()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            cpu, wall = time.process_time(), time.perf_counter()
            items = peer()
            samples[name].append(((time.process_time() - cpu) / items, (time.perf_counter() - wall) / items))
    return {
        name: Cost(*(statistics.median(column) * 1e6 for column in zip(*taken, strict=True)))
        for name, taken in samples.items()
    }


def print_costs(title: str, costs: Mapping[str, Cost], limit: str) -> None:
    """Print a Markdown table; fractions are the limit's cost by the peer's."""
    print(f"\n{title}\n\n| | CPU us | wall us | CPU fraction | wall fraction |\n|---|--:|--:|--:|--:|")
    for name, cost in costs.items():
        cpu, wall = costs[limit].cpu_us / cost.cpu_us, costs[limit].wall_us / cost.wall_us
        print(f"| {name} | {cost.cpu_us:.0f} | {cost.wall_us:.0f} | {cpu:.2f} | {wall:.2f} |")
