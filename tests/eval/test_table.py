"""Tables: what is best, what is missing, and that each form says what the others say."""

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.fairness import spread
from eval.grid_table import grid_table
from eval.results import Evaluation, GroupResult, IdentificationResult, VerificationResult
from eval.table import Column, Table
from eval.verification import Accuracy
from shardgen.tags import UNKNOWN

FIGURES = st.none() | st.floats(-1000, 1000)
NAMES = st.text("aZ9 _-|\\*&%$#{}~^<>[`\n\u00e9", min_size=1, max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    columns = draw(st.lists(st.builds(Column, NAMES, st.sampled_from(["highest", "lowest", None])), max_size=4))
    rows = st.dictionaries(NAMES, st.lists(FIGURES, min_size=len(columns), max_size=len(columns)), max_size=5)
    return Table(draw(NAMES), "cell", columns, draw(rows))


def small(*rows: tuple[float | None, float | None]) -> Table:
    named = dict(zip("abcd", map(list, rows), strict=False))
    return Table("small", "cell", [Column("up"), Column("down", best="lowest", digits=1)], named)


def markdown_cells(table: Table) -> list[list[str]]:
    """What is between the bars that no backslash escapes."""
    lines = [line for line in table.markdown().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]] for line in lines]


def test_the_best_of_each_column_is_bold() -> None:
    rows = markdown_cells(small((98.0, 3.0), (99.0, 2.0), (97.0, None)))
    assert rows[2:] == [["a", "98.00", "3.0"], ["b", "**99.00**", "**2.0**"], ["c", "97.00", "\u2013"]]


def test_figures_that_look_equal_are_equally_good() -> None:
    assert [row[1] for row in markdown_cells(small((99.001, 1), (99.004, 1), (98, 1)))[2:]] == [
        "**99.00**",
        "**99.00**",
        "98.00",
    ]


def test_without_a_choice_nothing_is_best() -> None:
    assert markdown_cells(small((99.0, None), (None, 1.0)))[2:] == [["a", "99.00", "\u2013"], ["b", "\u2013", "1.0"]]
    plain = Table("plain", "set", [Column("images", best=None, digits=0)], {"a": [5.0], "b": [7.0]})
    assert "*" not in plain.markdown()


def test_latex_says_what_booktabs_understands() -> None:
    assert small((98.0, 3.0), (99.0, None)).latex() == (
        "\\begin{table}\n\\centering\n\\caption{small}\n\\begin{tabular}{lrr}\n\\toprule\ncell & up & down \\\\\n"
        "\\midrule\na & 98.00 & 3.0 \\\\\nb & \\textbf{99.00} & -- \\\\\n\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def test_names_mean_nothing_to_markdown_and_latex() -> None:
    table = Table("50 % & more", "cell", [Column("cfp_fp")], {"a|b*c": [1.0], "$x^2$": [2.0]})
    assert "a\\|b\\*c" in table.markdown()
    latex = table.latex()
    assert r"\caption{50 \% \& more}" in latex
    assert r"cell & cfp\_fp \\" in latex
    assert r"\$x\textasciicircum{}2\$ & \textbf{2.00} \\" in latex


@given(tables())
def test_csv_gives_back_every_name_and_figure(table: Table) -> None:
    header, *rows = csv.reader(io.StringIO(table.csv(), newline=""))
    assert header == ["cell", *(column.name for column in table.columns)]
    read = {name: [float(text) if text else None for text in figures] for name, *figures in rows}
    assert read == {name: list(figures) for name, figures in table.rows.items()}


@given(tables())
def test_every_row_of_markdown_has_a_cell_for_every_column(table: Table) -> None:
    rows = markdown_cells(table)
    assert {len(row) for row in rows} == {1 + len(table.columns)}
    assert len(rows) == 2 + len(table.rows)


@given(tables())
def test_every_row_of_latex_has_a_cell_for_every_column(table: Table) -> None:
    body = table.latex().split("\\toprule\n")[1].split("\\bottomrule")[0]
    *rows, rest = body.replace("\\midrule\n", "").split(" \\\\\n")
    assert not rest
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.columns)}
    assert len(rows) == 1 + len(table.rows)
    assert not re.search(r"(?<!\\)[%$#_^~]", body)


def test_a_table_is_written_in_its_three_forms(tmp_path: Path) -> None:
    table = small((98.0, 3.0))
    table.write(tmp_path / "grid")
    written = {path.name: path.read_text() for path in (tmp_path / "grid").iterdir()}
    assert written == {"table.md": table.markdown(), "table.csv": table.csv(), "table.tex": table.latex()}


def verified(name: str, accuracy: float) -> VerificationResult:
    return VerificationResult(name, "0" * 64, Accuracy(accuracy, 0.01, 1.2, 6000), 0.1, [])


def evaluation(*accuracies: float, groups: dict[str, float | None] | None = None) -> Evaluation:
    """One verification set for each accuracy, and with groups also an identification."""
    found = None
    if groups is not None:
        results = [GroupResult(name, 10, one, 0.5, 0.6) for name, one in groups.items()]
        known = [one for name, one in groups.items() if one is not None and name != UNKNOWN]
        spreads = {"ethnicity": spread(known)} if len(known) > 1 else {}
        found = IdentificationResult(5, 20, 0, 0.75, 0.8, {"ethnicity": results}, spreads)
    verification = [verified(f"set{number}", one) for number, one in enumerate(accuracies)]
    return Evaluation("run at step 5", verification, found, [])


def figures_of(table: Table, row: str) -> dict[str, float | None]:
    return dict(zip((column.name for column in table.columns), table.rows[row], strict=True))


def test_a_grid_s_table_has_accuracies_in_percent_and_their_average() -> None:
    table = grid_table("grid", {"2K": evaluation(0.9, 0.8), "4K": evaluation(0.95, 0.7)})
    assert figures_of(table, "2K") == pytest.approx({"set0": 90.0, "set1": 80.0, "average": 85.0})
    assert figures_of(table, "4K") == pytest.approx({"set0": 95.0, "set1": 70.0, "average": 82.5})
    assert [column.name for column in grid_table("one", {"2K": evaluation(0.9)}).columns] == ["set0"]


def test_groups_give_avg_std_and_to_as_frcsyn_defines_it() -> None:
    groups: dict[str, float | None] = {"Asian": 0.9, "White": 0.8, "rare": None, UNKNOWN: 0.1}
    table = grid_table("grid", {"2K": evaluation(groups=groups)})
    assert figures_of(table, "2K") == {
        "rank 1": 75.0,
        "ethnicity: Asian": 90.0,
        "ethnicity: White": 80.0,
        "ethnicity: rare": None,
        "ethnicity: AVG": pytest.approx(85.0),
        "ethnicity: STD": pytest.approx(5.0),
        "ethnicity: TO": pytest.approx(80.0),
    }
    assert [column.best for column in table.columns if column.name.endswith("STD")] == ["lowest"]
    assert figures_of(grid_table("one group", {"2K": evaluation(groups={"Asian": 0.9})}), "2K") == {"rank 1": 75.0}


def test_a_cell_that_is_not_trained_yet_is_a_row_of_dashes() -> None:
    table = grid_table("grid", {"2K": None, "4K": evaluation(0.9, 0.8), "6K": None})
    assert table.rows["2K"] == [None, None, None]
    assert list(table.rows) == ["2K", "4K", "6K"]
    assert grid_table("nothing yet", {"2K": None}).rows == {"2K": []}
