"""Plots: that figures stand where they should, that any name is text, and that a million points are no burden."""

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from eval.plots import COLOURS, DASHES, Curve, Dots, Drawing, Floats, Histogram, Matrix, Plot, Series, cmc, det, roc

RATES = np.linspace(0.001, 1, 50)
SVG = "{http://www.w3.org/2000/svg}"


def drawings(name: str) -> list[Drawing]:
    """One of each kind, with this name wherever one goes."""
    curve = Curve(name, RATES, RATES**2, RATES**2 / 2, RATES)
    return [
        roc([curve]),
        det([curve], scale="probit"),
        cmc([Curve(name, np.arange(1.0, 21), RATES[:20])]),
        Dots(name, name, [name], [Series(name, np.array([0.5]), np.array([0.4]), np.array([0.7]))]),
        Histogram(name, name, np.array([0.0, 1, 2]), {name: np.array([3, 1])}),
        Matrix(name, name, name, [name], np.array([[0.1]])),
    ]


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def line_of(drawing: Drawing, colour: int = 0) -> Floats:
    """The points of a series' line, [points, 2], as drawn."""
    (path,) = [
        one
        for one in ElementTree.fromstring(drawing.svg()).iter(f"{SVG}path")
        if "fill: none" in one.get("style", "") and f"stroke: var(--s{colour})" in one.get("style", "")
    ]
    points = re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))
    return np.array(points, np.float64)


def bend(points: Floats) -> float:
    """How far the points are from the straight line through the ends, in the drawing's units."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    away = (x1 - x0) * (points[:, 1] - y0) - (y1 - y0) * (points[:, 0] - x0)
    return float(np.abs(away).max() / np.hypot(x1 - x0, y1 - y0))


def test_scores_of_two_normal_distributions_are_a_straight_line_on_normal_deviates() -> None:
    thresholds = np.linspace(3.5, 0, 400)
    curve = Curve("gaussian", ndtr(-thresholds), ndtr(thresholds - 3.5))
    straight = Plot("DET", "FMR", "FNMR", [curve], "probit", "probit")
    assert bend(line_of(straight)) < 1
    assert bend(line_of(Plot("DET", "FMR", "FNMR", [curve], "log", "log"))) > 10


def test_a_power_is_a_straight_line_on_logarithmic_axes() -> None:
    assert bend(line_of(Plot("", "x", "y", [Curve("power", RATES, RATES**3)], "log", "log"))) < 1
    assert bend(line_of(Plot("", "x", "y", [Curve("power", RATES, RATES**3)]))) > 10


def test_a_million_points_take_no_more_room_than_what_can_be_seen_of_them() -> None:
    far = np.linspace(0, 1, 1_000_001)
    plot = roc([Curve("many", far, far**0.1, far**0.11, far**0.09)])
    assert len(plot.svg()) < 200_000  # characters, where all points would be 100 million
    few = roc([Curve("few", far[::200], far[::200] ** 0.1, far[::200] ** 0.11, far[::200] ** 0.09)])
    assert np.allclose(line_of(plot)[-1], line_of(few)[-1], atol=1)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from(["log", "probit", "linear"]))
def test_any_rates_can_be_drawn(rates: list[float], scale: str) -> None:
    x, y = np.sort(rates), np.array(rates)
    assert det([Curve("any", x, y)], scale=scale).svg().startswith("<svg")  # type: ignore[arg-type]


def test_a_run_without_a_curve_or_a_group_keeps_its_place() -> None:
    nothing = np.empty(0)
    plot = roc([Curve("absent", nothing, nothing), Curve("here", RATES, RATES)])
    assert len(line_of(plot, colour=1)) > 2
    dots = Dots(
        "", "", ["a", "b"], [Series("absent", np.array([np.nan, np.nan])), Series("here", np.array([0.1, 0.9]))]
    )
    assert "var(--s0)" not in re.sub(r"<defs>.*?</defs>", "", dots.svg(), flags=re.DOTALL).replace("\n", " ")
    assert "var(--s1)" in dots.svg()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$x$", r"a$\x$", "_", "]]>", "名前", "a & b", "{{ 1 }}"])
def test_whatever_a_name_is_it_is_text(name: str) -> None:
    written = [drawing.svg() for drawing in drawings(name)]
    assert [svg for svg in written if "<script" in svg] == []
    *_, dots, _, matrix = [texts(svg) for svg in written]
    shown = name if len(name) <= 20 else name[:19] + "…"
    assert (dots.count(shown), matrix.count(shown)) == (2 if shown == name else 1, 4 if shown == name else 2)


def test_plots_follow_the_page_s_theme() -> None:
    for drawing in drawings("north"):
        svg = drawing.svg().lower()
        assert "currentcolor" in svg
        assert [colour for colour in ("#222222", "#dddddd", *(light for light, _ in COLOURS)) if colour in svg] == []


def test_the_same_figures_are_the_same_drawing() -> None:
    assert [one.svg() for one in drawings("a")] == [one.svg() for one in drawings("a")]


def test_series_differ_in_more_than_colour() -> None:
    kinds = [(n % len(COLOURS), n % len(DASHES)) for n in range(len(COLOURS) * len(DASHES))]
    assert len(set(kinds)) == len(kinds)
    svg = roc([Curve(str(n), RATES, RATES / (n + 1)) for n in range(4)]).svg()
    assert all(a != b for a, b in itertools.pairwise(re.findall(r"stroke-dasharray: ([^;]*)", svg)))
    assert len(set(re.findall(r"stroke-dasharray: ([^;\"]*)", svg))) == 3


def test_an_error_bar_goes_from_low_to_high() -> None:
    series = Series("all", np.array([0.5, 0.5, 0.5]), np.array([0.4, 0.4, np.nan]), np.array([0.8, 0.6, np.nan]))
    svg = Dots("", "", ["a", "b", "c"], [series]).svg()
    bars = re.findall(r'<path d="M (\S+) \S+ \nL (\S+) \S+ \n" [^>]*stroke: var\(--s0\)', svg)
    wide, narrow = (float(high) - float(low) for low, high in bars)
    assert wide == pytest.approx(2 * narrow, rel=1e-3)


def test_a_matrix_writes_its_figures_while_there_is_room() -> None:
    values = np.array([[0.25, 0.0], [np.nan, 0.0031]])
    shown = texts(Matrix("", "", "", ["a", "b"], values).svg())
    assert [one for one in shown if one[0] == "0"] == ["0.25", "0", "0.0031"]
    many = texts(Matrix("", "", "", [f"g{n}" for n in range(9)], np.full((9, 9), 0.25)).svg())
    assert "0.25" not in many


def test_a_matrix_without_any_error_is_drawn() -> None:
    assert texts(Matrix("", "", "", ["a", "b"], np.zeros((2, 2))).svg()).count("0") == 4


def test_histograms_of_few_and_of_many_pairs_are_of_one_height() -> None:
    counts = np.array([1, 3])
    both = Histogram("", "", np.array([0.0, 1, 2]), {"genuine": counts, "impostor": 1000 * counts})
    assert both.names == ["genuine (4)", "impostor (4,000)"]
    assert np.allclose(line_of(both, 0), line_of(both, 1))
