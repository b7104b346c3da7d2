"""What a run reports: a line for people, `metrics.jsonl` for programs, TensorBoard for curves."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pipeline.stats import Throughput
from shardgen.files import write_durably

_FILE = "metrics.jsonl"
_log = logging.getLogger("facemix.train")


@dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`."""

    step: int
    """Steps done."""
    epoch: float
    loss: float
    """Of this step; under torchrun, of rank 0's slice of it."""
    lr: float
    images_per_second: float
    """Global images per second since the last line."""
    waiting_share: float
    """Share of that time spent waiting for data, 0 to 1."""
    occupancy: Mapping[str, float]
    """Stage of the loader -> share of that time that it worked on batches, 0 to 1; on rank 0."""
    cached_share: float
    """Share of the images that came out of the decoded cache, 0 to 1; on rank 0."""
    failures: int
    """Images that have not decoded so far; on rank 0."""
    batch_crc32: str
    """CRC-32 of the step's sample ids on rank 0: equal runs have equal columns."""

    def line(self, num_steps: int, seconds_left: float) -> str:
        """Return the step line."""
        stages = " ".join(f"{stage} {share:.0%}" for stage, share in self.occupancy.items())
        return (
            f"step {self.step}/{num_steps}  epoch {self.epoch:.2f}  loss {self.loss:.3f}  lr {self.lr:.4f}  "
            f"{self.images_per_second:.0f} img/s  waiting {self.waiting_share:.1%} ({stages})  "
            f"{_duration(seconds_left)} left"
        )


class Reporter:
    """Measures and reports the steps of a run; a resumed run goes on after the step of its checkpoint."""

    def __init__(self, run: Path, after_step: int, num_ranks: int) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._path = run / _FILE
        kept = [one for one in read_metrics(run) if one.step <= after_step]
        write_durably(self._path, "".join(json.dumps(asdict(one)) + "\n" for one in kept).encode())
        self._events = SummaryWriter(str(run), purge_step=after_step + 1)
        self._first_step = after_step
        self._num_ranks = num_ranks
        self._begun = time.monotonic()
        self._last_line = Throughput()

    def report(self, fields: Mapping[str, Any], stats: Throughput, num_steps: int) -> None:
        """Write down a step whose figures are known, so that all its work is in the time of the loader's `stats`."""
        spent = stats - self._last_line
        self._last_line = stats
        metrics = StepMetrics(
            images_per_second=spent.images_per_second * self._num_ranks,
            waiting_share=spent.waiting_share,
            occupancy={stage: round(share, 4) for stage, share in spent.occupancy.items()},
            cached_share=spent.cached / spent.images,
            failures=stats.failures,
            **fields,
        )
        with self._path.open("a") as stream:
            stream.write(json.dumps(asdict(metrics)) + "\n")
        for name in ("loss", "lr", "images_per_second", "waiting_share"):
            self._events.add_scalar(f"train/{name}", getattr(metrics, name), metrics.step)
        per_step = (time.monotonic() - self._begun) / (metrics.step - self._first_step)
        _log.info(metrics.line(num_steps, per_step * (num_steps - metrics.step)))

    def close(self) -> None:
        """Flush the events."""
        self._events.close()


def read_metrics(run: Path) -> list[StepMetrics]:
    """Return the steps that a run has reported; a last line cut by a crash is left out."""
    path = run / _FILE
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [StepMetrics(**json.loads(line)) for line in lines]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
