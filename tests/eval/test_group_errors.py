"""Group errors against plain counting, bob.measure and fairlearn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.fairness import metrics
from eval.group_errors import (
    Axis,
    Cells,
    GroupRates,
    ScoredPairs,
    ScoreHistograms,
    group_rates,
    intersectional,
    rates_at_own_thresholds,
    rates_at_threshold,
)
from shardgen.errors import DataError
from tests.oracles import oracle

VALUES = ("unknown", "Asian", "Black", "White")
BINS = 64


def made_pairs(seed: int, num_pairs: int = 2000, values: tuple[str, ...] = VALUES) -> ScoredPairs:
    """Scores on the edges of 64 bins, so with many ties; groups differ, and some faces' are unknown."""
    rng = np.random.default_rng(seed)
    same = rng.random(num_pairs) < 0.4
    first = rng.integers(0, len(values), num_pairs).astype(np.int16)
    second = np.where(rng.random(num_pairs) < 0.7, first, rng.integers(0, len(values), num_pairs)).astype(np.int16)
    scores = np.clip(rng.normal(np.where(same, 0.5, 0.05 * first), 0.25), -1, 0.999)
    on_edges = np.floor((scores + 1) / 2 * BINS) * 2 / BINS - 1
    return ScoredPairs(on_edges.astype(np.float32), same, first, second, values)


def histograms_of(pairs: ScoredPairs) -> ScoreHistograms:
    size = len(pairs.values)
    counts = np.zeros((2, size, size, BINS), np.int64)
    bins = ((pairs.scores + 1) / 2 * BINS).astype(int)
    np.add.at(counts, (pairs.same.astype(int), pairs.first, pairs.second, bins), 1)
    return ScoreHistograms(genuine=counts[1], impostor=counts[0], values=pairs.values)


def assert_same_rates(found: GroupRates, expected: GroupRates) -> None:
    assert (found.groups, found.left_out) == (expected.groups, expected.left_out)
    for name in ("num_genuine", "false_non_matches", "num_impostor", "false_matches"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), threshold=st.sampled_from([-1.0, -0.25, 0.3125, 0.5, 1.0]))
def test_cells_are_what_counting_pair_by_pair_gives(seed: int, threshold: float) -> None:
    pairs = made_pairs(seed, 100)
    cells = pairs.cells(threshold)
    expected = np.zeros((4, 3, 3), int)
    for score, same, first, second in zip(pairs.scores, pairs.same, pairs.first, pairs.second, strict=True):
        if first and second:
            expected[0 if same else 2, first - 1, second - 1] += 1
            expected[1 if same else 3, first - 1, second - 1] += (score < threshold) if same else (score >= threshold)
    found = (cells.num_genuine, cells.false_non_matches, cells.num_impostor, cells.false_matches)
    np.testing.assert_array_equal(np.stack(found), expected)
    assert cells.groups == VALUES[1:]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), fmr=st.sampled_from([1.0, 0.5, 0.1, 0.01, 1 / 3]))
def test_the_threshold_is_the_lowest_that_keeps_the_false_match_rate(seed: int, fmr: float) -> None:
    pairs = made_pairs(seed, 500)
    impostors = pairs.scores[~pairs.same]
    threshold = pairs.threshold(fmr)
    assert np.mean(impostors >= threshold) <= fmr + 1e-12
    lower = [one for one in np.unique(impostors) if one < threshold]
    assert all(np.mean(impostors >= one) > fmr for one in lower)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), fmr=st.sampled_from([1.0, 0.2, 0.03]))
def test_histograms_and_scores_give_the_same_rates(seed: int, fmr: float) -> None:
    pairs = made_pairs(seed)
    assert_same_rates(rates_at_threshold(histograms_of(pairs), fmr), rates_at_threshold(pairs, fmr))
    assert_same_rates(rates_at_own_thresholds(histograms_of(pairs), fmr), rates_at_own_thresholds(pairs, fmr))


def test_a_score_at_the_threshold_is_a_match() -> None:
    asian = np.ones(2, np.int16)
    pairs = ScoredPairs(np.full(2, 0.5, np.float32), np.array([True, False]), asian, asian, ("unknown", "Asian"))
    assert pairs.errors(0.5).tolist() == [False, True]
    assert pairs.errors(0.6).tolist() == [True, False]


def test_own_thresholds_hold_every_group_to_the_rate_and_one_for_all_does_not() -> None:
    pairs = made_pairs(0, 20_000)
    own, shared = rates_at_own_thresholds(pairs, 0.05), rates_at_threshold(pairs, 0.05)
    assert (own.fmr <= 0.05).all()
    assert shared.fmr.max() > 0.05
    assert len(set(shared.thresholds)) == 1
    assert len(set(own.thresholds)) == 3


def test_the_one_threshold_is_set_on_all_impostors_also_across_groups_and_unknown() -> None:
    pairs = made_pairs(1)
    found = rates_at_threshold(pairs, 0.1)
    matched = pairs.scores[~pairs.same] >= found.thresholds[0]
    assert 0.02 < matched.mean() <= 0.1
    assert (found.num_impostor.sum() < matched.size).all()


def test_too_few_impostors_are_refused_with_the_number_it_takes() -> None:
    pairs = made_pairs(0, 100)
    with pytest.raises(DataError, match=r"1e-05.*needs at least 100000"):
        rates_at_threshold(pairs, 1e-5)
    with pytest.raises(DataError, match="needs at least 100000"):
        rates_at_threshold(histograms_of(pairs), 1e-5)


def test_groups_with_too_few_comparisons_are_named_and_left_out() -> None:
    counts = np.diag([50, 9, 10]), np.diag([5, 1, 0]), np.diag([100, 100, 10]), np.diag([1, 0, 2])
    cells = Cells(("Asian", "Black", "White"), np.full(3, 0.4), *counts)
    found = group_rates(cells)
    assert found.groups == ("Asian", "White")
    assert found.left_out == ("Black is left out: 9 genuine and 100 impostor comparisons, it needs 10 and 10",)
    np.testing.assert_allclose(found.fmr, [0.01, 0.2])
    np.testing.assert_allclose(found.fnmr, [0.1, 0])
    np.testing.assert_allclose(found.accuracy, [0.945, 0.9])


def test_a_group_whose_impostors_do_not_suffice_for_a_threshold_of_its_own_is_left_out() -> None:
    rng = np.random.default_rng(0)
    first = np.repeat(np.array([1, 2], np.int16), [2200, 400])
    scores = (rng.integers(0, BINS // 2, 2600) * 2 / BINS).astype(np.float32)
    pairs = ScoredPairs(scores, np.arange(2600) % 2 == 0, first, first, ("unknown", "A", "B"))
    found = rates_at_own_thresholds(pairs, 1e-3)
    assert found.groups == ("A",)
    assert found.left_out == ("B is left out: 200 genuine and 200 impostor comparisons, it needs 10 and 1000",)
    assert_same_rates(rates_at_own_thresholds(histograms_of(pairs), 1e-3), found)


def test_the_cross_group_matrix_is_empty_where_nothing_was_compared() -> None:
    none, compared, matched = np.zeros((2, 2), np.int64), np.array([[10, 4], [0, 8]]), np.array([[1, 2], [0, 0]])
    cells = Cells(("Asian", "Black"), np.zeros(2), none, none, compared, matched)
    np.testing.assert_array_equal(cells.fmr(), [[0.1, 0.5], [np.nan, 0]])


def test_pairs_without_an_order_count_in_both_places_and_once_within_a_group() -> None:
    pairs = made_pairs(3)
    cells = pairs.cells(0.25)
    swapped = ScoredPairs(pairs.scores, pairs.same, pairs.second, pairs.first, VALUES).cells(0.25).unordered()
    found = cells.unordered()
    np.testing.assert_array_equal(found.num_impostor, found.num_impostor.T)
    np.testing.assert_array_equal(found.false_matches, swapped.false_matches)
    np.testing.assert_array_equal(found.num_genuine.diagonal(), cells.num_genuine.diagonal())
    assert found.num_impostor[0, 2] == cells.num_impostor[0, 2] + cells.num_impostor[2, 0]


def test_combinations_are_those_that_occur_and_unknown_where_any_part_is() -> None:
    race: Axis = (("unknown", "Asian", "White"), np.array([1, 2, 2, 0, 1, 1], np.int16))
    sex: Axis = (("unknown", "Female", "Male"), np.array([2, 1, 1, 1, 0, 2], np.int16))
    values, codes = intersectional([race, sex])
    assert values == ("unknown", "Asian, Male", "White, Female")
    assert codes.tolist() == [1, 2, 2, 0, 0, 1]
    assert codes.dtype == np.int16


@settings(deadline=None, max_examples=30)
@given(codes=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30))
def test_a_combination_keeps_apart_what_its_parts_keep_apart(codes: list[tuple[int, int, int]]) -> None:
    axes = [(("unknown", *"abc"), np.array(column, np.int16)) for column in zip(*codes, strict=True)]
    values, joined = intersectional(axes)
    names = [", ".join(" abc"[code] for code in one) if all(one) else "unknown" for one in codes]
    assert [values[code] for code in joined] == names
    assert set(values) == {"unknown", *names}


def test_rates_are_those_of_bob_measure_and_of_fairlearn() -> None:
    pairs = made_pairs(0, 5000)
    targets = (0.3, 0.05, 0.01)
    script = """
import bob.measure
from fairlearn.metrics import MetricFrame, equalized_odds_difference, false_negative_rate, false_positive_rate
scores, same, first, second = (np.asarray(one) for one in (scores, same, first, second))
within = (first == second) & (first > 0)
def answer_to(target):
    threshold = bob.measure.far_threshold(np.sort(scores[~same]).astype(float), [], target)
    of = [within & (first == group) for group in (1, 2, 3)]
    rates = [bob.measure.farfrr(scores[one & ~same], scores[one & same], threshold) for one in of]
    said = {"y_true": same[within], "y_pred": scores[within] >= threshold, "sensitive_features": first[within]}
    again = MetricFrame(metrics={"fmr": false_positive_rate, "fnmr": false_negative_rate}, **said).by_group
    return np.array(rates), again.to_numpy(), equalized_odds_difference(**said)
answer = [answer_to(target) for target in targets]
"""
    answers = oracle(
        script, scores=pairs.scores, same=pairs.same, first=pairs.first, second=pairs.second, targets=targets
    )
    for target, (bob, fairlearn, odds) in zip(targets, answers, strict=True):
        found = rates_at_threshold(pairs, target)
        ours = np.stack([found.fmr, found.fnmr], axis=1)
        np.testing.assert_allclose(ours, bob)
        np.testing.assert_allclose(ours, fairlearn)
        assert metrics(found).equalised_odds == pytest.approx(odds)
