"""1:1 verification against plain, slow restatements of the protocol."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from eval.verification import accuracy, equal_error_rate, measurable_tars, pair_distances, roc, tar_at_far
from shardgen.errors import DataError

Distances = npt.NDArray[np.float64]
Same = npt.NDArray[np.bool_]
Scored = tuple[Distances, Same]


@st.composite
def scored_pairs(draw: st.DrawFn, least: int = 2, most: int = 60) -> Scored:
    """Pairs of both kinds, overlapping, with ties and distances on the protocol's own thresholds."""
    number = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    same = rng.random(number) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    same[rng.permutation(number)[:2]] = [True, False]
    distances = np.clip(rng.normal(np.where(same, 1.0, 1.6), 0.5), -1e-7, 4)
    decimals = draw(st.sampled_from([1, 2, 9]))
    return np.round(distances, decimals), same


def restated_accuracy(distances: Distances, same: Same, folds: int) -> tuple[float, float, float]:
    """InsightFace's `verification.py`, pair by pair."""
    thresholds = [float(threshold) for threshold in np.arange(0, 4, 0.01)]
    number = len(same)
    sizes = [number // folds + (fold < number % folds) for fold in range(folds)]
    results, chosen = [], []
    for fold, size in enumerate(sizes):
        test = set(range(sum(sizes[:fold]), sum(sizes[:fold]) + size))

        def correct(threshold: float, pairs: set[int]) -> int:
            return sum(bool(distances[pair] < threshold) == bool(same[pair]) for pair in pairs)

        train = [correct(threshold, set(range(number)) - test) for threshold in thresholds]
        best = thresholds[train.index(max(train))]
        results.append(correct(best, test) / len(test))
        chosen.append(best)
    return float(np.mean(results)), float(np.std(results)), float(np.mean(chosen))


@settings(deadline=None, max_examples=25)
@given(pairs=scored_pairs(least=10, most=40), folds=st.sampled_from([2, 3, 10]))
def test_accuracy_is_that_of_the_plain_protocol(pairs: Scored, folds: int) -> None:
    found = accuracy(*pairs, folds)
    assert (found.mean, found.std, found.threshold) == pytest.approx(restated_accuracy(*pairs, folds), abs=1e-12)
    assert found.num_pairs == len(pairs[1])


@settings(deadline=None, max_examples=25)
@given(pairs=scored_pairs(least=10, most=40), folds=st.sampled_from([2, 3, 10]), seed=st.integers(0, 2**32))
def test_folds_that_are_given_are_those_that_are_contiguous_in_another_order(
    pairs: Scored, folds: int, seed: int
) -> None:
    fold_of = np.concatenate([np.full(len(part), fold) for fold, part in enumerate(np.array_split(pairs[1], folds))])
    order = np.random.default_rng(seed).permutation(len(fold_of))
    distances, same = pairs
    assert accuracy(distances[order], same[order], fold_of[order]) == accuracy(*pairs, folds)


@pytest.mark.parametrize("fold_of", [[0, 0, 2, 2], [0, 0, 0, 0]])
def test_folds_without_pairs_and_a_single_fold_are_refused(fold_of: list[int]) -> None:
    with pytest.raises(DataError, match="give at least two, and each a pair"):
        accuracy(np.zeros(4), np.arange(4) < 2, np.array(fold_of))


def test_a_pair_at_the_threshold_is_not_accepted() -> None:
    same = np.tile([True, False], 10)
    on_a_threshold = np.where(same, 0.5, 1.0)
    found = accuracy(on_a_threshold, same)
    assert found.mean == 1
    assert found.threshold == pytest.approx(0.51)


def test_fewer_pairs_than_folds_are_refused() -> None:
    with pytest.raises(DataError, match="9 pairs do not make 10 folds"):
        accuracy(np.zeros(9), np.arange(9) < 4)


def test_distances_are_squared_euclidean_ones() -> None:
    rng = np.random.default_rng(0)
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 20, 8)))
    found = pair_distances(first.astype(np.float32), second.astype(np.float32))
    np.testing.assert_allclose(found, ((first - second) ** 2).sum(1), atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(pairs=scored_pairs(), target=st.sampled_from([0.5, 0.25, 0.1, 0.07, 1 / 3, 1e-3, 1]))
def test_tar_is_taken_at_the_largest_threshold_within_the_target(pairs: Scored, target: float) -> None:
    distances, same = pairs
    impostors = distances[~same]
    if target * len(impostors) < 1:
        with pytest.raises(DataError, match="cannot be measured"):
            tar_at_far(distances, same, target)
        return
    found = tar_at_far(distances, same, target)
    assert found.far <= target + 1e-12
    assert found.far == np.mean(impostors < found.threshold)
    assert found.tar == np.mean(distances[same] < found.threshold)
    larger = [one for one in [*np.unique(distances), np.inf] if one > found.threshold]
    assert all(np.mean(impostors < one) > target for one in larger)


@pytest.mark.parametrize("number", [10, 49, 100, 103, 1000])
def test_one_impostor_in_n_is_measurable_with_n_impostors_and_not_with_fewer(number: int) -> None:
    distances = np.arange(number + 1, dtype=np.float64)
    same = distances == number
    assert tar_at_far(distances, same, 1 / number).far == pytest.approx(1 / number)
    with pytest.raises(DataError, match=f"it needs at least {number}"):
        tar_at_far(distances[1:], same[1:], 1 / number)


def test_targets_that_the_impostors_do_not_suffice_for_are_left_out() -> None:
    same = np.arange(300) % 3 == 0
    found = measurable_tars(np.linspace(0, 2, 300), same, (1e-1, 1e-2, 5e-3, 1e-3))
    assert [(one.target_far, one.far) for one in found] == [(0.1, 0.1), (0.01, 0.01), (0.005, 0.005)]


@settings(deadline=None, max_examples=60)
@given(pairs=scored_pairs())
def test_the_curve_is_that_of_scikit_learn(pairs: Scored) -> None:
    distances, same = pairs
    far, tar, _ = roc_curve(same, -distances, drop_intermediate=False)
    curve = roc(distances, same)
    np.testing.assert_allclose(curve.far, far)
    np.testing.assert_allclose(curve.tar, tar)


@settings(deadline=None, max_examples=60)
@given(pairs=scored_pairs())
def test_at_the_equal_error_rate_the_curve_meets_the_diagonal(pairs: Scored) -> None:
    curve = roc(*pairs)
    rate = equal_error_rate(curve)
    gap = curve.far + curve.tar - 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    expected_far, expected_tar = (
        axis[after - 1] + share * (axis[after] - axis[after - 1]) for axis in (curve.far, curve.tar)
    )
    assert (rate, 1 - rate) == pytest.approx((expected_far, expected_tar), abs=1e-9)


@pytest.mark.parametrize(
    ("genuine", "impostor", "rate"),
    [
        ([0, 1], [2, 3], 0),
        ([2, 3], [0, 1], 1),
        ([1, 1], [1, 1], 0.5),
        ([0, 2], [1, 3], 0.5),
        ([0, 0, 0, 3], [1, 4, 4, 4], 0.25),
    ],
)
def test_equal_error_rates_known_by_heart(genuine: list[float], impostor: list[float], rate: float) -> None:
    distances = np.array([*genuine, *impostor], np.float64)
    same = np.arange(len(distances)) < len(genuine)
    assert equal_error_rate(roc(distances, same)) == pytest.approx(rate)
