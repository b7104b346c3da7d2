"""Two processes train what one would, on the same batches."""

import multiprocessing
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from threading import Barrier

import pytest
import torch
import yaml
from torch import nn

from pipeline.loader import FaceLoader, normalised
from pipeline.plan import open_plan
from shardgen.errors import DataError
from tests.processes import in_two_processes, rank_of, two_at_a_port
from tests.support import ROOT, make_set
from train import checkpoint
from train.backbones import make_encoder
from train.config import ContrastiveConfig, HeadConfig
from train.distributed import World, replicate, this_world
from train.heads import MarginHead
from train.loop import train
from train.metrics import read_metrics
from train.objective import Recogniser
from train.recipe import Recipe

CPU = torch.device("cpu")
NUM_STEPS = 3


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("sets")
    sets = {
        "photos": {"path": str(make_set(folder / "photos", range(4), 4)), "share": 0.5},
        "renders": {"path": str(make_set(folder / "renders", range(4, 7), 4, origin="synthetic")), "share": 0.5},
    }
    return Recipe.model_validate(
        {
            "name": "two",
            "run": str(folder / "run"),
            "mix": {"sets": sets},
            "loader": {"batch_size": 8, "image_size": 32, "device": "cpu", "threads": 1},
            "encoder": {"backbone": "iresnet_mini", "embedding_size": 16},
            "optimizer": {"lr": 0.02, "clip_norm": 0.5},
            "training": {"epochs": 1000, "precision": "fp32", "log_every": 1, "checkpoint_every": 100_000},
        }
    )


def in_folder(recipe: Recipe, run: Path) -> tuple[Recipe, Path]:
    """The recipe with a run folder of its own, and the file it is in."""
    moved = recipe.model_copy(update={"run": run})
    path = run.with_name(f"{run.name}.yaml")
    path.write_text(yaml.safe_dump(moved.model_dump(mode="json")))
    return moved, path


def restated(recipe: Recipe, start: checkpoint.State, num_steps: int) -> nn.Module:
    """The definition: the mean of both halves' gradients, batch norm over a half, its record that of rank 0."""
    plan = open_plan(recipe.mix, recipe.seed, recipe.loader.batch_size)
    heads = [MarginHead(recipe.head, 16, number) for number in plan.num_classes]
    model = Recogniser(make_encoder(recipe.encoder, 32), heads, [1, 1])
    model.encoder.load_state_dict(start["encoder"])
    model.heads.load_state_dict(start["heads"])
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.optimizer.lr,
        momentum=recipe.optimizer.momentum,
        weight_decay=recipe.optimizer.weight_decay,
    )
    halves = [FaceLoader(plan, recipe.augment, recipe.loader, CPU, rank, 2) for rank in range(2)]
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * (1 - step / (1000 * plan.batches_per_epoch)) ** 2
        record = {name: buffer.clone() for name, buffer in model.named_buffers()}
        optimizer.zero_grad()
        for half in reversed(halves):
            model.load_state_dict(record, strict=False)
            batch = next(half)
            (model(normalised(batch.images), batch.labels, batch.sets) / 2).backward()
        nn.utils.clip_grad_norm_(model.encoder.parameters(), recipe.optimizer.clip_norm)
        optimizer.step()
    return model


def test_two_processes_do_what_data_parallelism_means(recipe: Recipe, tmp_path: Path) -> None:
    start, _ = in_folder(recipe, tmp_path / "start")
    train(start, stop_at=0)
    two, path = in_folder(recipe, tmp_path / "two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, ROOT / "cli.py", "train", path, "--stop-at", str(NUM_STEPS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    expected = restated(recipe, checkpoint.load(checkpoint.find(tmp_path / "start")), NUM_STEPS)
    state = checkpoint.load(checkpoint.find(tmp_path / "two"))
    assert state["step"] == NUM_STEPS
    weights = {f"{part}.{name}": value for part in ("encoder", "heads") for name, value in state[part].items()}
    torch.testing.assert_close(weights, dict(expected.state_dict()), rtol=1e-3, atol=1e-4)

    plan = open_plan(recipe.mix, recipe.seed, recipe.loader.batch_size)
    planned = [plan.batch(step).sample_ids for step in range(NUM_STEPS)]
    assert [one.batch_crc32 for one in read_metrics(tmp_path / "two")] == [
        f"{zlib.crc32(batch.tobytes()):08x}" for batch in planned
    ]

    # What two began, one can finish: the next global batch is the next of the plan.
    assert train(two, resume=True, stop_at=NUM_STEPS + 1).step == NUM_STEPS + 1
    following = plan.batch(NUM_STEPS).sample_ids
    assert read_metrics(tmp_path / "two")[-1].batch_crc32 == f"{zlib.crc32(following.tobytes()):08x}"


def train_in_turns(rank: int, worlds: list[dict[str, str]], recipes: list[Recipe], barrier: Barrier) -> None:
    """Of each run, two steps by two processes, two by one, two by two; then, of the second, one with a bad momentum."""
    torch.set_num_threads(1)
    for recipe in recipes:
        os.environ.update(worlds.pop() | rank_of(rank))
        train(recipe, stop_at=2)
        os.environ["WORLD_SIZE"] = "1"
        if rank == 0:
            train(recipe, resume=True, stop_at=4)
        barrier.wait()
        os.environ.update(worlds.pop())
        train(recipe, resume=True, stop_at=6)
    if rank == 0:
        spoil_last_momentum(recipes[1].run_folder)
    barrier.wait()
    os.environ.update(worlds.pop())
    with pytest.raises(DataError, match="weights at step 7 are not finite"):
        train(recipes[1], resume=True, stop_at=7)


def spoil_last_momentum(run: Path) -> None:
    """Make that of the last identity infinite: the step's loss is finite, its weights in the last rank are not."""
    path = checkpoint.find(run)
    state = checkpoint.load(path)
    *_, last = state["updates"]["optimizer"]["state"].values()
    last["momentum_buffer"][-1] = torch.inf
    torch.save(state, path)


@pytest.fixture(scope="module")
def in_turns(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Recipe, Recipe]:
    """A run with a whole head, one with a split head, and one on pairs, by two, one and two processes."""
    folder = tmp_path_factory.mktemp("turns")
    whole, split, pairs = (in_folder(recipe, folder / name)[0] for name in ("whole", "split", "pairs"))
    split = split.model_copy(update={"head": HeadConfig(split=True)})
    mix = pairs.mix.model_copy(update={"per_identity": 2})
    loader = pairs.loader.model_copy(update={"batch_size": 16})  # batch norm over fewer makes much of the last digits
    more = {"mix": mix, "loader": loader, "contrastive": ContrastiveConfig(queue=20, groups=2)}
    pairs = pairs.model_copy(update=more)
    barrier = multiprocessing.get_context("spawn").Barrier(2, timeout=60)
    in_two_processes(train_in_turns, [two_at_a_port() for _ in range(7)], [whole, split, pairs], barrier)
    return whole, split, pairs


def test_pairs_give_in_two_one_and_two_processes_the_losses_that_they_give_in_one(
    in_turns: tuple[Recipe, Recipe, Recipe], tmp_path: Path
) -> None:
    *_, pairs = in_turns
    alone = pairs.model_copy(update={"run": tmp_path})
    train(alone, stop_at=6)
    ours, expected = read_metrics(pairs.run_folder), read_metrics(tmp_path)
    assert [one.batch_crc32 for one in ours] == [one.batch_crc32 for one in expected]
    assert [one.loss for one in ours] == pytest.approx([one.loss for one in expected], rel=1e-3)


def test_a_split_head_trains_stops_and_resumes_as_a_whole_one_in_two_one_and_two_processes(
    in_turns: tuple[Recipe, Recipe, Recipe],
) -> None:
    whole, split, _ = in_turns
    expected, reported = read_metrics(whole.run_folder), read_metrics(split.run_folder)
    planned = open_plan(whole.mix, whole.seed, whole.loader.batch_size)
    crcs = [f"{zlib.crc32(planned.batch(step).sample_ids.tobytes()):08x}" for step in range(6)]
    assert [one.batch_crc32 for one in reported[:6]] == [one.batch_crc32 for one in expected] == crcs
    assert [one.loss for one in reported[:6]] == pytest.approx([one.loss for one in expected], rel=1e-3)
    theirs, ours = (checkpoint.load(checkpoint.all_in(one.run_folder / "checkpoints")[-1]) for one in (whole, split))
    assert ours["step"] == theirs["step"] == 6
    assert len(ours["heads"]["0.weight"]) == 7  # all identities, in slices of 3 and 4
    for part in ("encoder", "heads"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=1e-3, atol=1e-4)


def test_a_signal_to_one_process_stops_and_saves_the_run(recipe: Recipe, tmp_path: Path) -> None:
    _, path = in_folder(recipe, tmp_path / "run")
    world = two_at_a_port()
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "cli.py", "train", path],
            env=os.environ | world | rank_of(rank),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        while all(one.poll() is None for one in processes) and not read_metrics(tmp_path / "run"):
            time.sleep(0.01)
        processes[1].terminate()
        errors = [one.communicate(timeout=120)[1] for one in processes]
    finally:
        for one in processes:
            one.kill()
    assert [one.returncode for one in processes] == [130, 130], errors
    last = read_metrics(tmp_path / "run")[-1].step
    assert checkpoint.load(checkpoint.find(tmp_path / "run"))["step"] == last


@pytest.mark.parametrize(
    ("differ", "message"),
    [
        ("run", "some processes would go on from step 0, others from 1: the run folder"),
        ("seed", "processes have different recipes or data"),
    ],
)
def test_nodes_that_do_not_do_the_same_are_refused(differ: str, message: str, recipe: Recipe, tmp_path: Path) -> None:
    """Two nodes with a process each; only the first has the checkpoint, or another seed."""
    moved = recipe.model_copy(update={"run": Path("run")})
    world, processes = two_at_a_port(), []
    for rank in range(2):
        node = tmp_path / f"node{rank}"
        node.mkdir()
        (node / "recipe.yaml").write_text(yaml.safe_dump(moved.model_dump(mode="json")))
        if not rank and differ == "run":
            train(recipe.model_copy(update={"run": node / "run"}), stop_at=1)
        processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    ROOT / "cli.py",
                    "train",
                    "recipe.yaml",
                    "--resume",
                    f"seed={rank * (differ == 'seed')}",
                ],
                cwd=node,
                env=os.environ | world | rank_of(rank) | {"LOCAL_RANK": "0"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [one.communicate(timeout=120)[1] for one in processes]
    finally:
        for one in processes:
            one.kill()
    assert [one.returncode for one in processes] == [2, 2]
    assert all(message in error for error in errors)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert this_world() == World(0, 1, 0)
    module = nn.Linear(2, 2)
    assert replicate(module, this_world(), CPU) is module


def test_a_launcher_says_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert this_world() == World(9, 16, 1)
