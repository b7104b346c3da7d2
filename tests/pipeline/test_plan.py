"""The plan: global batch k as a pure function of (shard sets, mix, seed, batch size, k)."""

import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import MixConfig
from pipeline.plan import Plan, PlannedBatch, open_plan
from shardgen.errors import UsageError
from tests.pipeline.simulated import Rows, catalog_of, mix_of, vast_catalog

WEBFACE42M = 42_474_558


def people(first: int, groups: Iterable[str]) -> Rows:
    """Return samples of these groups, four side by side of one identity."""
    return [(first + number // 4, group) for number, group in enumerate(groups)]


SETS: dict[str, Rows] = {
    "real": people(0, ["north"] * 31 + ["unknown"] * 9 + ["south"] * 12),
    "drawn": people(5, ["south"] * 7 + ["east"] * 50 + ["north"] * 3),
}


def plan_of(mix: MixConfig, batch_size: int = 10, seed: int = 0, sets: Mapping[str, Rows] = SETS) -> Plan:
    return Plan(catalog_of(sets), mix, seed, batch_size)


def shape(batch: PlannedBatch) -> tuple[bytes, ...]:
    return batch.sample_ids.tobytes(), batch.passes.tobytes(), batch.strata.tobytes()


def ids_of(plan: Plan, batches: Iterable[int]) -> list[int]:
    return [one for number in batches for one in plan.batch(number).sample_ids.tolist()]


BALANCED = mix_of({"real": {"share": "1/3", "balance": "group"}, "drawn": {"share": "2/3", "balance": "group"}})
NATURAL = mix_of({"real": {}, "drawn": {}})
PAIRS = mix_of({"real": {"share": 0.5, "balance": "group"}, "drawn": {"share": 0.5}}, per_identity=2)
CURRICULUM = mix_of({"real": {"share": {0: 1, 1: 0.5, 3: 0.1}}, "drawn": {"share": {0: 0, 1: 0.5, 3: 0.9}}})
MIXES: dict[str, MixConfig] = {
    "balanced": BALANCED,
    "natural": NATURAL,
    "pairs": PAIRS,
    "curriculum": CURRICULUM,
    "windows": mix_of({"real": {"balance": "group"}, "drawn": {}}, window_shards=2),
    "identities": mix_of({"real": {"sampling": "identity", "identities": 7}, "drawn": {}}),
    "fives of identities": mix_of({"real": {"sampling": "identity"}, "drawn": {}}, per_identity=5),
    "ramp": mix_of({"real": {"share": {0: 1, 4: 0.1}}, "drawn": {"share": {0: 0, 4: 0.9}}}, ramp="linear"),
}
EVERY_MIX = pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)


@EVERY_MIX
def test_a_batch_does_not_depend_on_what_was_asked_before(mix: MixConfig) -> None:
    in_sequence = plan_of(mix)
    expected = [shape(in_sequence.batch(number)) for number in range(60)]
    jumping = plan_of(mix)
    for number in [59, 0, 17, 16, 17, 38, 5]:
        assert shape(jumping.batch(number)) == expected[number]
        assert shape(plan_of(mix).batch(number)) == expected[number]
    assert len(set(expected)) == 60


@EVERY_MIX
def test_no_sample_comes_twice_in_the_same_pass(mix: MixConfig) -> None:
    plan = plan_of(mix)
    met = [one for k in range(80) for one in zip(*(c.tolist() for c in columns(plan.batch(k))), strict=True)]
    assert len(set(met)) == len(met) == 800


def columns(batch: PlannedBatch) -> tuple[Any, ...]:
    return batch.sample_ids, batch.passes


@EVERY_MIX
def test_every_slot_names_the_stratum_and_the_set_of_its_sample(mix: MixConfig) -> None:
    plan = plan_of(mix)
    for number in range(40):
        batch = plan.batch(number)
        assert {len(batch.sample_ids), len(batch.passes), len(batch.strata)} == {10}
        for sample, stratum, position in zip(batch.sample_ids, batch.strata, plan.sets(batch.strata), strict=True):
            one = plan.strata[stratum]
            assert sample in one.members.ids
            assert sample in plan.catalog.ids_of(one.set_name)
            assert plan.set_names[position] == one.set_name


@EVERY_MIX
def test_every_batch_holds_what_the_counts_say(mix: MixConfig) -> None:
    plan = plan_of(mix)
    for number in range(60):
        taken = np.bincount(plan.batch(number).strata, minlength=len(plan.strata)).tolist()
        between = zip(plan.counts_before(number), plan.counts_before(number + 1), strict=True)
        assert taken == [after - before for before, after in between]


def test_the_seed_changes_which_samples_but_not_how_many() -> None:
    one, other = plan_of(BALANCED, seed=1), plan_of(BALANCED, seed=2)
    assert set(one.batch(0).sample_ids) != set(other.batch(0).sample_ids)
    assert one.counts_before(9) == other.counts_before(9)


GROUPS = st.lists(st.sampled_from("xyz"), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.sampled_from("abcdef"), GROUPS, min_size=1),
    st.lists(st.tuples(*[st.integers(0, 20)] * 6), min_size=1, max_size=4),
    st.sampled_from([{}, {"balance": "group"}, {"balance": {"group": "natural"}}, {"sampling": "identity"}]),
    st.integers(1, 3),
    st.sampled_from(["steps", "linear"]),
    st.integers(1, 25),
)
def test_at_every_boundary_each_stratum_is_within_one_unit_of_its_share(
    groups: dict[str, list[str]],
    weights: list[tuple[int, ...]],
    options: dict[str, Any],
    unit: int,
    ramp: str,
    units: int,
) -> None:
    sets = {name: people(0, one) for name, one in groups.items()}
    # The last phase gives to all, so that no set is without a share in every epoch.
    phases = [one[: len(sets)] if sum(one[: len(sets)]) else (1,) * len(sets) for one in weights]
    phases[-1] = tuple(weight + 1 for weight in phases[-1])
    shares = {
        name: {2 * phase: str(Fraction(one[i], sum(one))) for phase, one in enumerate(phases)}
        for i, name in enumerate(sets)
    }
    mix = mix_of(
        {name: {"share": shares[name], **options} for name in sets},
        per_identity=unit,
        ramp=ramp,
        epoch=3 * unit * units,
    )
    plan = plan_of(mix, unit * units, sets=sets)
    assert plan.batches_per_epoch == 3
    due = [Fraction(0)] * len(plan.strata)
    for number in range(3 * 2 * len(phases)):
        now = mix.shares_in(number // 3)
        assert now is not None
        for i, stratum in enumerate(plan.strata):
            due[i] += now[stratum.set_name] * stratum.part * plan.batch_size
        counts = plan.counts_before(number + 1)
        assert sum(counts) == (number + 1) * plan.batch_size
        assert all(abs(count - one) < unit for count, one in zip(counts, due, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from("abcdef"), GROUPS, min_size=1),
    st.booleans(),
    st.integers(1, 50),
    st.integers(0, 99),
)
def test_each_image_comes_once_a_pass_and_passes_follow_each_other(
    groups: dict[str, list[str]], balanced: bool, batch_size: int, seed: int
) -> None:
    sets = {name: people(0, one) for name, one in groups.items()}
    plan = plan_of(mix_of({name: {"balance": "group"} if balanced else {} for name in sets}), batch_size, seed, sets)
    batches = [plan.batch(number) for number in range(12)]
    assert all(len(batch.sample_ids) == batch_size for batch in batches)
    for i, (stratum, count) in enumerate(zip(plan.strata, plan.counts_before(12), strict=True)):
        met: dict[int, list[int]] = defaultdict(list)
        for batch in batches:
            for sample, number in zip(
                batch.sample_ids[batch.strata == i], batch.passes[batch.strata == i], strict=True
            ):
                met[int(number)].append(int(sample))
        whole, rest = divmod(count, len(stratum.members.ids))
        assert [len(set(met[number])) for number in sorted(met)] == [len(stratum.members.ids)] * whole + [rest] * (
            rest > 0
        )
        assert sum(map(len, met.values())) == count
    assert sum(len(stratum.members.ids) for stratum in plan.strata) == len(plan.catalog)


@pytest.mark.parametrize("unit", [2, 3, 5])
def test_a_unit_is_one_identity_whose_images_stand_side_by_side(unit: int) -> None:
    mix = mix_of({"real": {"share": 0.5, "balance": "group"}, "drawn": {"share": 0.5}}, per_identity=unit)
    plan = plan_of(mix, batch_size=12 * unit)
    for number in range(20):
        batch = plan.batch(number)
        units = batch.sample_ids.reshape(-1, unit)
        owners = plan.catalog.label[units]
        assert (owners == owners[:, :1]).all()
        assert (batch.strata.reshape(-1, unit) == batch.strata[::unit, None]).all()
        sizes = {
            (i, int(label)): count
            for i, one in enumerate(plan.strata)
            for label, count in Counter(plan.catalog.label[np.asarray(one.members.ids)].tolist()).items()
        }
        for images, owner, stratum in zip(units, owners[:, 0], batch.strata[::unit], strict=True):
            assert len(set(images.tolist())) == min(unit, sizes[int(stratum), int(owner)])


def test_identities_of_a_batch_are_distinct_while_a_pass_over_them_lasts() -> None:
    sets = {"real": people(0, ["x"] * 4 * 48)}
    plan = plan_of(mix_of({"real": {"sampling": "identity"}}, per_identity=4), batch_size=16 * 4, sets=sets)
    for first in range(0, 30, 3):
        owners = [plan.catalog.label[plan.batch(first + step).sample_ids[::4]] for step in range(3)]
        assert sorted(np.concatenate(owners)) == list(range(48))


def test_a_batch_that_units_do_not_fill_is_refused() -> None:
    with pytest.raises(UsageError, match="batch size 10 is no multiple of per_identity 4; use 12"):
        plan_of(mix_of({"real": {}}, per_identity=4), batch_size=10)


def test_a_stratum_is_in_a_new_order_each_pass() -> None:
    plan = plan_of(mix_of({"drawn": {"share": 1}}), batch_size=60)
    batches = [plan.batch(number) for number in range(5)]
    assert len({batch.sample_ids.tobytes() for batch in batches}) == 5
    assert all(sorted(batch.sample_ids) == list(range(52, 112)) for batch in batches)


def test_balance_gives_every_known_value_the_same_part_and_leaves_unknown_out() -> None:
    plan = plan_of(BALANCED)
    ((epoch, shares),) = plan.shares
    assert epoch == 0
    assert dict(zip((one.name for one in plan.strata), shares, strict=True)) == {
        "real/north": Fraction(1, 6),
        "real/south": Fraction(1, 6),
        "drawn/east": Fraction(2, 9),
        "drawn/north": Fraction(2, 9),
        "drawn/south": Fraction(2, 9),
    }
    ids = np.array(ids_of(plan, range(18)))
    values = plan.catalog.axes["group"]
    drawn = Counter(values[code] for code in plan.catalog.codes("group", ids))
    assert drawn == {"north": 70, "south": 70, "east": 40}


def test_without_shares_sets_count_by_the_samples_that_take_part() -> None:
    assert plan_of(NATURAL).shares == [(0, [Fraction(52, 112), Fraction(60, 112)])]
    assert len(set(ids_of(plan_of(NATURAL), range(11)))) == 110
    balanced = plan_of(mix_of({"real": {"balance": "group"}, "drawn": {"identities": 5}}))
    assert balanced.shares == [(0, [Fraction(43, 63) / 2, Fraction(43, 63) / 2, Fraction(20, 63)])]


def test_thirds_are_thirds() -> None:
    names = ("a", "b", "c")
    mix = mix_of({name: {"share": "1/3"} for name in names})
    plan = plan_of(mix, batch_size=9, sets={name: people(0, "xxxxx") for name in names})
    assert [plan.counts_before(batch) for batch in (1, 2, 1000)] == [(3, 3, 3), (6, 6, 6), (3000, 3000, 3000)]


def test_a_set_gives_nothing_in_a_phase_without_a_share_for_it() -> None:
    plan = plan_of(CURRICULUM)
    of_set = [Counter(plan.sets(plan.batch(number).strata).tolist()) for number in range(4 * plan.batches_per_epoch)]
    per_epoch = [sum(of_set[start : start + 11], Counter()) for start in range(0, 44, 11)]
    assert plan.batches_per_epoch == 11
    assert per_epoch == [{0: 110}, {0: 55, 1: 55}, {0: 55, 1: 55}, {0: 11, 1: 99}]


def test_a_linear_ramp_changes_the_share_every_epoch() -> None:
    plan = plan_of(MIXES["ramp"])
    assert [(epoch, shares[0]) for epoch, shares in plan.shares] == [
        (0, Fraction(1)),
        (1, Fraction(31, 40)),
        (2, Fraction(11, 20)),
        (3, Fraction(13, 40)),
        (4, Fraction(1, 10)),
    ]


# 40 samples with half of every batch, 20 with a quarter, 6 with a quarter: due after 80, 80 and 24 slots
UNEVEN = {"a": people(0, ["x"] * 40), "b": people(0, ["x"] * 20), "c": people(0, ["x"] * 6)}


@pytest.mark.parametrize(("epoch", "batches"), [("total", 66), ("longest", 80), ("shortest", 24), (50, 50)])
def test_an_epoch_ends_when_the_mix_says(epoch: str | int, batches: int) -> None:
    mix = mix_of({"a": {"share": "1/2"}, "b": {"share": "1/4"}, "c": {"share": "1/4"}}, epoch=epoch)
    assert plan_of(mix, batch_size=1, sets=UNEVEN).batches_per_epoch == batches
    assert plan_of(mix, batch_size=2, sets=UNEVEN).batches_per_epoch == batches // 2
    assert plan_of(mix, batch_size=1000, sets=UNEVEN).batches_per_epoch == 1


@pytest.mark.parametrize(("batch_size", "unit"), [(1, 1), (7, 1), (16, 1), (16, 2)])
@pytest.mark.parametrize(("epoch", "finished"), [("longest", all), ("shortest", any)])
def test_an_epoch_of_the_longest_or_shortest_stratum_sees_it_whole(
    epoch: str, finished: Callable[[Iterable[bool]], bool], batch_size: int, unit: int
) -> None:
    sizes = {"a": 44, "b": 16, "c": 12}
    shares = {"a": "3/7", "b": "2/7", "c": "2/7"}
    mix = mix_of({name: {"share": share} for name, share in shares.items()}, epoch=epoch, per_identity=unit)
    plan = plan_of(mix, batch_size, sets={name: people(0, ["x"] * size) for name, size in sizes.items()})

    def seen_whole(num_batches: int) -> bool:
        seen = set(ids_of(plan, range(num_batches)))
        return finished(seen >= set(one.members.ids) for one in plan.strata)

    assert seen_whole(plan.batches_per_epoch)
    assert not seen_whole(int(0.8 * plan.batches_per_epoch))  # and it ends soon after


def test_an_epoch_counts_only_samples_that_take_part() -> None:
    assert plan_of(BALANCED, batch_size=1).batches_per_epoch == 52 - 9 + 60


def test_every_part_of_a_batch_holds_every_stratum() -> None:
    plan = plan_of(mix_of({"real": {"share": "1/4"}, "drawn": {"share": "3/4"}}), batch_size=64)
    slots = np.stack([plan.batch(number).sample_ids < 52 for number in range(400)])
    assert (slots.sum(1) == 16).all()
    assert np.abs(slots.mean(0) - 0.25).max() < 6 * np.sqrt(0.25 * 0.75 / 400)
    quarters = slots.reshape(400, 4, 16).sum(2)
    assert quarters.std(0) == pytest.approx(np.sqrt(16 * 0.25 * 0.75 * 48 / 63), rel=0.15)  # hypergeometric


# Names 5..12 occur in both sets.
@pytest.mark.parametrize(
    ("labels", "num_classes"), [("disjoint", (13 + 15,)), ("joined", (20,)), ("separate", (13, 15))]
)
def test_labels_count_identities_as_the_mix_says(labels: str, num_classes: tuple[int, ...]) -> None:
    plan = plan_of(mix_of({"real": {}, "drawn": {}}, labels=labels))
    assert plan.num_classes == num_classes
    assert plan.num_identities == {"real": 13, "drawn": 15}
    classes: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    ids = np.arange(len(plan.catalog))
    for (set_name, name), label in zip(
        (plan.catalog.identities[i] for i in plan.catalog.label), plan.labels(ids), strict=True
    ):
        classes[{"disjoint": (0, set_name, name), "joined": (0, name), "separate": (set_name, name)}[labels]].add(
            int(label)
        )
    assert all(len(found) == 1 for found in classes.values())
    heads: dict[Any, list[int]] = defaultdict(list)
    for key, found in classes.items():
        heads[key[0]] += found
    assert [sorted(found) for found in heads.values()] == [list(range(number)) for number in num_classes]


@pytest.mark.parametrize("labels", ["disjoint", "joined", "separate"])
def test_a_head_has_no_class_without_a_sample(labels: str) -> None:
    sets: dict[str, dict[str, Any]] = {"real": {"balance": "group", "identities": 6}, "drawn": {"identities": 3}}
    plan = plan_of(mix_of(sets, labels=labels), batch_size=10)
    batches = [plan.batch(number) for number in range(40)]
    met = {
        (int(s), int(c))
        for batch in batches
        for s, c in zip(plan.sets(batch.strata), plan.labels(batch.sample_ids), strict=True)
    }
    of_heads = (
        [[c for s, c in met if s == head] for head in range(2)] if labels == "separate" else [[c for _, c in met]]
    )
    assert [set(classes) for classes in of_heads] == [set(range(number)) for number in plan.num_classes]
    assert plan.num_identities == {"real": 6, "drawn": 3}


def test_labels_follow_the_order_of_the_mix_and_not_of_the_catalog() -> None:
    plan = plan_of(mix_of({"drawn": {}, "real": {}}))
    assert set(plan.labels(np.arange(52, 112)).tolist()) == set(range(15))


def test_a_plan_for_some_of_the_catalogs_sets_takes_only_from_those() -> None:
    assert set(ids_of(plan_of(mix_of({"drawn": {}})), range(12))) == set(range(52, 112))


@pytest.mark.parametrize("mix", [NATURAL, PAIRS])
def test_who_stands_in_is_of_the_same_stratum(mix: MixConfig) -> None:
    plan = plan_of(mix)
    batch = plan.batch(3)
    for sample, number, stratum in zip(
        batch.sample_ids.tolist(), batch.passes.tolist(), batch.strata.tolist(), strict=True
    ):
        others = list(plan.replacements(stratum, sample, number))
        assert sorted([*others, sample]) == sorted(map(int, plan.strata[stratum].members.ids))
        assert others == list(plan_of(mix).replacements(stratum, sample, number))
        assert others != list(plan_of(mix, seed=1).replacements(stratum, sample, number)) or len(others) < 3


VAST: dict[str, MixConfig] = {
    "natural": mix_of({"real": {}}),
    "balanced": mix_of({"real": {"balance": "group"}}),
    "identities": mix_of({"real": {"sampling": "identity"}}, per_identity=4),
    "windows": mix_of({"real": {"balance": "group"}}, window_shards=8),
}


@pytest.mark.parametrize("mix", VAST.values(), ids=VAST)
def test_a_batch_of_a_million_samples_needs_nothing_of_that_size(mix: MixConfig) -> None:
    plan = Plan(vast_catalog(1_000_000), mix, seed=0, batch_size=512)
    tracemalloc.start()
    samples = [plan.batch(number).sample_ids for number in (0, 1, 10**5)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 700_000
    assert all(len(np.unique(ids)) == 512 for ids in samples)


def test_a_plan_over_42_million_samples_costs_no_memory() -> None:
    small = vast_catalog(10)
    catalog = replace(small, label=np.broadcast_to(np.int32(0), WEBFACE42M), tags={})
    plan = Plan(catalog, mix_of({"real": {}}), seed=0, batch_size=512)
    assert plan.strata[0].members.ids == range(WEBFACE42M)
    samples = [plan.batch(number).sample_ids for number in (0, 10**5, 10**9)]
    assert all(len(np.unique(ids)) == 512 and ids.max() < WEBFACE42M for ids in samples)


@pytest.mark.parametrize(
    ("names", "change"),
    [
        (["data set"], {"catalog": replace(catalog_of(SETS), digest="1" * 64)}),
        (["mix"], {"mix": mix_of({"real": {"share": 0.5}, "drawn": {"share": 0.5}})}),
        (["mix", "order of strata"], {"mix": mix_of({"real": {"balance": "group"}, "drawn": {}})}),
        (["mix"], {"mix": mix_of({"real": {}, "drawn": {}}, per_identity=2)}),
        (["order of strata"], {"mix": mix_of({"drawn": {}, "real": {}})}),
        (["seed"], {"seed": 1}),
        (["batch size"], {"batch_size": 20}),
        ([], {"mix": mix_of({"real": {"augment": "randaugment"}, "drawn": {"path": "elsewhere"}})}),
    ],
)
def test_the_state_key_tells_what_differs(names: list[str], change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"catalog": catalog_of(SETS), "mix": NATURAL, "seed": 0, "batch_size": 10}
    ours, other = Plan(**given).state_key, Plan(**given | change).state_key
    assert [part for part in ours if ours[part] != other[part]] == names


def test_the_order_of_values_is_part_of_the_state_since_it_decides_who_comes_first() -> None:
    ours, other = (
        Plan(catalog_of(SETS), mix_of({"real": {"balance": {"group": dict.fromkeys(order, "1/2")}}}), 0, 10).state_key
        for order in (["north", "south"], ["south", "north"])
    )
    assert ours["mix"] == other["mix"]
    assert ours["order of strata"] != other["order of strata"]


def test_one_folder_under_two_names_in_a_mix_is_refused(small_set: Path) -> None:
    with pytest.raises(UsageError, match="under 2 names"):
        open_plan(mix_of({"one": {"path": small_set}, "again": {"path": small_set}}), 0, 8)


def test_a_real_set_is_planned_from_its_folder(small_set: Path) -> None:
    plan = open_plan(mix_of({"one": {"path": small_set, "balance": "group"}}, window_shards=2), 0, 8)
    assert sorted(set(ids_of(plan, range(2 * plan.batches_per_epoch)))) == sorted(
        int(one) for stratum in plan.strata for one in stratum.members.ids
    )
