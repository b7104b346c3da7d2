"""Counted impostor scores against NumPy's histogram of the score matrix."""

import numpy as np
import pytest
import torch

from eval.all_pairs import BINS, EDGES
from eval.gallery import enrol
from eval.score_histograms import SearchGroups, impostor_histograms
from eval.tiles import TileOptions, Workers

NUM_GROUPS = 3


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("workers", [(1, 1), (2, 1), (1, 2)])
def test_every_impostor_score_is_counted_once_in_its_cell(images: int, workers: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-0.25, 0.25], np.float32), (120, 16))  # scores are whole sixteenths, so bins are sure
    identities = np.repeat(np.arange(40), images)
    gallery = enrol(signs[: len(identities)], identities, "each")
    probes, labels = signs[-50:], rng.integers(0, 60, 50)
    groups = SearchGroups(NUM_GROUPS, *(rng.integers(0, 3, number).astype(np.int16) for number in (50, 40)))
    expected = np.zeros((NUM_GROUPS, NUM_GROUPS, BINS), np.int64)
    for row, label, code in zip(probes @ gallery.templates.T, labels, groups.of_probes, strict=True):
        scores = np.maximum.reduceat(row, gallery.starts[:-1])
        for group in range(NUM_GROUPS):
            others = (groups.of_enrolled == group) & (gallery.enrolled != label)
            expected[code, group] += np.histogram(scores[others], EDGES)[0]
    devices, world_size = workers
    found = sum(
        impostor_histograms(
            gallery,
            probes,
            labels,
            groups,
            TileOptions(probe_tile=7, gallery_tile=5),
            Workers((torch.device("cpu"),) * devices, rank, world_size),
        )
        for rank in range(world_size)
    )
    np.testing.assert_array_equal(found, expected)
