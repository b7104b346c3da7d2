"""How evenly an accuracy is spread over groups."""

import numpy as np
import pytest

from eval.fairness import spread

RACES = [0.9715, 0.9400, 0.9427, 0.9512]


def test_the_spread_is_mean_deviation_and_error_ratio() -> None:
    found = spread(RACES)
    assert found.mean == pytest.approx(sum(RACES) / 4)
    assert found.std == pytest.approx((sum((one - sum(RACES) / 4) ** 2 for one in RACES) / 4) ** 0.5)
    assert found.ser == pytest.approx(0.06 / 0.0285)
    assert all(type(value) is float for value in (found.mean, found.std, found.ser))


def test_equal_groups_have_no_spread() -> None:
    found = spread([0.9, 0.9, 0.9])
    assert found.std == pytest.approx(0, abs=1e-12)
    assert found.ser == pytest.approx(1)


def test_a_group_without_an_error_leaves_the_ratio_open() -> None:
    assert spread([1.0, 0.9]).ser is None


def test_the_order_of_groups_does_not_matter() -> None:
    found, again = spread(RACES), spread(list(np.roll(RACES, 1)))
    assert (found.mean, found.std, found.ser) == pytest.approx((again.mean, again.std, again.ser))
