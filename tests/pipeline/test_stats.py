"""Throughput: values that add."""

import pytest

from pipeline.stats import Throughput


def test_costs_of_steps_and_ranks_add_up() -> None:
    steps = [Throughput(100, 2.0, 0.5), Throughput(50, 1.0, 1.0), Throughput(10, 1.0)]
    total = sum(steps, Throughput())
    assert total == Throughput(160, 4.0, 1.5)
    assert total.images_per_second == pytest.approx(40)
    assert total.waiting_share == pytest.approx(0.375)


def test_adding_nothing_changes_nothing() -> None:
    one = Throughput(7, 1.5, 0.25)
    assert one + Throughput() == Throughput() + one == one


def test_no_time_is_no_rate_and_no_waiting() -> None:
    assert Throughput().images_per_second == 0
    assert Throughput().waiting_share == 0
