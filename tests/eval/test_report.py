"""The report: the same figures as `results.json`, one file, nothing from elsewhere, nothing executable."""

import base64
import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from eval.compare import Difference, compare
from eval.fairness import spread
from eval.pages import page_of, write_report
from eval.plots import Curve, Dots, Drawing, Matrix, Series, cmc, det
from eval.report import Measured, Page, Pair, Panel, Shot, render, write_page
from eval.results import Evaluation, GroupResult, IdentificationResult, Scores, VerificationResult
from eval.table import Column, Table
from eval.verification import Accuracy, tar_at_far
from shardgen.images import decode
from tests.browser import seen_in_a_browser

SAME = np.arange(40) % 2 == 0
DISTANCES = np.where(SAME, 0.8, 1.9) + np.linspace(-0.6, 0.6, 40)
HOSTILE = "<script>alert('group')</script>"


def make_evaluation(group: str = "north", name: str = "lfw", encoder: str = "runs/x at step 3") -> Evaluation:
    verified = VerificationResult(
        name=name,
        sha256="0123abcd" * 8,
        accuracy=Accuracy(mean=0.98765, std=0.01234, threshold=1.4321, num_pairs=40),
        equal_error_rate=0.0311,
        tar_at_far=[tar_at_far(DISTANCES, SAME, 0.1)],
    )
    groups = [GroupResult(group, 30, 0.9125, 0.8275, 0.9575), GroupResult("rare", 2, None, 0.5, 1.0)]
    identification = IdentificationResult(
        num_templates=16,
        num_probes=32,
        num_probes_without_mate=5,
        rank_1=0.7342,
        rank_5=0.8431,
        groups={"region": groups, "origin": []},
        spreads={"region": spread([0.9125, 0.8])},
    )
    return Evaluation(encoder, [verified], identification, [Scores(name, DISTANCES, SAME)])


def make_pair(name: str = "n000012") -> Pair:
    ramp = np.broadcast_to(np.linspace(0, 255, 56).astype(np.uint8)[:, None], (56, 56))
    picture = np.stack([ramp, ramp.T, ramp // 2], axis=-1)
    return Pair(Shot(picture, name, {"region": name}), Shot(picture[::-1], "n000013/" + 12 * "key_"), 0.7125)


def one_table(ranked: bool, *figures: Sequence[float | None]) -> Page:
    columns = [Column("TPIR %"), Column("FNIR %", "lowest")]
    rows = {f"row {number}": row for number, row in enumerate(figures)}
    return Page("Page", "x", [Panel("Open set", tables=[Table("At once", "probes", columns, rows)])], {}, ranked)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(make_evaluation(), tmp_path_factory.mktemp("report")).read_text()


def plots(page: str) -> list[str]:
    return re.findall(r'role="img" aria-label="[^"]*">(<svg.*?</svg>)', page, flags=re.DOTALL)


def test_results_are_written_as_they_are(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    path = write_report(evaluation, tmp_path / "new" / "folder")
    results = json.loads(path.with_name("results.json").read_text())
    assert results == {"facemix": version("facemix"), **json.loads(json.dumps(evaluation.to_json()))}
    assert sorted(one.name for one in path.parent.iterdir()) == ["report-tables", "report.html", "results.json"]


def test_the_page_shows_every_figure(page: str) -> None:
    figures = ["98.77", "1.23", "1.43", "3.11", "91.25", "82.75", "95.75", "73.42", "84.31", "85.62", "5.62", "2.29"]
    counts = ["40", "16", "32", "5", "30", "2"]
    texts = ["runs/x at step 3", "0123abcd" * 8, version("facemix"), "north", "rare"]
    cells = re.findall(r"<t[dh]>([^<]*)</t[dh]>", page)
    assert [one for one in figures + counts if one not in cells] == []
    assert [one for one in texts if one not in page] == []


def test_the_page_needs_no_other_file(page: str) -> None:
    references = re.findall(r"""(?:src|href|srcset|action|poster|url)\s*[=(]\s*["']?([^"'\s)>]*)""", page)
    assert len(references) >= 4
    assert {re.split("[:#]", reference)[0] for reference in references} == {"data", ""}, "data or a place in the page"
    assert "@import" not in page


def test_every_plot_is_a_drawing(page: str) -> None:
    assert len(plots(page)) == 4, "ROC, DET, histogram, groups of the one axis that has some"


def test_whatever_names_are_given_they_are_text(tmp_path: Path) -> None:
    evaluation = make_evaluation(group=HOSTILE, name=f'"><img src=x>{HOSTILE}', encoder=f"</title>{HOSTILE}")
    whole = page_of(evaluation)
    pictures = Panel(HOSTILE, [HOSTILE], pairs=[make_pair(HOSTILE)])
    page = write_page(replace(whole, panels=[*whole.panels, pictures]), tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("</title>") == 1
    escaped = "&lt;script&gt;alert(&#39;group&#39;)&lt;/script&gt;"
    places = ("<th>", "&lt;img src=x&gt;", "&lt;/title&gt;", "<h2>", "<p>", 'alt="', "region: ")
    assert [before for before in places if before + escaped not in page] == []


@pytest.mark.parametrize("group", ["<$20k to $50k>", "{{ 1 / 0 }}"])
def test_no_name_of_a_group_breaks_the_plots(group: str, tmp_path: Path) -> None:
    assert f"<th>{escape(group)}<" in write_report(make_evaluation(group=group), tmp_path).read_text()


def test_a_report_of_verification_alone_or_identification_alone_is_written(tmp_path: Path) -> None:
    whole = make_evaluation()
    verification = write_report(Evaluation("x", whole.verification, None, whole.scores), tmp_path / "a").read_text()
    identification = write_report(Evaluation("x", [], whole.identification, []), tmp_path / "b").read_text()
    assert ("Verification</h2>" in verification, "Identification</h2>" in verification) == (True, False)
    assert ("Verification</h2>" in identification, "Identification</h2>" in identification) == (False, True)


def test_an_axis_with_many_groups_is_shown_whole_in_the_table(tmp_path: Path) -> None:
    ages = [GroupResult(f"age {age}", 100 - age, 0.9, 0.8, 0.9) for age in range(60)]
    identification = IdentificationResult(60, 60, 0, 0.8, 0.9, {"age": ages}, {})
    page = write_report(Evaluation("x", [], identification, []), tmp_path).read_text()
    assert all(f"<th>age {age}<" in page for age in range(60))


def test_intervals_stand_beside_figures_in_the_page_the_paper_s_table_and_the_csv(tmp_path: Path) -> None:
    page = one_table(False, [Measured(97.5, 96.25, 98), 2.5], [None, None])
    written = write_page(page, tmp_path / "page.html")
    assert "<td>97.50 [96.25, 98.00]</td><td>2.50</td>" in written.read_text()
    (latex,) = tmp_path.glob("page-tables/01-*.tex")
    assert "row 0 & 97.50 [96.25, 98.00] & 2.50" in latex.read_text()
    with latex.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["probes", "TPIR %", "TPIR % low", "TPIR % high", "FNIR %"]
    assert [float(figure) for figure in rows[1][1:]] == [97.5, 96.25, 98, 2.5]
    assert rows[2][1:] == ["", "", "", ""]


def test_the_best_stands_out_only_where_rows_compete(tmp_path: Path) -> None:
    rows = ([Measured(97.504, 96, 98), 2.5], [97.496, 3.5], [90.0, None])
    ranked = render(one_table(True, *rows))
    assert re.findall("<strong>(.*?)</strong>", ranked) == ["97.50 [96.00, 98.00]", "2.50", "97.50"]
    assert "<strong>" not in render(one_table(False, *rows))
    path = write_page(one_table(False, *rows), tmp_path / "page.html")
    assert [one for one in path.parent.glob("*/*.tex") if "textbf" in one.read_text()] == []


def test_tables_stay_in_their_folder_whatever_they_are_called(tmp_path: Path) -> None:
    tables = [Table(title, "set", [Column("a")], {"x": [1.0]}) for title in ("../../up", "", "a/b", "a/b", "x" * 500)]
    path = write_page(Page("Page", "x", [Panel("..", tables=tables)], {}), tmp_path / "deep" / "page.html")
    assert len(list((path.parent / "page-tables").iterdir())) == 2 * len(tables)
    assert [one.name for one in tmp_path.iterdir()] == ["deep"]


def test_pairs_are_pictures_with_score_names_and_tags() -> None:
    pair = make_pair()
    page = render(Page("Page", "x", [Panel("Hardest impostors", pairs=[pair])], {}))
    first, second = (
        decode(base64.b64decode(data)).astype(int) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    )
    assert np.abs(first - pair.first.picture).mean() < 6
    assert np.abs(second - pair.second.picture).mean() < 6
    assert all(text in page for text in ("0.713", "n000012", "region: n000012", "n000013/"))


def rich_page() -> Page:
    """A page with one of everything."""
    rates = np.linspace(0.001, 1, 60)
    wide = Table(
        "Wide", "group", [Column(f"TPIR % at {n}") for n in range(12)], {"a name " * 9: [Measured(99.0, 98, 99.5)] * 12}
    )
    drawn: list[Drawing] = [
        det([Curve("all", rates, 1.01 - rates, (1.01 - rates) / 2, 1.01 - rates)]),
        cmc([Curve("all", np.arange(1.0, 21), rates[:20])]),
        Dots("Rank 1", "rank 1", ["north", "south " * 6], [Series("rank 1", np.array([0.9, 0.8]))]),
        Matrix("FMR", "gallery", "probe", ["north", "w" * 30], np.array([[0.1, 0.01], [0.001, np.nan]])),
    ]
    panel = Panel("Open set", ["word" * 60], [wide], drawn, [make_pair(), make_pair()])
    whole = page_of(make_evaluation())
    return replace(whole, panels=[*whole.panels, panel])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("compared", [False, True])
def test_pages_are_readable_in_a_browser(compared: bool, width: int, tmp_path: Path) -> None:
    page = rich_page()
    if compared:
        page = compare({"a": page, "b" * 60: page}, [Difference("rank 1 %", "b" * 60, "a", 1.5, 0.5, 2.5)])
    seen = seen_in_a_browser(render(page), width, tmp_path)
    assert seen["width"] == width
    assert seen["plots"] == (7 if compared else 8)
    assert seen["pictures"] == (0 if compared else 4)
    assert (seen["broken"], seen["empty"], seen["cut"]) == (0, 0, 0)
    assert seen["smallest"] > 8  # pixels
    assert seen["overflow"] <= 0
