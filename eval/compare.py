"""The comparison of several evaluations: their pages turned over, so that runs are the rows and the curves.

What was a column of a page's table is a table with a row per run; what was a curve is a plot with a curve per run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from eval.plots import Curve, Dots, Drawing, Floats, Plot, Series
from eval.report import Measured, Page, Panel
from eval.table import Column, Table

_NOTHING = np.empty(0)


class _Titled(Protocol):
    @property
    def title(self) -> str: ...


_T = TypeVar("_T", bound=_Titled)


@dataclass(frozen=True)
class Difference:
    """How much one run's figure differs from another's on the same protocol, with the interval of that."""

    figure: str
    """What was measured, with its unit."""
    run: str
    baseline: str
    value: float
    """The run's figure minus the baseline's."""
    low: float
    high: float

    @property
    def larger_than_its_interval(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare(pages: Mapping[str, Page], differences: Sequence[Difference] = ()) -> Page:
    """Return a page that compares runs, given the page of each by its name.

    Panels, tables, curves and groups are matched by their titles and names; what a run lacks is a dash or no line.
    What has no order of better and worse (numbers of pairs, thresholds, histograms, pictures) stays on the runs' pages.
    """
    panels = _by_title({run: page.panels for run, page in pages.items()})
    return Page(
        title=f"Comparison of {len(pages)} runs",
        encoder=", ".join(pages),
        panels=[*_differences(differences), *(_panel(title, list(pages), of) for title, of in panels.items())],
        footer=_footer(pages),
        ranked=True,
    )


def _differences(differences: Sequence[Difference]) -> list[Panel]:
    """Return a panel that keeps what is larger than its interval apart from what is not."""
    tables = []
    for title, larger in (("Larger than its interval", True), ("Within its interval: no difference shown", False)):
        rows = {
            f"{one.figure}: {one.run} \u2212 {one.baseline}": [Measured(one.value, one.low, one.high)]
            for one in differences
            if one.larger_than_its_interval == larger
        }
        if rows:
            tables.append(Table(title, "figure", [Column("difference", None)], rows))
    return [Panel("Differences", tables=tables)] if tables else []


def _footer(pages: Mapping[str, Page]) -> dict[str, str]:
    """Return what all pages stand on once, and what they differ in for each run."""
    footer = {}
    for name in _union(page.footer for page in pages.values()):
        values = {run: page.footer[name] for run, page in pages.items() if name in page.footer}
        if len(values) == len(pages) and len(set(values.values())) == 1:
            footer[name] = next(iter(values.values()))
        else:
            footer |= {f"{name} ({run})": value for run, value in values.items()}
    return footer


def _panel(title: str, runs: Sequence[str], panels: Mapping[str, Panel]) -> Panel:
    first, *others = panels.values()
    tables = _by_title({run: panel.tables for run, panel in panels.items()})
    plots = _by_title({run: panel.plots for run, panel in panels.items()})
    return Panel(
        title,
        text=[line for line in first.text if all(line in other.text for other in others)],
        tables=[turned for of in tables.values() for turned in _turned_table(runs, of)],
        plots=[turned for of in plots.values() for turned in _turned_plot(runs, of)],
    )


def _turned_table(runs: Sequence[str], tables: Mapping[str, Table]) -> list[Table]:
    """Return a table with a row per run for each column that has a better and a worse."""
    columns = {column.name: column for table in tables.values() for column in table.columns if column.best is not None}
    names = _union(table.rows for table in tables.values())
    figures = {
        (run, name, column.name): figure
        for run, table in tables.items()
        for name, row in table.rows.items()
        for column, figure in zip(table.columns, row, strict=True)
    }
    title = next(iter(tables.values())).title
    return [
        Table(
            f"{title}: {column.name}",
            "run",
            [replace(column, name=name) for name in names],
            {run: [figures.get((run, name, column.name)) for name in names] for run in runs},
        )
        for column in columns.values()
    ]


def _turned_plot(runs: Sequence[str], plots: Mapping[str, Drawing]) -> list[Drawing]:
    """Return a plot with a curve, or dots, per run for each series; a run keeps its colour in all of them."""
    curves = {run: plot for run, plot in plots.items() if isinstance(plot, Plot)}
    dots = {run: plot for run, plot in plots.items() if isinstance(plot, Dots)}
    return [
        *(_curves(name, runs, curves) for name in _union(plot.names for plot in curves.values())),
        *(_dots(name, runs, dots) for name in _union(plot.names for plot in dots.values())),
    ]


def _curves(name: str, runs: Sequence[str], plots: Mapping[str, Plot]) -> Plot:
    drawn = {run: one for run, plot in plots.items() for one in plot.curves if one.name == name}
    nothing = Curve(name, _NOTHING, _NOTHING)
    first = next(iter(plots.values()))
    return replace(
        first, title=f"{first.title}: {name}", curves=[replace(drawn.get(run, nothing), name=run) for run in runs]
    )


def _dots(name: str, runs: Sequence[str], plots: Mapping[str, Dots]) -> Dots:
    groups = _union(plot.groups for plot in plots.values())
    series = [_series(name, run, groups, plots.get(run)) for run in runs]
    first = next(iter(plots.values()))
    return Dots(f"{first.title}: {name}", first.x_label, groups, series)


def _series(name: str, run: str, groups: Sequence[str], plot: Dots | None) -> Series:
    """Return a run's series for these groups, in their order."""
    found = [one for one in plot.series if one.name == name] if plot else []
    if plot is None or not found:
        return Series(run, np.full(len(groups), np.nan))
    (one,) = found
    places = [plot.groups.index(group) if group in plot.groups else -1 for group in groups]
    low, high = (None if part is None else _taken(part, places) for part in (one.low, one.high))
    return Series(run, _taken(one.values, places), low, high)


def _taken(values: Floats, places: Sequence[int]) -> Floats:
    """Return the values at these places, NaN at -1."""
    return np.append(values, np.nan)[places]


def _by_title(items: Mapping[str, Sequence[_T]]) -> dict[str, dict[str, _T]]:
    """Return title -> run -> what the run's page has under it."""
    titles = _union([one.title for one in of] for of in items.values())
    return {title: {run: one for run, of in items.items() for one in of if one.title == title} for title in titles}


def _union(names: Iterable[Iterable[str]]) -> list[str]:
    """Return all names once, in the order of their first appearance."""
    return list(dict.fromkeys(name for some in names for name in some))
