"""Recipes: what is accepted, what is refused and how, and what a resumed run may change."""

from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import flatten
from shardgen.errors import UsageError
from train.recipe import FREE_TO_CHANGE, Recipe, differences, load_recipe

MINIMAL = "name: x\nmix: {sets: {a: {path: p, share: 1/3}, b: {path: q, share: 2/3}}}\n"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def saved_recipe() -> dict[str, Any]:
    """A recipe as a checkpoint holds it."""
    sets = {"a": {"path": "p", "share": "1/3", "balance": "group"}, "b": {"path": "q", "share": "2/3"}}
    return Recipe.model_validate({"name": "x", "mix": {"sets": sets}}).model_dump(mode="json")


def leaves() -> list[str]:
    return sorted(flatten(saved_recipe()))


def nested(dotted: str, value: object, into: dict[str, Any]) -> dict[str, Any]:
    *parents, last = dotted.split(".")
    inner = into
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return into


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as refused:
        load_recipe(path, overrides)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_overrides_are_applied_in_turn_at_any_depth(recipe_file: Path) -> None:
    overrides = ["training.epochs=3", "loader.threads=4", "schedule.milestones=[1, 2.5]", "training.epochs=1.5"]
    shares = ["mix.sets.a.share=1/4", "mix.sets.b.share=0.75"]
    recipe = load_recipe(recipe_file, [*overrides, *shares, "optimizer.lr=1e-3", "run=somewhere"])
    assert (recipe.training.epochs, recipe.loader.threads, recipe.optimizer.lr) == (1.5, 4, 0.001)
    assert list(recipe.schedule.milestones) == [1, 2.5]
    assert recipe.mix.shares_in(0) == {"a": Fraction(1, 4), "b": Fraction(3, 4)}
    assert recipe.run_folder == Path("somewhere")


def test_a_run_goes_to_the_folder_of_its_name_unless_told_otherwise(recipe_file: Path) -> None:
    assert load_recipe(recipe_file).run_folder == Path("runs/x")


def test_thirds_are_exact_and_survive_being_saved(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    saved = recipe.model_dump(mode="json")
    again = Recipe.model_validate(saved)
    assert again.mix == recipe.mix
    assert again.model_dump(mode="json") == saved
    assert recipe.mix.shares_in(0) == {"a": Fraction(1, 3), "b": Fraction(2, 3)}


@pytest.mark.parametrize("key", [key for key in leaves() if ".balance." not in key])  # those are people's own names
def test_a_mistyped_key_is_named_with_the_nearest_known_one(key: str, recipe_file: Path) -> None:
    wrong = key + key[-1]
    message = refusal(recipe_file, f"{wrong}=1")
    assert f"unknown key {wrong}; the nearest known one is {key.rpartition('.')[2]} " in message


def test_a_mistyped_key_of_a_set_s_own_augmentation_is_named_too(recipe_file: Path) -> None:
    message = refusal(recipe_file, "mix.sets.a.augment={jpeg: {probability: 0.2, qualty: [30, 90]}}")
    assert "qualty; the nearest known one is quality " in message


def test_a_mistyped_section_is_named_too(recipe_file: Path) -> None:
    assert "unknown key trainig; the nearest known one is training " in refusal(recipe_file, "trainig.epochs=2")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mix.sets.a.share=0.5", "add up to"),
        ("mix.sets.a.share=null", "set a has no share"),
        ("mix.sets.a.share=half", "'half'"),
        ("mix.sets.a.share=1/0", "'1/0'"),
        ("mix.sets={}", "mix.sets"),
        ("mix.epoch=forever", "mix.epoch"),
        ("mix=null", "mix"),
        ("training.epochs=0", "training.epochs"),
        ("training.epochs=", "training.epochs"),
        ("head.kind=cosfaec", "'cosfaec'"),
        ("encoder.dropout=1", "encoder.dropout"),
        ("name=", "name"),
        ("name.first=x", "name holds a value"),
        ("epochs", "'epochs' is no override"),
        ("=3", "'=3' is no override"),
        ("seed=[1", "seed"),
        ('"a\nb"=3', "unknown key"),
        ("head.kind=[1,\n2]", "head.kind"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(override: str, expected: str, recipe_file: Path) -> None:
    assert expected in refusal(recipe_file, override)


@pytest.mark.parametrize(
    "content",
    [b"", b"3", b"- a", b"a: [1", b"\xff\xfe\x80", b"\x00", b"name: x", b"name: !!python/name:os.system x", b"1: 2"],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(content: bytes, recipe_file: Path) -> None:
    recipe_file.write_bytes(content)
    assert str(recipe_file) in refusal(recipe_file)


@settings(deadline=None, max_examples=60)
@given(
    key=st.sampled_from([*leaves(), "", "new", "mix.sets.a"]),
    value=st.text("[]{}:,-'\"!&*|>%@#? \n\x1f1/aé", max_size=6),
)
def test_any_override_is_applied_or_refused_in_one_line(
    key: str, value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any_override.yaml"
    path.write_text(MINIMAL)
    try:
        load_recipe(path, [f"{key}={value}"])
    except UsageError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_recipe_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path / name)


@pytest.mark.parametrize("key", leaves())
def test_only_what_changes_no_gradient_may_differ_on_resume(key: str) -> None:
    saved = saved_recipe()
    theirs = nested(key, "something else", deepcopy(saved))
    found = differences(Recipe.model_validate(saved), theirs)
    if key in FREE_TO_CHANGE or key.endswith(".path"):  # a set is known by its content, not by its place
        assert not found
    else:
        assert len(found) == 1
        assert found[0].startswith(f"{key} was something else, now it is ")


def test_what_may_change_is_spelt_as_recipes_spell_it() -> None:
    assert set(leaves()) >= FREE_TO_CHANGE


def test_equal_recipes_do_not_differ_and_a_dropped_set_does() -> None:
    saved = saved_recipe()
    ours = Recipe.model_validate(saved)
    assert not differences(ours, saved)
    more = nested("mix.sets.c", {"path": "r", "share": None, "balance": None}, deepcopy(saved))
    assert differences(ours, more) == ["mix.sets.c.path was r, now it is None"]
