"""Intervals cover what they say although people make comparisons depend on each other."""

from collections.abc import Callable
from math import inf

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from eval.intervals import Floats, Interval, PairCounts, bootstrap, difference, effective_comparisons, wilson
from tests.oracles import oracle

Rng = np.random.Generator


def independent(errors: int, comparisons: int) -> PairCounts:
    """Nobody occurs twice."""
    first = np.arange(0, 2 * comparisons, 2)
    return PairCounts.from_pairs(first, first + 1, first < 2 * errors, 2 * comparisons)


def probability(effects: Floats) -> Floats:
    return 1 / (1 + np.exp(-effects))


def genuine(rng: Rng, effects: Floats, images: int = 10) -> PairCounts:
    """Each person is as hard to recognise as his effect says."""
    people = np.repeat(np.arange(len(effects)), images)
    return PairCounts.from_pairs(people, people, rng.random(len(people)) < probability(effects)[people], len(effects))


def impostors(rng: Rng, effects: Floats) -> PairCounts:
    """Everyone against everyone; some people are like many others."""
    first, second = np.triu_indices(len(effects), 1)
    error = rng.random(len(first)) < probability(effects[first] + effects[second])
    return PairCounts.from_pairs(first, second, error, len(effects))


def share_covering(simulate: Callable[[Rng], Interval], truth: float, protocols: int = 400) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([not simulate(rng).excludes(truth) for _ in range(protocols)]))


@pytest.mark.parametrize(("make", "centre", "scale", "people"), [(genuine, -2.5, 1.5, 60), (impostors, -1.5, 0.7, 40)])
def test_intervals_cover_where_independent_comparisons_would_not(
    make: Callable[[Rng, Floats], PairCounts], centre: float, scale: float, people: int
) -> None:
    def draw(rng: Rng) -> PairCounts:
        return make(rng, rng.normal(centre, scale, people))

    def naive(rng: Rng) -> Interval:
        counts = draw(rng)
        return wilson(independent(int(counts.errors.sum()), int(counts.comparisons.sum())))

    effects = np.random.default_rng(1).normal(centre, scale, (2, 10**6))
    truth = float(probability(effects[0] if make is genuine else effects.sum(0)).mean())
    assert share_covering(naive, truth) < 0.85
    assert 0.90 <= share_covering(lambda rng: wilson(draw(rng)), truth) <= 0.99
    assert 0.90 <= share_covering(lambda rng: bootstrap([draw(rng)], replicates=200), truth, 200) <= 0.99


def groups(rng: Rng, centres: npt.ArrayLike, people: int = 200) -> list[PairCounts]:
    """Groups of the same size; the rates are over all people, each of them in one group."""
    group = np.arange(people) % np.size(centres)
    member = np.repeat(np.arange(people), 10)
    error = rng.random(len(member)) < probability(rng.normal(np.asarray(centres)[group], 1.0))[member]
    of = [group[member] == one for one in range(np.size(centres))]
    return [PairCounts.from_pairs(member[one], member[one], error[one], people) for one in of]


@pytest.mark.parametrize(("centres", "least"), [([-2, -2.5, -2.5, -3], 0.90), ([-2.5] * 4, 0.75)])
def test_a_spread_over_groups_is_covered_even_where_there_is_none(centres: list[float], least: float) -> None:
    effects = np.random.default_rng(1).normal(size=10**6)
    truth = float(np.std([probability(effects + centre).mean() for centre in centres]))

    def spread(rng: Rng) -> Interval:
        return bootstrap(groups(rng, centres), lambda rates: rates.std(0), replicates=200)

    assert share_covering(spread, truth, protocols=150) >= least


@pytest.mark.parametrize("errors", [0, 1, 7, 150, 299, 300])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_independent_comparisons_have_the_textbook_interval(errors: int, level: float) -> None:
    counts = independent(errors, 300)
    theirs = binomtest(errors, 300).proportion_ci(level, method="wilson")
    found = wilson(counts, level)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert found.estimate == errors / 300


def test_fogliato_patil_and_perona_find_the_same() -> None:
    rng = np.random.default_rng(0)
    fnmr, fmr = genuine(rng, rng.normal(-1, 1, 30)), impostors(rng, rng.normal(-1, 1, 30))
    scores = {
        str(a): {str(b): list(_scores(fnmr, a, b, 0.0) if a == b else _scores(fmr, a, b, 1.0)) for b in range(30)}
        for a in range(30)
    }
    script = """
import cimat
found = cimat.UncertaintyEstimator(scores)
variances = found.compute_variance(0.5)
answer = [variances, found.get_binerror_ci(0.5)]
"""
    variances, theirs = oracle(script, scores=scores)
    for counts, variance, bounds in zip((fnmr, fmr), variances, theirs, strict=True):
        assert counts.rate * (1 - counts.rate) / effective_comparisons(counts) == pytest.approx(variance)
        ours = wilson(counts)
        assert (ours.low, ours.high) == pytest.approx(bounds)


def _scores(counts: PairCounts, first: int, second: int, wrong: float) -> Floats:
    """Scores of 0 and 1 that have as many errors at a threshold between them."""
    place = min(first, second), max(first, second)
    errors, comparisons = int(counts.errors[place]), int(counts.comparisons[place])
    return np.where(np.arange(comparisons) < errors, wrong, 1 - wrong)


@pytest.mark.parametrize("error", [False, True])
def test_without_a_difference_between_people_they_are_what_counts(error: bool) -> None:
    people = np.repeat(np.arange(20), 50)
    same = PairCounts.from_pairs(people, people, np.full(1000, error), 20)
    first, second = np.triu_indices(20, 1)
    others = PairCounts.from_pairs(first, second, np.full(190, error), 20)
    assert effective_comparisons(same) == 20
    assert effective_comparisons(others) == pytest.approx(20 / 4, rel=0.1)
    assert wilson(same) == wilson(independent(20 * error, 20))


def test_one_person_is_one_comparison() -> None:
    alone = np.zeros(100, int)
    assert effective_comparisons(PairCounts.from_pairs(alone, alone, np.arange(100) < 30, 1)) == 1


def test_people_are_drawn_and_what_lies_between_them_is_counted() -> None:
    rng, people = np.random.default_rng(3), 12
    first, second = rng.integers(people, size=(2, 400))
    error = rng.random(400) < 0.1 + 0.05 * first
    counts = PairCounts.from_pairs(first, second, error, people)
    seen: list[Floats] = []

    def keep(rates: Floats) -> Floats:
        seen.append(rates[0])
        return seen[-1]

    bootstrap([counts], keep, replicates=70, seed=5)
    redrawn = np.random.default_rng(5)
    plain = [_rate_among(redrawn.integers(people, size=people), first, second, error) for _ in range(70)]
    moved, expected = seen[0] - counts.rate, np.array(plain) - counts.rate
    assert moved == pytest.approx(expected * np.std(moved) / np.std(expected))
    assert 0.5 < np.std(moved) / np.std(expected) <= 1


def _rate_among(
    drawn: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    error: npt.NDArray[np.bool_],
) -> float:
    """Make a protocol of the drawn people as if each were somebody else, comparison by comparison."""
    outcomes = []
    for a, b, wrong in zip(first, second, error, strict=True):
        places = [(i, j) for i in np.flatnonzero(drawn == a) for j in np.flatnonzero(drawn == b)]
        outcomes += [wrong] * sum(i == j if a == b else True for i, j in places)
    return float(np.mean(outcomes))


def test_drawing_people_adds_no_spread_to_comparisons_that_do_not_depend_on_them() -> None:
    rng = np.random.default_rng(0)
    counts = impostors(rng, np.full(150, -1.5))
    drawn, known = bootstrap([counts]), wilson(counts)
    assert drawn.high - drawn.low == pytest.approx(known.high - known.low, rel=0.15)


def test_two_models_differ_although_their_own_intervals_overlap() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(-2, 2, 100)
    worse, better = genuine(rng, hard + 0.6), genuine(rng, hard)
    assert wilson(worse).low < wilson(better).estimate < wilson(better).high
    found = difference(worse, better)
    assert found.estimate == pytest.approx(worse.rate - better.rate)
    assert found.low > 0
    assert found.excludes(0)
    back = difference(better, worse)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_equal_models_seldom_differ() -> None:
    def compared(rng: Rng) -> Interval:
        hard = rng.normal(-2, 2, 60)
        return difference(genuine(rng, hard), genuine(rng, hard), replicates=200)

    assert 0.90 <= share_covering(compared, 0.0, protocols=100) <= 0.99


def test_a_model_does_not_differ_from_itself() -> None:
    counts = genuine(np.random.default_rng(0), np.full(30, -2.0))
    assert difference(counts, counts) == Interval(0, 0, 0)
    assert not difference(counts, counts).excludes(0)


def test_a_seed_gives_one_interval() -> None:
    counts = genuine(np.random.default_rng(0), np.linspace(-4.0, 1.0, 200))
    assert bootstrap([counts], seed=1) == bootstrap([counts], seed=1) != bootstrap([counts], seed=2)


def test_replicates_in_which_nobody_meets_are_left_out() -> None:
    counts = PairCounts.from_pairs(np.array([0, 0]), np.array([1, 1]), np.array([True, False]), 2)
    assert bootstrap([counts]) == Interval(0.5, 0.5, 0.5)


def test_an_interval_ends_where_the_figure_does() -> None:
    counts = independent(1, 30)
    ratio = bootstrap(
        [counts, independent(2, 30)], lambda rates: (rates[1] + 0.01) / (rates[0] + 0.01), within=(0, inf)
    )
    assert ratio.low == 0
    assert ratio.high > 1
    assert bootstrap([counts]).low == 0


protocols = st.integers(1, 8).flatmap(
    lambda people: st.integers(1, 60).flatmap(
        lambda pairs: st.tuples(
            arrays(np.int64, (2, pairs), elements=st.integers(0, people - 1)), arrays(np.bool_, pairs), st.just(people)
        )
    )
)
Protocol = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], int]


@given(protocols)
def test_every_interval_holds_its_rate_within_0_and_1(protocol: Protocol) -> None:
    (first, second), error, people = protocol
    counts = PairCounts.from_pairs(first, second, error, people)
    assert counts.rate == pytest.approx(error.mean())
    assert 0 < effective_comparisons(counts) <= len(error)
    for found in (wilson(counts), bootstrap([counts], replicates=50)):
        assert 0 <= found.low <= found.estimate <= found.high <= 1


@settings(max_examples=30)
@given(protocols)
def test_neither_order_nor_tiles_matter(protocol: Protocol) -> None:
    (first, second), error, people = protocol
    whole = PairCounts.from_pairs(first, second, error, people)
    backwards = PairCounts.from_pairs(second[::-1], first[::-1], error[::-1], people)
    half = len(error) // 2
    tiles = PairCounts.from_pairs(first[:half], second[:half], error[:half], people) + PairCounts.from_pairs(
        first[half:], second[half:], error[half:], people
    )
    for other in (backwards, tiles):
        assert wilson(other) == wilson(whole)
        assert bootstrap([other], replicates=20) == bootstrap([whole], replicates=20)
