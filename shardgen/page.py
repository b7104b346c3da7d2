"""`facemix inspect` as one self-contained HTML page: figures, plots and a sheet of faces for each set.

Plots are SVG that the template writes, not pictures of them: so the browser has the fonts for any name,
every name goes through the template's escaping, and the page follows a dark theme.
"""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from jinja2 import Environment, PackageLoader, StrictUndefined

from shardgen.files import write_durably
from shardgen.images import Rgb
from shardgen.sheet import rows
from shardgen.summary import MAX_VALUES, Summary, far_apart

WIDTH, HEIGHT = 300, 120  # of a plot's area, in the SVG's units
_MAX_BARS = 24
_MAX_TICKS = 10
_SHEET_QUALITY = 85


@dataclass(frozen=True)
class Plot:
    """Histograms over one another."""

    title: str
    ticks: Sequence[tuple[float, str]]
    """Place along the width and label."""
    top: float
    """The share (0-1) at full height."""
    outlines: Sequence[tuple[str, str]]
    """Name and SVG path of each series."""


@dataclass(frozen=True)
class Shares:
    """What part of each set has which value of a tag axis."""

    axis: str
    rows: Sequence[tuple[str, Sequence[float | None]]]
    """Value and each set's share (0-1) of samples; None where the set has no such axis."""


def write_page(path: Path, summaries: Sequence[Summary]) -> None:
    """Write the page of these sets; with several, it begins with a comparison."""
    environment = Environment(loader=PackageLoader("shardgen", "."), autoescape=True, undefined=StrictUndefined)
    names = _names(summaries)
    several = len(summaries) > 1
    page = environment.get_template("page.html").render(
        sets=[
            (name, one, _plots([name], [one]), [(row.label, _jpeg_url(row.faces)) for row in rows(Path(one.folder))])
            for name, one in zip(names, summaries, strict=True)
        ],
        plots=_plots(names, summaries) if several else [],
        shares=list(_shares(summaries)) if several else [],
        note=far_apart("set", {name: one.jpeg_quality for name, one in zip(names, summaries, strict=True)}),
        max_values=MAX_VALUES,
        plot_width=WIDTH,
        plot_height=HEIGHT,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, page.encode())


def _names(summaries: Sequence[Summary]) -> list[str]:
    """Return the sets' names, with their folders where they are of one name."""
    times = Counter(one.name for one in summaries)
    return [one.name if times[one.name] == 1 else f"{one.name} ({one.folder})" for one in summaries]


def _plots(names: Sequence[str], summaries: Sequence[Summary]) -> list[Plot]:
    """Return the distributions that a set, or several over one another, can be judged by."""
    images = [(name, one.identities_by_images) for name, one in zip(names, summaries, strict=True)]
    bins = _image_bins(max(max(counts) for _, counts in images))
    plots = [_plot("Images per identity (share of identities)", bins, images)]
    qualities = [(name, one.samples_by_quality) for name, one in zip(names, summaries, strict=True)]
    if any(counts for _, counts in qualities):
        plots.append(_plot("JPEG quality (share of JPEGs)", [range(q, q + 1) for q in range(1, 101)], qualities))
    return plots


def _image_bins(most: int) -> list[range]:
    """Return a bin a number of images, or where those are too many bins that double in width."""
    if most <= _MAX_BARS:
        return [range(n, n + 1) for n in range(1, most + 1)]
    return [range(1 << n, 2 << n) for n in range(most.bit_length())]


def _plot(title: str, bins: Sequence[range], series: Sequence[tuple[str, Mapping[int, int]]]) -> Plot:
    shares = [(name, _binned(counts, bins)) for name, counts in series]
    top = max(max(values) for _, values in shares)
    width, step = WIDTH / len(bins), -(-len(bins) // _MAX_TICKS)
    return Plot(
        title,
        [((i + 0.5) * width, _bin_name(bins[i])) for i in range(step - 1, len(bins), step)],
        top,
        [(name, _outline([HEIGHT * value / top for value in values])) for name, values in shares],
    )


def _binned(counts: Mapping[int, int], bins: Sequence[range]) -> list[float]:
    total = max(1, sum(counts.values()))  # no JPEG, no share
    return [sum(count for value, count in counts.items() if value in one) / total for one in bins]


def _bin_name(one: range) -> str:
    return str(one[0]) if len(one) == 1 else f"{one[0]}+"


def _outline(heights: Sequence[float]) -> str:
    """Return the steps of a histogram as an SVG path."""
    width = WIDTH / len(heights)
    steps = "".join(f"V{HEIGHT - height:.1f}H{(i + 1) * width:.1f}" for i, height in enumerate(heights))
    return f"M0 {HEIGHT}{steps}V{HEIGHT}Z"


def _shares(summaries: Sequence[Summary]) -> Iterator[Shares]:
    """Yield the axes that some sets share, unless too many to read, each with the values that occur in any."""
    times = Counter(axis for one in summaries for axis in one.groups)
    for axis in (axis for axis in times if times[axis] > 1):
        values = list(dict.fromkeys(value for one in summaries for value in one.groups.get(axis, ())))
        if len(values) <= MAX_VALUES:
            yield Shares(axis, [(value, [_share(one, axis, value) for one in summaries]) for value in values])


def _share(summary: Summary, axis: str, value: str) -> float | None:
    if axis not in summary.groups:
        return None
    group = summary.groups[axis].get(value)
    return group.samples / summary.num_samples if group else 0.0


def _jpeg_url(picture: Rgb) -> str:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _SHEET_QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(bytes(data)).decode()
