"""Throughput: values that add; and the clock that says in which stage a thread's time went."""

from collections.abc import Iterator

import pytest

from pipeline import stats
from pipeline.stats import StageClock, Throughput


def test_costs_of_steps_and_ranks_add_up() -> None:
    steps = [Throughput(100, 2.0, 0.5, cached=40), Throughput(50, 1.0, 1.0, failures=1), Throughput(10, 1.0)]
    total = sum(steps, Throughput())
    assert total == Throughput(160, 4.0, 1.5, cached=40, failures=1)
    assert total.images_per_second == pytest.approx(40)
    assert total.waiting_share == pytest.approx(0.375)


def test_adding_nothing_changes_nothing() -> None:
    one = Throughput(7, 1.5, 0.25, plan_seconds=0.5)
    assert one + Throughput() == Throughput() + one == one


def test_the_difference_of_snapshots_is_what_came_between() -> None:
    before, between = Throughput(7, 1.5, 0.25, decode_seconds=0.5), Throughput(3, 0.5, cached=2, decode_seconds=0.125)
    assert (before + between) - before == between


def test_no_time_is_no_rate_and_no_waiting() -> None:
    assert Throughput().images_per_second == 0
    assert Throughput().waiting_share == 0
    assert set(Throughput().occupancy.values()) == {0}


def test_occupancy_is_each_stages_share_of_the_time() -> None:
    spent = Throughput(seconds=4, plan_seconds=1, decode_seconds=2)
    assert spent.occupancy == {"plan": 0.25, "read": 0, "decode": 0.5, "augment": 0, "deliver": 0}


class _Watch:
    """Stands for the clock on the wall."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> _Watch:
    watch = _Watch()
    monkeypatch.setattr(stats, "time", watch)
    return watch


def test_a_stage_inside_another_is_not_counted_twice(watch: _Watch) -> None:
    clock = StageClock()
    watch.now += 1
    with clock.during("decode"):
        watch.now += 10
        with clock.during("read"):
            watch.now += 100
        watch.now += 1000
    watch.now += 10_000
    found = clock.seconds()
    assert (found["decode_seconds"], found["read_seconds"]) == (1010, 100)
    assert sum(found.values()) == 1110


def test_a_stage_that_fails_is_over(watch: _Watch) -> None:
    clock = StageClock()
    with pytest.raises(ZeroDivisionError), clock.during("decode"):
        watch.now += 1 + 1 // 0
    watch.now += 10
    with clock.during("read"):
        watch.now += 1
    assert clock.seconds()["decode_seconds"] == 0
    assert clock.seconds()["read_seconds"] == 1


def test_items_are_counted_while_they_come_and_not_while_they_are_used(watch: _Watch) -> None:
    def items() -> Iterator[int]:
        for number in range(3):
            watch.now += 1
            yield number

    clock = StageClock()
    seen = []
    for item in clock.counting("decode", items()):
        seen.append(item)
        watch.now += 10
    assert seen == [0, 1, 2]
    assert clock.seconds()["decode_seconds"] == 3
