"""A run is a folder, and whatever stops it, it goes on as if nothing had."""

import json
import logging
import math
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from shardgen.errors import UsageError
from tests.support import ROOT, make_set
from tests.train.runs import assert_same_run, assert_same_weights, columns, copy_of, final_state
from train import checkpoint
from train.backbones import make_encoder
from train.config import HeadConfig
from train.distributed import World
from train.heads import MarginHead
from train.loop import RunResult, train
from train.metrics import StepMetrics, read_metrics
from train.objective import Recogniser
from train.partial_fc import PartialFC
from train.recipe import Recipe, load_recipe
from train.schedule import lr_factor
from train.updates import autocast_dtype

NUM_STEPS = 6


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_can_begin_with_another_s_encoder(recipe: Recipe, uninterrupted: Path, tmp_path: Path) -> None:
    other = checkpoint.find(uninterrupted)
    train(copy_of(recipe, run=str(tmp_path / "run"), encoder__pretrained=str(other)), stop_at=0)
    begun, wanted = final_state(tmp_path / "run")["encoder"], final_state(uninterrupted)["encoder"]
    assert all(torch.equal(begun[name], wanted[name]) for name in wanted)


def test_two_runs_of_one_recipe_are_equal(recipe: Recipe, uninterrupted: Path, tmp_path: Path) -> None:
    assert train(copy_of(recipe, run=str(tmp_path))) == RunResult(tmp_path, NUM_STEPS, NUM_STEPS, is_main=True)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("stops", [(0,), (1,), (5,), (2, 2, 4)], ids=str)
def test_a_run_stopped_at_any_step_ends_as_an_uninterrupted_one(
    stops: tuple[int, ...], recipe: Recipe, uninterrupted: Path, tmp_path: Path
) -> None:
    mine = copy_of(recipe, run=str(tmp_path))
    for number, stop in enumerate(stops):
        assert train(mine, resume=number > 0, stop_at=stop) == RunResult(tmp_path, stop, NUM_STEPS, is_main=True)
    assert train(mine, resume=True).finished
    assert_same_run(tmp_path, uninterrupted)


def test_a_crash_after_a_checkpoint_repeats_the_steps_since(
    recipe: Recipe, uninterrupted: Path, tmp_path: Path
) -> None:
    mine = copy_of(recipe, run=str(tmp_path), training__checkpoint_every=2, training__keep_checkpoints=9)
    train(mine)
    *_, earlier, last = checkpoint.all_in(tmp_path / "checkpoints")
    assert [earlier.name, last.name] == ["step-00000004.pt", "step-00000006.pt"]
    last.unlink()
    (last.with_suffix(".part")).write_bytes(b"cut by a crash")
    train(mine, resume=True)
    assert_same_run(tmp_path, uninterrupted)


class _InterruptAt(logging.Handler):
    """Ctrl-C while a step line is being printed."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.start = f"step {step}/"

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.start):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_saves_and_stops_after_the_step(recipe: Recipe, uninterrupted: Path, tmp_path: Path) -> None:
    mine = copy_of(recipe, run=str(tmp_path))
    before = signal.getsignal(signal.SIGINT)
    log, handler = logging.getLogger("facemix.train"), _InterruptAt(2)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        stopped = train(mine)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert (stopped.step, stopped.finished) == (2, False)
    assert signal.getsignal(signal.SIGINT) is before
    train(mine, resume=True)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=["SIGTERM", "SIGKILL"]
)
def test_a_process_that_is_told_to_end_or_killed_resumes_to_the_same_weights(
    number: signal.Signals, exit_code: int, recipe: Recipe, tmp_path: Path
) -> None:
    # Far too many epochs, so that the signal always comes in time; only a few steps are ever taken.
    long = copy_of(recipe, run=str(tmp_path / "run"), training__epochs=10_000, training__checkpoint_every=2)
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(long.model_dump(mode="json")))
    process = subprocess.Popen(
        [sys.executable, ROOT / "cli.py", "train", tmp_path / "long.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not checkpoint.all_in(tmp_path / "run" / "checkpoints"):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == exit_code, err
    reached = final_state(tmp_path / "run")["step"]
    if number == signal.SIGTERM:
        assert f"stopped at step {reached} of" in out
        assert columns(tmp_path / "run")[-1][0] == reached
    result = train(long, resume=True, stop_at=reached + 3)
    assert (result.step, result.finished) == (reached + 3, False)
    straight = copy_of(long, run=str(tmp_path / "straight"))
    train(straight, stop_at=reached + 3)
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_a_second_start_does_not_touch_a_run(recipe: Recipe, uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    with pytest.raises(UsageError, match="already holds a run") as refused:
        train(recipe)
    assert "--resume" in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_resuming_what_has_not_begun_starts_it(recipe: Recipe, uninterrupted: Path, tmp_path: Path) -> None:
    train(copy_of(recipe, run=str(tmp_path)), resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_resuming_a_finished_run_changes_nothing(recipe: Recipe, tmp_path: Path, uninterrupted: Path) -> None:
    mine = copy_of(recipe, run=str(tmp_path))
    train(mine)
    assert train(mine, resume=True).finished
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("optimizer__lr", 0.2),
        ("loader__batch_size", 4),
        ("mix__sets__photos__share", "1/2"),
        ("augment__flip", 0.25),
        ("training__epochs", 3),
        ("training__precision", "bf16"),
        ("encoder__embedding_size", 32),
    ],
)
def test_resuming_with_another_recipe_is_refused(key: str, value: object, recipe: Recipe, uninterrupted: Path) -> None:
    changes: dict[str, Any] = {key: value}
    if "share" in key:
        changes["mix__sets__renders__share"] = value
    with pytest.raises(UsageError, match="cannot resume") as refused:
        train(copy_of(recipe, **changes), resume=True)
    assert f" {key.replace('__', '.')} was " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_threads_and_what_is_reported_may_change_on_resume(recipe: Recipe, uninterrupted: Path, tmp_path: Path) -> None:
    mine = copy_of(recipe, run=str(tmp_path))
    train(mine, stop_at=3)
    other = copy_of(
        mine,
        loader__threads=2,
        loader__prefetch=1,
        training__log_every=2,
        training__checkpoint_every=1,
        training__keep_checkpoints=3,
    )
    train(other, resume=True)
    assert_same_weights(tmp_path, uninterrupted)
    of_uninterrupted = {line[0]: line for line in columns(uninterrupted)}
    assert columns(tmp_path) == [of_uninterrupted[step] for step in (1, 2, 3, 4, 6)]
    assert [path.stem for path in checkpoint.all_in(tmp_path / "checkpoints")] == [
        f"step-{step:08d}" for step in (4, 5, 6)
    ]


def test_resuming_on_other_data_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    sets = {"faces": {"path": str(make_set(tmp_path / "faces", range(4), 3))}}
    fields = recipe.model_dump(mode="json") | {"run": str(tmp_path / "run"), "mix": {"sets": sets, "epoch": 24}}
    mine = Recipe.model_validate(fields)
    train(mine, stop_at=1)
    (tmp_path / "faces").rename(tmp_path / "old")
    (tmp_path / "faces.raw").rename(tmp_path / "old.raw")
    make_set(tmp_path / "faces", range(4), 3, seed=1)
    with pytest.raises(UsageError, match="data set"):
        train(mine, resume=True)


def test_a_run_folder_says_what_ran_and_on_what(recipe: Recipe, uninterrupted: Path) -> None:
    written = load_recipe(uninterrupted / "config.yaml")
    assert written.model_dump(mode="json") == recipe.model_dump(mode="json")
    environment = json.loads((uninterrupted / "environment.json").read_text())
    assert environment["packages"]["torch"] == version("torch")
    assert {"python", "machine", "device"} <= environment.keys()
    assert list(uninterrupted.glob("events.out.tfevents.*"))


def test_every_step_is_reported_with_its_rate_and_epoch(recipe: Recipe, uninterrupted: Path) -> None:
    reported = read_metrics(uninterrupted)
    assert [one.step for one in reported] == list(range(1, NUM_STEPS + 1))
    assert [one.epoch for one in reported] == pytest.approx([step / 3 for step in range(1, NUM_STEPS + 1)])
    expected = [0.05 * lr_factor(recipe.schedule, step / 3, 2) for step in range(NUM_STEPS)]
    assert [one.lr for one in reported] == pytest.approx(expected)
    assert all(
        math.isfinite(one.loss) and one.images_per_second > 0 and 0 <= one.waiting_share <= 1 for one in reported
    )
    assert all(0 < sum(one.occupancy.values()) <= 1 and one.failures == one.cached_share == 0 for one in reported)
    assert len({one.batch_crc32 for one in reported}) == NUM_STEPS


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", None)], ids=["bf16", "fp32"])
def test_precision_is_what_the_recipe_says(precision: str, dtype: torch.dtype | None, recipe: Recipe) -> None:
    assert autocast_dtype(precision, torch.device("cpu")) == dtype


def test_bf16_trains_float32_weights(recipe: Recipe, tmp_path: Path) -> None:
    train(copy_of(recipe, run=str(tmp_path), training__precision="bf16"), stop_at=2)
    state = final_state(tmp_path)
    floats = [one for part in ("encoder", "heads") for one in state[part].values() if one.is_floating_point()]
    assert {one.dtype for one in floats} == {torch.float32}
    assert all(one.isfinite().all() for one in floats)


def test_the_loss_falls_on_drawn_faces(recipe: Recipe, tmp_path: Path) -> None:
    changes = {"head__kind": "arcface", "head__scale": 16, "encoder__dropout": 0}
    train(copy_of(recipe, run=str(tmp_path), training__epochs=12, **changes))

    def mean_loss(some: list[StepMetrics]) -> float:
        return sum(one.loss for one in some) / len(some)

    reported = read_metrics(tmp_path)
    assert mean_loss(reported[-6:]) < 0.7 * mean_loss(reported[:6])


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_with_separate_labels_every_set_has_a_head_of_its_own(split: bool, recipe: Recipe, tmp_path: Path) -> None:
    mine = copy_of(recipe, run=str(tmp_path), mix__labels="separate", head__split=split)
    train(mine, stop_at=3)
    train(mine, resume=True)
    sizes = {name: len(weight) for name, weight in final_state(tmp_path)["heads"].items()}
    assert sizes == {"0.weight": 6, "1.weight": 6}
    straight = copy_of(mine, run=str(tmp_path / "straight"))
    train(straight)
    assert_same_run(tmp_path, tmp_path / "straight")


def test_a_split_head_alone_trains_as_a_whole_one(recipe: Recipe, uninterrupted: Path, tmp_path: Path) -> None:
    train(copy_of(recipe, run=str(tmp_path), head__split=True))
    losses, expected = ([one.loss for one in read_metrics(run)] for run in (tmp_path, uninterrupted))
    assert losses == pytest.approx(expected, rel=1e-4)
    ours, theirs = final_state(tmp_path), final_state(uninterrupted)
    for part in ("encoder", "heads", "updates"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=1e-3, atol=1e-4)


def test_a_sampled_head_resumes_with_the_draws_of_an_uninterrupted_run(recipe: Recipe, tmp_path: Path) -> None:
    mine = copy_of(recipe, run=str(tmp_path / "run"), head__split=True, head__sampled=0.5)
    train(mine, stop_at=2)
    train(mine, resume=True)
    train(copy_of(mine, run=str(tmp_path / "straight")))
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_split_heads_for_separate_labels_are_refused_in_several_processes(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"mix.labels separate in 2 processes: .*; set head.split=false") as refused:
        train(copy_of(recipe, run=str(tmp_path), mix__labels="separate", head__split=True))
    assert "\n" not in str(refused.value)


def recogniser(recipe: Recipe, head: HeadConfig) -> Recogniser:
    """Two heads of 3 and 5 identities, and an encoder without batch statistics."""
    torch.manual_seed(0)
    heads = [PartialFC(head, 16, size, World()) if head.split else MarginHead(head, 16, size) for size in (3, 5)]
    return Recogniser(make_encoder(recipe.encoder, 32), heads, [1, 1]).eval()


@pytest.mark.parametrize("sets", [[0, 1, 1, 0, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], ids=["both", "one each", "one"])
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("kind", ["cosface", "magface"])
def test_the_loss_is_the_mean_of_every_samples_with_the_head_of_its_set(
    kind: str, split: bool, sets: list[int], recipe: Recipe
) -> None:
    head = HeadConfig.model_validate({"kind": kind, "split": split})
    model, of_set = recogniser(recipe, head), np.array(sets)
    images, labels = torch.rand(5, 3, 32, 32), torch.tensor([2, 0, 1, 0, 2])
    loss = model(images, labels, of_set)
    embeddings = model.encoder(images)
    alone = [model.heads[one](embeddings[row : row + 1], labels[row : row + 1]).item() for row, one in enumerate(sets)]
    assert loss.item() == pytest.approx(sum(alone) / 5, rel=1e-5)
    loss.backward()
    gradients = {name: one.grad for name, one in model.heads.named_parameters()}
    used = [one is not None and bool(one.any()) for one in gradients.values()]
    assert all(one is not None for one in gradients.values())  # processes that average them wait for all
    assert used == [0 in sets, True]
