"""The plan: global batch k as a pure function of (shard sets, mix, seed, batch size, k)."""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import ORIGIN, Catalog
from pipeline.config import MixConfig
from pipeline.plan import Plan, PlannedBatch, open_plan
from shardgen.errors import UsageError

WEBFACE42M = 42_474_558
GROUPS = {
    "real": ["north"] * 31 + ["unknown"] * 9 + ["south"] * 12,
    "drawn": ["south"] * 7 + ["east"] * 50 + ["north"] * 3,
}


def catalog_of(groups: Mapping[str, Sequence[str]]) -> Catalog:
    """Return a catalog without files: set -> the tag `group` of each of its samples."""
    flat = [value for values in groups.values() for value in values]
    values = ["unknown", *sorted(set(flat) - {"unknown"})]
    starts = np.cumsum([0, *map(len, groups.values())]).tolist()
    column = np.zeros(len(flat), np.int32)
    return Catalog(
        set_starts=dict(zip(groups, starts, strict=False)),
        shard_paths=[Path("000000.tar")],
        identities=[("real", "0")],
        axes={ORIGIN: ["unknown", "authentic", "synthetic"], "group": values},
        shard=column,
        offset=column.astype(np.int64),
        size=column,
        label=column,
        tags={
            ORIGIN: np.ones(len(flat), np.int16),
            "group": np.array([values.index(value) for value in flat], np.int16),
        },
        image_sizes=frozenset({(112, 112)}),
        digest="0" * 64,
    )


def mix_of(epoch: Any = "total", **sets: Any) -> MixConfig:
    parts = {name: {"path": f"data/{name}", **options} for name, options in sets.items()}
    return MixConfig.model_validate({"sets": parts, "epoch": epoch})


def plan_of(mix: MixConfig, batch_size: int = 10, seed: int = 0, groups: Mapping[str, Sequence[str]] = GROUPS) -> Plan:
    return Plan(catalog_of(groups), mix, seed, batch_size)


def shape(batch: PlannedBatch) -> tuple[bytes, bytes]:
    return batch.sample_ids.tobytes(), batch.passes.tobytes()


BALANCED = mix_of(real={"share": "1/3", "balance": "group"}, drawn={"share": "2/3", "balance": "group"})
NATURAL = mix_of(real={}, drawn={})


@pytest.mark.parametrize("mix", [BALANCED, NATURAL, mix_of(real={"share": 0.1}, drawn={"share": 0.9})])
def test_a_batch_does_not_depend_on_what_was_asked_before(mix: MixConfig) -> None:
    in_sequence = plan_of(mix)
    expected = [shape(in_sequence.batch(number)) for number in range(40)]
    jumping = plan_of(mix)
    for number in [39, 0, 17, 16, 17, 38, 5]:
        assert shape(jumping.batch(number)) == expected[number]
        assert shape(plan_of(mix).batch(number)) == expected[number]
    assert len(set(expected)) == 40


def test_the_seed_changes_which_samples_but_not_how_many() -> None:
    one, other = plan_of(BALANCED, seed=1), plan_of(BALANCED, seed=2)
    assert set(one.batch(0).sample_ids) != set(other.batch(0).sample_ids)
    assert one.counts_before(9) == other.counts_before(9)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("xyz"), min_size=1, max_size=40), min_size=1),
    st.lists(st.integers(1, 20), min_size=6, max_size=6),
    st.booleans(),
    st.integers(1, 50),
    st.integers(0, 2**31),
)
def test_strata_get_their_exact_share_and_each_sample_once_per_pass(
    groups: dict[str, list[str]], weights: list[int], balanced: bool, batch_size: int, seed: int
) -> None:
    total = sum(weights[: len(groups)])
    sets = {
        name: {"share": str(Fraction(weight, total)), "balance": "group" if balanced else None}
        for name, weight in zip(groups, weights, strict=False)
    }
    plan = plan_of(mix_of(**sets), batch_size, seed, groups)
    num_batches = 12
    batches = [plan.batch(number) for number in range(num_batches)]
    assert all(len(batch.sample_ids) == len(batch.passes) == batch_size for batch in batches)
    seen = Counter(
        (int(sample), int(number))
        for batch in batches
        for sample, number in zip(batch.sample_ids, batch.passes, strict=True)
    )
    assert set(seen.values()) == {1}
    for stratum, count in zip(plan.strata, plan.counts_before(num_batches), strict=True):
        members = set(map(int, stratum.members))
        per_pass = Counter(number for sample, number in seen if sample in members)
        assert per_pass.total() == count
        assert abs(count - stratum.share * num_batches * batch_size) < 1
        whole, rest = divmod(count, len(members))
        assert [per_pass[number] for number in sorted(per_pass)] == [len(members)] * whole + [rest] * (rest > 0)
    assert sum(len(stratum.members) for stratum in plan.strata) == len(plan.catalog)


def test_every_batch_holds_what_the_counts_say() -> None:
    plan = plan_of(BALANCED)
    for number in range(20):
        ids = plan.batch(number).sample_ids
        taken = [int(np.isin(ids, np.array(stratum.members)).sum()) for stratum in plan.strata]
        between = zip(plan.counts_before(number), plan.counts_before(number + 1), strict=True)
        assert taken == [after - before for before, after in between]


def test_a_stratum_is_in_a_new_order_each_pass() -> None:
    plan = plan_of(mix_of(drawn={"share": 1}), batch_size=60)
    batches = [plan.batch(number) for number in range(5)]
    in_order = [shape(batch)[0] for batch in batches]
    assert len(set(in_order)) == 5
    assert all(sorted(batch.sample_ids) == list(range(52, 112)) for batch in batches)


def test_balance_gives_every_known_value_the_same_part_and_leaves_unknown_out() -> None:
    plan = plan_of(BALANCED)
    assert [(stratum.name, stratum.share) for stratum in plan.strata] == [
        ("real/north", Fraction(1, 6)),
        ("real/south", Fraction(1, 6)),
        ("drawn/east", Fraction(2, 9)),
        ("drawn/north", Fraction(2, 9)),
        ("drawn/south", Fraction(2, 9)),
    ]
    assert plan.left_out == {"real": 9}
    values = plan.catalog.axes["group"]
    codes = np.concatenate([plan.batch(number).sample_ids for number in range(18)])
    drawn = Counter(values[code] for code in plan.catalog.tags["group"][codes])
    assert drawn == {"north": 70, "south": 70, "east": 40}


def test_without_balance_nothing_is_left_out() -> None:
    plan = plan_of(NATURAL)
    assert plan.left_out == {}
    assert [(stratum.name, stratum.value) for stratum in plan.strata] == [("real", None), ("drawn", None)]


def test_without_shares_sets_count_by_their_samples() -> None:
    plan = plan_of(NATURAL)
    assert [stratum.share for stratum in plan.strata] == [Fraction(52, 112), Fraction(60, 112)]
    samples = np.concatenate([plan.batch(number).sample_ids for number in range(11)])
    assert len(np.unique(samples)) == 110


def test_thirds_are_thirds() -> None:
    thirds = {name: {"share": "1/3"} for name in ("a", "b", "c")}
    plan = plan_of(mix_of(**thirds), batch_size=9, groups={name: ["x"] * 5 for name in thirds})
    assert [plan.counts_before(batch) for batch in (1, 2, 1000)] == [(3, 3, 3), (6, 6, 6), (3000, 3000, 3000)]


@pytest.mark.parametrize(("axis", "groups"), [("age", GROUPS), ("group", {"real": ["unknown"] * 4, "drawn": ["east"]})])
def test_an_axis_to_balance_over_that_is_not_there_is_refused_with_those_that_are(
    axis: str, groups: Mapping[str, Sequence[str]]
) -> None:
    mix = mix_of(real={"balance": axis}, drawn={})
    with pytest.raises(UsageError, match=f"set real has no {axis} tags.*origin, group"):
        plan_of(mix, groups=groups)


# 40 samples with half of every batch, 20 with a quarter, 6 with a quarter: due after 80, 80 and 24 slots
UNEVEN = {"a": ["x"] * 40, "b": ["x"] * 20, "c": ["x"] * 6}


@pytest.mark.parametrize(("epoch", "batches"), [("total", 66), ("longest", 80), ("shortest", 24), (50, 50)])
def test_an_epoch_ends_when_the_mix_says(epoch: str | int, batches: int) -> None:
    mix = mix_of(epoch, a={"share": "1/2"}, b={"share": "1/4"}, c={"share": "1/4"})
    assert plan_of(mix, batch_size=1, groups=UNEVEN).batches_per_epoch == batches
    assert plan_of(mix, batch_size=2, groups=UNEVEN).batches_per_epoch == batches // 2
    assert plan_of(mix, batch_size=1000, groups=UNEVEN).batches_per_epoch == 1


@pytest.mark.parametrize("batch_size", [1, 7, 16])
@pytest.mark.parametrize(("epoch", "finished"), [("longest", all), ("shortest", any)])
def test_an_epoch_of_the_longest_or_shortest_stratum_sees_it_whole(
    epoch: str, finished: Callable[[Iterable[bool]], bool], batch_size: int
) -> None:
    mix = mix_of(epoch, a={"share": "3/7"}, b={"share": "2/7"}, c={"share": "2/7"})
    plan = plan_of(mix, batch_size, groups={"a": ["x"] * 41, "b": ["x"] * 17, "c": ["x"] * 13})

    def seen_whole(num_batches: int) -> bool:
        seen = {int(sample) for number in range(num_batches) for sample in plan.batch(number).sample_ids}
        return finished(seen >= set(stratum.members) for stratum in plan.strata)

    assert seen_whole(plan.batches_per_epoch)
    assert not seen_whole(int(0.8 * plan.batches_per_epoch))  # and it ends soon after


def test_an_epoch_counts_only_samples_that_take_part() -> None:
    assert plan_of(BALANCED, batch_size=1).batches_per_epoch == 52 - 9 + 60


def test_the_printed_plan_says_what_an_epoch_takes() -> None:
    plan = plan_of(BALANCED, batch_size=18)
    ids = np.concatenate([plan.batch(number).sample_ids for number in range(plan.batches_per_epoch)])
    printed = plan.to_json()
    assert printed["left_out"] == {"real": 9}
    assert (printed["batch_size"], printed["batches_per_epoch"]) == (18, 5)
    for stratum, row in zip(plan.strata, printed["strata"], strict=True):
        taken = int(np.isin(ids, np.array(stratum.members)).sum())
        assert row == {
            "stratum": stratum.name,
            "samples": len(stratum.members),
            "share": float(stratum.share),
            "per_batch": {"real": 3, "drawn": 4}[stratum.set_name],
            "per_epoch": taken,
            "passes_per_epoch": taken / len(stratum.members),
        }
    lines = plan.lines()
    assert [line.split()[0] for line in lines[1:6]] == [stratum.name for stratum in plan.strata]
    assert lines[1].split() == ["real/north", "31", "16.67%", "3.00", "15", "0.48"]
    assert lines[6:] == [
        "9 samples of real are unknown on its balance axis and take no part",
        "an epoch is 5 batches of 18",
    ]


def test_every_part_of_a_batch_holds_every_stratum() -> None:
    plan = plan_of(mix_of(real={"share": "1/4"}, drawn={"share": "3/4"}), batch_size=64)
    slots = np.stack([plan.batch(number).sample_ids < 52 for number in range(400)])
    assert (slots.sum(1) == 16).all()
    assert np.abs(slots.mean(0) - 0.25).max() < 6 * np.sqrt(0.25 * 0.75 / 400)
    quarters = slots.reshape(400, 4, 16).sum(2)
    assert quarters.std(0) == pytest.approx(np.sqrt(16 * 0.25 * 0.75 * 48 / 63), rel=0.15)  # hypergeometric


def test_a_plan_over_42_million_samples_costs_no_memory() -> None:
    small = catalog_of({"real": ["x"] * 10})
    label = np.broadcast_to(np.int32(0), WEBFACE42M)
    catalog = replace(small, label=label, tags={axis: np.broadcast_to(np.int16(1), WEBFACE42M) for axis in small.axes})
    tracemalloc.start()
    plan = Plan(catalog, mix_of(real={}), seed=0, batch_size=512)
    samples = [plan.batch(number).sample_ids for number in (0, 10**5, 10**9)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000
    assert all(len(np.unique(ids)) == 512 and ids.max() < WEBFACE42M for ids in samples)


def test_a_plan_for_some_of_the_catalogs_sets_takes_only_from_those() -> None:
    plan = plan_of(mix_of(drawn={}))
    samples = np.concatenate([plan.batch(number).sample_ids for number in range(12)])
    assert set(samples.tolist()) == set(range(52, 112))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("data set", {"catalog": replace(catalog_of(GROUPS), digest="1" * 64)}),
        ("mix", {"mix": mix_of(real={"share": 0.5}, drawn={"share": 0.5})}),
        ("mix", {"mix": mix_of(real={"balance": "group"}, drawn={})}),
        ("mix", {"mix": mix_of(drawn={}, real={})}),
        ("seed", {"seed": 1}),
        ("batch size", {"batch_size": 20}),
    ],
)
def test_the_state_key_tells_what_differs(name: str, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"catalog": catalog_of(GROUPS), "mix": NATURAL, "seed": 0, "batch_size": 10}
    ours, other = Plan(**given).state_key, Plan(**given | change).state_key
    assert [part for part in ours if ours[part] != other[part]] == [name]


def test_the_state_key_does_not_know_where_the_sets_lie() -> None:
    elsewhere = MixConfig.model_validate({"sets": {"real": {"path": "/mnt/a"}, "drawn": {"path": "/mnt/b"}}})
    assert plan_of(elsewhere).state_key == plan_of(NATURAL).state_key


def test_one_folder_under_two_names_in_a_mix_is_refused(small_set: Path) -> None:
    mix = MixConfig.model_validate({"sets": {"one": {"path": small_set}, "again": {"path": small_set}}})
    with pytest.raises(UsageError, match="under 2 names"):
        open_plan(mix, 0, 8)
