"""All pairs of a set, tile by tile, against the whole matrix of scores."""

from itertools import combinations, permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import all_pairs
from eval.all_pairs import BINS, EDGES, ScoreHistograms, rank_1_among_distractors, score_all_pairs
from eval.verification import tar_at_far
from shardgen.errors import DataError

CPU = torch.device("cpu")
Array = npt.NDArray[Any]

pytestmark = pytest.mark.usefixtures("one_thread")


def corners(rng: np.random.Generator, number: int) -> Array:
    """Unit vectors whose products are exact, so that no two ways to multiply them differ."""
    signs = rng.choice(np.array([-1, 1], np.float32), (number, 64))
    return np.asarray(signs / 8, np.float32)


def near(rng: np.random.Generator, identities: Array, size: int = 32) -> Array:
    centres = rng.normal(size=(identities.max() + 1, size))
    rows = centres[identities] + rng.normal(0, 1.2, (len(identities), size))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    number=st.integers(1, 40),
    tile=st.integers(1, 50),
    num_groups=st.integers(1, 4),
)
def test_whatever_the_tiles_every_pair_is_counted_once(seed: int, number: int, tile: int, num_groups: int) -> None:
    rng = np.random.default_rng(seed)
    faces, identities = corners(rng, number), rng.integers(0, 5, number)
    codes = rng.integers(0, num_groups, number).astype(np.int16)
    found = score_all_pairs(faces, identities, CPU, codes, num_groups, tile)
    expected = np.zeros((2, num_groups, num_groups, BINS), np.int64)
    for one, two in combinations(range(number), 2):
        score = float(faces[one] @ faces[two])
        place = min(int(np.searchsorted(EDGES, score, "right")) - 1, BINS - 1)
        low, high = sorted((codes[one], codes[two]))
        expected[int(identities[one] != identities[two]), low, high, place] += 1
    np.testing.assert_array_equal(found.genuine, expected[0])
    np.testing.assert_array_equal(found.impostor, expected[1])


@pytest.mark.parametrize("target", [1e-1, 1e-3, 1e-4])
def test_rates_are_those_of_all_scores_to_a_bin(target: float) -> None:
    rng = np.random.default_rng(0)
    identities = rng.integers(0, 60, 300)
    faces = near(rng, identities)
    found = score_all_pairs(faces, identities, CPU, tile=64).tar_at_far(target)
    first, second = np.triu_indices(300, 1)
    scores = (faces.astype(np.float64) @ faces.T.astype(np.float64))[first, second]
    same = identities[first] == identities[second]
    assert found.threshold in EDGES
    assert found.far == pytest.approx((scores[~same] >= found.threshold).mean(), abs=1e-6)
    assert found.tar == pytest.approx((scores[same] >= found.threshold).mean(), abs=1e-6)
    assert found.far <= target
    lower = found.threshold - 2 / BINS
    assert (scores[~same] >= lower).mean() > target
    exact = tar_at_far(1 - scores, same, target)
    assert found.threshold == pytest.approx(1 - exact.threshold, abs=2 / BINS)
    assert found.tar == pytest.approx(exact.tar, abs=3e-3)
    assert 0 < found.tar < 1


def test_a_face_that_is_there_twice_scores_one() -> None:
    rng = np.random.default_rng(0)
    one = near(rng, np.arange(50), 512)
    found = score_all_pairs(np.concatenate([one, one]), np.tile(np.arange(50), 2), CPU)
    assert found.genuine[0, 0, -2:].sum() == 50
    assert (found.genuine.sum(), found.impostor.sum()) == (50, 100 * 99 // 2 - 50)


def test_too_few_impostors_for_a_target_are_refused() -> None:
    faces, identities = corners(np.random.default_rng(0), 20), np.arange(20) // 2
    found = score_all_pairs(faces, identities, CPU)
    assert found.tar_at_far(1 / 180).target_far == 1 / 180
    with pytest.raises(DataError, match=r"FAR 1e-06 cannot be measured with 180 impostor pairs; it needs .* 1000000"):
        found.tar_at_far(1e-6)


def test_a_set_without_genuine_pairs_is_refused() -> None:
    found = score_all_pairs(corners(np.random.default_rng(0), 20), np.arange(20), CPU)
    with pytest.raises(DataError, match="no identity has two faces"):
        found.tar_at_far(0.1)


def test_a_target_that_lets_everybody_in_is_met_at_the_lowest_score() -> None:
    counts = np.zeros((1, 1, BINS), np.int64)
    counts[0, 0, [5, 9]] = 1
    assert ScoreHistograms(counts, counts).tar_at_far(1).far == 1


@pytest.mark.parametrize("tile", [1, 7, 2048])
def test_mates_are_searched_among_the_first_so_many_distractors(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_pairs, "_TILE", tile)
    rng = np.random.default_rng(1)
    identities = rng.permutation(np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 2, 2, 1]))
    faces, distractors = near(rng, identities), near(rng, np.arange(500))
    sizes = (1, 10, 99, 500)
    found = rank_1_among_distractors(faces, identities, distractors, sizes, CPU)
    searches = [(one, two) for one, two in permutations(range(26), 2) if identities[one] == identities[two]]
    assert found.num_probes == len(searches)
    for size in sizes:
        hits = [faces[one] @ faces[two] > (distractors[:size] @ faces[one]).max() for one, two in searches]
        assert found.rank_1[size] == pytest.approx(np.mean(hits))
    assert 0 < found.rank_1[500] < found.rank_1[1] <= 1


def test_a_distractor_that_scores_as_high_as_the_mate_comes_before_it() -> None:
    faces = np.eye(2, dtype=np.float32)[[0, 0]]
    found = rank_1_among_distractors(faces, np.zeros(2, np.int64), faces[:1], (1,), CPU)
    assert found.rank_1 == {1: 0}


def test_distractors_and_mates_that_are_not_there_are_named() -> None:
    faces = corners(np.random.default_rng(0), 4)
    with pytest.raises(DataError, match="4 distractors are fewer than 10"):
        rank_1_among_distractors(faces, np.zeros(4, np.int64), faces, (1, 10), CPU)
    with pytest.raises(DataError, match="no search has a mate"):
        rank_1_among_distractors(faces, np.arange(4), faces, (1,), CPU)
