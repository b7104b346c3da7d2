"""The keyed permutation: every pass whole, every pass new, any position on its own, alone or with others."""

import tracemalloc
from math import factorial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import derive_key
from pipeline.order import Asking, Ids, Shuffle, order_of, pass_keys, permute, together

KEYS = st.integers(0, 2**64 - 1)
WEBFACE42M = 42_474_558


def passes_of(size: int, key: int, first: int, number: int) -> npt.NDArray[np.int64]:
    """Return `[pass, position]`: which member stands where."""
    positions = np.arange(first * size, (first + number) * size)
    return order_of(positions, size, key).reshape(number, size)


def excess(counts: npt.NDArray[np.int64], expected: float, freedom: int) -> float:
    """Return by how many standard deviations chi square exceeds what chance gives."""
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5000), KEYS, st.integers(0, 10**6))
def test_every_pass_holds_every_member_once(size: int, key: int, first: int) -> None:
    for one in passes_of(size, key, first, 3):
        assert np.array_equal(np.sort(one), np.arange(size))


@pytest.mark.parametrize("size", [*range(1, 19), 31, 32, 33, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097])
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
@given(st.lists(st.tuples(st.integers(1, 10**8), KEYS), min_size=1, max_size=40))
def test_values_of_many_sizes_are_permuted_as_each_alone(asked: list[tuple[int, int]]) -> None:
    sizes, keys = np.array([size for size, _ in asked]), np.array([key for _, key in asked], np.uint64)
    values = sizes // 2
    alone = [permute(values[i : i + 1], sizes[i : i + 1], keys[i : i + 1])[0] for i in range(len(asked))]
    assert permute(values, sizes, keys).tolist() == alone


@settings(deadline=None, max_examples=40)
@given(st.integers(20, 5000), st.integers(0, 1000))
def test_each_pass_and_each_key_has_an_order_of_its_own(size: int, seed: int) -> None:
    keys = [derive_key(seed + step, "order", "real") for step in range(2)]
    orders = [order.tobytes() for key in keys for order in passes_of(size, key, 0, 4)]
    assert len(set(orders)) == len(orders)


def walk(start: int, size: int, key: int, steps: int) -> Asking[list[int]]:
    """Ask so many times, each time for what the last answer says."""
    places = [start]
    for step in range(steps):
        keys = pass_keys(np.array([step]), key)
        answer: Ids = yield Shuffle(np.array(places[-1:]), np.array([size]), keys)
        places += answer.tolist()
    return places


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 10**6), KEYS, st.integers(1, 4)), min_size=1, max_size=8))
def test_asking_together_gives_what_each_gets_alone(walks: list[tuple[int, int, int]]) -> None:
    alone = [together([walk(size // 3, size, key, steps)])[0] for size, key, steps in walks]
    assert together([walk(size // 3, size, key, steps) for size, key, steps in walks]) == alone
    assert [len(places) for places in alone] == [steps + 1 for *_, steps in walks]


def test_positions_of_42_million_members_take_no_memory() -> None:
    positions = np.arange(10**12, 10**12 + 512)
    order_of(positions, WEBFACE42M, key=1)
    tracemalloc.start()
    members = order_of(positions, WEBFACE42M, key=1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 300_000
    assert members.min() >= 0
    assert members.max() < WEBFACE42M


def test_no_member_of_42_million_repeats_within_a_pass() -> None:
    scattered = np.arange(0, WEBFACE42M, 211)
    members = order_of(scattered + 3 * WEBFACE42M, WEBFACE42M, key=5)
    assert len(np.unique(members)) == len(members)
    quarters = np.bincount(members * 4 // WEBFACE42M, minlength=4) / len(members)
    assert np.abs(quarters - 0.25).max() < 0.01


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_few_members_come_in_all_orders_equally_often(size: int) -> None:
    orders = passes_of(size, key=3, first=0, number=200 * factorial(size))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == factorial(size)
    assert abs(excess(counts, 200, factorial(size) - 1)) < 6


@pytest.mark.parametrize("size", [7, 16, 17, 33, 100])
def test_every_member_stands_everywhere_equally_often(size: int) -> None:
    orders = passes_of(size, key=3, first=0, number=200 * size)
    counts = np.stack([np.bincount(column, minlength=size) for column in orders.T])
    assert abs(excess(counts, 200, (size - 1) ** 2)) < 6


@pytest.mark.parametrize("size", [7, 16, 17, 33, 64])
def test_every_two_members_stand_side_by_side_equally_often(size: int) -> None:
    orders = passes_of(size, key=3, first=0, number=20 * size * (size - 1))
    counts = np.bincount(orders[:, 0] * size + orders[:, 1], minlength=size * size)
    assert abs(excess(counts[counts > 0], 20, size * (size - 1) - 1)) < 6
    assert (counts > 0).sum() == size * (size - 1)


def test_sorted_data_does_not_stay_visibly_sorted() -> None:
    order = passes_of(5000, key=11, first=0, number=1)[0]
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.06
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.06
    assert (np.diff(order) == 1).sum() < 10


def test_passes_are_independent_of_each_other() -> None:
    first, second = passes_of(5000, key=11, first=7, number=2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert (first == second).sum() < 10
