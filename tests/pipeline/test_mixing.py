"""Quotas: exact at every batch boundary, never falling, the same however they are asked for."""

import tracemalloc
from fractions import Fraction
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.mixing import Quotas

WEIGHTS = st.one_of(
    st.lists(st.integers(1, 10**6), min_size=2, max_size=50),
    st.lists(st.integers(1, 12), min_size=2, max_size=50),  # many deadlines coincide
    st.lists(st.sampled_from([1, 10**9]), min_size=2, max_size=50),  # some are due once in a run
)
BATCH_SIZES = st.integers(1, 600)


def shares_of(weights: list[int]) -> list[Fraction]:
    return [Fraction(weight, sum(weights)) for weight in weights]


def steady(shares: list[Fraction], batch_size: int) -> Quotas:
    return Quotas([(0, shares)], batch_size)


def assert_exact(counts: tuple[int, ...], weights: list[int], slots: int) -> None:
    total = sum(weights)
    assert sum(counts) == slots
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count * total - weight * slots) < total, f"{count} of {slots}, due {weight * slots / total}"


@settings(deadline=None, max_examples=80)
@given(WEIGHTS, BATCH_SIZES, st.integers(1, 60))
def test_counts_stay_within_one_of_their_share_and_never_fall(
    weights: list[int], batch_size: int, num_batches: int
) -> None:
    quotas = steady(shares_of(weights), batch_size)
    counts = [quotas.before(batch) for batch in range(num_batches + 1)]
    for batch, now in enumerate(counts):
        assert_exact(now, weights, batch * batch_size)
    for before, after in pairwise(counts):
        assert all(a <= b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("num_strata", [2, 7, 20, 50])
def test_the_hardest_batch_size_stays_exact_over_thousands_of_slots(num_strata: int) -> None:
    weights = [(31 * i * i + 17) % 997 + 1 for i in range(num_strata)]
    quotas = steady(shares_of(weights), 1)
    for slots in range(3000):
        assert_exact(quotas.before(slots), weights, slots)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.lists(st.integers(1, 30), min_size=2, max_size=12), st.integers(1, 40))
def test_any_order_of_asking_gives_the_same(data: st.DataObject, weights: list[int], batch_size: int) -> None:
    shares = shares_of(weights)
    in_sequence = steady(shares, batch_size)
    expected = [in_sequence.before(batch) for batch in range(40)]
    jumping = steady(shares, batch_size)
    for batch in data.draw(st.lists(st.integers(0, 39), max_size=30)):
        assert jumping.before(batch) == expected[batch]
    last = data.draw(st.integers(0, 39))
    assert steady(shares, batch_size).before(last) == expected[last]


def test_asking_across_periods_equals_a_fresh_object() -> None:
    shares = [Fraction(1, 3), Fraction(1, 7), Fraction(11, 21)]
    quotas = steady(shares, 4)  # its counts are exactly due every 21 batches
    for batch in range(100):
        assert quotas.before(batch) == steady(shares, 4).before(batch)


@pytest.mark.parametrize("batch", [10**6, 10**9 + 7, 10**15 + 3])
def test_a_fresh_object_answers_for_a_far_batch(batch: int) -> None:
    weights = [7, 5, 2, 86]
    quotas = steady(shares_of(weights), 512)
    before, after = quotas.before(batch), quotas.before(batch + 1)
    assert_exact(before, weights, batch * 512)
    assert_exact(after, weights, (batch + 1) * 512)
    assert steady(shares_of(weights), 512).before(batch + 1) == after
    assert all(a <= b for a, b in zip(before, after, strict=True))


def test_going_on_keeps_nothing_but_the_last_answer() -> None:
    quotas = steady(shares_of([3, 10**6, 77]), 64)
    quotas.before(1)
    tracemalloc.start()
    for batch in range(2000):
        quotas.before(batch)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10_000


def test_a_lone_stratum_fills_every_slot() -> None:
    assert [steady([Fraction(1)], 128).before(batch) for batch in (0, 1, 10)] == [(0,), (128,), (1280,)]


def test_nothing_is_taken_before_the_first_batch() -> None:
    assert steady(shares_of([1, 2, 3]), 10).before(0) == (0, 0, 0)


def test_each_batch_takes_round_shares_exactly() -> None:
    quotas = steady([Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)], 8)
    assert [quotas.before(batch) for batch in range(3)] == [(0, 0, 0), (4, 2, 2), (8, 4, 4)]


@st.composite
def changing_shares(draw: st.DrawFn) -> tuple[list[tuple[int, list[Fraction]]], int]:
    """Phases of up to 12 strata, whose shares may be 0 for a while, and a batch size."""
    num_strata = draw(st.integers(2, 12))
    weight = st.one_of(st.just(0), st.integers(1, 9), st.integers(1, 10**5))
    weights = st.lists(weight, min_size=num_strata, max_size=num_strata).filter(any)
    firsts = [0, *accumulate(draw(st.lists(st.integers(1, 9), max_size=5)))]
    return [(first, shares_of(draw(weights))) for first in firsts], draw(st.one_of(st.integers(1, 8), BATCH_SIZES))


@settings(deadline=None, max_examples=150)
@given(changing_shares(), st.data())
def test_shares_that_change_stay_exact_too_however_they_are_asked_for(
    changing: tuple[list[tuple[int, list[Fraction]]], int], data: st.DataObject
) -> None:
    phases, batch_size = changing
    quotas = Quotas(phases, batch_size)
    counts = [quotas.before(batch) for batch in range(phases[-1][0] + 12)]
    due = [Fraction(0)] * len(phases[0][1])
    for batch, now in enumerate(counts):
        assert sum(now) == batch * batch_size
        assert all(abs(count - exactly) < 1 for count, exactly in zip(now, due, strict=True))
        shares = [shares for first, shares in phases if first <= batch][-1]
        due = [before + share * batch_size for before, share in zip(due, shares, strict=True)]
    for before, after in pairwise(counts):
        assert all(a <= b for a, b in zip(before, after, strict=True))
    jumping = Quotas(phases, batch_size)
    for batch in data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=10)):
        assert jumping.before(batch) == counts[batch] == Quotas(phases, batch_size).before(batch)


def test_a_far_batch_of_natural_shares_of_millions_needs_no_history() -> None:
    weights = [42_474_558, 5_822_653, 490_623]
    steps = 0

    class Counting(Quotas):
        def _advance(self, counts: tuple[int, ...], batch: int) -> tuple[int, ...]:
            nonlocal steps
            steps += 1
            return super()._advance(counts, batch)

    quotas = Counting([(0, shares_of(weights))], 512)
    assert_exact(quotas.before(10**9), weights, 512 * 10**9)
    assert steps == 1


def test_as_many_phases_as_a_long_ramp_has_are_no_burden() -> None:
    rare = Fraction(1, 10**6)
    phases = [(epoch, [rare, Fraction(epoch, 4001) - rare, 1 - Fraction(epoch, 4001)]) for epoch in range(1, 3000)]
    quotas = Quotas([(0, [rare, 0 * rare, 1 - rare]), *phases], 8)
    assert sum(quotas.before(2999)) == 8 * 2999
