"""Every random draw as a function of (seed, sample, pass, operation), for a whole batch at once.

So what happens to an image does not depend on batch size, world size, thread count or restarts.
"""

import numpy as np
import numpy.typing as npt

from pipeline.hashing import Words, derive_key, mix64


def uniform(
    seed: int, operation: str, sample_ids: npt.NDArray[np.int64], passes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return a draw from [0, 1) for each sample in its pass, independent between operations."""
    key: Words = np.full(1, derive_key(seed, "augment", operation), np.uint64)
    words = mix64(mix64(sample_ids.astype(np.uint64) ^ key) ^ passes.astype(np.uint64))
    return np.asarray(words >> np.uint64(11), np.float64) * 2.0**-53


def flips(
    seed: int, probability: float, sample_ids: npt.NDArray[np.int64], passes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Return 1 for each sample to be flipped horizontally in this pass, else 0."""
    return (uniform(seed, "flip", sample_ids, passes) < probability).astype(np.int32)
