"""Every command in the README runs, in the order it stands there, on what the demo draws."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from shardgen.procedural import draw_demo
from tests.support import ROOT, facemix

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|yaml)\n(.*?)```", README, re.DOTALL)
MAKE_TARGETS = re.findall(r"^make (\w+)", README, re.MULTILINE)
# The same training, cut short: what it reaches is measured elsewhere.
SHORT = ["training.epochs=0.2", "loader.batch_size=16"]


def test_the_walk_through_runs_as_written(tmp_path: Path) -> None:
    draw_demo(tmp_path / "runs" / "demo" / "raw")
    commands = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    (recipe,) = (block for kind, block in BLOCKS if kind == "yaml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mix.yaml").write_text(recipe)
    ran = 0
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        if program == "make":
            continue
        assert program == "facemix"
        short = SHORT if arguments[0] == "train" else []
        done = facemix(*arguments, *short, cwd=tmp_path)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        ran += 1
    assert ran == 14
    assert (tmp_path / "runs" / "mix" / "report.html").exists()


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_the_makefile_has_the_targets_that_the_readme_names(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_s_recipe_says_nothing_that_recipes_do_not_know() -> None:
    from train.config import Recipe

    (recipe,) = (block for kind, block in BLOCKS if kind == "yaml")
    assert Recipe.model_validate(yaml.safe_load(recipe)).name == "mix"
