"""What do figures cost over the products behind them, beside the bare faiss call and the incumbent's scoring of pairs?

Made embeddings of 512: templates drawn on the sphere, probes near one of them or, a tenth, near none. Embedding faces
is not part of it. Galleries that do not fit into the memory at hand, twice, since faiss keeps a copy, are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from sklearn.model_selection import KFold

from benchmarks.timing import Run, print_costs, print_table, take_turns, timed
from eval.gallery import Gallery
from eval.identification import closed_set
from eval.intervals import PairCounts, bootstrap
from eval.open_set import open_set
from eval.score_histograms import SearchGroups, impostor_histograms
from eval.search import search
from eval.verification import accuracy, measurable_tars, pair_distances

_SIZE = 512
_CANDIDATES = 10
_FPIRS = (0.1, 0.01, 0.003)
_FAISS, _OURS, _INSIGHTFACE = "faiss IndexFlatIP, top 10", "facemix, all figures", "InsightFace's verification.py"

Rows = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Scale:
    galleries: Sequence[tuple[int, int]]
    """Templates and probes."""
    pairs: int
    compared: int
    """Pairs of the bootstrap."""
    rounds: int


_FULL = _Scale(((10_000, 4096), (100_000, 2048), (1_000_000, 1024)), 6000, 1_000_000, 3)
_SMOKE = _Scale(((1_000, 2048),), 600, 10_000, 1)


def main(smoke: bool = False) -> None:
    """Print the tables; `smoke` only shows that they come about."""
    scale = _SMOKE if smoke else _FULL
    for templates, probes in scale.galleries:
        if 3 * 4 * _SIZE * templates > _available_bytes():
            print(f"\nA gallery of {templates:,} is left out: it takes {12 * _SIZE * templates / 2**30:.0f} GiB")
            continue
        _identification(templates, probes, scale.rounds)
    _verification(scale.pairs, scale.rounds)
    _bootstrap(scale.compared)


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _unit(rows: Rows) -> Rows:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _draw(templates: int, probes: int) -> tuple[Gallery, Rows, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    gallery = Gallery(_unit(rng.standard_normal((templates, _SIZE), dtype=np.float32)), np.arange(templates))
    mates = rng.integers(0, templates, probes)
    noise = _unit(rng.standard_normal((probes, _SIZE), dtype=np.float32))
    is_stranger = rng.random(probes) < 0.1
    near = np.where(is_stranger, 0, rng.uniform(0.2, 0.8, probes)).astype(np.float32)
    return gallery, _unit(near[:, None] * gallery.templates[mates] + noise), np.where(is_stranger, -1, mates)


def _identification(templates: int, num_probes: int, rounds: int) -> None:
    gallery, probes, identities = _draw(templates, num_probes)
    groups = SearchGroups(2, (identities % 2).astype(np.int16), (gallery.identities % 2).astype(np.int16))
    index = faiss.IndexFlatIP(_SIZE)
    index.add(gallery.templates)

    def figures() -> object:
        result = search(gallery, probes, identities)
        rates = open_set(result)
        return closed_set(result, 100), rates.det(), rates.measurable_tpirs(_FPIRS)

    peers = {
        _FAISS: lambda: index.search(probes, _CANDIDATES),
        _OURS: figures,
        "facemix, all scores counted by group": lambda: impostor_histograms(gallery, probes, identities, groups),
    }
    title = f"A probe in a gallery of {templates:,}, {num_probes:,} at once; fraction is faiss' cost by the row's"
    print_costs(title, _take_turns(peers, num_probes, rounds), _FAISS)


def _take_turns(peers: dict[str, Callable[[], object]], items: int, rounds: int) -> Any:
    def run(peer: Callable[[], object]) -> Run:
        return timed(lambda: (peer(), items)[1])

    for peer in peers.values():
        peer()
    return take_turns({name: partial(run, peer) for name, peer in peers.items()}, rounds)


def _verification(num_pairs: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    first, noise = (_unit(rng.standard_normal((num_pairs, _SIZE), dtype=np.float32)) for _ in range(2))
    same = np.arange(num_pairs) // (num_pairs // 20) % 2 == 0
    second = _unit(np.where(same, 0.3, 0).astype(np.float32)[:, None] * first + noise)

    def figures() -> object:
        distances = pair_distances(first, second)
        return accuracy(distances, same), measurable_tars(distances, same, (1e-3,))

    peers = {_OURS: figures, _INSIGHTFACE: lambda: insightface_evaluate(first, second, same)}
    title = f"A pair of a verification set of {num_pairs:,}; fraction is our cost by the row's"
    print_costs(title, _take_turns(peers, num_pairs, rounds), _OURS)


def insightface_evaluate(first: Rows, second: Rows, same: Flags) -> tuple[float, float]:
    """Return (accuracy, TAR at FAR .001) as InsightFace's `verification.py` computes them: every threshold in turn.

    Its `calculate_roc` and `calculate_val`, with 10 folds and no PCA; NumPy interpolates where SciPy's `slinear` by now
    refuses equal rates.
    """
    thresholds, fine_thresholds = np.arange(0, 4, 0.01), np.arange(0, 4, 0.001)
    distances = np.sum(np.square(np.subtract(first, second)), 1)
    accuracies, tars = [], []
    for train, test in KFold(n_splits=10, shuffle=False).split(np.arange(len(same))):
        on_train = [_rates(one, distances[train], same[train])[2] for one in thresholds]
        on_test = [_rates(one, distances[test], same[test]) for one in thresholds]
        accuracies.append(on_test[int(np.argmax(on_train))][2])
    for train, test in KFold(n_splits=10, shuffle=False).split(np.arange(len(same))):
        fars = [_rates(one, distances[train], same[train])[1] for one in fine_thresholds]
        chosen = float(np.interp(1e-3, fars, fine_thresholds)) if np.max(fars) >= 1e-3 else 0.0
        tars.append(_rates(chosen, distances[test], same[test])[0])
    return float(np.mean(accuracies)), float(np.mean(tars))


def _rates(threshold: float, distances: Rows, same: Flags) -> tuple[float, float, float]:
    accepted = np.less(distances, threshold)
    true_accepts = np.sum(np.logical_and(accepted, same))
    false_accepts = np.sum(np.logical_and(accepted, np.logical_not(same)))
    true_rejects = np.sum(np.logical_and(np.logical_not(accepted), np.logical_not(same)))
    right = float(true_accepts + true_rejects) / distances.size
    return true_accepts / max(same.sum(), 1), false_accepts / max((~same).sum(), 1), right


def _bootstrap(num_pairs: int) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 10_000, (2, num_pairs))
    counts = PairCounts.from_pairs(first, second, rng.random(num_pairs) < 0.01, 10_000)
    taken = timed(lambda: (bootstrap([counts], replicates=1000), 1)[1])
    print(f"\nInterval over 10,000 identities, 1,000 replicates, {num_pairs:,} pairs\n")
    print_table(["", "CPU s", "wall s"], [["bootstrap", f"{taken.cpu_seconds:.1f}", f"{taken.wall_seconds:.1f}"]])
