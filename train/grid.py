"""A grid: one YAML file that says how several runs vary one recipe.

Each axis has named values, each value overrides keys of the recipe, and a cell is one value of every axis: a run of its
own in a folder of its own. What is finished, begun or still to do, the folders say.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shardgen.errors import DataError, UsageError
from train import checkpoint
from train.distributed import this_world
from train.loop import RunResult
from train.recipe import Recipe, make_recipe, parse_override, read_fields, validated

Measured = TypeVar("Measured")
_log = logging.getLogger("facemix.train")

Name = Annotated[str, Field(pattern=r"^[\w+%][\w+%.-]*$")]
"""Part of a folder's name."""
Overrides = Mapping[str, Any]
"""Dotted key of the recipe -> value; null leaves a section out, such as a set of the mix."""


class GridConfig(BaseModel):
    """What the file says."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    name: str = Field(min_length=1)
    """Name of the grid; its runs are called NAME/CELL."""
    recipe: Path
    """What is varied, as seen from the grid's folder."""
    run: Path | None = None
    """Folder of the runs' folders; runs/<name> unless given."""
    axes: Mapping[Name, Annotated[Mapping[Name, Overrides], Field(min_length=1)]] = Field(min_length=1)
    """Axis -> name of a value -> what it overrides."""

    @model_validator(mode="after")
    def _axes_differ(self) -> "GridConfig":
        axes = [sorted(set().union(*axis.values())) for axis in self.axes.values()]
        for keys, others in combinations(axes, 2):
            # A section after a key in it would replace that; before it, the key changes the section.
            if both := [key for key in keys if any(f"{key}.".startswith(f"{other}.") for other in others)]:
                raise ValueError(f"two axes set {both[0]}, and a cell can have but one; make them one axis")
        return self


@dataclass(frozen=True)
class Grid:
    """The runs of a grid."""

    name: str
    run: Path
    """Folder of the cells' run folders."""
    cells: Mapping[str, Recipe]
    """Names of one value of each axis, joined by "-" -> its run, in the order of the file."""


def is_grid(path: Path) -> bool:
    """Return whether a YAML file is a grid rather than a recipe; raise `UsageError` when it is neither."""
    return "axes" in read_fields(path)


def load_grid(path: Path, overrides: Sequence[str] = ()) -> Grid:
    """Read a grid; `dotted.key=value` overrides change all its cells, but bring back no section that a cell leaves out.

    `name` and `run` are the grid's. Raises `UsageError` with one line that names the cell as soon as one cannot be.
    """
    parsed = [parse_override(one) for one in overrides]
    own = {key: value for key, value in parsed if key in ("name", "run")}
    config = validated(GridConfig, read_fields(path) | own, str(path))
    base = read_fields(path.parent / config.recipe)
    run = config.run or Path("runs") / config.name
    cells: dict[str, Recipe] = {}
    for cell, values in _cells(config):
        if cell in cells:
            raise UsageError(f"{path}: two cells are called {cell}; rename a value")
        left_out = tuple(f"{key}." for key, value in values.items() if value is None)
        common = [(key, value) for key, value in parsed if key not in own and not f"{key}.".startswith(left_out)]
        identity = [("name", f"{config.name}/{cell}"), ("run", str(run / cell))]
        cells[cell] = make_recipe(base, [*values.items(), *common, *identity], f"{path}: cell {cell}")
    return Grid(config.name, run, cells)


def _cells(config: GridConfig) -> Iterator[tuple[str, Overrides]]:
    """Yield each cell's name and what its values override."""
    for values in product(*(axis.items() for axis in config.axes.values())):
        yield "-".join(name for name, _ in values), {key: value for _, one in values for key, value in one.items()}


@dataclass(frozen=True)
class GridResult:
    """How far a grid has come."""

    results: Mapping[str, RunResult]
    """Cell -> how its run ended."""
    faults: Mapping[str, str]
    """Cell -> why it could not be trained."""
    interrupted: bool
    """Whether a signal ended it before the last cell."""

    def lines(self) -> list[str]:
        """Return what became of each cell, for a person."""
        steps = [f"{one.folder}: step {one.step} of {one.num_steps}" for one in self.results.values()]
        return steps + [f"cell {cell} failed: {fault}" for cell, fault in self.faults.items()]


def train_grid(grid: Grid, train_cell: Callable[[Recipe], RunResult]) -> GridResult:
    """Train the cells in order, with a function that begins a run, or goes on with it, or finds it finished.

    A cell whose data is at fault, or that diverges, does not keep the others from training, unless several processes
    train: only one of them may have met the fault. A signal ends them all.
    Raises `UsageError` when a cell cannot be trained as it is asked for.
    """
    results: dict[str, RunResult] = {}
    faults: dict[str, str] = {}
    for number, (cell, recipe) in enumerate(grid.cells.items(), 1):
        if this_world().rank == 0:
            _log.info("cell %s, %d of %d: %s", cell, number, len(grid.cells), recipe.run_folder)
        try:
            result = results[cell] = train_cell(recipe)
        except DataError as error:
            if this_world().world_size > 1:
                raise DataError(f"cell {cell}: {error}") from None
            _log.warning("cell %s failed: %s", cell, error)
            faults[cell] = str(error)
            continue
        except UsageError as error:
            raise UsageError(f"cell {cell}: {error}") from None
        if result.interrupted:
            return GridResult(results, faults, interrupted=True)
    return GridResult(results, faults, interrupted=False)


def measure_grid(grid: Grid, measure: Callable[[Path], Measured]) -> dict[str, Measured | None]:
    """Return what a function of a run folder makes of each cell, None where training is not finished."""
    folders = {cell: recipe.run_folder for cell, recipe in grid.cells.items()}
    return {cell: measure(folder) if checkpoint.is_finished(folder) else None for cell, folder in folders.items()}
