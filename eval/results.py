"""What an evaluation comes to: values that the report shows, tables print and programs read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from eval.fairness import FairnessMetrics, Spread
from eval.group_errors import Cells, GroupRates
from eval.intervals import Interval, PairCounts
from eval.open_set import OpenSet, TpirAtFpir
from eval.report import Panel
from eval.table import Table
from eval.verification import Accuracy, Distances, Same, TarAtFar


@dataclass(frozen=True)
class VerificationResult:
    """One verification set."""

    name: str
    sha256: str
    accuracy: Accuracy
    equal_error_rate: float
    tar_at_far: Sequence[TarAtFar]
    """The targets that the set's impostors suffice for."""
    interval: Interval | None = None
    """95 % of the accuracy, as if no two pairs shared a person: a `.bin` does not say who is in it."""


@dataclass(frozen=True)
class GroupResult:
    """The probes of one demographic group."""

    group: str
    num_probes: int
    verification_accuracy: float | None
    """Of each probe against its mate and against an impostor of its own group; None with too few."""
    rank_1: float
    rank_5: float
    interval: Interval | None = None
    """95 % of rank 1, over people."""


@dataclass(frozen=True)
class FairnessResult:
    """All probes compared with all that are enrolled, by the values of one tag axis, at one threshold for all."""

    fmr: float
    """The share of all impostors that match at the threshold, at most."""
    rates: GroupRates
    """Within groups."""
    fnmr_intervals: Sequence[Interval]
    """95 % of each group's FNMR, over people."""
    cells: Cells
    """Across groups, too."""
    metrics: FairnessMetrics | None
    """None with fewer than two groups that have enough comparisons."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures of each group, and the metrics."""
        rates = self.rates
        columns = zip(rates.groups, rates.fmr.tolist(), rates.fnmr.tolist(), self.fnmr_intervals, strict=True)
        return {
            "fmr": self.fmr,
            "groups": [
                {"group": group, "fmr": fmr, "fnmr": fnmr, "fnmr_interval": asdict(interval)}
                for group, fmr, fnmr, interval in columns
            ],
            "left_out": list(rates.left_out),
            "metrics": None if self.metrics is None else asdict(self.metrics),
        }


@dataclass(frozen=True)
class IdentificationResult:
    """A set of probes searched in a gallery."""

    num_templates: int
    num_probes: int
    num_probes_without_mate: int
    """Left out of closed-set identification, which is about probes whose mate is enrolled."""
    rank_1: float
    rank_5: float
    groups: Mapping[str, Sequence[GroupResult]]
    """Tag axis -> its groups."""
    spreads: Mapping[str, Spread]
    """Tag axis -> spread of the known groups' verification accuracies."""
    interval: Interval | None = None
    """95 % of rank 1, over people."""
    cmc: Sequence[float] = ()
    """The share of mated probes whose mate has rank 1, ranks 1 to 2, ..."""
    tpir_at_fpir: Sequence[TpirAtFpir] = ()
    """Of the open set: the targets that the probes without mate suffice for."""
    open_set: OpenSet | None = None
    """None when every probe has a mate."""
    fairness: Mapping[str, FairnessResult] = field(default_factory=dict)
    """Tag axis -> errors by group."""
    notes: Sequence[str] = ()
    """What could not be measured, and why."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures, without the scores behind them."""
        plain = asdict(replace(self, open_set=None, fairness={}))
        del plain["open_set"]
        return {**plain, "fairness": {axis: one.to_json() for axis, one in self.fairness.items()}}


@dataclass(frozen=True)
class Scores:
    """What a curve or histogram is drawn from."""

    name: str
    distances: Distances
    same: Same


@dataclass(frozen=True)
class HardPair:
    """A pair of images that was told wrong, or nearly."""

    set_name: str
    pair: int
    images: tuple[bytes, bytes]
    """Encoded files."""
    cosine: float
    same: bool


@dataclass(frozen=True)
class Evaluation:
    """All results of one encoder."""

    encoder: str
    """What was evaluated: path and step."""
    verification: Sequence[VerificationResult]
    identification: IdentificationResult | None
    scores: Sequence[Scores]
    hardest: Sequence[HardPair] = ()
    outcomes: Mapping[str, PairCounts] = field(default_factory=dict)
    """Figure -> errors by person, from which two encoders are compared."""
    footer: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the encoder and of the data."""
    panels: Sequence[Panel] = ()
    """Further protocols, each as it is shown."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures, without the scores behind them."""
        return {
            "encoder": self.encoder,
            "verification": [asdict(one) for one in self.verification],
            "identification": self.identification.to_json() if self.identification else None,
            "footer": dict(self.footer),
            "protocols": {one.title: {table.title: _figures(table) for table in one.tables} for one in self.panels},
        }

    def lines(self) -> list[str]:
        """Return the main figures for a person."""
        lines = [
            f"{one.name}: accuracy {one.accuracy.mean:.4f} +- {one.accuracy.std:.4f} over {one.accuracy.num_pairs} "
            f"pairs{_shown(one.interval)} (EER {one.equal_error_rate:.4f}; file {one.sha256[:12]})"
            for one in self.verification
        ]
        if (found := self.identification) is not None:
            lines.append(
                f"identification: rank 1 {found.rank_1:.4f}{_shown(found.interval)}, rank 5 {found.rank_5:.4f} "
                f"({found.num_probes} probes, {found.num_templates} enrolled, {found.num_probes_without_mate} without "
                "mate)"
            )
            lines += [
                f"  open set: TPIR {one.tpir:.4f} at FPIR {one.fpir:.4f} (target {one.target_fpir:g})"
                for one in found.tpir_at_fpir
            ]
            lines += [
                f"  by {axis}: verification {one.mean:.4f}, STD over the groups {one.std:.4f}"
                for axis, one in found.spreads.items()
            ]
            lines += [
                f"  by {axis}: FDR {one.metrics.fdr:.4f}, GARBE {one.metrics.garbe:.4f} at FMR {one.fmr:g}"
                for axis, one in found.fairness.items()
                if one.metrics is not None
            ]
            lines += [f"  {note}" for note in found.notes]
        for panel in self.panels:
            lines += [panel.title, *(line for table in panel.tables for line in table.markdown().splitlines()[2:])]
        return lines


def _figures(table: Table) -> dict[str, dict[str, float | None]]:
    names = [column.name for column in table.columns]
    return {row: dict(zip(names, figures, strict=True)) for row, figures in table.rows.items()}


def _shown(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.4f}, {interval.high:.4f}]"
