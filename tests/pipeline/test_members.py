"""Members of a stratum: who stands where, met how often, and who may stand in."""

from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.members import Identities, Images, Members, Windows, group_by
from pipeline.order import Ids
from tests.pipeline.simulated import met_at

KEYS = st.integers(0, 2**64 - 1)
SHARD_STARTS = np.array([0, 7, 10, 31, 32, 50, 58, 79, 90])


def labels_of(counts: list[int]) -> npt.NDArray[np.int32]:
    """Return the identities of samples that come in an order of no order."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.random.default_rng(len(counts)).permutation(labels)


def identities(counts: list[int], per_visit: int, *, equally: bool) -> Identities:
    return Identities(range(100, 100 + sum(counts)), labels_of(counts), per_visit, equally=equally)


COUNTS = [1, 5, 2, 8, 3, 3, 12, 1, 40]
KINDS: dict[str, Members] = {
    "images of a set": Images(range(30, 77)),
    "images of a group": Images(np.arange(5, 90, 3, dtype=np.uint32)),
    "one image": Images(range(8, 9)),
    "windows of a set": Windows(range(10, 79), SHARD_STARTS, 3),
    "windows of a group": Windows(np.arange(5, 90, 3, dtype=np.uint32), SHARD_STARTS, 2),
    "a window of all": Windows(range(10, 79), SHARD_STARTS, 100),
    "identities equally": identities(COUNTS, 1, equally=True),
    "pairs": identities(COUNTS, 2, equally=False),
    "pairs of identities equally": identities(COUNTS, 2, equally=True),
    "fives": identities(COUNTS, 5, equally=False),
}
EVERY_KIND = pytest.mark.parametrize("members", KINDS.values(), ids=KINDS)
EVERY_IMAGE = pytest.mark.parametrize("members", [one for one in KINDS.values() if isinstance(one, Images)])


@EVERY_KIND
@settings(deadline=None, max_examples=15)
@given(data=st.data(), key=KEYS)
def test_a_position_does_not_depend_on_what_else_is_asked(members: Members, data: st.DataObject, key: int) -> None:
    far = data.draw(st.integers(0, 10**6)) * members.num_units
    whole = np.stack(met_at(members, np.arange(far, far + 4 * members.num_units), key))
    whole = whole.reshape(2, 4 * members.num_units, -1)
    asked = np.array(data.draw(st.lists(st.integers(0, 4 * members.num_units - 1), min_size=1, max_size=30)))
    assert np.array_equal(np.stack(met_at(members, far + asked, key)), whole[:, asked].reshape(2, -1))


@EVERY_KIND
@settings(deadline=None, max_examples=10)
@given(key=KEYS)
def test_a_sample_is_never_met_twice_under_one_number(members: Members, key: int) -> None:
    met = np.stack(met_at(members, np.arange(40 * members.num_units), key), axis=1)
    assert len(np.unique(met, axis=0)) == len(met)
    assert set(met[:, 0].tolist()) == set(members.ids if isinstance(members.ids, range) else members.ids.tolist())


@EVERY_KIND
def test_another_key_is_another_order(members: Members) -> None:
    positions = np.arange(12 * members.num_units)
    orders = {met_at(members, positions, key)[0].tobytes() for key in range(3)}
    assert len(orders) == (3 if len(members.ids) > 1 else 1)


@EVERY_IMAGE
@settings(deadline=None, max_examples=10)
@given(first=st.integers(0, 10**6), key=KEYS)
def test_a_pass_over_images_holds_each_once_in_a_new_order(members: Members, first: int, key: int) -> None:
    num = members.num_units
    ids, passes = (column.reshape(3, num) for column in met_at(members, np.arange(first * num, (first + 3) * num), key))
    assert (np.sort(ids, axis=1) == np.asarray(members.ids)).all()
    assert (passes == np.arange(first, first + 3)[:, None]).all()
    assert num == 1 or len({one.tobytes() for one in ids}) == 3


def shards_open_at_once(ids: Ids) -> int:
    """Return of how many shards there are at most, at any position, samples both before and behind it."""
    shards = np.searchsorted(SHARD_STARTS, ids, "right")
    bounds = [np.flatnonzero(shards == shard)[[0, -1]] for shard in np.unique(shards)]
    return max(int(sum(first <= at <= last for first, last in bounds)) for at in range(len(ids)))


@pytest.mark.parametrize("window_shards", [1, 2, 3])
@pytest.mark.parametrize("ids", [range(90), range(10, 79), np.arange(5, 90, 3, dtype=np.uint32)])
def test_a_window_draws_from_no_more_shards_than_it_may(
    ids: range | npt.NDArray[np.uint32], window_shards: int
) -> None:
    members = Windows(ids, SHARD_STARTS, window_shards)
    met, _ = met_at(members, np.arange(20 * len(ids)), key=5)
    open_shards = [shards_open_at_once(one) for one in met.reshape(20, -1)]
    assert max(open_shards) == window_shards
    assert shards_open_at_once(met_at(Images(ids), np.arange(len(ids)), key=5)[0]) > window_shards


def test_shards_come_in_another_order_each_pass_and_samples_within_a_window_too() -> None:
    members = Windows(range(1000), np.arange(0, 1000, 100), 2)
    met = met_at(members, np.arange(5 * 1000), key=5)[0].reshape(5, 5, 200)
    pairs = [[frozenset((window // 100).tolist()) for window in one] for one in met]
    assert len({tuple(one) for one in pairs}) == 5
    assert len({pair for one in pairs for pair in one}) > 10
    assert len({tuple((window % 100).tolist()) for one in met for window in one}) == 25
    assert np.abs([np.corrcoef(window, np.arange(200))[0, 1] for one in met for window in one]).max() < 0.35


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 5), st.booleans(), KEYS)
@example([4, 3, 2, 1], 5, True, 1)
def test_a_visit_shows_distinct_images_of_one_identity_where_it_has_enough(
    counts: list[int], per_visit: int, equally: bool, key: int
) -> None:
    labels = labels_of(counts)
    members = identities(counts, per_visit, equally=equally)
    ids, _ = met_at(members, np.arange(3 * members.num_units), key)
    visits = ids.reshape(-1, per_visit) - 100
    for visit in visits:
        (identity,) = set(labels[visit].tolist())
        assert len(set(visit.tolist())) == min(counts[identity], per_visit)
    visited = Counter(labels[visits[:, 0]].tolist())
    assert visited == {i: 3 * (1 if equally else max(1, count // per_visit)) for i, count in enumerate(counts)}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 5), KEYS)
def test_an_identity_goes_through_its_images_before_it_shows_one_again(
    counts: list[int], per_visit: int, key: int
) -> None:
    members = identities(counts, per_visit, equally=True)
    ids, passes = met_at(members, np.arange(24 * members.num_units), key)
    labels = labels_of(counts)[ids - 100]
    met: dict[tuple[int, int], list[int]] = defaultdict(list)
    for label, sample, number in zip(labels.tolist(), ids.tolist(), passes.tolist(), strict=True):
        met[label, number].append(sample)
    for (label, number), samples in met.items():
        assert len(samples) == len(set(samples))
        last = max(one for other, one in met if other == label)
        if counts[label] >= per_visit and number != last:
            assert len(samples) == counts[label] // per_visit * per_visit


def test_what_a_pass_leaves_over_comes_in_others() -> None:
    ids, passes = met_at(identities([5], 2, equally=False), np.arange(2 * 200), key=3)
    left_over = [(set(range(100, 105)) - set(ids[passes == number].tolist())).pop() for number in range(200)]
    assert min(Counter(left_over).values()) > 20


@EVERY_KIND
@pytest.mark.parametrize("number", [0, 7])
def test_everybody_else_of_the_stratum_may_stand_in(members: Members, number: int) -> None:
    sample = int(members.ids[len(members.ids) // 2])
    others = list(members.replacements(sample, number, key=9))
    assert sorted([*others, sample]) == sorted(map(int, members.ids))
    assert others == list(members.replacements(sample, number, key=9))
    if len(others) > 1:
        different = [members.replacements(sample, number + 1, key=9), members.replacements(sample, number, key=8)]
        assert all(others != list(order) for order in different)


def test_images_of_the_same_identity_stand_in_first() -> None:
    members = identities(COUNTS, 2, equally=False)
    labels = labels_of(COUNTS)
    for sample in range(100, 100 + sum(COUNTS)):
        own = COUNTS[labels[sample - 100]] - 1
        first = list(islice(members.replacements(sample, 3, key=1), own + 1))
        same = [labels[one - 100] == labels[sample - 100] for one in first]
        assert same == [True] * own + [False]


def test_stand_ins_for_several_samples_are_several() -> None:
    members = Images(range(1000))
    assert len({next(members.replacements(sample, 0, key=1)) for sample in range(100)}) > 80


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=200))
def test_equal_codes_lie_side_by_side_in_their_order(codes: list[int]) -> None:
    positions, starts = group_by(np.array(codes, np.int32))
    assert positions.tolist() == sorted(range(len(codes)), key=lambda one: codes[one])
    parts = np.split(positions, starts[1:-1])
    assert [codes[part[0]] for part in parts] == sorted(set(codes))
    assert starts[-1] == len(codes)
