"""How evenly errors are spread over groups: known figures, plain restatements, and what must not matter."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.fairness import (
    FairnessMetrics,
    above_zero,
    discrepancy,
    equalised_odds,
    garbe,
    gini,
    inequity,
    max_by_geomean,
    metrics,
    spread,
)
from eval.group_errors import GroupRates, Rates
from shardgen.errors import DataError

CHECK_VECTOR = [(254, 197), (91, 349), (51, 238), (190, 192)]
"""Of 3000: FMR .0846667, .0303333, .017, .0633333; FNMR .0656667, .1163333, .0793333, .064."""
RACES = [0.9715, 0.9400, 0.9427, 0.9512]
FIGURES = (
    *("fdr", "inequity", "gini_fmr", "gini_fnmr", "garbe", "max_geomean_fmr", "max_geomean_fnmr", "equalised_odds"),
)
FAIR = (1, 1, 0, 0, 0, 1, 1, 0)
some_counts = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=8)
some_rates = st.lists(st.floats(1e-6, 1), min_size=2, max_size=8).map(np.array)


def made_rates(
    counts: Sequence[tuple[int, int]], total: int | list[int] = 3000, left_out: tuple[str, ...] = ()
) -> GroupRates:
    """Groups of `total` genuine and as many impostor comparisons, each with its false matches and non-matches."""
    false_matches, false_non_matches = np.array(counts).T
    sizes = np.broadcast_to(total, len(counts))
    names = tuple(f"group {place}" for place in range(len(counts)))
    return GroupRates(names, np.full(len(counts), 0.3), sizes, false_non_matches, sizes, false_matches, left_out)


def figures(found: FairnessMetrics) -> list[float]:
    return [getattr(found, name) for name in FIGURES]


def test_the_spread_is_mean_deviation_and_error_ratio() -> None:
    found = spread(RACES)
    assert found.mean == pytest.approx(sum(RACES) / 4)
    assert found.std == pytest.approx((sum((one - sum(RACES) / 4) ** 2 for one in RACES) / 4) ** 0.5)
    assert found.ser == pytest.approx(0.06 / 0.0285)
    assert found.trade_off == pytest.approx(found.mean - found.std)
    assert all(type(value) is float for value in (found.mean, found.std, found.ser, found.trade_off))


def test_equal_groups_have_no_spread() -> None:
    found = spread([0.9, 0.9, 0.9])
    assert found.std == pytest.approx(0, abs=1e-12)
    assert found.ser == pytest.approx(1)


def test_a_group_without_an_error_leaves_the_ratio_open() -> None:
    assert spread([1.0, 0.9]).ser is None


def test_the_order_of_groups_does_not_matter() -> None:
    found, again = spread(RACES), spread(list(np.roll(RACES, 1)))
    assert (found.mean, found.std, found.ser) == pytest.approx((again.mean, again.std, again.ser))


def test_the_check_vector_of_four_races_is_met() -> None:
    found = metrics(made_rates(CHECK_VECTOR))
    assert found.fdr == pytest.approx(0.94, abs=5e-8)
    assert found.inequity == pytest.approx(3.0088038, abs=5e-8)
    assert found.garbe == pytest.approx(0.2887969, abs=5e-8)
    assert found.max_geomean_fmr == pytest.approx(2.07628, abs=1e-5)
    assert found.max_geomean_fnmr == pytest.approx(1.47412, abs=5e-6)
    assert found.equalised_odds == pytest.approx(0.0676667, abs=5e-8)
    assert found.notes == ()
    assert found.accuracy.mean == pytest.approx(1 - (254 + 91 + 51 + 190 + 197 + 349 + 238 + 192) / 24000)


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0, (1 - 0.0523333, 1.8177083)), (1, (1 - 0.0676667, 4.9803922))], ids=["FNMR", "FMR"]
)
def test_alpha_is_the_weight_of_false_matches(alpha: float, expected: tuple[float, float]) -> None:
    found = metrics(made_rates(CHECK_VECTOR), alpha)
    assert (found.fdr, found.inequity) == pytest.approx(expected, abs=5e-8)
    assert found.garbe == pytest.approx(found.gini_fmr if alpha else found.gini_fnmr)
    assert found.alpha == alpha


@given(errors=st.tuples(st.integers(0, 100), st.integers(0, 100)), num=st.integers(2, 8))
def test_equal_rates_are_perfectly_fair(errors: tuple[int, int], num: int) -> None:
    found = metrics(made_rates([errors] * num, 100))
    assert figures(found) == pytest.approx(FAIR, abs=1e-9)
    assert found.accuracy.std == pytest.approx(0, abs=1e-9)


@given(counts=some_counts, seed=st.integers(0, 2**32))
def test_the_order_of_groups_changes_no_figure(counts: list[tuple[int, int]], seed: int) -> None:
    shuffled = [counts[place] for place in np.random.default_rng(seed).permutation(len(counts))]
    found, again = (metrics(made_rates(one, 100)) for one in (counts, shuffled))
    assert figures(found) == pytest.approx(figures(again))


@given(rates=some_rates, factor=st.floats(0.01, 1))
def test_ratios_and_gini_do_not_depend_on_how_many_errors_there_are_in_all(rates: Rates, factor: float) -> None:
    assert gini(rates * factor) == pytest.approx(float(gini(rates)), abs=1e-9)
    assert max_by_geomean(rates * factor) == pytest.approx(float(max_by_geomean(rates)))
    assert inequity(rates * factor, rates) == pytest.approx(float(inequity(rates, rates)))
    assert garbe(rates * factor, rates) == pytest.approx(float(garbe(rates, rates)), abs=1e-9)
    unfair, scaled = (1 - discrepancy(one, one) for one in (rates, rates * factor))
    assert scaled == pytest.approx(float(unfair) * factor)


@given(counts=some_counts)
def test_figures_stay_in_their_bounds(counts: list[tuple[int, int]]) -> None:
    found = metrics(made_rates(counts, 100))
    tolerance = 1e-9
    for within in (found.fdr, found.gini_fmr, found.gini_fnmr, found.garbe, found.equalised_odds):
        assert -tolerance <= within <= 1 + tolerance
    assert min(found.inequity, found.max_geomean_fmr, found.max_geomean_fnmr) >= 1 - tolerance
    assert max(found.max_geomean_fmr, found.max_geomean_fnmr) < len(counts) * 200


@given(rates=some_rates)
def test_gini_is_that_of_the_lorenz_curve(rates: Rates) -> None:
    shares = np.concatenate([[0], np.cumsum(np.sort(rates))]) / rates.sum()
    under_the_curve = (shares[1:] + shares[:-1]).mean() / 2
    assert gini(rates) == pytest.approx((1 - 2 * under_the_curve) * len(rates) / (len(rates) - 1), abs=1e-9)


def test_all_errors_in_one_group_are_a_gini_of_one() -> None:
    assert gini(np.array([0, 0, 0.3, 0])) == pytest.approx(1)


def test_a_rate_of_zero_is_jeffreys_in_ratios_and_zero_elsewhere() -> None:
    found = metrics(made_rates([(0, 10), (30, 10)], 1000))
    assert found.inequity == pytest.approx((0.03 / (0.5 / 1001)) ** 0.5)
    assert found.max_geomean_fmr == pytest.approx((0.03 / (0.5 / 1001)) ** 0.5)
    assert found.fdr == pytest.approx(1 - 0.5 * 0.03)
    assert found.gini_fmr == pytest.approx(1)
    assert found.notes == ("FMR of group 0 is 0 in 1000 comparisons; ratios take it as .5/1001 (Jeffreys)",)


def test_without_any_error_groups_are_equal_whatever_their_sizes() -> None:
    found = metrics(made_rates([(0, 0), (0, 0)], [10, 9000]))
    assert figures(found) == pytest.approx(FAIR)
    assert found.notes == tuple(f"{rate} is 0 in every group; its ratios are taken as 1" for rate in ("FMR", "FNMR"))


def test_groups_that_are_left_out_are_among_the_notes() -> None:
    rates = made_rates([(1, 1), (2, 2)], left_out=("C is left out: 3 genuine",))
    assert metrics(rates).notes == ("C is left out: 3 genuine",)


def test_one_group_is_refused() -> None:
    alone = made_rates([(1, 1)], left_out=("B is left out: 3 genuine",))
    with pytest.raises(DataError, match="1 of them has enough comparisons; B is left out: 3 genuine"):
        metrics(alone)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), num_groups=st.integers(2, 6))
def test_replicates_of_a_bootstrap_are_worked_on_side_by_side(seed: int, num_groups: int) -> None:
    rng = np.random.default_rng(seed)
    fmr, fnmr = rng.integers(0, 4, (2, num_groups, 20)) / 50
    num = rng.integers(50, 90, num_groups)
    positive = above_zero(fmr, num), above_zero(fnmr, num)
    for column in range(20):
        one, two = fmr[:, column], fnmr[:, column]
        alone = above_zero(one, num), above_zero(two, num)
        assert discrepancy(fmr, fnmr)[column] == pytest.approx(float(discrepancy(one, two)))
        assert garbe(fmr, fnmr)[column] == pytest.approx(float(garbe(one, two)))
        assert equalised_odds(fmr, fnmr)[column] == pytest.approx(float(equalised_odds(one, two)))
        assert inequity(*positive)[column] == pytest.approx(float(inequity(*alone)))
        assert max_by_geomean(positive[0])[column] == pytest.approx(float(max_by_geomean(alone[0])))
