"""The real-only twin: the authentic sets alone on the budget of the whole mix, as a recipe that can be read back."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import plan_report
from pipeline.config import MixConfig
from pipeline.plan import Plan
from pipeline.twin import real_only
from shardgen.errors import UsageError
from tests.pipeline.simulated import Rows, catalog_of, mix_of
from tests.support import facemix, make_set
from train.recipe import load_recipe

SETS: dict[str, Rows] = {
    "old": [(number // 4, "ab"[number % 2]) for number in range(4 * 60)],
    "new": [(number // 4, "ab"[number % 2]) for number in range(4 * 90)],
    "drawn": [(number // 4, "ab"[number % 2]) for number in range(4 * 50)],
}
CATALOG = catalog_of(SETS, synthetic=["drawn"])


def plan_of(mix: MixConfig) -> Plan:
    return Plan(CATALOG, mix, 0, 20)


def twin_of(sets: dict[str, dict[str, Any]], **options: Any) -> tuple[Plan, MixConfig]:
    mix = mix_of(sets, **options)
    return plan_of(mix), real_only(mix, plan_of(mix))


def test_the_twin_of_a_two_set_mix_takes_the_budget_from_the_authentic_one() -> None:
    options = {"balance": "group", "sampling": "identity", "augment": "randaugment"}
    cap = {"most": 40, "by": "draw", "order": "ascending"}
    mixed, twin = twin_of(
        {"new": options | {"share": 0.7, "identities": cap}, "drawn": {"share": 0.3, "identities": 30}},
        per_identity=2,
        labels="separate",
    )
    (only,) = twin.sets.values()
    given_set = mix_of({"new": options}).sets["new"]
    assert only.share == {0: Fraction(1)}
    assert only.identities is not None
    assert only.identities.model_dump() == {"most": 70, "by": "draw", "order": "ascending"}
    assert only.model_copy(update={"share": None, "identities": None}) == given_set
    assert (twin.per_identity, twin.labels, twin.epoch) == (2, "separate", mixed.batches_per_epoch * 20)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.integers(2, 20)), min_size=3, max_size=3),
)
def test_the_twin_takes_as_many_identities_and_samples_as_the_mix(weights: list[int], caps: list[int | None]) -> None:
    sets = {
        name: {"share": str(Fraction(weight, sum(weights))), **({"identities": cap} if cap else {})}
        for name, weight, cap in zip(SETS, weights, caps, strict=True)
    }
    mixed, twin = twin_of(sets)
    assert list(twin.sets) == ["old", "new"]
    twins = plan_of(twin)
    wanted = {name: one.identities.most for name, one in twin.sets.items() if one.identities}
    assert sum(wanted.values()) == sum(mixed.num_classes)
    assert twins.num_identities == {name: min(most, len(SETS[name]) // 4) for name, most in wanted.items()}
    lacking = [name for name, most in wanted.items() if most > len(SETS[name]) // 4]
    warnings = plan_report.to_json(twins)["warnings"]
    assert [line.split()[0] for line in warnings if "identities where" in line] == lacking
    assert twins.batches_per_epoch == mixed.batches_per_epoch
    ((_, shares),) = twins.shares
    assert shares == [Fraction(weight, weights[0] + weights[1]) for weight in weights[:2]]


def test_identities_of_others_are_shared_out_as_the_sets_own_are() -> None:
    _, twin = twin_of({"old": {"identities": 10}, "new": {"identities": 30}, "drawn": {"identities": 5}})
    assert {name: one.identities.most for name, one in twin.sets.items() if one.identities} == {"old": 11, "new": 34}
    assert all(one.share is None for one in twin.sets.values())


def test_shares_that_change_become_their_mean() -> None:
    shares = {"old": {0: 0.6, 2: 0.2}, "new": {0: 0.2, 2: 0.2}, "drawn": {0: 0.2, 2: 0.6}}
    _, twin = twin_of({name: {"share": share} for name, share in shares.items()})
    assert {name: one.share for name, one in twin.sets.items()} == {
        "old": {0: Fraction(2, 3)},
        "new": {0: Fraction(1, 3)},
    }


def test_one_person_in_several_sets_counts_once_where_labels_are_joined() -> None:
    _, twin = twin_of({"new": {}, "drawn": {}}, labels="joined")
    assert twin.sets["new"].identities is not None
    assert twin.sets["new"].identities.most == 90


def test_a_mix_without_authentic_faces_has_no_twin() -> None:
    with pytest.raises(UsageError, match="none of the sets drawn is authentic"):
        twin_of({"drawn": {}})


def test_the_command_writes_a_recipe_that_reads_back(small_set: Path, tmp_path: Path) -> None:
    drawn = make_set(tmp_path / "drawn", range(4), 3, seed=1, origin="synthetic")
    recipe = {
        "name": "mixed",
        "run": str(tmp_path / "run"),
        "mix": {
            "sets": {
                "real": {"path": str(small_set), "share": {0: "70%", 3: "1/3"}, "balance": "group", "identities": 5},
                "drawn": {"path": str(drawn), "share": {0: "30%", 3: "2/3"}, "augment": "randaugment"},
            }
        },
        "augment": "adaface",
        "loader": {"batch_size": 6},
    }
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(recipe))
    done = facemix("plan", tmp_path / "mixed.yaml", "seed=3", "--real-only", tmp_path / "twin.yaml")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "twin.yaml") in done.stderr
    ours, twin = load_recipe(tmp_path / "mixed.yaml", ["seed=3"]), load_recipe(tmp_path / "twin.yaml")
    assert (twin.name, twin.run, twin.seed) == ("mixed_real_only", None, 3)
    assert twin.mix.sets["real"].model_dump(exclude={"share", "identities"}) == ours.mix.sets["real"].model_dump(
        exclude={"share", "identities"}
    )
    assert (list(twin.mix.sets), twin.mix.sets["real"].share) == (["real"], {0: Fraction(1)})
    unchanged = {"name", "run", "mix"}
    assert twin.model_dump(exclude=unchanged) == ours.model_dump(exclude=unchanged)
    assert facemix("plan", tmp_path / "twin.yaml").returncode == 0
