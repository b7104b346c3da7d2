"""Random draws depend on (seed, sample, pass, operation) and on nothing else."""

from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment import flips, uniform

Ids = npt.NDArray[np.int64]

BATCHES = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 10**6)), min_size=1, max_size=100)
IDS, PASSES = (grid.ravel() for grid in np.meshgrid(np.arange(300), np.arange(300), indexing="ij"))


def columns(batch: list[tuple[int, int]]) -> tuple[Ids, Ids]:
    ids, passes = np.array(batch, np.int64).T
    return ids, passes


@settings(deadline=None, max_examples=50)
@given(BATCHES, st.randoms(use_true_random=False), st.integers(0, 100), st.integers(0, 2**31))
def test_permuting_or_splitting_the_batch_permutes_or_splits_the_draws(
    batch: list[tuple[int, int]], random: Random, cut: int, seed: int
) -> None:
    ids, passes = columns(batch)
    draws = uniform(seed, "flip", ids, passes)
    shuffled = np.array(random.sample(range(len(ids)), len(ids)))
    assert np.array_equal(uniform(seed, "flip", ids[shuffled], passes[shuffled]), draws[shuffled])
    parts = [uniform(seed, "flip", ids[part], passes[part]) for part in (slice(None, cut), slice(cut, None))]
    assert np.array_equal(np.concatenate(parts), draws)


@pytest.mark.parametrize(
    ("seed", "operation", "id_step", "pass_step"),
    [(1, "flip", 0, 0), (0, "crop", 0, 0), (0, "flip", 1, 0), (0, "flip", 0, 1), (0, "flip", 300, 300)],
)
def test_each_thing_a_draw_depends_on_makes_it_another(seed: int, operation: str, id_step: int, pass_step: int) -> None:
    one = uniform(0, "flip", IDS, PASSES)
    other = uniform(seed, operation, IDS + id_step, PASSES + pass_step)
    assert (one != other).all()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02  # 6 standard deviations of 90,000 independent draws


def test_the_sample_and_the_pass_are_no_sum() -> None:
    one, other = uniform(0, "flip", IDS, PASSES), uniform(0, "flip", PASSES, IDS)
    assert (one == other).sum() == 300  # only where sample and pass are the same number


def test_draws_are_uniform() -> None:
    draws = uniform(5, "flip", IDS, PASSES)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.bincount((draws * 100).astype(np.int64), minlength=100)
    expected = len(draws) / 100
    assert abs(((counts - expected) ** 2 / expected).sum() - 99) < 6 * np.sqrt(2 * 99)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_of_flips_is_the_probability(probability: float) -> None:
    flipped = flips(2, probability, IDS, PASSES)
    assert set(flipped.tolist()) <= {0, 1}
    assert abs(flipped.mean() - probability) <= 6 * np.sqrt(probability * (1 - probability) / len(flipped))


@pytest.mark.parametrize("axis", [0, 1])
def test_every_sample_and_every_pass_is_flipped_half_of_the_time(axis: int) -> None:
    shares = flips(3, 0.5, IDS, PASSES).reshape(300, 300).mean(axis)
    assert np.abs(shares - 0.5).max() < 6 * 0.5 / np.sqrt(300)
    assert shares.std() == pytest.approx(0.5 / np.sqrt(300), rel=0.25)
