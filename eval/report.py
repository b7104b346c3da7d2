"""One self-contained HTML page per evaluation, and the same figures as `results.json`."""

import base64
import io
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from eval.evaluate import Evaluation, GroupResult, Scores
from eval.verification import roc
from shardgen.files import write_durably

_GENUINE, _IMPOSTOR = "#1b7837", "#762a83"


def write_report(evaluation: Evaluation, out: Path) -> Path:
    """Write `results.json` and `report.html` into a folder; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    results = {"facemix": _version(), **evaluation.to_json()}
    write_durably(out / "results.json", json.dumps(results, indent=1).encode())
    environment = Environment(loader=PackageLoader("eval", "."), autoescape=True, undefined=StrictUndefined)
    identification = evaluation.identification
    page = environment.get_template("report.html").render(
        version=_version(),
        evaluation=evaluation,
        roc_plot=_roc_plot(evaluation.scores) if evaluation.scores else None,
        histograms=[(one.name, _histogram(one)) for one in evaluation.scores],
        bars=[(axis, _bars(groups)) for axis, groups in identification.groups.items() if len(groups) > 1]
        if identification
        else [],
    )
    write_durably(out / "report.html", page.encode())
    return out / "report.html"


def _version() -> str:
    try:
        return version("facemix")
    except PackageNotFoundError:  # run from a folder on PYTHONPATH
        return "not installed"


def _roc_plot(scores: Sequence[Scores]) -> str:
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    for one in scores:
        curve = roc(one.distances, one.same)
        axes.plot(curve.far, curve.tar, label=_plain(one.name), drawstyle="steps-post")
    lowest = min(0.1, *(1 / (~one.same).sum() for one in scores))
    axes.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.01), xlabel="false accept rate", ylabel="true accept rate")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return _svg(figure)


def _histogram(scores: Scores) -> str:
    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    edges = np.linspace(scores.distances.min(), scores.distances.max(), 41).tolist()
    for label, of, colour in (("genuine", scores.same, _GENUINE), ("impostor", ~scores.same, _IMPOSTOR)):
        axes.hist(scores.distances[of], edges, label=f"{label} ({of.sum()})", color=colour, alpha=0.6)
    axes.set(xlabel="distance 2 - 2 cos", ylabel="pairs")
    axes.legend()
    return _svg(figure)


def _bars(groups: Sequence[GroupResult]) -> str:
    shown = sorted(groups, key=lambda one: -one.num_probes)[:12]  # an axis such as age has too many to read
    figure = Figure(figsize=(5, 0.8 + 0.55 * len(shown)))
    axes = figure.subplots()
    places = np.arange(len(shown))
    verified = [np.nan if one.verification_accuracy is None else one.verification_accuracy for one in shown]
    axes.barh(places - 0.2, verified, 0.38, label="verification accuracy", color="#2166ac")
    axes.barh(places + 0.2, [one.rank_1 for one in shown], 0.38, label="rank 1", color="#92c5de")
    axes.set_yticks(places, [f"{_plain(one.group)} ({one.num_probes})" for one in shown])
    axes.set(xlim=(0, 1))
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return _svg(figure)


def _plain(text: str) -> str:
    """Keep matplotlib from reading a name between dollar signs as mathematics."""
    return text.replace("$", r"\$")


def _svg(figure: Figure) -> str:
    """Return the figure as a data URL, so that the page needs no other file."""
    figure.set_layout_engine("tight")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
