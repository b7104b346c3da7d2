"""Randomness without state: every draw is a hash of what it depends on, for a whole batch at once."""

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def derive_key(*parts: str | int) -> int:
    """Return 64 bits that depend on all parts and their order."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix64(words: Words) -> Words:
    """Return each word hashed: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
