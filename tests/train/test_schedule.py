"""The learning rate over a run."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import ScheduleConfig
from train.schedule import Progress, lr_factor

STEPS = ScheduleConfig(kind="step", milestones=(22, 30, 36), gamma=0.1)
POLYNOMIAL = ScheduleConfig(kind="polynomial", power=2, warmup_epochs=2)


@pytest.mark.parametrize("kind", ["step", "polynomial", "plateau"])
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
        kind=st.sampled_from(["step", "polynomial", "plateau"]),
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


ACCURACIES = st.lists(
    st.one_of(
        st.sampled_from([0.0, 0.5, 0.5 * (1 + 1e-4), 0.50004, 0.5001, 0.6]),  # on, below and above what improves on .5
        st.floats(0, 1),
    ),
    max_size=40,
)
PLATEAU = ScheduleConfig(kind="plateau", warmup_epochs=2, gamma=0.5)


def after(config: ScheduleConfig, accuracies: list[float]) -> Progress:
    progress = Progress(config)
    for accuracy in accuracies:
        progress.update(accuracy)
    return progress


@settings(deadline=None, max_examples=200)
@given(ACCURACIES, st.integers(0, 5), st.floats(0.5, 0.9))
def test_the_rate_drops_when_torch_says_that_the_accuracy_has_come_to_a_plateau(
    accuracies: list[float], patience: int, gamma: float
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e9)  # so that torch never finds a change too small to make
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=patience, factor=gamma)
    config = ScheduleConfig(kind="plateau", patience=patience, gamma=gamma)
    progress = Progress(config)
    for accuracy in accuracies:
        expected.step(accuracy)
        progress.update(accuracy)
        ours = 1e9 * lr_factor(config, 5, 10, progress.drops)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])


def test_a_plateau_lasts_as_long_as_the_patience() -> None:
    config = ScheduleConfig(kind="plateau", patience=2)
    drops = [after(config, [0.7, *[0.7] * flat]).drops for flat in range(8)]
    assert drops == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("drops", "factors"), [(0, [0, 0.5, 1, 1]), (2, [0, 0.5, 0.25, 0.25])])
def test_drops_of_a_plateau_schedule_count_after_its_warm_up(drops: int, factors: list[float]) -> None:
    assert [lr_factor(PLATEAU, epoch, 20, drops) for epoch in (0, 1, 2, 19)] == factors


def test_drops_change_no_other_schedule() -> None:
    assert lr_factor(STEPS, 25, 40, drops=3) == lr_factor(STEPS, 25, 40)
    assert lr_factor(POLYNOMIAL, 11, 20, drops=3) == lr_factor(POLYNOMIAL, 11, 20)


@given(ACCURACIES)
def test_the_best_is_better_than_all_before_however_little(accuracies: list[float]) -> None:
    progress = Progress(PLATEAU)
    for number, accuracy in enumerate(accuracies):
        assert progress.update(accuracy) == all(accuracy > before for before in accuracies[:number])
        assert progress.best == max(accuracies[: number + 1])


@given(ACCURACIES, ACCURACIES)
def test_progress_goes_on_from_a_saved_state_of_plain_values(before: list[float], later: list[float]) -> None:
    config = ScheduleConfig(kind="plateau", patience=1)
    unbroken, resumed = after(config, before), Progress(config)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    for accuracy in later:
        assert resumed.update(accuracy) == unbroken.update(accuracy)
    assert resumed.state_dict() == unbroken.state_dict()
    assert resumed.drops == unbroken.drops
