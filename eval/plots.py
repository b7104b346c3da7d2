"""The report's plots: what is drawn as small values, each of which draws itself as SVG that stands inside a page.

Colours are the page's variables, so a plot follows a light or dark theme; words are text, so the browser has the fonts
for any name; which colour is which series is said in the page's words, where names may be long.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from scipy.special import ndtri

Floats = npt.NDArray[np.float64]
Scale = Literal["linear", "log", "probit"]

COLOURS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9a52"),
    ("#009e73", "#2fd6a6"),
    ("#cc79a7", "#e5a3c8"),
    ("#b8860b", "#f0e442"),
    ("#6a3d9a", "#b79be0"),
    ("#4d4d4d", "#c8c8c8"),
)
"""On a light page and on a dark one; the first four are those of Okabe and Ito (2008), told apart by all eyes."""
DASHES = ("none", "6 2", "2 2", "8 2 2 2")
"""As SVG writes them; with the colours they make 28 kinds of line."""
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}
"""As Matplotlib knows them and as letters."""

_INK, _LINE = "#222222", "#dddddd"
_VARIABLES = {
    _INK: "currentColor",
    _LINE: "var(--line)",
    **{light: f"var(--s{n})" for n, (light, _) in enumerate(COLOURS)},
}
_STYLE: Any = {
    "axes.formatter.useoffset": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "facemix",  # the same figures, the same page
    "text.parse_math": False,  # a group may be called "$20k to $50k"
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _LINE,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_INCHES = 5.0  # wide: 360 units, so that letters keep their size on a telephone
_CELLS = 400  # a plot's resolution each way
_MAX_LABEL = 20  # letters; whole names are in the tables
_MAX_WRITTEN = 8  # a larger matrix has no room for figures in its cells
_RAREST = 1e-9  # that is told from 0 on scales without one
_DECADES = tuple(10.0**n for n in range(-9, 10))
_PROBABILITIES = (1e-9, 1e-6, 1e-4, 0.002, 0.02, 0.1, 0.3, 0.5)


class Drawing(Protocol):
    """Whatever a panel can show."""

    marks: ClassVar[Sequence[str]]
    """How the legend marks the series in turn, besides by colour: a letter, or the dashes of a line."""

    @property
    def title(self) -> str:
        """What stands under it."""

    @property
    def names(self) -> Sequence[str]:
        """The series, in the order of their colours; empty without any."""

    def svg(self) -> str:
        """Return an `<svg>` element."""


@dataclass(frozen=True)
class Curve:
    """One line, `[points]` each; a band where both bounds are given."""

    name: str
    x: Floats
    """Rising."""
    y: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Plot:
    """Curves over one another."""

    marks: ClassVar[Sequence[str]] = DASHES

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    steps: bool = False
    """Whether a value holds until the next point, as rates do between thresholds."""

    @property
    def names(self) -> Sequence[str]:
        """The curves' names."""
        return [one.name for one in self.curves]

    def svg(self) -> str:
        """Return an `<svg>` element; a million points take no more room than the pixels they go through."""
        return _svg(3.6, self._draw)

    def _draw(self, axes: Axes) -> None:
        across = _Ruler.over(self.x_scale, [one.x for one in self.curves])
        up = _Ruler.over(self.y_scale, [part for one in self.curves for part in _heights(one)])
        for number, one in enumerate(self.curves):
            x, heights = across.place(one.x), [up.place(part) for part in _heights(one)]
            kept = _kept([x / across.span, *(part / up.span for part in heights)])
            _draw_curve(axes, number, x[kept], [part[kept] for part in heights], self.steps)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        across.mark(axes.xaxis)
        up.mark(axes.yaxis)
        axes.grid(color=_LINE)


def roc(curves: Sequence[Curve], title: str = "ROC") -> Plot:
    """Return true against false accept rate, the latter on a logarithmic axis."""
    return Plot(title, "false accept rate", "true accept rate", curves, x_scale="log", steps=True)


def det(curves: Sequence[Curve], title: str = "DET", scale: Scale = "log") -> Plot:
    """Return false non-match against false match rate (ISO/IEC 19795-1).

    Both are logarithmic as in NIST's FRTE, or with `probit` normal deviates of what is at most 1/2
    (Martin et al., Eurospeech 1997).
    """
    return Plot(title, "false match rate", "false non-match rate", curves, scale, scale, steps=True)


def cmc(curves: Sequence[Curve], title: str = "CMC") -> Plot:
    """Return the share of probes whose mate is among the first so many (ISO/IEC 19795-1); x are ranks from 1 on."""
    return Plot(title, "rank", "identification rate", curves, x_scale="log")


@dataclass(frozen=True)
class Series:
    """A value for each of some groups, NaN where there is none; with an interval where both bounds are given."""

    name: str
    values: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Dots:
    """Groups below one another, every series side by side, with error bars.

    Points and no bars, which would have to begin at 0, so that .991 can be told from .987.
    """

    marks: ClassVar[Sequence[str]] = tuple(_MARKERS.values())

    title: str
    x_label: str
    groups: Sequence[str]
    series: Sequence[Series]

    @property
    def names(self) -> Sequence[str]:
        """The series' names."""
        return [one.name for one in self.series]

    def svg(self) -> str:
        """Return an `<svg>` element, the higher the more there is to show."""
        return _svg(0.8 + len(self.groups) * (0.16 + 0.12 * len(self.series)), self._draw)

    def _draw(self, axes: Axes) -> None:
        places = np.arange(len(self.groups))
        for number, one in enumerate(self.series):
            errors = None
            if one.low is not None and one.high is not None:
                errors = np.maximum([one.values - one.low, one.high - one.values], 0)
            axes.errorbar(
                one.values,
                places + (number - (len(self.series) - 1) / 2) * 0.7 / len(self.series),
                xerr=errors,
                fmt=list(_MARKERS)[number % len(_MARKERS)],
                color=_colour(number),
                markersize=5,
            )
        axes.set_yticks(places, [_short(group) for group in self.groups])
        axes.set(xlabel=self.x_label, ylim=(len(self.groups) - 0.5, -0.5))
        axes.grid(axis="x", color=_LINE)


@dataclass(frozen=True)
class Histogram:
    """How scores are distributed; each series as shares of its own total, which may be of another magnitude."""

    marks: ClassVar[Sequence[str]] = "■"

    title: str
    x_label: str
    edges: Floats
    """[bins + 1]"""
    counts: Mapping[str, npt.NDArray[np.integer[Any]]]
    """Series -> [bins]"""

    @property
    def names(self) -> Sequence[str]:
        """The series' names with what they count."""
        return [f"{name} ({counts.sum():,})" for name, counts in self.counts.items()]

    def svg(self) -> str:
        """Return an `<svg>` element."""
        return _svg(3.0, self._draw)

    def _draw(self, axes: Axes) -> None:
        for number, counts in enumerate(self.counts.values()):
            shares = counts / max(1, counts.sum())
            axes.stairs(shares, self.edges, fill=True, color=_colour(number), alpha=0.35)
            axes.stairs(shares, self.edges, color=_colour(number))
        axes.set(xlabel=self.x_label, ylabel="share of pairs")


@dataclass(frozen=True)
class Matrix:
    """A value for each pair of groups as a heat map, on a logarithmic scale as rates of errors ask for."""

    marks: ClassVar[Sequence[str]] = ()

    title: str
    x_label: str
    y_label: str
    groups: Sequence[str]
    values: Floats
    """`[y group, x group]`; NaN stays blank, 0 is written and not coloured."""

    @property
    def names(self) -> Sequence[str]:
        """None: colours are explained by figures in the cells, or a bar where there is no room for these."""
        return []

    def svg(self) -> str:
        """Return an `<svg>` element."""
        return _svg(4.4, self._draw)

    def _draw(self, axes: Axes) -> None:
        positive = self.values[self.values > 0]
        scale = LogNorm(positive.min(), positive.max()) if len(positive) else LogNorm(0.1, 1)
        colours = axes.pcolormesh(np.ma.masked_less_equal(self.values, 0), norm=scale, cmap="cividis")
        places = np.arange(len(self.groups)) + 0.5
        axes.set_xticks(places, [_short(group) for group in self.groups], rotation=90)
        axes.set_yticks(places, [_short(group) for group in self.groups])
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        axes.invert_yaxis()
        if len(self.groups) > _MAX_WRITTEN:
            axes.figure.colorbar(colours, format=StrMethodFormatter("{x:g}"))
            return
        for (row, column), value in np.ndenumerate(self.values):
            if not np.isnan(value):
                ink = _INK if value <= 0 else "#000000" if scale(value) > 0.5 else "#ffffff"
                axes.text(column + 0.5, row + 0.5, f"{value:.2g}", color=ink, ha="center", va="center", size=9)


@dataclass(frozen=True)
class _Ruler:
    """An axis: where values stand on it. Scales are drawn here, for Matplotlib has no normal deviates."""

    scale: Scale
    low: float
    high: float

    @staticmethod
    def over(scale: Scale, values: Sequence[Floats]) -> "_Ruler":
        """Return the ruler that shows all of these that the scale can show."""
        flat = np.concatenate(values)
        least, most = {"linear": (-np.inf, np.inf), "log": (_RAREST, np.inf), "probit": (_RAREST, 0.5)}[scale]
        shown = flat[(flat >= least) & (flat <= most)]
        return _Ruler(scale, float(shown.min()), float(shown.max())) if len(shown) else _Ruler(scale, 0.1, 0.5)

    @property
    def span(self) -> float:
        """Its length, as drawn."""
        low, high = self.place(np.array([self.low, self.high]))
        return float(high - low) or 1.0

    def place(self, values: Floats) -> Floats:
        """Return where values are drawn; what the scale cannot show stands at its ends."""
        clipped = np.clip(values, self.low, self.high)
        placed: Floats = {"linear": np.asarray, "log": np.log10, "probit": ndtri}[self.scale](clipped)
        return placed

    def mark(self, axis: Axis) -> None:
        """Write numbers beside the axis."""
        if self.scale == "linear":
            return
        marks = np.array(_PROBABILITIES if self.scale == "probit" else _DECADES)
        if self.scale == "log" and self.span < 2:
            marks = np.outer(marks, (1, 2, 5)).ravel()
        marks = marks[(marks > 0.99 * self.low) & (marks < 1.01 * self.high)]
        axis.set_ticks(self.place(marks), [f"{mark:g}" for mark in marks])


def _heights(curve: Curve) -> list[Floats]:
    return [part for part in (curve.y, curve.low, curve.high) if part is not None]


def _kept(parts: Sequence[Floats]) -> npt.NDArray[np.bool_]:
    """Return which points can be told from those before them, given each in units of the plot's size."""
    cells = np.round(np.column_stack(parts) * _CELLS)
    return np.append(True, np.any(cells[1:] != cells[:-1], axis=1))[: len(cells)]  # none of no points


def _draw_curve(axes: Axes, number: int, x: Floats, heights: Sequence[Floats], steps: bool) -> None:
    y, *band = heights
    if band:
        low, high = band
        axes.fill_between(x, low, high, step="post" if steps else None, color=_colour(number), alpha=0.2, linewidth=0)
    (line,) = axes.plot(x, y, drawstyle="steps-post" if steps else "default", color=_colour(number))
    if (dash := DASHES[number % len(DASHES)]) != "none":
        line.set_dashes([float(length) for length in dash.split()])


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)][0]


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _MAX_LABEL else name[: _MAX_LABEL - 1] + "…"


def _svg(inches: float, draw: Callable[[Axes], None]) -> str:
    """Return a drawing of this height as an `<svg>` element."""
    with rc_context(_STYLE), warnings.catch_warnings():
        # A letter that Matplotlib's own font lacks is of unknown width here; the browser draws it.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure = Figure(figsize=(_INCHES, inches), layout="tight")
        draw(figure.subplots())
        written = io.BytesIO()
        figure.savefig(written, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = written.getvalue().decode()
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": {variable}")
    return re.sub(r' id="[A-Za-z_.]+_\d+"', "", svg[svg.index("<svg") :])  # ids are unique to a page, not to a drawing
