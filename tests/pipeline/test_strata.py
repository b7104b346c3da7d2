"""Strata: who takes part, in which group, for which part of a set's share; and what caps leave."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalog import Catalog, open_catalog
from pipeline.members import Identities, Images, Windows
from pipeline.strata import Selection, Stratum, select
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import UsageError
from shardgen.inputs.folders import open_folder
from shardgen.procedural import draw_folder
from shardgen.tag_tables import join_table, read_table
from shardgen.tags import Records
from tests.pipeline.simulated import Rows, catalog_of, mix_of, vast_catalog

AXES = ("group", "gender")
ROWS = st.lists(
    st.tuples(st.integers(0, 11), st.sampled_from(["unknown", "a", "b", "c"]), st.sampled_from(["unknown", "f", "m"])),
    min_size=1,
    max_size=80,
)
BALANCES: list[Any] = [{}, "group", ["group", "gender"], {"gender": "natural"}, {"group": "equal", "gender": "natural"}]

# a: 6 f, 2 m; b: 1 f, 3 m; 3 of unknown group, 2 of unknown gender
PEOPLE: Rows = [
    *[(0, "a", "f")] * 6,
    *[(1, "a", "m")] * 2,
    *[(2, "b", "f")] * 1,
    *[(3, "b", "m")] * 3,
    *[(4, "unknown", "f")] * 3,
    *[(5, "b", "unknown")] * 2,
]


def selected(rows: Rows, options: dict[str, Any] | None = None, *, seed: int = 0, **mix: Any) -> Selection:
    """Return what a set with the axes `group` and `gender` gives, behind another set in the catalog."""
    catalog = catalog_of({"other": [(0, "z", "f")] * 7, "real": rows}, AXES)
    return select(catalog, "real", mix_of({"other": {}, "real": options or {}}, **mix), seed)


def parts_of(selection: Selection) -> dict[str, str]:
    return {"/".join(one.values): str(one.part) for one in selection.strata}


def rows_of(stratum: Stratum) -> list[int]:
    """Return the positions in the set of a stratum's samples."""
    return [int(one) - 7 for one in stratum.members.ids]


def test_a_set_without_balance_is_one_stratum_that_costs_no_memory() -> None:
    (stratum,) = selected(PEOPLE).strata
    assert (stratum.name, stratum.values, stratum.part) == ("real", (), Fraction(1))
    assert stratum.members.ids == range(7, 7 + 17)


@pytest.mark.parametrize(
    ("balance", "parts"),
    [
        ("group", {"a": "1/2", "b": "1/2"}),
        ({"group": "natural"}, {"a": "4/7", "b": "3/7"}),
        ({"group": {"b": "1/4", "a": "3/4"}}, {"b": "1/4", "a": "3/4"}),
        ({"group": {"b": 1}}, {"b": "1"}),
        ({"group": {"a": "1/2", "unknown": "1/2"}}, {"a": "1/2", "unknown": "1/2"}),
        (["group", "gender"], {"a/f": "1/4", "a/m": "1/4", "b/f": "1/4", "b/m": "1/4"}),
        ({"group/gender": "natural"}, {"a/f": "1/2", "a/m": "1/6", "b/f": "1/12", "b/m": "1/4"}),
        ({"group/gender": {"a/f": "1/3", "b/unknown": "2/3"}}, {"a/f": "1/3", "b/unknown": "2/3"}),
        ({"group": "equal", "gender": "natural"}, {"a/f": "3/8", "a/m": "1/8", "b/f": "1/8", "b/m": "3/8"}),
        (
            {"group": {"a": "1/3", "b": "2/3"}, "gender": "equal"},
            dict.fromkeys(("a/f", "a/m"), "1/6") | {"b/f": "1/3", "b/m": "1/3"},
        ),
        ({"gender": {"f": 1}, "group": "natural"}, {"f/a": "6/7", "f/b": "1/7"}),
        ("origin", {"authentic": "1"}),
    ],
)
def test_a_share_is_split_as_balance_says(balance: Any, parts: dict[str, str]) -> None:
    assert parts_of(selected(PEOPLE, {"balance": balance})) == parts


def test_what_stays_out_is_counted_with_the_reason() -> None:
    assert selected(PEOPLE).left_out == {}
    assert selected(PEOPLE, {"balance": "group"}).left_out == {"group unknown": 3}
    nested = {"group": {"b": 1}, "gender": "equal"}
    assert selected(PEOPLE, {"balance": nested}).left_out == {
        "group a, which has no share": 8,
        "group unknown, which has no share": 3,
        "gender unknown": 2,
    }


@pytest.mark.parametrize("balance", BALANCES)
@settings(deadline=None, max_examples=20)
@given(rows=ROWS)
def test_strata_hold_exactly_the_samples_of_their_values(balance: Any, rows: list[tuple[int, str, str]]) -> None:
    entries = [key.split("/") for key in mix_of({"real": {"balance": balance}}).sets["real"].balance]
    expected: dict[str, list[int]] = defaultdict(list)
    begun: set[str] = set()  # what the first entry of balance asks for; the second one must find something in each
    for position, row in enumerate(rows):
        values = ["/".join(str(row[1 + AXES.index(axis)]) for axis in entry) for entry in entries]
        begun |= {value for value in values[:1] if "unknown" not in value}
        if "unknown" not in "/".join(values):
            expected["/".join(["real", *values])].append(position)
    if not expected or (entries and {name.split("/", 1)[1][:1] for name in expected} != {one[:1] for one in begun}):
        with pytest.raises(UsageError, match="all are unknown"):
            selected(rows, {"balance": balance})
        return
    selection = selected(rows, {"balance": balance})
    assert {one.name: rows_of(one) for one in selection.strata} == expected
    assert sum(one.part for one in selection.strata) == 1
    assert sum(selection.left_out.values()) + sum(map(len, expected.values())) == len(rows)


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ("age", "set real has no age tags.*tag axes are: origin, group, gender"),
        ({"group": {"c": 1}}, "set real has nothing of group c; there is unknown, a, b"),
        ({"group": "equal", "gender": {"x": 1}}, "group a of set real has nothing of gender x; there is f, m"),
        ({"group/gender": {"a/x": 1}}, "nothing of group/gender a/x"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(balance: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        selected(PEOPLE, {"balance": balance})


def test_an_axis_of_which_all_is_unknown_is_refused() -> None:
    with pytest.raises(UsageError, match="set real has no group tags to balance over: all are unknown"):
        selected([(0, "unknown", "f")] * 4, {"balance": "group"})


def test_members_are_of_the_kind_that_the_mix_asks_for() -> None:
    kinds = {
        Images: selected(PEOPLE),
        Windows: selected(PEOPLE, window_shards=2),
        Identities: selected(PEOPLE, {"sampling": "identity"}),
    }
    assert all(type(selection.strata[0].members) is kind for kind, selection in kinds.items())
    assert isinstance(selected(PEOPLE, per_identity=2).strata[0].members, Identities)
    assert [selected(PEOPLE, {"sampling": "identity"}, per_identity=k).strata[0].members.num_units for k in (1, 2)] == [
        6,
        6,
    ]
    assert selected(PEOPLE, per_identity=2).strata[0].members.num_units == 3 + 1 + 1 + 1 + 1 + 1


def identities_of(selection: Selection, rows: Sequence[tuple[Any, ...]]) -> set[int]:
    return {rows[position][0] for one in selection.strata for position in rows_of(one)}


def spread(most: int, homes: dict[int, str], parts: dict[str, Fraction]) -> set[int]:
    """Return which identities stay, one after another: the next of the group that is furthest behind."""
    waiting = {group: [one for one, home in sorted(homes.items()) if home == group] for group in parts}
    taken: dict[str, int] = dict.fromkeys(parts, 0)
    chosen: set[int] = set()
    while len(chosen) < min(most, len(homes)):
        group = min((g for g in parts if waiting[g]), key=lambda g: float((taken[g] + 0.5) / parts[g]))
        chosen.add(waiting[group].pop(0))
        taken[group] += 1
    return chosen


@settings(deadline=None, max_examples=80)
@given(ROWS, st.integers(1, 14), st.sampled_from(["group", {"group": "natural"}]))
def test_a_cap_of_identities_is_exact_and_spread_as_the_parts_are(
    rows: list[tuple[int, str, str]], most: int, balance: Any
) -> None:
    known = [row for row in rows if row[1] != "unknown"]
    if not known:
        return
    whole = selected(rows, {"balance": balance})
    parts = {"/".join(one.values): one.part for one in whole.strata}
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    for identity, group, _ in known:
        votes[identity][group] += 1
    homes = {one: min(votes[one], key=lambda group: (-votes[one][group], group)) for one in votes}
    expected = spread(most, homes, parts)
    if {group for identity, group, _ in known if identity in expected} != set(parts):
        with pytest.raises(UsageError, match=f"{most} identities of set real are too few to leave one in [abc]"):
            selected(rows, {"balance": balance, "identities": most})
        return
    capped = selected(rows, {"balance": balance, "identities": most})
    assert identities_of(capped, rows) == expected
    taking_part = sum(len(one.members.ids) for one in capped.strata)
    assert taking_part == sum(identity in expected for identity, *_ in known)
    assert taking_part + sum(capped.left_out.values()) == len(rows)
    assert any("identities where" in line for line in capped.warnings) == (len(homes) < most)


def test_a_group_with_too_few_identities_leaves_its_place_to_others_and_the_plan_says_so() -> None:
    rows = [(identity, "a" if identity < 2 else "bcd"[identity % 3], "f") for identity in range(62)]
    selection = selected(rows, {"balance": "group", "identities": 20})
    assert Counter(rows[one][1] for one in identities_of(selection, rows)) == {"a": 2, "b": 6, "c": 6, "d": 6}
    assert selection.warnings == ["real/a has 2 identities, its part of 20 is 5: others take its room"]
    assert selection.left_out == {"over 20 identities": 42}


def test_natural_parts_count_what_caps_leave() -> None:
    rows = [*[(0, "a", "f")] * 9, *[(1, "b", "f")] * 2, *[(2, "b", "f")] * 7]
    options: dict[str, Any] = {"balance": {"group": "natural"}}
    capped = options | {"images_per_identity": {"most": 3, "by": "draw"}}
    assert parts_of(selected(rows, options)) == {"a": "1/2", "b": "1/2"}
    assert parts_of(selected(rows, capped)) == {"a": "3/8", "b": "5/8"}
    assert parts_of(selected(rows, capped | {"identities": 2})) == {"a": "3/5", "b": "2/5"}


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 5), st.integers(0, 3))
def test_a_cap_of_images_is_exact_for_every_identity(rows: list[tuple[int, str, str]], most: int, seed: int) -> None:
    selection = selected(rows, {"images_per_identity": {"most": most, "by": "draw"}}, seed=seed)
    kept = Counter(rows[position][0] for one in selection.strata for position in rows_of(one))
    there = Counter(row[0] for row in rows)
    assert kept == {identity: min(most, count) for identity, count in there.items()}
    lost = len(rows) - kept.total()
    assert selection.left_out == ({f"over {most} images per identity": lost} if lost else {})
    assert bool(selection.warnings) == (max(there.values()) <= most)


def test_a_cap_of_images_counts_only_those_that_take_part() -> None:
    rows = [(0, "unknown", "f"), (0, "a", "f"), (0, "unknown", "f"), (0, "a", "f")] * 5
    selection = selected(rows, {"balance": "group", "images_per_identity": {"most": 6, "by": "draw"}})
    assert len(selection.strata[0].members.ids) == 6


@pytest.mark.parametrize("what", ["identities", "images_per_identity"])
def test_a_draw_follows_the_seed_and_is_fair(what: str) -> None:
    rows = [(i if what == "identities" else 0, "a", "f") for i in range(40)]
    options = {what: {"most": 10, "by": "draw"}}
    draws = [tuple(rows_of(selected(rows, options, seed=seed).strata[0])) for seed in range(60)]
    assert len(set(draws)) == 60
    assert draws[3] == tuple(rows_of(selected(rows, options, seed=3).strata[0]))
    counts = Counter(row for draw in draws for row in draw)
    assert min(counts[row] for row in range(40)) > 15 - 6 * np.sqrt(60 * 0.25 * 0.75 * 0.75)
    assert all(abs(counts[row] - 15) < 6 * np.sqrt(60 * 0.25 * 0.75) for row in range(40))


NUMBERS = st.one_of(st.integers(-5, 5).map(float), st.just(float("nan")))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 6), NUMBERS), min_size=1, max_size=40),
    st.integers(1, 5),
    st.sampled_from(["descending", "ascending"]),
)
def test_images_and_identities_are_ranked_by_a_column_with_unknown_last(
    scores: list[tuple[int, float]], most: int, order: str
) -> None:
    rows = [(identity, "a") for identity, _ in scores]
    catalog = catalog_of({"real": rows}, numbers={"real": {"score": [score for _, score in scores]}})
    cap = {"most": most, "by": "score", "order": order}
    sign = -1 if order == "descending" else 1

    def best(numbers: dict[int, float]) -> list[int]:
        return sorted(numbers, key=lambda one: (np.isnan(numbers[one]), sign * np.nan_to_num(numbers[one]), one))[:most]

    of_identity: dict[int, dict[int, float]] = defaultdict(dict)
    for position, (identity, score) in enumerate(scores):
        of_identity[identity][position] = score
    (stratum,) = select(catalog, "real", mix_of({"real": {"images_per_identity": cap}}), 0).strata
    assert list(stratum.members.ids) == sorted(one for images in of_identity.values() for one in best(images))
    known = {i: [s for s in images.values() if not np.isnan(s)] for i, images in of_identity.items()}
    means = {i: float(np.mean(values)) if values else np.nan for i, values in known.items()}
    (stratum,) = select(catalog, "real", mix_of({"real": {"identities": cap}}), 0).strata
    assert {rows[one][0] for one in stratum.members.ids} == set(best(means))


def test_strata_of_many_samples_cost_four_bytes_each() -> None:
    catalog = vast_catalog(100_000)
    selection = select(catalog, "real", mix_of({"real": {"balance": "group"}}), 0)
    ids = [one.members.ids for one in selection.strata]
    assert sum(one.nbytes for one in ids if not isinstance(one, range)) == 4 * 100_000


@pytest.fixture(scope="module")
def scored_set(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A real set, shuffled, of 4 identities with 5 images; the tag `score` is the image's number times 10."""
    root = tmp_path_factory.mktemp("scored")
    draw_folder(root / "raw", 0, range(4), range(5))
    source = open_folder(root / "raw" / "images")
    scores = "\n".join(f"{name},{10 * (number % 5)}" for number, name in enumerate(source.names()))
    (root / "scores.csv").write_text(f"path,score\n{scores}\n")
    tags = join_table(read_table(root / "scores.csv"), Records(source.names, source.identities, source.labels))
    convert(source, tags, root / "set", ShardConfig(name="real", origin="authentic", shard_samples=6))
    return open_catalog({"real": root / "set"})


@pytest.mark.parametrize(("by", "kept"), [("first", {0, 10}), ("score", {30, 40})])
def test_a_real_set_is_capped_by_its_keys_and_columns(scored_set: Catalog, by: str, kept: set[int]) -> None:
    mix = mix_of({"real": {"images_per_identity": {"most": 2, "by": by}, "identities": 3}})
    (stratum,) = select(scored_set, "real", mix, 0).strata
    ids = np.asarray(stratum.members.ids)
    columns = scored_set.columns("real", ["key", "score"])
    assert set(columns["score"][ids].tolist()) == kept
    assert Counter(scored_set.label[ids].tolist()) == {0: 2, 1: 2, 2: 2}
    assert (np.diff(columns["key"].astype(np.int64)) < 0).any()  # the set is not in the input's order


def test_a_column_that_is_not_there_is_refused(scored_set: Catalog) -> None:
    mix = mix_of({"real": {"images_per_identity": {"most": 2, "by": "quality"}}})
    with pytest.raises(UsageError, match="quality"):
        select(scored_set, "real", mix, 0)


def test_a_cap_of_images_that_leaves_nothing_of_a_group_is_refused() -> None:
    rows: Rows = [(person, pose, "f") for person in range(4) for pose in ("front", "front", "side")]
    assert len(selected(rows, {"balance": "group", "images_per_identity": 3}).strata) == 2
    with pytest.raises(UsageError, match="2 images per identity of set real are too few to leave one in side; raise"):
        selected(rows, {"balance": "group", "images_per_identity": 2})
