"""Tables as papers print them: a row per run, a column per figure, the best of each column in bold.

One table has three forms: Markdown to read, CSV for programs, LaTeX for the paper.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shardgen.files import write_durably

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
)


@dataclass(frozen=True)
class Column:
    """One kind of figure."""

    name: str
    best: Literal["highest", "lowest"] | None = "highest"
    """Which of its figures stands out."""
    digits: int = 2
    """Decimals that are shown."""

    def shown(self, figure: float | None) -> str | None:
        """Return a figure as it is printed."""
        return None if figure is None else f"{figure:.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """Figures by row and column."""

    title: str
    label: str
    """What a row is."""
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[float | None]]
    """Name -> a figure for each column; None is shown as a dash."""

    def markdown(self) -> str:
        """Return it for reading, as it is or rendered; names are escaped."""
        header = [_for_markdown(name) for name in self._header()]
        rows = self._cells(_for_markdown, "**{}**".format, "\u2013")
        return "\n".join([_for_markdown(self.title), "", *_aligned([header, *rows]), ""])

    def csv(self) -> str:
        """Return it for programs: figures in full, nothing where there is none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._header())
        writer.writerows([name, *figures] for name, figures in self.rows.items())
        return text.getvalue()

    def latex(self) -> str:
        """Return it for a paper that uses the package booktabs; names are escaped."""
        header = [_for_latex(name) for name in self._header()]
        rows = self._cells(_for_latex, r"\textbf{{{}}}".format, "--")
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_for_latex(self.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
            r"\toprule",
            *_latex_rows([header]),
            r"\midrule",
            *_latex_rows(rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join([*lines, ""])

    def write(self, folder: Path) -> None:
        """Write `table.md`, `table.csv` and `table.tex` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("table.md", self.markdown()), ("table.csv", self.csv()), ("table.tex", self.latex())):
            write_durably(folder / name, text.encode())

    def best(self, place: int) -> str | None:
        """Return the best of a column as shown, without its interval; None where there is no choice."""
        column = self.columns[place]
        known = [float(figure) for row in self.rows.values() if (figure := row[place]) is not None]
        if column.best is None or len(known) < 2:
            return None
        return column.shown(max(known) if column.best == "highest" else min(known))

    def stands_out(self, place: int, figure: float | None) -> bool:
        """Return whether a figure is the best of its column."""
        return figure is not None and self.columns[place].shown(float(figure)) == self.best(place)

    def _header(self) -> list[str]:
        return [self.label, *(column.name for column in self.columns)]

    def _cells(self, escape: Callable[[str], str], bold: Callable[[str], str], dash: str) -> list[list[str]]:
        """Return the rows as text, each with its name first."""
        return [
            [escape(name), *(self._cell(place, figure, bold, dash) for place, figure in enumerate(figures))]
            for name, figures in self.rows.items()
        ]

    def _cell(self, place: int, figure: float | None, bold: Callable[[str], str], dash: str) -> str:
        text = self.columns[place].shown(figure)
        if text is None:
            return dash
        return bold(text) if self.stands_out(place, figure) else text


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return Markdown's lines for a header and rows: names to the left, figures to the right."""
    first, *others = (max(2, *map(len, column)) for column in zip(*rows, strict=True))
    rule = [":".ljust(first, "-"), *(":".rjust(width, "-") for width in others)]
    lines = [[name.ljust(first), *map(str.rjust, figures, others)] for name, *figures in (rows[0], rule, *rows[1:])]
    return [f"| {' | '.join(line)} |" for line in lines]


def _for_markdown(text: str) -> str:
    return re.sub(r"([\\`*\[<|])", r"\\\1", " ".join(text.split()))


def _for_latex(text: str) -> str:
    return text.translate(_LATEX)


def _latex_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    return [" & ".join(row) + r" \\" for row in rows]
