"""What a run reports, and what a resumed run keeps of it."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from pipeline.stats import Throughput
from train.metrics import Reporter, StepMetrics, read_metrics

ONE = StepMetrics(
    step=1,
    epoch=0.5,
    loss=3.25,
    lr=0.1,
    images_per_second=812.5,
    waiting_share=0.03125,
    occupancy={"plan": 0.125, "read": 0.0, "decode": 0.5, "augment": 0.25, "deliver": 0.0},
    cached_share=0.25,
    failures=0,
    batch_crc32="0012abcd",
)
A_STEP = Throughput(
    6500, 16, 0.5, cached=1625, plan_seconds=2, decode_seconds=8, augment_seconds=4
)  # of one of two ranks


def write(run: Path, after_step: int, *steps: int, loss: float = 3.25) -> None:
    reporter = Reporter(run, after_step, num_steps=9, num_ranks=2)
    stats = Throughput()
    for step in steps:
        stats += A_STEP
        fields = {"step": step, "epoch": 0.5, "loss": loss, "lr": 0.1, "batch_crc32": "0012abcd"}
        reporter.report(fields, stats)
    reporter.close()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2)
    assert read_metrics(tmp_path) == [ONE, replace(ONE, step=2)]


def test_failures_are_counted_over_the_whole_run(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, 0, num_steps=9, num_ranks=1)
    fields = {"epoch": 0.5, "loss": 1, "lr": 0.1, "batch_crc32": "0012abcd"}
    reporter.report({"step": 1, **fields}, Throughput(8, 1, failures=2))
    reporter.report({"step": 2, **fields}, Throughput(16, 2, failures=2))
    reporter.close()
    assert [one.failures for one in read_metrics(tmp_path)] == [2, 2]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3, 4)
    write(tmp_path, 2, 3, loss=1)
    assert [(one.step, one.loss) for one in read_metrics(tmp_path)] == [(1, 3.25), (2, 3.25), (3, 1)]


@pytest.mark.parametrize("cut", [1, 2, 30, -2])
def test_a_last_line_cut_by_a_crash_is_survived(cut: int, tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3)
    path = tmp_path / "metrics.jsonl"
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:cut])
    assert [one.step for one in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, 2, 3)
    assert [one.step for one in read_metrics(tmp_path)] == [1, 2, 3]


def test_tensorboard_shows_the_same_curve(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3, loss=5)
    write(tmp_path, 2, 3, loss=1)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 5), (2, 5), (3, 1)]


class _Terminal(io.StringIO):
    """Standard error that somebody watches."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("watched", [True, False])
def test_a_bar_moves_on_a_terminal_and_nowhere_else(
    watched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = _Terminal() if watched else io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    reporter = Reporter(tmp_path, 3, num_steps=9, num_ranks=1)
    reporter.stepped()
    reporter.stepped()
    reporter.close()
    assert ("5/9" in terminal.getvalue()) == watched


@pytest.mark.parametrize(("seconds", "left"), [(7.2, "7 s"), (900, "15 min"), (36000, "10.0 h")])
def test_the_step_line_says_how_far_how_fast_and_how_long(seconds: float, left: str) -> None:
    line = ONE.line(40, seconds)
    stages = "plan 12% read 0% decode 50% augment 25% deliver 0%"
    assert line == f"step 1/40  epoch 0.50  loss 3.250  lr 0.1000  812 img/s  waiting 3.1% ({stages})  {left} left"
