"""Every command in the README runs, in the order it stands there, on what the demo draws."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipeline.config import LoaderConfig, MixConfig, SetConfig
from shardgen.procedural import draw_demo
from tests.support import ROOT, facemix
from train.recipe import Recipe

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|yaml)\n(.*?)```", README, re.DOTALL)
YAML = [block for kind, block in BLOCKS if kind == "yaml"]
RECIPES = [block for block in YAML if "axes" not in yaml.safe_load(block)]
MAKE_TARGETS = re.findall(r"^make (\w+)", README, re.MULTILINE)
# The same training, cut short: what it reaches is measured elsewhere.
SHORT = ["training.epochs=0.2", "loader.batch_size=16"]


def test_the_walk_through_runs_as_written(tmp_path: Path) -> None:
    draw_demo(tmp_path / "runs" / "demo" / "raw")
    commands = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    recipe, *_, grid = YAML
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mix.yaml").write_text(recipe)
    (tmp_path / "data" / "grid.yaml").write_text(grid)
    ran = 0
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        if program == "make":
            continue
        assert program == "facemix"
        short = SHORT if arguments[0] == "train" and "--check" not in arguments else []
        done = facemix(*arguments, *short, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        ran += 1
    assert ran == 19
    assert (tmp_path / "runs" / "comparison" / "comparison.html").exists()
    assert (tmp_path / "runs" / "how_much" / "table.tex").exists()
    assert (tmp_path / "runs" / "mix" / "report.html").exists()


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_the_makefile_has_the_targets_that_the_readme_names(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: str(yaml.safe_load(recipe)["name"]))
def test_the_recipes_say_nothing_that_recipes_do_not_know(recipe: str) -> None:
    assert Recipe.model_validate(yaml.safe_load(recipe)).mix.sets


SETTINGS = re.findall(r"`((?:balance|identities|images_per_identity|sampling|share|augment): [^`]+)`", README)
MIX_SETTINGS = re.findall(r"`((?:ramp|per_identity|labels|window_shards): [^`K]+)`", README)


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_the_readme_says_of_a_set_is_what_recipes_understand(setting: str) -> None:
    assert SetConfig.model_validate({"path": "p", **yaml.safe_load(setting)})


@pytest.mark.parametrize("setting", MIX_SETTINGS)
def test_what_the_readme_says_of_a_mix_is_what_recipes_understand(setting: str) -> None:
    assert MixConfig.model_validate({"sets": {"a": {"path": "p"}}, **yaml.safe_load(setting)})


PARTS = re.findall(r"`((?:validation|contrastive|head|training|encoder|budget): \{[^`]+)`", README)


@pytest.mark.parametrize("part", PARTS)
def test_what_the_readme_says_of_training_is_what_recipes_understand(part: str) -> None:
    sets = {"authentic": {"path": "p"}, "synthetic": {"path": "q"}}
    mix = {"sets": sets, "per_identity": 2 if "contrastive" in part else 1}
    assert Recipe.model_validate({"name": "x", "mix": mix, **yaml.safe_load(part)})


def test_the_cache_that_the_readme_names_is_a_setting() -> None:
    (setting,) = re.findall(r"`(loader: [^`]+)`", README)
    assert LoaderConfig.model_validate(yaml.safe_load(setting)["loader"]).cache


def test_the_tables_of_settings_are_found() -> None:
    assert (len(SETTINGS), len(MIX_SETTINGS), len(PARTS)) == (12, 7, 7)
