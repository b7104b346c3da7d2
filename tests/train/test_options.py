"""What a recipe can ask of a run beyond the plain way, and that such runs resume exactly, too."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from pipeline.plan import open_plan
from shardgen.errors import DataError, UsageError
from shardgen.procedural import draw_face, encode
from tests.train.runs import assert_same_run, copy_of, final_state
from train import checkpoint
from train.encoder import load_encoder
from train.loop import train
from train.metrics import read_metrics, read_validations
from train.recipe import Recipe

CPU = torch.device("cpu")
NUM_STEPS = 6

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs of people whom the sets do not have."""
    same = [pair % 2 == 0 for pair in range(20)]
    faces = [draw_face(0, 100 + pair + (image and not same[pair]), image) for pair in range(20) for image in (0, 1)]
    path = tmp_path_factory.mktemp("bin") / "apart.bin"
    path.write_bytes(pickle.dumps(([encode(face) for face in faces], same)))
    return path


OPTIONS: dict[str, dict[str, Any]] = {
    "ema": {"training__ema": 0.9},
    "accumulate": {"training__accumulate": 3},
    "fp16": {"training__precision": "fp16"},
    "adamw": {"optimizer__kind": "adamw", "optimizer__lr": 1e-3},
    "weighted sets": {"mix__labels": "separate", "head__weights": {"renders": 0.5}},
    "pairs": {"mix__per_identity": 2, "contrastive": {"queue": 20, "groups": 2}},
    "pairs, averaged": {"mix__per_identity": 2, "contrastive": {"queue": 20, "groups": 2}, "training__ema": 0.5},
}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=list(OPTIONS))
def test_a_run_resumes_exactly_with(changes: dict[str, Any], recipe: Recipe, tmp_path: Path) -> None:
    stopped, straight = (copy_of(recipe, run=str(tmp_path / name), **changes) for name in ("stopped", "straight"))
    train(straight)
    for number, stop in enumerate((1, 4, None)):
        train(stopped, resume=number > 0, stop_at=stop)
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")


def validated(recipe: Recipe, run: Path, bin_file: Path, **changes: Any) -> Recipe:
    """The recipe with a validation after every second step, and a drop whenever it has not become better."""
    validation = {"bins": {"apart": str(bin_file)}, "every": 2 / 3}
    return copy_of(
        recipe, run=str(run), validation=validation, schedule__kind="plateau", schedule__patience=0, **changes
    )


def test_validations_are_reported_and_repeat_themselves_in_a_resumed_run(
    recipe: Recipe, bin_file: Path, tmp_path: Path
) -> None:
    train(validated(recipe, tmp_path / "straight", bin_file))
    for number, stop in enumerate((3, 5, None)):
        train(validated(recipe, tmp_path / "stopped", bin_file), resume=number > 0, stop_at=stop)
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")
    found = read_validations(tmp_path / "straight")
    assert read_validations(tmp_path / "stopped") == found
    assert [one.step for one in found] == [2, 4, 6]
    assert all(one.sets == {"apart": one.accuracy} and 0.3 < one.accuracy <= 1 for one in found)
    events = EventAccumulator(str(tmp_path / "straight")).Reload()
    assert [event.step for event in events.Scalars("validation/apart")] == [2, 4, 6]


def test_a_run_goes_on_with_its_validation_set_wherever_that_is_and_with_no_other(
    recipe: Recipe, bin_file: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.bin"
    moved.write_bytes(bin_file.read_bytes())
    train(validated(recipe, tmp_path / "run", bin_file), stop_at=1)
    train(validated(recipe, tmp_path / "run", moved), resume=True, stop_at=2)
    images, same = pickle.loads(moved.read_bytes())
    moved.write_bytes(pickle.dumps((images[::-1], same)))
    with pytest.raises(UsageError, match=r"cannot resume: a file of validation\.bins is not the one"):
        train(validated(recipe, tmp_path / "run", moved), resume=True)


def test_a_validation_changes_nothing_in_training(recipe: Recipe, bin_file: Path, tmp_path: Path) -> None:
    plain, looked_at = (copy_of(recipe, run=str(tmp_path / name)) for name in ("plain", "looked_at"))
    train(plain)
    train(copy_of(looked_at, validation={"bins": {"apart": str(bin_file)}, "every": 0.3}))
    losses = [[one.loss for one in read_metrics(tmp_path / name)] for name in ("plain", "looked_at")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("changes", [{}, {"training__ema": 0.5}], ids=["plain", "averaged"])
def test_the_best_checkpoint_is_the_first_with_the_highest_accuracy(
    changes: dict[str, Any], recipe: Recipe, bin_file: Path, tmp_path: Path
) -> None:
    train(validated(recipe, tmp_path, bin_file, training__keep_checkpoints=1, **changes))
    found = read_validations(tmp_path)
    highest = max(one.accuracy for one in found)
    first = next(one for one in found if one.accuracy == highest)
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["step"] == first.step
    assert [one.step for one in found if one.best][-1] == first.step
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_the_rate_drops_where_the_validation_does_not_improve(recipe: Recipe, bin_file: Path, tmp_path: Path) -> None:
    train(validated(recipe, tmp_path, bin_file, training__epochs=4, schedule__warmup_epochs=0))
    drops = 0
    accuracies = {one.step: one.accuracy for one in read_validations(tmp_path)}
    best = 0.0
    for one in read_metrics(tmp_path):
        assert one.lr == pytest.approx(0.05 * 0.1**drops)
        if one.step in accuracies:
            drops += accuracies[one.step] <= best
            best = max(best, accuracies[one.step])
    assert drops


def test_the_average_follows_the_encoder_and_is_what_is_measured(recipe: Recipe, tmp_path: Path) -> None:
    mine = copy_of(recipe, run=str(tmp_path), training__ema=0.75, training__checkpoint_every=1)
    mine = copy_of(mine, training__keep_checkpoints=99)
    train(mine)
    states = [checkpoint.load(path) for path in checkpoint.all_in(tmp_path / "checkpoints")]
    name = "conv1.weight"
    average = states[0]["encoder"][name]
    for state in states[1:]:
        average = 0.75 * average + 0.25 * state["encoder"][name]
    measured = load_encoder(tmp_path, CPU).network.state_dict()[name]
    torch.testing.assert_close(measured, average)
    assert not torch.equal(measured, states[-1]["encoder"][name])


def test_a_batch_of_another_size_than_the_rate_was_meant_for_scales_it(recipe: Recipe, tmp_path: Path) -> None:
    train(copy_of(recipe, run=str(tmp_path), optimizer__lr_batch=32, schedule__warmup_epochs=0), stop_at=1)
    assert read_metrics(tmp_path)[0].lr == 0.05 / 4


def test_divergence_is_named_by_its_step_and_batch_however_late_it_is_looked_for(
    recipe: Recipe, tmp_path: Path
) -> None:
    changes = {"optimizer__lr": 1e30, "schedule__warmup_epochs": 0}
    with pytest.raises(DataError, match="the loss is not finite at step") as at_once:
        train(copy_of(recipe, run=str(tmp_path / "often"), training__log_every=1, **changes))
    with pytest.raises(DataError, match="the loss is not finite at step") as late:
        train(copy_of(recipe, run=str(tmp_path / "rarely"), training__log_every=100, **changes))
    assert str(late.value).replace("rarely", "often") == str(at_once.value)
    assert "\n" not in str(late.value)
    written = json.loads((tmp_path / "rarely" / "diverged.json").read_text())
    plan = open_plan(recipe.mix, recipe.seed, 8)
    assert 1 < written["step"] < NUM_STEPS
    expected = plan.batch(written["step"] - 1).sample_ids.tolist()
    assert [one["sample"] for one in written["samples"]] == expected
    people = [(one["set"], one["identity"]) for one in written["samples"]]
    assert people == [plan.catalog.identities[int(plan.catalog.label[sample])] for sample in expected]
    assert not checkpoint.all_in(tmp_path / "rarely" / "checkpoints")


def test_a_run_begins_with_a_picture_of_its_first_batch(recipe: Recipe, uninterrupted: Path) -> None:
    tags = EventAccumulator(str(uninterrupted), size_guidance={"images": 9}).Reload().Tags()["images"]
    assert sorted(tags) == ["first batch/photos", "first batch/renders"]


def test_a_mix_over_its_budget_is_refused_before_anything_is_written(recipe: Recipe, tmp_path: Path) -> None:
    mine = copy_of(recipe, run=str(tmp_path / "run"), budget={"synthetic": {"images": 23}})
    with pytest.raises(UsageError, match=r"takes 24 images \(synthetic\), budget.synthetic.images is 23; cap"):
        train(mine)
    assert not (tmp_path / "run").exists()
    train(copy_of(mine, budget={"synthetic": {"images": 24}, "total": {"identities": 12}}), stop_at=1)
    with pytest.raises(UsageError, match=r"12 identities \(total\), budget.total.identities is 11"):
        train(copy_of(mine, budget={"total": {"identities": 11}}), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__accumulate": 9}, "training.accumulate 9 is more than the 8 images of a process"),
        ({"validation": {"bins": {"x": "nowhere.bin"}}}, "nowhere.bin: No such file"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        train(copy_of(recipe, run=str(tmp_path), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head__weights": {"nobody": 1.0}}, "head.weights has nobody, the mix has photos, renders"),
        ({"head__weights": {"photos": -1.0}}, "the weight of photos is -1"),
        ({"schedule__kind": "plateau"}, "needs validation.bins"),
        ({"contrastive": {}}, "takes pairs; mix.per_identity is 1"),
        ({"contrastive": {}, "mix__per_identity": 2, "head__kind": "arcface"}, "has no head"),
        ({"contrastive": {}, "mix__per_identity": 2, "training__accumulate": 2}, "leave training.accumulate"),
        ({"contrastive": {}, "mix__per_identity": 2, "training__sync_batchnorm": True}, "leave training.accumulate"),
        ({"contrastive": {"groups": 3}, "mix__per_identity": 2}, "4 pairs of a batch do not make contrastive.groups 3"),
        ({"contrastive": {"groups": 4}, "mix__per_identity": 2}, "4 pairs of a batch do not make contrastive.groups 4"),
        ({"budget": {"real": {"images": 3}}}, "authentic"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=message):
        copy_of(recipe, **changes)


def test_averages_and_bests_belong_to_the_state(recipe: Recipe, bin_file: Path, tmp_path: Path) -> None:
    train(validated(recipe, tmp_path, bin_file, training__ema=0.5))
    state = final_state(tmp_path)
    assert state["progress"]["best"] == max(one.accuracy for one in read_validations(tmp_path))
    assert state["updates"]["average"]["n_averaged"] == NUM_STEPS
