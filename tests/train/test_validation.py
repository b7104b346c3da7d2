"""Validation while training: the published figure, whoever embeds what, and no trace of it in the training."""

import copy
import json
import math
import pickle
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eval.embedding_cache import Embedder
from eval.evaluate import Protocols, evaluate
from eval.models import network_model
from eval.protocols import read_bin
from pipeline.config import LoaderConfig
from shardgen.errors import DataError, UsageError
from shardgen.procedural import draw_bin
from tests.processes import in_two_processes
from train.config import ValidationConfig
from train.distributed import World, gathered, join, leave, of_main
from train.validation import Validation, is_due

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LOADER = LoaderConfig(batch_size=16, image_size=32, threads=1)


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Two sets, of 20 and of 91 pairs; two halves of the latter begin and end within a pair."""
    folder = tmp_path_factory.mktemp("bins")
    paths = {name: folder / f"{name}.bin" for name in ("even", "odd")}
    draw_bin(paths["even"], 20, range(12), 4, 20)
    draw_bin(paths["odd"], 100, range(12), 4, 100)
    images, same = pickle.loads(paths["odd"].read_bytes())
    paths["odd"].write_bytes(pickle.dumps((images[:182], same[:91])))
    return paths


def make_encoder(seed: int = 0) -> nn.Sequential:
    """Little better than chance, and with a record that its batch norm has of other faces."""
    norm = nn.BatchNorm1d(27)
    random = np.random.default_rng(seed)
    norm.running_mean = torch.from_numpy(random.normal(0, 0.1, 27).astype(np.float32))
    norm.running_var = torch.from_numpy(random.uniform(0, 5, 27).astype(np.float32))
    return nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), norm, nn.Dropout(0.5))


def validation_on(bins: Mapping[str, Path], world: World | None = None) -> Validation:
    return Validation(ValidationConfig(bins=bins), LOADER, world or World(), CPU)


def published(bins: Mapping[str, Path], encoder: nn.Module) -> dict[str, float]:
    """What `facemix eval` finds."""
    encoder = copy.deepcopy(encoder).eval()
    sets = [read_bin(name, path) for name, path in bins.items()]
    embedder = Embedder(network_model(encoder, LOADER.image_size, "it"), LOADER, CPU)
    return {one.name: one.accuracy.mean for one in evaluate("it", embedder, Protocols(sets), CPU).verification}


def test_it_measures_what_an_evaluation_of_the_encoder_does(bins: Mapping[str, Path]) -> None:
    encoder = make_encoder()
    found = validation_on(bins).measure(encoder)
    assert found == published(bins, encoder)
    assert list(found) == list(bins)
    assert all(0.5 < accuracy < 1 for accuracy in found.values()), "an encoder for which this test can fail"
    other = validation_on(bins).measure(make_encoder(1))
    assert all(found[name] != other[name] for name in bins)


def test_real_faces_are_measured(real_faces: Path) -> None:
    bins = {"orl": real_faces / "orl" / "orl_val.bin"}
    assert validation_on(bins).measure(make_encoder()) == published(bins, make_encoder())


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace_in_the_training(bins: Mapping[str, Path], training: bool) -> None:
    encoder = make_encoder().train(training)
    gradients = [torch.randn_like(parameter) for parameter in encoder.parameters()]
    for parameter, gradient in zip(encoder.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    before = copy.deepcopy(encoder.state_dict())
    places = [tensor.data_ptr() for tensor in encoder.state_dict().values()]
    random = torch.get_rng_state(), np.random.get_state()
    validation_on(bins).measure(encoder)
    assert all(module.training == training for module in encoder.modules())
    torch.testing.assert_close(encoder.state_dict(), before, rtol=0, atol=0)
    assert [tensor.data_ptr() for tensor in encoder.state_dict().values()] == places
    torch.testing.assert_close([one.grad for one in encoder.parameters()], gradients, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random[0])
    np.testing.assert_equal(np.random.get_state(), random[1])
    encoder.train()(torch.rand(4, 3, 32, 32)).sum().backward()  # no tensor of inference mode is left in it


def test_an_encoder_without_buffers_is_measured_too(bins: Mapping[str, Path]) -> None:
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten())
    assert validation_on(bins).measure(encoder) == published(bins, encoder)


def test_an_encoder_that_has_diverged_is_an_error_and_goes_on_in_its_mode(bins: Mapping[str, Path]) -> None:
    encoder = make_encoder()
    next(encoder.parameters()).data[0] = torch.nan
    with pytest.raises(DataError, match="diverged"):
        validation_on(bins).measure(encoder)
    assert encoder.training


def test_an_image_that_does_not_decode_is_named(bins: Mapping[str, Path], tmp_path: Path) -> None:
    images, same = pickle.loads(bins["even"].read_bytes())
    images[21] = images[21][: len(images[21]) // 2]
    broken = tmp_path / "broken.bin"
    broken.write_bytes(pickle.dumps((images, same)))
    with pytest.raises(DataError, match="broken: image 2 of pair 10"):
        validation_on({**bins, "broken": broken}).measure(make_encoder())


def test_sets_that_cannot_be_read_are_an_error_before_training(bins: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.bin"):
        validation_on({**bins, "none": tmp_path / "none.bin"})


def test_there_may_be_nothing_to_measure(bins: Mapping[str, Path]) -> None:
    assert validation_on(bins)
    assert not validation_on({})


@pytest.mark.parametrize("num_ranks", [1, 3, 45])
def test_every_rank_embeds_its_part_alone_even_if_there_are_more_ranks_than_images(
    num_ranks: int, bins: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_embedded = 0

    def recorded(part: npt.NDArray[np.float32], world: World) -> npt.NDArray[np.float32]:
        nonlocal num_embedded
        num_embedded += len(part)
        return np.tile(part, (num_ranks, 1))

    monkeypatch.setattr("train.validation.gathered", recorded)
    monkeypatch.setattr("train.validation.of_main", lambda tensors, world: list(tensors))
    loader = LOADER.model_copy(update={"batch_size": 8 * 45})
    for rank in range(num_ranks):
        num_embedded = 0
        measured = Validation(ValidationConfig(bins={"even": bins["even"]}), loader, World(rank, num_ranks), CPU)
        measured.measure(make_encoder().eval())
        assert num_embedded == -(-40 // num_ranks)


def as_rank(rank: int, bins: Mapping[str, Path], out: Path) -> None:
    """Of two: measure an encoder with a record of its own; exchange further things."""
    world = World(rank, 2, rank)
    join(world, CPU)
    encoder = make_encoder(rank)
    found = {
        "accuracies": validation_on(bins, world).measure(encoder),
        "untouched": all(map(torch.equal, encoder.buffers(), make_encoder(rank).buffers())),
        "uneven": gathered(np.arange(2 * rank, dtype=np.float64) + 10 * rank, world).tolist(),
        "wide": gathered(np.full((2, 3), rank, np.int64), world).tolist(),
        "of rank 0": [tensor.tolist() for tensor in of_main([torch.tensor([rank]), torch.tensor(rank + 0.5)], world)],
    }
    leave(world)
    out.with_suffix(f".{rank}").write_text(json.dumps(found))


def test_two_processes_measure_what_one_does_and_each_keeps_its_own_record(
    bins: Mapping[str, Path], tmp_path: Path
) -> None:
    in_two_processes(as_rank, bins, tmp_path / "found")
    expected = {
        "accuracies": published(bins, make_encoder(0)),
        "untouched": True,
        "uneven": [10, 11],
        "wide": [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]],
        "of rank 0": [[0], 0.5],
    }
    assert [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1)] == [expected, expected]


EVERY = st.integers(1, 400).map(lambda hundredths: hundredths / 100)


@settings(deadline=None)
@given(EVERY, st.integers(1, 60), st.integers(1, 300))
def test_a_validation_is_due_when_a_multiple_of_its_interval_is_reached_and_at_the_end(
    every: float, batches_per_epoch: int, num_steps: int
) -> None:
    config = ValidationConfig(every=every)
    due = [step for step in range(1, num_steps + 1) if is_due(config, step, batches_per_epoch, num_steps)]
    interval = Fraction(round(every * 100), 100) * batches_per_epoch
    multiples = [math.ceil(number * interval) for number in range(1, int(num_steps / interval) + 1)]
    assert due == sorted({num_steps, *multiples})


@given(EVERY, st.integers(1, 60), st.integers(1, 300))
def test_there_are_as_many_validations_as_intervals_in_a_run_and_at_least_one(
    every: float, batches_per_epoch: int, num_steps: int
) -> None:
    config = ValidationConfig(every=every)
    due = sum(is_due(config, step, batches_per_epoch, num_steps) for step in range(1, num_steps + 1))
    intervals = num_steps / (every * batches_per_epoch)
    assert 1 <= due <= max(1, math.ceil(intervals + 1e-9))
    assert every * batches_per_epoch < 1 or due >= math.floor(intervals + 1e-9)


def test_an_interval_of_a_whole_number_of_batches_is_met_exactly() -> None:
    config = ValidationConfig(every=0.1)
    assert [step for step in range(1, 10) if is_due(config, step, 30, 1000)] == [3, 6, 9]
    assert [step for step in range(1, 25) if is_due(ValidationConfig(every=2), step, 5, 24)] == [10, 20, 24]
