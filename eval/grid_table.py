"""The papers' table of a grid: a row per cell, what each was measured at in columns."""

from collections.abc import Mapping

from eval.results import Evaluation, IdentificationResult
from eval.table import Column, Table
from shardgen.tags import UNKNOWN


def grid_table(title: str, results: Mapping[str, Evaluation | None]) -> Table:
    """Return the papers' table of a grid: cell -> what was measured, None where nothing is trained yet.

    All figures are in percent: the accuracy on each verification set and their mean, rank 1, and for each tag axis the
    groups' verification accuracies with their mean (AVG), standard deviation (STD, ddof 0) and TO = AVG - STD, the
    score of FRCSyn (Melzi et al., WACV workshops 2024).
    """
    figures = {cell: {} if one is None else _figures(one) for cell, one in results.items()}
    columns = list(dict.fromkeys(column for one in figures.values() for column in one))
    rows = {cell: [one.get(column) for column in columns] for cell, one in figures.items()}
    return Table(title, "cell", columns, rows)


def _figures(result: Evaluation) -> dict[Column, float | None]:
    accuracies = {one.name: one.accuracy.mean for one in result.verification}
    figures: dict[Column, float | None] = {Column(name): 100 * accuracy for name, accuracy in accuracies.items()}
    if len(accuracies) > 1:
        figures[Column("average")] = 100 * sum(accuracies.values()) / len(accuracies)
    if result.identification is not None:
        figures[Column("rank 1")] = 100 * result.identification.rank_1
        for axis in result.identification.spreads:
            figures |= _of_groups(result.identification, axis)
    return figures


def _of_groups(found: IdentificationResult, axis: str) -> dict[Column, float | None]:
    known = [one for one in found.groups[axis] if one.group != UNKNOWN]
    groups = {one.group: one.verification_accuracy for one in known}
    figures = {
        Column(f"{axis}: {group}"): None if accuracy is None else 100 * accuracy for group, accuracy in groups.items()
    }
    mean, std = 100 * found.spreads[axis].mean, 100 * found.spreads[axis].std
    return {
        **figures,
        Column(f"{axis}: AVG"): mean,
        Column(f"{axis}: STD", best="lowest"): std,
        Column(f"{axis}: TO"): mean - std,
    }
