"""Grids: which cells a file means, and that they are trained whatever happens to one or to all."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardgen.errors import DataError, UsageError
from tests.support import ROOT, cut_in_half, make_set
from tests.train.runs import assert_same_run, copy_of
from train import checkpoint
from train.grid import Grid, is_grid, load_grid, measure_grid, train_grid
from train.loop import RunResult, train
from train.recipe import Recipe, load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = {
    "name": "base",
    "mix": {"sets": {"real": {"path": "p", "identities": 10}, "fake": {"path": "q"}}},
    "head": {"kind": "cosface", "margin": 0.4},
}
SYNTHETIC = {
    "0K": {"mix.sets.fake": None, "mix.sets.real.identities": 20},
    "2K": {"mix.sets.fake.identities": 5},
}
HEADS = {"cos": {}, "arc": {"head": {"kind": "arcface"}}}


def write_grid(folder: Path, axes: dict[str, Any], base: dict[str, Any] = BASE, **more: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"name": "mixes", "recipe": "base.yaml", "axes": axes, **more}, sort_keys=False))
    return path


def test_a_file_with_axes_is_a_grid(tmp_path: Path) -> None:
    assert is_grid(write_grid(tmp_path, {"synthetic": SYNTHETIC}))
    assert not is_grid(tmp_path / "base.yaml")
    with pytest.raises(UsageError, match=r"nowhere\.yaml: No such file"):
        is_grid(tmp_path / "nowhere.yaml")


def test_a_cell_is_one_value_of_each_axis_in_the_order_of_the_file(tmp_path: Path) -> None:
    grid = load_grid(write_grid(tmp_path, {"synthetic": SYNTHETIC, "head": HEADS}))
    assert list(grid.cells) == ["0K-cos", "0K-arc", "2K-cos", "2K-arc"]
    assert [recipe.name for recipe in grid.cells.values()] == [f"mixes/{cell}" for cell in grid.cells]
    assert [recipe.run_folder for recipe in grid.cells.values()] == [Path("runs/mixes") / cell for cell in grid.cells]
    assert {cell: list(recipe.mix.sets) for cell, recipe in grid.cells.items()} == {
        "0K-cos": ["real"],
        "0K-arc": ["real"],
        "2K-cos": ["real", "fake"],
        "2K-arc": ["real", "fake"],
    }
    caps = [recipe.mix.sets["real"].identities for recipe in grid.cells.values()]
    assert [cap.most for cap in caps if cap] == [20, 20, 10, 10]
    assert {cell: (one.head.kind, one.head.margin) for cell, one in grid.cells.items()} == {
        "0K-cos": ("cosface", 0.4),
        "0K-arc": ("arcface", 0.5),
        "2K-cos": ("cosface", 0.4),
        "2K-arc": ("arcface", 0.5),
    }


@pytest.mark.parametrize(
    ("cell", "overrides"),
    [
        ("0K", ["mix.sets.fake=null", "mix.sets.real.identities=20"]),
        ("2K", ["mix.sets.fake.identities=5"]),
    ],
)
def test_a_cell_is_the_base_with_its_overrides_on_the_command_line(
    cell: str, overrides: list[str], tmp_path: Path
) -> None:
    grid = load_grid(write_grid(tmp_path, {"synthetic": SYNTHETIC}))
    alone = load_recipe(tmp_path / "base.yaml", [*overrides, f"name=mixes/{cell}", f"run=runs/mixes/{cell}"])
    assert grid.cells[cell] == alone


def test_what_changes_in_one_cell_stays_as_it_is_in_the_others(tmp_path: Path) -> None:
    axes = {"head": HEADS, "scale": {"s32": {"head.scale": 32}, "s64": {}}}
    grid = load_grid(write_grid(tmp_path, axes))
    scales = {cell: recipe.head.scale for cell, recipe in grid.cells.items()}
    assert scales == {"cos-s32": 32, "cos-s64": 64, "arc-s32": 32, "arc-s64": 64}


def test_the_command_line_has_the_last_word_in_every_cell(tmp_path: Path) -> None:
    path = write_grid(tmp_path, {"synthetic": SYNTHETIC, "head": HEADS})
    grid = load_grid(path, ["mix.sets.real.identities=3", "head.scale=32", "training.epochs=2"])
    for recipe in grid.cells.values():
        cap = recipe.mix.sets["real"].identities
        assert (cap and cap.most, recipe.head.scale, recipe.training.epochs) == (3, 32, 2)


def test_what_a_cell_leaves_out_the_command_line_does_not_bring_back(tmp_path: Path) -> None:
    grid = load_grid(write_grid(tmp_path, {"synthetic": SYNTHETIC}), ["mix.sets.fake.path=r", "mix.sets.real.path=s"])
    paths = {cell: [str(one.path) for one in recipe.mix.sets.values()] for cell, recipe in grid.cells.items()}
    assert paths == {"0K": ["s"], "2K": ["s", "r"]}


@pytest.mark.parametrize(
    ("more", "overrides", "folder"),
    [
        ({}, [], "runs/mixes"),
        ({"run": "elsewhere"}, [], "elsewhere"),
        ({"run": "elsewhere"}, ["run=here"], "here"),
        ({}, ["name=other"], "runs/other"),
    ],
)
def test_the_runs_lie_beside_each_other(
    more: dict[str, Any], overrides: list[str], folder: str, tmp_path: Path
) -> None:
    grid = load_grid(write_grid(tmp_path, {"synthetic": SYNTHETIC}, **more), overrides)
    assert grid.run == Path(folder)
    assert [recipe.run for recipe in grid.cells.values()] == [Path(folder) / "0K", Path(folder) / "2K"]
    assert {recipe.name.rpartition("/")[0] for recipe in grid.cells.values()} == {grid.name}


@pytest.mark.parametrize(
    ("axes", "overrides", "says"),
    [
        ({"a": {"x": {}, "y": {"head.kind": "cosfaec"}}}, [], "cell y: head.kind: .*'cosfaec'"),
        ({"a": {"x": {}, "y": {"heads": 1}}}, [], "cell y: unknown key heads; the nearest known one is head "),
        ({"a": {"x": {}}, "b": {"y": {"name.first": 1}}}, [], "cell x-y: name.first: name holds a value"),
        ({"a": {"x": {}}}, ["seed=-1"], "cell x: seed"),
        ({"a": {"x": {}}}, ["seed"], "'seed' is no override"),
        ({"a": {"x-y": {}, "x": {}}, "b": {"z": {}, "y-z": {}}}, [], "two cells are called x-y-z"),
        ({"a": {"x": {"seed": 1}}, "b": {"y": {"seed": 2}}}, [], "two axes set seed"),
        ({"a": {"x": {"head.scale": 1}}, "b": {"y": {"head": {"scale": 2}}}}, [], "two axes set head.scale"),
        ({"a": {"../x": {}}}, [], "axes.a"),
        ({"a": {}}, [], "axes.a"),
        ({}, [], "axes"),
        ({"a": ["x"]}, [], "axes.a"),
        ({"a": {"x": 1}}, [], "axes.a.x"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(
    axes: dict[str, Any], overrides: list[str], says: str, tmp_path: Path
) -> None:
    path = write_grid(tmp_path, axes)
    with pytest.raises(UsageError, match=says) as refused:
        load_grid(path, overrides)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value) or "override" in says


def test_a_grid_of_a_recipe_that_is_not_there_names_it(tmp_path: Path) -> None:
    path = write_grid(tmp_path, {"synthetic": SYNTHETIC}, recipe="gone.yaml")
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path / 'gone.yaml'}: No such file")):
        load_grid(path)


def grid_of(*cells: str) -> Grid:
    """Cells that a stand-in for training can be told apart by."""
    recipes = {cell: Recipe.model_validate(BASE | {"name": cell}) for cell in cells}
    return Grid("mixes", Path("runs/mixes"), recipes)


def ended(recipe: Recipe, step: int, interrupted: bool = False) -> RunResult:
    return RunResult(recipe.run_folder, step, 10, is_main=True, interrupted=interrupted)


def test_cells_are_trained_in_order_and_one_at_fault_does_not_stop_the_others() -> None:
    trained = []

    def train_cell(recipe: Recipe) -> RunResult:
        trained.append(recipe.name)
        if recipe.name == "b":
            raise DataError("training diverged")
        return ended(recipe, 10)

    result = train_grid(grid_of("a", "b", "c"), train_cell)
    assert trained == ["a", "b", "c"]
    assert (list(result.results), result.faults, result.interrupted) == (["a", "c"], {"b": "training diverged"}, False)
    assert result.lines() == [
        "runs/a: step 10 of 10",
        "runs/c: step 10 of 10",
        "cell b failed: training diverged",
    ]


@pytest.mark.parametrize("step", [4, 10])
def test_a_signal_ends_the_grid_even_in_a_cell_s_last_step(step: int) -> None:
    def train_cell(recipe: Recipe) -> RunResult:
        return ended(recipe, step, interrupted=True) if recipe.name == "b" else ended(recipe, 10)

    result = train_grid(grid_of("a", "b", "c"), train_cell)
    assert (list(result.results), result.interrupted) == (["a", "b"], True)


def test_a_step_to_stop_at_is_every_cell_s() -> None:
    result = train_grid(grid_of("a", "b"), lambda recipe: ended(recipe, 4))
    assert (list(result.results), result.interrupted) == (["a", "b"], False)


def test_what_cannot_be_asked_for_ends_the_grid_and_names_the_cell() -> None:
    def refuse(recipe: Recipe) -> RunResult:
        raise UsageError("no such set")

    with pytest.raises(UsageError, match="cell a: no such set"):
        train_grid(grid_of("a", "b"), refuse)


def test_an_override_brings_back_no_set_that_a_cell_leaves_out(tmp_path: Path) -> None:
    path = write_grid(tmp_path, {"a": {"without": {"mix.sets.fake": None}, "with": {}}})
    for override in ("mix.sets.fake.identities=5", "mix.sets.fake={path: elsewhere}"):
        cells = load_grid(path, [override]).cells
        assert "fake" not in cells["without"].mix.sets
        assert "fake" in cells["with"].mix.sets


@pytest.fixture
def two_mixes(recipe: Recipe, tmp_path: Path) -> Path:
    """A grid of two cells of six steps on drawn faces."""
    base = recipe.model_dump(mode="json") | {"run": None}
    axes = {"mix": {"half": {"mix.sets.photos.share": "1/2", "mix.sets.renders.share": "1/2"}, "third": {}}}
    return write_grid(tmp_path, axes, base, run=str(tmp_path / "runs"))


def test_a_grid_goes_on_where_it_stood(two_mixes: Path, tmp_path: Path) -> None:
    grid, straight = load_grid(two_mixes), load_grid(two_mixes, [f"run={tmp_path / 'straight'}"])
    go_on = partial(train, resume=True)
    stopped = train_grid(grid, partial(go_on, stop_at=2))
    assert [one.step for one in stopped.results.values()] == [2, 2]
    finished = train_grid(grid, go_on)
    assert all(one.finished for one in finished.results.values())
    train_grid(straight, go_on)
    for cell in ("half", "third"):
        assert_same_run(grid.run / cell, straight.run / cell)
    before = [path.read_bytes() for cell in grid.cells for path in checkpoint.all_in(grid.run / cell / "checkpoints")]
    again = train_grid(grid, go_on)
    after = [path.read_bytes() for cell in grid.cells for path in checkpoint.all_in(grid.run / cell / "checkpoints")]
    assert [one.step for one in again.results.values()] == [6, 6]
    assert before == after


def test_a_cell_with_damaged_data_leaves_the_others_alone(two_mixes: Path, tmp_path: Path) -> None:
    damaged = make_set(tmp_path / "damaged", range(6), 4)
    for shard in damaged.glob("*.tar"):
        cut_in_half(shard)
    grid = load_grid(two_mixes)
    bad = copy_of(grid.cells["half"], mix={"sets": {"damaged": {"path": str(damaged)}}})
    result = train_grid(
        Grid(grid.name, grid.run, {"bad": bad, "third": grid.cells["third"]}), partial(train, resume=True)
    )
    assert result.results["third"].finished
    assert "000000.tar" in result.faults["bad"]


def test_only_what_is_trained_to_its_end_is_measured(two_mixes: Path) -> None:
    grid = load_grid(two_mixes)
    train(grid.cells["half"], stop_at=1)
    train(grid.cells["third"])
    assert measure_grid(grid, lambda run: run.name) == {"half": None, "third": "third"}


TRAIN = """
import sys
import time
from functools import partial
from pathlib import Path
from train.grid import load_grid, train_grid
from train.loop import train
result = train_grid(load_grid(Path(sys.argv[1]), sys.argv[2:]), partial(train, resume=True))
sys.exit(130 if result.interrupted else len(result.faults))
"""


def test_two_processes_walk_the_cells_together(two_mixes: Path, tmp_path: Path) -> None:
    script = tmp_path / "train_grid.py"
    script.write_text(TRAIN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, script, two_mixes, "training.epochs=0.7"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = [checkpoint.load(checkpoint.find(tmp_path / "runs" / cell))["step"] for cell in ("half", "third")]
    assert steps == [2, 2]


def test_a_signal_ends_the_grid_after_the_step(two_mixes: Path, tmp_path: Path) -> None:
    overrides = ["training.epochs=10000", "training.checkpoint_every=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, two_mixes, *overrides], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not checkpoint.all_in(tmp_path / "runs" / "half" / "checkpoints"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not (tmp_path / "runs" / "third").exists()
