"""How evenly an accuracy is spread over groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Accuracy over groups."""

    mean: float
    std: float
    """Standard deviation over the groups, ddof 0; smaller is fairer."""
    ser: float | None
    """Skewed error ratio, largest error by smallest (Wang and Deng, CVPR 2020); None when that is 0."""


def spread(accuracies: Sequence[float]) -> Spread:
    """Return the spread of some groups' accuracies, each from 0 to 1."""
    errors = 1 - np.asarray(accuracies)
    ser = float(errors.max() / errors.min()) if errors.min() > 0 else None
    return Spread(float(np.mean(accuracies)), float(np.std(accuracies)), ser)
