"""Closed-set identification from ranks."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from eval.gallery import enrol
from eval.identification import closed_set, identification_rate, search_sizes
from eval.search import SearchResult, search
from shardgen.errors import DataError
from tests.eval.faces_support import unit_rows


def result(ranks: list[int], mates: list[float] | None = None, best: list[float] | None = None) -> SearchResult:
    nothing: Any = np.zeros((len(ranks), 0))
    floats = (np.array(one if one else np.zeros(len(ranks)), np.float32) for one in (mates, best))
    mate_scores, best_impostor = floats
    return SearchResult(nothing, nothing, mate_scores, np.array(ranks), best_impostor)


def test_the_curve_counts_each_rank_and_better_ones_and_leaves_out_who_has_no_mate() -> None:
    closed = closed_set(result([1, 2, 0, 4, 6, 0]), depth=5)
    assert closed.cmc.tolist() == [0.25, 0.5, 0.5, 0.75, 0.75]
    assert (closed.rate(1), closed.rate(5)) == (0.25, 0.75)
    assert (closed.num_probes, closed.num_without_mate) == (4, 2)


def test_probes_without_any_mate_are_refused() -> None:
    with pytest.raises(DataError, match="none of the 2 probes has its identity in the gallery"):
        closed_set(result([0, 0]), depth=5)


@pytest.mark.parametrize(("rank", "rate"), [(1, 0.25), (2, 0.5), (5, 0.75), (6, 1)])
def test_the_rate_counts_this_rank_and_better_ones(rank: int, rate: float) -> None:
    assert identification_rate(np.array([1, 2, 4, 6]), rank) == rate


def test_a_larger_gallery_is_never_easier_and_the_whole_is_the_plain_search() -> None:
    rng = np.random.default_rng(0)
    gallery, identities = enrol(unit_rows(rng, 200), np.arange(200)), rng.integers(0, 250, 300)
    probes = unit_rows(rng, 300)
    sizes = [5, 50, 200]
    curve = search_sizes(gallery, probes, identities, sizes, seed=1, depth=200)
    assert [one.size for one in curve] == sizes
    for smaller, larger in pairwise(curve):
        assert (smaller.closed.cmc >= larger.closed.cmc).all()
        assert smaller.open is not None
        assert larger.open is not None
        assert (smaller.open.fpir([0.2, 0.5]) <= larger.open.fpir([0.2, 0.5])).all()
    whole = search(gallery, probes, identities)
    np.testing.assert_array_equal(curve[-1].closed.cmc, closed_set(whole, 200).cmc)
    assert curve[0].closed.num_probes == whole.mated.sum()


def test_draws_of_a_gallery_follow_the_seed() -> None:
    rng = np.random.default_rng(0)
    gallery, probes, identities = enrol(unit_rows(rng, 200), np.arange(200)), unit_rows(rng, 100), np.arange(100)
    first, again, other = (
        search_sizes(gallery, probes, identities, [20], seed, depth=20)[0].closed.cmc.tolist() for seed in (1, 1, 2)
    )
    assert first == again != other
