"""The keyed permutation: every pass whole, every pass new, any position on its own."""

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import derive_key
from pipeline.order import order_of

KEYS = st.integers(0, 2**64 - 1)
WEBFACE42M = 42_474_558


def passes_of(size: int, key: int, first: int, number: int) -> npt.NDArray[np.int64]:
    """Return `[pass, position]`: which member stands where."""
    positions = np.arange(first * size, (first + number) * size)
    return order_of(positions, size, key).reshape(number, size)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5000), KEYS, st.integers(0, 10**6))
def test_every_pass_holds_every_member_once(size: int, key: int, first: int) -> None:
    for one in passes_of(size, key, first, 3):
        assert np.array_equal(np.sort(one), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097])
def test_sizes_around_powers_of_two_are_permuted(size: int) -> None:
    assert np.array_equal(np.sort(passes_of(size, key=9, first=0, number=1)[0]), np.arange(size))


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 300), KEYS)
def test_a_position_does_not_depend_on_what_else_is_asked(data: st.DataObject, size: int, key: int) -> None:
    whole = order_of(np.arange(5 * size), size, key)
    asked = np.array(data.draw(st.lists(st.integers(0, 5 * size - 1), max_size=50)), np.int64)
    before = asked.copy()
    assert np.array_equal(order_of(asked, size, key), whole[asked])
    assert np.array_equal(asked, before)


@settings(deadline=None, max_examples=40)
@given(st.integers(20, 5000), st.integers(0, 1000))
def test_each_pass_and_each_key_has_an_order_of_its_own(size: int, seed: int) -> None:
    keys = [derive_key(seed + step, "order", "real") for step in range(2)]
    orders = [order.tobytes() for key in keys for order in passes_of(size, key, 0, 4)]
    assert len(set(orders)) == len(orders)


def test_positions_of_42_million_members_take_no_memory() -> None:
    positions = np.arange(10**12, 10**12 + 512)
    order_of(positions, WEBFACE42M, key=1)
    tracemalloc.start()
    members = order_of(positions, WEBFACE42M, key=1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 200_000
    assert members.min() >= 0
    assert members.max() < WEBFACE42M


def test_no_member_of_42_million_repeats_within_a_pass() -> None:
    scattered = np.arange(0, WEBFACE42M, 211)
    members = order_of(scattered + 3 * WEBFACE42M, WEBFACE42M, key=5)
    assert len(np.unique(members)) == len(members)
    quarters = np.bincount(members * 4 // WEBFACE42M, minlength=4) / len(members)
    assert np.abs(quarters - 0.25).max() < 0.01


@pytest.mark.parametrize("size", [64, 100, 150])
def test_every_member_stands_everywhere_equally_often(size: int) -> None:
    number = 200 * size
    orders = passes_of(size, key=3, first=0, number=number)
    expected = number / size
    chi_square = sum(
        float(((np.bincount(column, minlength=size) - expected) ** 2 / expected).sum()) for column in orders.T
    )
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_sorted_data_does_not_stay_visibly_sorted() -> None:
    order = passes_of(5000, key=11, first=0, number=1)[0]
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.06
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.06
    assert (np.diff(order) == 1).sum() < 10


def test_passes_are_independent_of_each_other() -> None:
    first, second = passes_of(5000, key=11, first=7, number=2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert (first == second).sum() < 10
