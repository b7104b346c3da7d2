"""What a run reports: lines and a progress bar for people, two `.jsonl` for programs, TensorBoard for curves."""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.stats import Throughput
from shardgen.files import write_durably

_STEPS, _VALIDATIONS = "metrics.jsonl", "validation.jsonl"
_log = logging.getLogger("facemix.train")


@dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`."""

    step: int
    """Steps done."""
    epoch: float
    loss: float
    """Of this step, over all ranks."""
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
    """CRC-32 of the step's sample ids on all ranks: equal runs have equal columns."""

    def line(self, num_steps: int, seconds_left: float) -> str:
        """Return the step line."""
        stages = " ".join(f"{stage} {share:.0%}" for stage, share in self.occupancy.items())
        return (
            f"step {self.step}/{num_steps}  epoch {self.epoch:.2f}  loss {self.loss:.3f}  lr {self.lr:.4f}  "
            f"{self.images_per_second:.0f} img/s  waiting {self.waiting_share:.1%} ({stages})  "
            f"{_duration(seconds_left)} left"
        )


@dataclass(frozen=True)
class ValidationMetrics:
    """One line of `validation.jsonl`."""

    step: int
    """Steps done."""
    epoch: float
    accuracy: float
    """Mean over the verification sets, 0 to 1."""
    sets: Mapping[str, float]
    """Name -> accuracy."""
    best: bool
    """Whether it is higher than all before."""

    def line(self) -> str:
        """Return it for a person."""
        sets = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in self.sets.items())
        return f"step {self.step}  validation {self.accuracy:.4f} ({sets}){', the best so far' if self.best else ''}"


class Reporter:
    """Measures and reports the steps of a run; a resumed run goes on after the step of its checkpoint."""

    def __init__(self, run: Path, after_step: int, num_steps: int, num_ranks: int) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._run = run
        _keep(run / _STEPS, [one for one in read_metrics(run) if one.step <= after_step])
        _keep(run / _VALIDATIONS, [one for one in read_validations(run) if one.step <= after_step])
        self._events = SummaryWriter(str(run), purge_step=after_step + 1)
        self._first_step, self._num_steps, self._num_ranks = after_step, num_steps, num_ranks
        self._begun = time.monotonic()
        self._last_line = Throughput()
        self._open = ExitStack()
        # disable=None: there is no bar where nobody watches.
        self._bar = self._open.enter_context(tqdm(total=num_steps, initial=after_step, unit=" steps", disable=None))
        if not self._bar.disable:
            self._open.enter_context(logging_redirect_tqdm())

    def stepped(self) -> None:
        """Move the bar by a step."""
        self._bar.update()

    def report(self, fields: Mapping[str, Any], stats: Throughput) -> None:
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
        _append(self._run / _STEPS, metrics)
        for name in ("loss", "lr", "images_per_second", "waiting_share"):
            self._events.add_scalar(f"train/{name}", getattr(metrics, name), metrics.step)
        per_step = (time.monotonic() - self._begun) / (metrics.step - self._first_step)
        _log.info(metrics.line(self._num_steps, per_step * (self._num_steps - metrics.step)))

    def report_validation(self, metrics: ValidationMetrics) -> None:
        """Write down how good the encoder is."""
        _append(self._run / _VALIDATIONS, metrics)
        for name, accuracy in metrics.sets.items():
            self._events.add_scalar(f"validation/{name}", accuracy, metrics.step)
        _log.info(metrics.line())

    def show(self, pictures: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        """Put pictures, `[height, width, 3]` each, beside the curves."""
        for name, picture in pictures.items():
            self._events.add_image(f"first batch/{name}", picture, self._first_step, dataformats="HWC")

    def close(self) -> None:
        """Flush the events."""
        self._open.close()
        self._events.close()


def read_metrics(run: Path) -> list[StepMetrics]:
    """Return the steps that a run has reported; a last line cut by a crash is left out."""
    return _read(run / _STEPS, StepMetrics)


def read_validations(run: Path) -> list[ValidationMetrics]:
    """Return the validations that a run has reported; a last line cut by a crash is left out."""
    return _read(run / _VALIDATIONS, ValidationMetrics)


Line = TypeVar("Line", StepMetrics, ValidationMetrics)


def _read(path: Path, kind: type[Line]) -> list[Line]:
    if not path.exists():
        return []
    return [kind(**json.loads(line)) for line in path.read_text().split("\n")[:-1]]


def _keep(path: Path, lines: list[Line]) -> None:
    write_durably(path, "".join(json.dumps(asdict(one)) + "\n" for one in lines).encode())


def _append(path: Path, line: StepMetrics | ValidationMetrics) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(asdict(line)) + "\n")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
