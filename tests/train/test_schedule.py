"""The learning rate over a run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import ScheduleConfig
from train.schedule import lr_factor

STEPS = ScheduleConfig(kind="step", milestones=(22, 30, 36), gamma=0.1)
POLYNOMIAL = ScheduleConfig(kind="polynomial", power=2, warmup_epochs=2)


@pytest.mark.parametrize("kind", ["step", "polynomial"])
def test_the_rate_rises_linearly_from_zero_to_its_peak(kind: str) -> None:
    config = ScheduleConfig.model_validate({"kind": kind, "warmup_epochs": 4})
    assert [lr_factor(config, epoch, 20) for epoch in (0, 1, 2, 3, 4)] == [0, 0.25, 0.5, 0.75, 1]


def test_without_a_warm_up_the_rate_starts_at_its_peak() -> None:
    assert lr_factor(ScheduleConfig(kind="polynomial"), 0, 20) == 1


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 1), (21.99, 1), (22, 0.1), (29.99, 0.1), (30, 0.01), (36, 0.001), (39.99, 0.001)],
)
def test_steps_happen_at_their_milestones(epoch: float, factor: float) -> None:
    assert lr_factor(STEPS, epoch, 40) == pytest.approx(factor)


@pytest.mark.parametrize(("epoch", "factor"), [(2, 1), (11, 0.25), (15.5, 1 / 16), (20, 0)])
def test_a_polynomial_falls_over_what_the_warm_up_left(epoch: float, factor: float) -> None:
    assert lr_factor(POLYNOMIAL, epoch, 20) == pytest.approx(factor)


def test_a_polynomial_ends_near_zero() -> None:
    assert 0 < lr_factor(POLYNOMIAL, 20 - 1 / 1000, 20) < 1e-7


@settings(deadline=None, max_examples=60)
@given(
    config=st.builds(
        ScheduleConfig,
        kind=st.sampled_from(["step", "polynomial"]),
        warmup_epochs=st.sampled_from([0, 0.5, 3, 20, 30]),
        milestones=st.lists(st.floats(0, 20), max_size=3),
        gamma=st.floats(0.01, 1),
        power=st.floats(0.1, 4),
    ),
    steps=st.integers(1, 50),
)
def test_whatever_the_schedule_the_rate_falls_after_the_warm_up_and_never_leaves_0_to_1(
    config: ScheduleConfig, steps: int
) -> None:
    epochs = [20 * step / steps for step in range(steps)]
    factors = [lr_factor(config, epoch, 20) for epoch in epochs]
    assert all(0 <= factor <= 1 for factor in factors)
    after = [factor for epoch, factor in zip(epochs, factors, strict=True) if epoch >= config.warmup_epochs]
    assert after == sorted(after, reverse=True)
