"""How evenly errors fall on demographic groups: the figures that papers and NIST report of the groups' rates.

A rate of 0 errors in n comparisons is taken as Jeffreys' estimate (0 + .5) / (n + 1) where a figure divides by it or
takes its logarithm (inequity rate, maximum by geometric mean), and as 0 everywhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.group_errors import Counts, GroupRates, Rates
from shardgen.errors import DataError


@dataclass(frozen=True)
class Spread:
    """Accuracy over groups."""

    mean: float
    std: float
    """Standard deviation over the groups, ddof 0; smaller is fairer."""
    ser: float | None
    """Skewed error ratio, largest error by smallest (Wang and Deng, CVPR 2020); None when that is 0."""

    @property
    def trade_off(self) -> float:
        """TO, the mean less the standard deviation: the score of FRCSyn (Melzi et al., WACV workshops 2024)."""
        return self.mean - self.std


def spread(accuracies: Sequence[float]) -> Spread:
    """Return the spread of some groups' accuracies, each from 0 to 1."""
    errors = 1 - np.asarray(accuracies)
    ser = float(errors.max() / errors.min()) if errors.min() > 0 else None
    return Spread(float(np.mean(accuracies)), float(np.std(accuracies)), ser)


@dataclass(frozen=True)
class FairnessMetrics:
    """What papers report of the groups' rates."""

    accuracy: Spread
    """Mean, STD, SER and TO of the groups' accuracies."""
    fdr: float
    """Fairness discrepancy rate, 1 = fair."""
    inequity: float
    """Inequity rate, IR; 1 = fair, no upper bound."""
    gini_fmr: float
    """0 = fair, 1 = all errors in one group."""
    gini_fnmr: float
    garbe: float
    """Gini aggregation rate for biometric equitability, 0 = fair."""
    max_geomean_fmr: float
    """Largest by geometric mean, 1 = fair."""
    max_geomean_fnmr: float
    equalised_odds: float
    """Equalised odds difference, 0 = fair."""
    alpha: float
    """Weight of the FMR in FDR, IR and GARBE; the FNMR has the rest."""
    notes: tuple[str, ...]
    """A line for each group that is left out, and for each rate of 0 that a ratio needed an estimate of."""


def metrics(rates: GroupRates, alpha: float = 0.5) -> FairnessMetrics:
    """Return all figures; raises `DataError` with fewer than two groups."""
    if len(rates.groups) < 2:
        raise DataError(
            f"fairness compares groups, and {len(rates.groups)} of them has enough comparisons; "
            f"{'; '.join(rates.left_out) or 'add tagged faces'}"
        )
    fmr, fnmr = above_zero(rates.fmr, rates.num_impostor), above_zero(rates.fnmr, rates.num_genuine)
    return FairnessMetrics(
        accuracy=spread(rates.accuracy.tolist()),
        fdr=float(discrepancy(rates.fmr, rates.fnmr, alpha)),
        inequity=float(inequity(fmr, fnmr, alpha)),
        gini_fmr=float(gini(rates.fmr)),
        gini_fnmr=float(gini(rates.fnmr)),
        garbe=float(garbe(rates.fmr, rates.fnmr, alpha)),
        max_geomean_fmr=float(max_by_geomean(fmr)),
        max_geomean_fnmr=float(max_by_geomean(fnmr)),
        equalised_odds=float(equalised_odds(rates.fmr, rates.fnmr)),
        alpha=alpha,
        notes=(
            *rates.left_out,
            *_zeros("FMR", rates.groups, rates.false_matches, rates.num_impostor),
            *_zeros("FNMR", rates.groups, rates.false_non_matches, rates.num_genuine),
        ),
    )


def _zeros(rate: str, groups: tuple[str, ...], errors: Counts, total: Counts) -> list[str]:
    if not errors.any():
        return [f"{rate} is 0 in every group; its ratios are taken as 1"]
    return [
        f"{rate} of {group} is 0 in {num} comparisons; ratios take it as .5/{num + 1} (Jeffreys)"
        for group, num, wrong in zip(groups, total, errors, strict=True)
        if not wrong
    ]


# The formulas: rates are `[groups]`, or `[groups, replicates]` of a bootstrap; the result has the rest of the shape.


def above_zero(rates: Rates, num_comparisons: Counts) -> Rates:
    """Return rates that can be divided by: 0 of n is Jeffreys' .5 / (n + 1), with `num_comparisons` `[groups]`.

    Where no group has an error, all are equal whatever their sizes, and so they stay: all 1.
    """
    least = (0.5 / (num_comparisons + 1)).reshape(-1, *[1] * (rates.ndim - 1))
    return np.where(rates.any(0), np.where(rates > 0, rates, least), 1.0)


def discrepancy(fmr: Rates, fnmr: Rates, alpha: float = 0.5) -> Rates:
    """Fairness discrepancy rate: 1 - (a A + (1 - a) B), A and B the largest differences in FMR and in FNMR.

    De Freitas Pereira and Marcel, "Fairness in biometrics", IEEE TBIOM 2021.
    """
    return 1 - (alpha * _range(fmr) + (1 - alpha) * _range(fnmr))


def inequity(fmr: Rates, fnmr: Rates, alpha: float = 0.5) -> Rates:
    """Inequity rate: (max FMR / min FMR)^a (max FNMR / min FNMR)^(1 - a), of rates above 0.

    NIST's (Grother, 2021), as Howard et al. 2022 give it.
    """
    rate: Rates = (fmr.max(0) / fmr.min(0)) ** alpha * (fnmr.max(0) / fnmr.min(0)) ** (1 - alpha)
    return rate


def gini(rates: Rates) -> Rates:
    """Gini coefficient of n groups, n / (n - 1) sum_ij |x_i - x_j| / (2 n^2 mean); 0 where all rates are 0.

    With the correction for few groups of Howard et al. 2022: all errors in one group give 1.
    """
    num = len(rates)
    differences = np.abs(rates[:, None] - rates[None]).sum((0, 1))
    mean = rates.mean(0)
    coefficient: Rates = num / (num - 1) * differences / (2 * num**2 * np.where(mean > 0, mean, 1))
    return coefficient


def garbe(fmr: Rates, fnmr: Rates, alpha: float = 0.5) -> Rates:
    """Gini aggregation rate for biometric equitability: a Gini(FMR) + (1 - a) Gini(FNMR).

    Howard et al., "Evaluating proposed fairness models for face recognition algorithms", 2022, arXiv:2203.05051.
    """
    return alpha * gini(fmr) + (1 - alpha) * gini(fnmr)


def max_by_geomean(rates: Rates) -> Rates:
    """Largest rate by the geometric mean of all, of rates above 0 (Grother, NIST IR 8429, 2022)."""
    ratio: Rates = rates.max(0) / np.exp(np.log(rates).mean(0))
    return ratio


def equalised_odds(fmr: Rates, fnmr: Rates) -> Rates:
    """The larger of the largest differences in FMR and in FNMR (Hardt et al., NeurIPS 2016; fairlearn's worst case)."""
    return np.maximum(_range(fmr), _range(fnmr))


def _range(rates: Rates) -> Rates:
    difference: Rates = np.ptp(rates, axis=0)
    return difference
