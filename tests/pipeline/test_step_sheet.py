"""The sheet of augmented faces."""

import numpy as np

from pipeline.augment_config import AugmentConfig
from pipeline.step_sheet import augmented_rows, compose

FACES = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
FLIP, ALWAYS, MIXED = (AugmentConfig(flip=probability) for probability in (0, 1, 0.5))


def test_each_face_comes_first_and_then_as_it_is_in_each_pass() -> None:
    before = FACES.copy()
    rows = augmented_rows(FACES, np.arange(3), ALWAYS, 0, 2)
    assert rows.shape == (3, 3, 32, 32, 3)
    assert np.array_equal(rows[:, 0], FACES)
    assert np.array_equal(rows[:, 1], FACES[:, :, ::-1])
    assert np.array_equal(rows[:, 2], FACES[:, :, ::-1])
    assert np.array_equal(FACES, before)


def test_looks_are_those_of_the_samples_in_the_run() -> None:
    ids = np.array([5, 900, 31])
    rows = augmented_rows(FACES, ids, MIXED, 4, 20)
    again = augmented_rows(FACES[[2, 0]], ids[[2, 0]], MIXED, 4, 20)
    assert np.array_equal(rows[[2, 0]], again)
    assert (rows[:, 1] != rows[:, 2:].swapaxes(0, 1)).any()
    assert not np.array_equal(rows, augmented_rows(FACES, ids, MIXED, 5, 20))


def test_rows_lie_below_each_other_beside_their_labels() -> None:
    rows = {
        "a set": augmented_rows(FACES, np.arange(3), ALWAYS, 0, 1),
        "b": augmented_rows(FACES, np.arange(3), FLIP, 0, 1),
    }
    sheet = compose(rows)
    label_width = sheet.shape[1] - 2 * 32
    assert sheet.shape[0] == 6 * 32
    for number, pictures in enumerate(rows.values()):
        for face in range(3):
            top = (3 * number + face) * 32
            assert np.array_equal(sheet[top : top + 32, label_width:], np.concatenate(list(pictures[face]), 1))
        label = sheet[3 * number * 32 : 3 * (number + 1) * 32, :label_width]
        assert (label < 100).any()
        assert (label[32:] == 255).all()


def test_a_long_label_is_broken_and_cut_to_its_rows() -> None:
    rows = augmented_rows(FACES[:1], np.arange(1), FLIP, 0, 1)
    (label,) = np.split(compose({"many words and " * 20: rows})[:, : -2 * 32], 1)
    assert (label < 100).any()
    assert (label[:, -1] == 255).all()  # unbroken, it would run out of its place
