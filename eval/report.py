"""The report: a page of panels, as one HTML file that needs no other, its tables beside it as CSV and LaTeX.

What a page shows is a small value here, whatever measured it; `compare.py` makes such a page of several.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
from jinja2 import Environment, PackageLoader, StrictUndefined

from eval.plots import COLOURS, Drawing
from eval.table import Column, Table
from shardgen.files import write_durably
from shardgen.images import Rgb

_JPEG_QUALITY = 90


class Measured(float):
    """A figure with its interval: shown with it, and a number wherever one is asked for."""

    low: float
    high: float

    def __new__(cls, value: float, low: float, high: float) -> "Measured":
        """Return the figure; the bounds are in its own units."""
        self = super().__new__(cls, value)
        self.low, self.high = low, high
        return self

    def __format__(self, spec: str) -> str:
        """Return it as 98.77 [97.50, 99.12]."""
        return f"{float(self):{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True)
class Shot:
    """One face of a pair."""

    picture: Rgb
    name: str
    """The identity, or what else the face is called."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Axis -> value."""


@dataclass(frozen=True)
class Pair:
    """Two faces that were compared."""

    first: Shot
    second: Shot
    score: float
    """Cosine."""


@dataclass(frozen=True)
class Panel:
    """What belongs together under one heading."""

    title: str
    text: Sequence[str] = ()
    """Paragraphs: the protocol, what was left out and why."""
    tables: Sequence[Table] = ()
    plots: Sequence[Drawing] = ()
    pairs: Sequence[Pair] = ()


@dataclass(frozen=True)
class Page:
    """All that is shown of one evaluation or one comparison."""

    title: str
    encoder: str
    """What was evaluated: path and step."""
    panels: Sequence[Panel]
    footer: Mapping[str, str]
    """What the figures stand on: hashes of protocols, versions."""
    ranked: bool = False
    """Whether the rows of tables compete, so that the best of each column stands out."""


def write_page(page: Page, path: Path) -> Path:
    """Write the page, and each table as `<name of the page>-tables/<number>-<title>.csv` and `.tex`."""
    folder = path.with_name(f"{path.stem}-tables")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.csv"), *folder.glob("*.tex")):  # of an earlier page
        old.unlink()
    tables = [(f"{panel.title} {table.title}", table) for panel in page.panels for table in panel.tables]
    for number, (title, table) in enumerate(tables, start=1):
        name = f"{number:02d}-{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')[:60]}"
        write_durably(folder / f"{name}.csv", _with_bounds(table).csv().encode())
        write_durably(folder / f"{name}.tex", (table if page.ranked else _unranked(table)).latex().encode())
    write_durably(path, render(page).encode())
    return path


def render(page: Page) -> str:
    """Return the page as HTML; whatever names it holds are text there."""
    environment = Environment(loader=PackageLoader("eval", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(page=page, colours=COLOURS, jpeg_url=_jpeg_url)


def _unranked(table: Table) -> Table:
    return replace(table, columns=[replace(column, best=None) for column in table.columns])


def _with_bounds(table: Table) -> Table:
    """Return the table with the bounds of intervals in columns of their own."""
    measured = [
        any(isinstance(row[place], Measured) for row in table.rows.values()) for place in range(len(table.columns))
    ]
    columns = [
        Column(f"{column.name}{suffix}")
        for column, bounds in zip(table.columns, measured, strict=True)
        for suffix in (("", " low", " high") if bounds else ("",))
    ]
    rows = {
        name: [part for figure, bounds in zip(row, measured, strict=True) for part in _parts(figure, bounds)]
        for name, row in table.rows.items()
    }
    return replace(table, columns=columns, rows=rows)


def _parts(figure: float | None, bounds: bool) -> list[float | None]:
    if not bounds:
        return [figure]
    return [figure, figure.low, figure.high] if isinstance(figure, Measured) else [figure, None, None]


def _jpeg_url(picture: Rgb) -> str:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(bytes(data)).decode()
