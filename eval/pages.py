"""The page of an evaluation: which panels show what was measured."""

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from eval.intervals import Interval
from eval.open_set import OpenSet
from eval.plots import Curve, Dots, Histogram, Matrix, Series, cmc, det, roc
from eval.report import Measured, Page, Pair, Panel, Shot, write_page
from eval.results import (
    Evaluation,
    FairnessResult,
    GroupResult,
    HardPair,
    IdentificationResult,
    Scores,
    VerificationResult,
)
from eval.table import Column, Table
from eval.verification import roc as roc_of
from shardgen.files import write_durably
from shardgen.images import decode

_MAX_GROUPS = 12


def write_report(evaluation: Evaluation, out: Path) -> Path:
    """Write `results.json` and `report.html` with its tables into a folder; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    results = {"facemix": _version(), **evaluation.to_json()}
    write_durably(out / "results.json", json.dumps(results, indent=1).encode())
    return write_page(page_of(evaluation), out / "report.html")


def page_of(evaluation: Evaluation) -> Page:
    """Return the page that shows an evaluation."""
    panels = []
    if evaluation.verification:
        panels = [_verification(evaluation.verification, evaluation.scores), *_hardest(evaluation.hardest)]
    if (found := evaluation.identification) is not None:
        panels += [_identification(found), *_open_set(found), *_groups(found)]
        panels += [_fairness(axis, one) for axis, one in found.fairness.items()]
    panels += evaluation.panels
    footer = {f"SHA-256 of {one.name}": one.sha256 for one in evaluation.verification} | dict(evaluation.footer)
    footer |= {"embedding": "L2(f(x) + f(flip x)); distance = 2 - 2 cos", "facemix": _version()}
    return Page("Evaluation", evaluation.encoder, panels, footer)


def _percent(value: float, interval: Interval | None) -> float:
    return 100 * value if interval is None else Measured(100 * value, 100 * interval.low, 100 * interval.high)


def _version() -> str:
    try:
        return version("facemix")
    except PackageNotFoundError:  # run from a folder on PYTHONPATH
        return "not installed"


def _verification(results: Sequence[VerificationResult], scores: Sequence[Scores]) -> Panel:
    targets = sorted({point.target_far for one in results for point in one.tar_at_far}, reverse=True)
    points = {one.name: {point.target_far: point for point in one.tar_at_far} for one in results}
    columns = [
        Column("pairs", None, 0),
        Column("accuracy %"),
        Column("STD of folds %", None),
        Column("threshold", None),
        Column("EER %", "lowest"),
        *(Column(f"TAR % at FAR {target:g}") for target in targets),
    ]
    rows = {
        one.name: [
            one.accuracy.num_pairs,
            _percent(one.accuracy.mean, one.interval),
            100 * one.accuracy.std,
            one.accuracy.threshold,
            100 * one.equal_error_rate,
            *(100 * points[one.name][target].tar if target in points[one.name] else None for target in targets),
        ]
        for one in results
    }
    realised = {
        name: [of_set[target].far if target in of_set else None for target in targets]
        for name, of_set in points.items()
    }
    return Panel(
        "Verification",
        text=[
            "Ten contiguous folds, the threshold of each chosen on the other nine; mean and STD over the folds. "
            "The 95 % interval is Wilson's, as if no two pairs shared a person."
        ],
        tables=[
            Table("Verification sets", "set", columns, rows),
            Table("Realised FAR", "set", [Column(f"target {target:g}", None, 5) for target in targets], realised),
        ],
        plots=[
            roc([_roc_curve(one) for one in scores]),
            det([_det_curve(one) for one in scores], scale="probit"),
            *(_histogram(one) for one in scores),
        ],
    )


def _roc_curve(scores: Scores) -> Curve:
    curve = roc_of(scores.distances, scores.same)
    return Curve(scores.name, curve.far, curve.tar)


def _det_curve(scores: Scores) -> Curve:
    curve = roc_of(scores.distances, scores.same)
    return Curve(scores.name, curve.far, 1 - curve.tar)


def _hardest(pairs: Sequence[HardPair]) -> list[Panel]:
    """Return a panel of the genuine pairs that are least alike, and one of the impostors that are most."""
    kinds = (("Hardest genuine pairs", True), ("Hardest impostor pairs", False))
    return [
        Panel(title, [], pairs=[_pair(one) for one in pairs if one.same == same])
        for title, same in kinds
        if any(one.same == same for one in pairs)
    ]


def _pair(one: HardPair) -> Pair:
    names = (f"{one.set_name}, pair {one.pair}, image {number}" for number in (1, 2))
    first, second = (Shot(decode(image), name) for image, name in zip(one.images, names, strict=True))
    return Pair(first, second, one.cosine)


def _histogram(scores: Scores) -> Histogram:
    edges = np.linspace(scores.distances.min(), scores.distances.max(), 41)
    counts = {
        name: np.histogram(scores.distances[of], edges)[0]
        for name, of in (("genuine", scores.same), ("impostor", ~scores.same))
    }
    return Histogram(f"Scores of {scores.name}", "distance 2 - 2 cos", edges, counts)


def _identification(found: IdentificationResult) -> Panel:
    columns = [
        Column("enrolled", None, 0),
        Column("probes", None, 0),
        Column("probes without mate", None, 0),
        Column("rank 1 %"),
        Column("rank 5 %"),
    ]
    counts = [found.num_templates, found.num_probes, found.num_probes_without_mate]
    rows = {"all probes": [*counts, _percent(found.rank_1, found.interval), 100 * found.rank_5]}
    ranks = np.arange(1, len(found.cmc) + 1, dtype=np.float64)
    return Panel(
        "Identification",
        text=[
            "Closed set: probes without a mate among the enrolled identities are left out. Intervals: 95 %, by person."
        ],
        tables=[Table("Closed set", "probes", columns, rows)],
        plots=[cmc([Curve("all probes", ranks, np.array(found.cmc))])] if len(found.cmc) > 1 else [],
    )


def _open_set(found: IdentificationResult) -> list[Panel]:
    """Return a panel of what happens where some probes have no mate."""
    if found.open_set is None:
        return []
    columns = [Column("TPIR %"), Column("realised FPIR %", None, 4), Column("threshold", None, 4)]
    rows = {f"FPIR {one.target_fpir:g}": [100 * one.tpir, 100 * one.fpir, one.threshold] for one in found.tpir_at_fpir}
    return [
        Panel(
            "Open set",
            ["FNIR: mated probes whose mate is not first or is below the threshold. FPIR: others that find anybody."],
            [Table("TPIR at FPIR", "target", columns, rows)] if rows else [],
            [det([_identification_det(found.open_set)])],
        )
    ]


def _identification_det(strangers: OpenSet) -> Curve:
    _, fpir, fnir = strangers.det()
    return Curve("all probes", fpir[::-1], fnir[::-1])  # from few false alarms to many


def _fairness(axis: str, found: FairnessResult) -> Panel:
    """Return a panel of the groups' errors at one threshold, and the figures made of them."""
    rates = found.rates
    columns = [
        Column("genuine", None, 0),
        Column("FNMR %", "lowest", 3),
        Column("impostors", None, 0),
        Column("FMR %", "lowest", 4),
    ]
    rows = {
        group: [
            float(rates.num_genuine[place]),
            _percent(float(rates.fnmr[place]), found.fnmr_intervals[place]),
            float(rates.num_impostor[place]),
            100 * float(rates.fmr[place]),
        ]
        for place, group in enumerate(rates.groups)
    }
    tables = [Table(f"Errors by {axis}", axis, columns, rows), *_metrics(axis, found)]
    text = [
        f"One threshold for all, at which at most {found.fmr:g} of all impostors match. Intervals: 95 %, by person."
    ]
    text += found.metrics.notes if found.metrics is not None else rates.left_out
    matrix = Matrix(
        f"FMR by {axis}", "group of the enrolled", "group of the probe", found.cells.groups, found.cells.fmr()
    )
    return Panel(f"Fairness by {axis}", text, tables, [matrix] if len(found.cells.groups) <= _MAX_GROUPS else [])


def _metrics(axis: str, found: FairnessResult) -> list[Table]:
    one = found.metrics
    if one is None:
        return []
    figures: dict[Column, float | None] = {
        Column("AVG %"): 100 * one.accuracy.mean,
        Column("STD %", "lowest"): 100 * one.accuracy.std,
        Column("TO %"): 100 * one.accuracy.trade_off,
        Column("SER", "lowest"): one.accuracy.ser,
        Column("FDR", digits=4): one.fdr,
        Column("IR", "lowest"): one.inequity,
        Column("GARBE", "lowest", 4): one.garbe,
        Column("Gini FMR", "lowest", 4): one.gini_fmr,
        Column("Gini FNMR", "lowest", 4): one.gini_fnmr,
        Column("max/geomean FMR", "lowest"): one.max_geomean_fmr,
        Column("max/geomean FNMR", "lowest"): one.max_geomean_fnmr,
        Column("equalised odds", "lowest", 4): one.equalised_odds,
    }
    return [Table(f"Fairness over {axis}", "groups", list(figures), {axis: list(figures.values())})]


def _groups(found: IdentificationResult) -> list[Panel]:
    """Return a panel for each axis, and one of their spreads."""
    text = (
        "Verification: each probe against its mate and against one impostor of its own group, ten folds; "
        "a dash where there are too few."
    )
    panels = [
        Panel(f"By {axis}", [text], [_group_table(axis, groups)], [_dots(axis, groups)] if len(groups) > 1 else [])
        for axis, groups in found.groups.items()
        if groups
    ]
    if found.spreads:
        columns = [Column("mean %"), Column("STD over groups %", "lowest"), Column("SER", "lowest")]
        rows = {axis: [100 * one.mean, 100 * one.std, one.ser] for axis, one in found.spreads.items()}
        panels.append(
            Panel(
                "Spread over groups",
                ["SER is infinite, a dash, where a group has no error."],
                [Table("Spread", "axis", columns, rows)],
            )
        )
    return panels


def _group_table(axis: str, groups: Sequence[GroupResult]) -> Table:
    columns = [Column("probes", None, 0), Column("verification %"), Column("rank 1 %"), Column("rank 5 %")]
    rows = {
        one.group: [
            one.num_probes,
            None if one.verification_accuracy is None else 100 * one.verification_accuracy,
            _percent(one.rank_1, one.interval),
            100 * one.rank_5,
        ]
        for one in groups
    }
    return Table(f"Accuracy by {axis}", axis, columns, rows)


def _dots(axis: str, groups: Sequence[GroupResult]) -> Dots:
    """Return the largest groups' accuracies: an axis such as age has too many groups to read."""
    shown = sorted(groups, key=lambda one: -one.num_probes)[:_MAX_GROUPS]
    verified = [np.nan if one.verification_accuracy is None else one.verification_accuracy for one in shown]
    return Dots(
        f"Accuracy by {axis}",
        "accuracy",
        [one.group for one in shown],
        [Series("verification", np.array(verified)), _rank_1(shown)],
    )


def _rank_1(groups: Sequence[GroupResult]) -> Series:
    values = np.array([one.rank_1 for one in groups])
    bounds = [
        (one.rank_1, one.rank_1) if one.interval is None else (one.interval.low, one.interval.high) for one in groups
    ]
    low, high = np.array(bounds).T
    return Series("rank 1", values, low, high)
