"""Comparisons: every run a row, a curve, a dot; what differs is said to differ only beyond its interval."""

import re

import numpy as np
import pytest

from eval.compare import Difference, compare
from eval.plots import Curve, Dots, Drawing, Histogram, Plot, Series, roc
from eval.report import Measured, Page, Panel, render
from eval.table import Column, Table

RATES = np.linspace(0.001, 1, 20)


def page_of(accuracy: float, *more: Panel, sha: str = "abc") -> Page:
    """A run's page: a table, a ROC of two sets, groups."""
    columns = [Column("pairs", None, 0), Column("accuracy %"), Column("EER %", "lowest")]
    table = Table(
        "Sets", "set", columns, {"lfw": [6000.0, Measured(accuracy, 1, 99), 2.0], "cfp": [7000.0, 80.0, None]}
    )
    dots = Dots("By region", "rank 1", ["north", "south"], [Series("rank 1", np.array([accuracy / 100, 0.5]))])
    drawn: list[Drawing] = [roc([Curve("lfw", RATES, RATES), Curve("cfp", RATES, RATES**2)]), dots]
    return Page("Evaluation", "x", [Panel("Verification", ["Ten folds."], [table], drawn), *more], {"lfw": sha})


def test_what_was_a_column_is_a_table_with_a_row_per_run() -> None:
    (panel,) = compare({"a": page_of(97.0), "b": page_of(98.0)}).panels
    accuracy, eer = panel.tables
    assert (accuracy.title, eer.title) == ("Sets: accuracy %", "Sets: EER %")
    assert [column.name for column in accuracy.columns] == ["lfw", "cfp"]
    assert accuracy.rows == {"a": [97.0, 80.0], "b": [98.0, 80.0]}
    assert eer.rows == {"a": [2.0, None], "b": [2.0, None]}
    assert [column.best for column in eer.columns] == ["lowest", "lowest"]


def test_the_best_run_is_bold_and_shows_its_interval() -> None:
    page = render(compare({"a": page_of(97.0), "b": page_of(98.0)}))
    assert "<strong>98.00 [1.00, 99.00]</strong>" in page
    assert "<strong>97.00" not in page


def test_what_was_a_curve_is_a_plot_with_a_curve_per_run() -> None:
    (panel,) = compare({"a": page_of(97.0), "b": page_of(98.0)}).panels
    lfw, cfp, dots = panel.plots
    assert (lfw.title, cfp.title, dots.title) == ("ROC: lfw", "ROC: cfp", "By region: rank 1")
    assert lfw.names == cfp.names == dots.names == ["a", "b"]
    assert isinstance(cfp, Plot)
    assert np.array_equal(cfp.curves[1].y, RATES**2)
    assert (cfp.x_scale, cfp.steps) == ("log", True)


def test_groups_are_matched_by_name() -> None:
    def of(groups: list[str], values: list[float]) -> Page:
        series = Series("rank 1", np.array(values), np.array(values) - 0.1, np.array(values) + 0.1)
        return Page("", "", [Panel("p", plots=[Dots("By region", "", groups, [series])])], {})

    (panel,) = compare({"a": of(["x", "y"], [0.1, 0.2]), "b": of(["z", "x"], [0.3, 0.4])}).panels
    (dots,) = panel.plots
    assert isinstance(dots, Dots)
    assert dots.groups == ["x", "y", "z"]
    a, b = dots.series
    assert np.array_equal(a.values, [0.1, 0.2, np.nan], equal_nan=True)
    assert np.array_equal(b.values, [0.4, np.nan, 0.3], equal_nan=True)
    assert b.high is not None
    assert np.allclose(b.high, [0.5, np.nan, 0.4], equal_nan=True)


def test_what_one_run_lacks_is_a_dash_and_no_line() -> None:
    table = Table("Open set", "probes", [Column("TPIR %")], {"all": [90.0]})
    histogram = Histogram("Scores", "cosine", np.array([0.0, 1]), {"genuine": np.array([1])})
    extra = Panel("Open set", ["Of one run."], [table], [roc([Curve("all", RATES, RATES)]), histogram])
    page = compare({"a": page_of(97.0), "b": page_of(98.0, extra)})
    _, panel = page.panels
    assert panel.tables[0].rows == {"a": [None], "b": [90.0]}
    (plot,) = panel.plots
    assert isinstance(plot, Plot)
    assert [len(one.x) for one in plot.curves] == [0, len(RATES)]
    assert render(page).count('role="img"') == 4


@pytest.mark.parametrize(
    ("low", "high", "larger"), [(0.1, 0.5, True), (-0.5, -0.1, True), (-0.1, 0.5, False), (0.0, 0.5, False)]
)
def test_a_difference_counts_only_beyond_its_interval(low: float, high: float, larger: bool) -> None:
    first, *_ = compare(
        {"a": page_of(97.0), "b": page_of(98.0)}, [Difference("EER %", "b", "a", 0.2, low, high)]
    ).panels
    (table,) = first.tables
    assert table.title.startswith("Larger" if larger else "Within")
    assert list(table.rows) == ["EER %: b \u2212 a"]


def test_protocols_that_differ_are_named_for_each_run() -> None:
    assert compare({"a": page_of(97.0), "b": page_of(98.0)}).footer == {"lfw": "abc"}
    assert compare({"a": page_of(97.0), "b": page_of(98.0, sha="def")}).footer == {"lfw (a)": "abc", "lfw (b)": "def"}


def test_names_of_runs_are_text() -> None:
    hostile = "<script>alert(1)</script>"
    page = render(compare({hostile: page_of(97.0), "b": page_of(98.0)}, [Difference(hostile, "b", hostile, 1, 0, 2)]))
    assert "<script" not in page
    assert len(re.findall(r"&lt;script&gt;", page)) > 5
