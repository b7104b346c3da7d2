"""Closed-set identification against a NumPy brute force."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.identification import Gallery, enrol, identification_rate, mate_ranks

Rows = npt.NDArray[np.float32]


def unit_rows(rng: np.random.Generator, number: int, size: int = 16) -> Rows:
    rows = rng.normal(size=(number, size))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_templates_are_normalised_means_in_the_order_of_identities() -> None:
    embeddings = unit_rows(np.random.default_rng(0), 7)
    identities = np.array([9, 2, 9, 5, 2, 9, 5])
    gallery = enrol(embeddings, identities)
    assert gallery.identities.tolist() == [2, 5, 9]
    for identity, template in zip(gallery.identities, gallery.templates, strict=True):
        mean = embeddings[identities == identity].mean(0)
        np.testing.assert_allclose(template, mean / np.linalg.norm(mean), rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    num_enrolled=st.integers(1, 20),
    num_probes=st.integers(1, 30),
    max_rank=st.integers(1, 25),
)
def test_ranks_are_those_of_a_brute_force(seed: int, num_enrolled: int, num_probes: int, max_rank: int) -> None:
    rng = np.random.default_rng(seed)
    names = np.sort(rng.choice(1000, num_enrolled, replace=False))
    gallery = Gallery(unit_rows(rng, num_enrolled), names)
    probes, identities = unit_rows(rng, num_probes), rng.choice(names, num_probes)
    scores = probes.astype(np.float64) @ gallery.templates.T.astype(np.float64)
    expected = []
    for row, identity in zip(scores, identities, strict=True):
        rank = 1 + int((row > row[names == identity]).sum())
        expected.append(min(rank, max_rank + 1))
    assert mate_ranks(gallery, probes, identities, max_rank).tolist() == expected


@pytest.mark.parametrize(("rank", "rate"), [(1, 0.25), (2, 0.5), (5, 0.75), (6, 1)])
def test_the_rate_counts_this_rank_and_better_ones(rank: int, rate: float) -> None:
    assert identification_rate(np.array([1, 2, 4, 6]), rank) == rate
