"""Embeddings that need no face."""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


def unit_rows(rng: np.random.Generator, number: int, size: int = 16) -> Rows:
    rows = rng.normal(size=(number, size))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
