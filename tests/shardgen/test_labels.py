"""Labels: what is said is there, and stays in its place."""

import numpy as np

from shardgen.labels import label, side_label


def test_a_label_says_different_things_differently_beyond_ascii_too() -> None:
    said = [label([text], 100, 40) for text in ("Zoë", "Zoe", "Zo?")]
    assert all((one < 100).any() for one in said)
    assert not any(np.array_equal(said[0], other) for other in said[1:])


def test_a_long_side_label_is_broken_and_cut_to_its_height() -> None:
    drawn = side_label("many words and " * 20, 32)
    assert drawn.shape[0] == 32
    assert (drawn < 100).any()
    assert (drawn[:, -1] == 255).all()  # unbroken, it would run out of its place
