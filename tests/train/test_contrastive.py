"""Contrastive training is MoCo with a margin, the same in any number of processes."""

from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn

from shardgen.errors import UsageError
from tests.processes import in_two_processes
from train.config import ContrastiveConfig
from train.contrastive import Contrast, Grouped, KeyMemory
from train.distributed import World, replicate

ALONE = World()
CPU = torch.device("cpu")
SIZE, PAIRS, STEPS, LR = 8, 16, 4, 0.5
CONFIG = ContrastiveConfig(queue=40, momentum=0.9, temperature=0.2, margin=0.15, groups=4)  # wraps; no multiple of 16
NO_LABELS, NO_SETS = torch.empty(0), np.empty(0, np.uint32)

pytestmark = pytest.mark.usefixtures("one_thread")


def make_encoder(*, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(5)
    middle: list[nn.Module] = [nn.BatchNorm2d(4), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), *middle, nn.Flatten(), nn.Linear(36, SIZE))


def make_batch(step: int, pairs: int = PAIRS) -> torch.Tensor:
    """Images whose pairs resemble each other, channels last."""
    torch.manual_seed(1000 + step)
    faces = torch.rand(pairs, 1, 3, 7, 7).expand(-1, 2, -1, -1, -1).flatten(0, 1)
    return (faces + 0.2 * torch.rand_like(faces)).contiguous(memory_format=torch.channels_last)


class Training:
    """Contrastive training with plain SGD."""

    def __init__(self, *, norm: bool = True, world: World = ALONE, seed: int = 3) -> None:
        self.encoder = make_encoder(norm=norm)
        self.memory = KeyMemory(CONFIG, self.encoder, SIZE, world, seed)
        grouped = replicate(Grouped(self.encoder, CONFIG.groups // world.world_size), world, CPU)
        self.loss = Contrast(grouped, self.memory)
        self.optimizer = torch.optim.SGD([one for one in self.loss.parameters() if one.requires_grad], lr=LR)
        self._world = world

    def step(self, images: torch.Tensor) -> float:
        """Take this rank's part of a global batch; return its loss."""
        loss: torch.Tensor = self.loss(images.chunk(self._world.world_size)[self._world.rank], NO_LABELS, NO_SETS)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {"encoder": self.encoder.state_dict(), "memory": self.memory.state_dict()}


class Restated:
    """The definition, pair by pair in float64, with the queue as a list."""

    def __init__(self, start: Training) -> None:
        self.encoder = deepcopy(start.encoder).double()
        self.key_encoder = deepcopy(self.encoder)
        self.queue = deque(start.memory.queue.double(), maxlen=CONFIG.queue)

    def step(self, images: torch.Tensor, deal: Sequence[Sequence[int]]) -> float:
        """Take a batch whose keys are dealt to groups like this."""
        images = images.double()
        parameters = list(self.encoder.parameters())
        for own, followed in zip(self.key_encoder.parameters(), parameters, strict=True):
            own.data = CONFIG.momentum * own.data + (1 - CONFIG.momentum) * followed.data
        pairs = len(images) // 2
        size = pairs // CONFIG.groups
        queries = [row for first in range(0, pairs, size) for row in self.encoder(images[0::2][first : first + size])]
        keys = [torch.empty(0)] * pairs
        for group in deal:
            for index, key in zip(group, self.key_encoder(images[1::2][list(group)]).detach(), strict=True):
                keys[index] = key / key.norm()
        loss = torch.stack([self._loss(*pair) for pair in zip(queries, keys, strict=True)]).mean()
        self.queue.extend(keys)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data = parameter.data - LR * gradient
        return loss.item()

    def _loss(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        query = query / query.norm()
        positive = ((query @ key - CONFIG.margin) / CONFIG.temperature).exp()
        negatives = [(query @ other / CONFIG.temperature).exp() for other in self.queue]
        total: torch.Tensor = positive + sum(negatives)
        return total.log() - positive.log()


def recorded(module: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return a list that fills with what goes into a module and comes out of it."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    module.register_forward_hook(lambda _, given, made: calls.append((given[0].clone(), made.detach().clone())))
    return calls


def places(images: torch.Tensor, among: torch.Tensor) -> list[int]:
    """Return where each image is found."""
    return [next(place for place, other in enumerate(among) if torch.equal(one, other)) for one in images]


def deals(training: Training) -> Callable[[torch.Tensor], list[list[int]]]:
    """Watch which keys meet in a group: afterwards, ask with the batch."""
    calls = recorded(training.memory.key_encoder.encoder)

    def last(images: torch.Tensor) -> list[list[int]]:
        return [places(given, images[1::2]) for given, _ in calls[-CONFIG.groups :]]

    return last


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    for own, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.double(), expected, rtol=1e-4, atol=1e-5)


def test_over_several_steps_it_does_what_the_definition_says() -> None:
    training = Training()
    plain = Restated(training)
    deal = deals(training)
    for step in range(STEPS):
        images = make_batch(step)
        loss = training.step(images)
        assert loss == pytest.approx(plain.step(images, deal(images)), rel=1e-5)
        torch.testing.assert_close(training.memory.queue.double(), torch.stack([*plain.queue]), rtol=1e-4, atol=1e-5)
    assert_same_weights(training.encoder, plain.encoder)
    assert_same_weights(training.memory.key_encoder.encoder, plain.key_encoder)


def test_without_batch_norm_the_order_of_keys_makes_no_difference() -> None:
    training = Training(norm=False)
    plain = Restated(training)
    for step in range(STEPS):
        images = make_batch(step)
        assert training.step(images) == pytest.approx(plain.step(images, [range(PAIRS)]), rel=1e-5)


def test_keys_are_dealt_to_equal_groups_in_another_order_each_time() -> None:
    training = Training()
    deal = deals(training)
    orders = []
    for step in range(20):
        images = make_batch(step)
        training.step(images)
        groups = deal(images)
        assert [len(group) for group in groups] == [PAIRS // CONFIG.groups] * CONFIG.groups
        orders.append(tuple(chain.from_iterable(groups)))
    assert len(set(orders)) == 20
    assert all(sorted(order) == list(range(PAIRS)) for order in orders)


def test_the_order_follows_the_seed() -> None:
    images = make_batch(0)
    once, again, other = (Training(seed=seed) for seed in (1, 1, 2))
    seen = []
    for training in (once, again, other):
        deal = deals(training)
        training.step(images)
        seen.append(deal(images))
    assert seen[0] == seen[1] != seen[2]


def test_batch_norm_sees_one_group() -> None:
    norm = nn.BatchNorm2d(3)
    images = make_batch(0)
    groups = images.double().numpy().reshape(4, 8, 3, 7, 7)
    mean, variance = (statistic(groups, axis=(1, 3, 4), keepdims=True) for statistic in (np.mean, np.var))
    expected = ((groups - mean) / np.sqrt(variance + norm.eps)).reshape(images.shape)
    np.testing.assert_allclose(Grouped(norm, 4)(images).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_only_the_encoder_has_gradients() -> None:
    training = Training()
    training.step(make_batch(0))
    assert all(one.grad is not None and one.grad.any() for one in training.encoder[4].parameters())
    trained = [one for one in training.loss.parameters() if one.requires_grad]
    assert list(map(id, trained)) == list(map(id, training.encoder.parameters()))
    assert all(one.grad is None for one in training.memory.parameters())
    assert not training.memory.queue.requires_grad


def test_the_first_keys_are_of_the_encoder_as_training_begins_whatever_it_loaded_meanwhile() -> None:
    training = Training()
    for parameter in training.encoder.parameters():
        nn.init.normal_(parameter)
    before = deepcopy(training.encoder)
    training.step(make_batch(0))
    for own, expected in zip(training.memory.key_encoder.parameters(), before.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_following_needs_no_gradient_mode() -> None:
    training = Training()
    training.memory.follow()
    assert not any(one.requires_grad for one in training.memory.parameters())


@settings(deadline=None, max_examples=50)
@given(length=st.integers(1, 12), batches=st.lists(st.integers(1, 15), max_size=6))
def test_the_queue_holds_the_newest_keys_oldest_first(length: int, batches: list[int]) -> None:
    encoder = make_encoder(norm=False)
    memory = KeyMemory(ContrastiveConfig(queue=length, groups=1), encoder, SIZE, ALONE, 0)
    expected = deque(memory.queue, maxlen=length)
    for step, pairs in enumerate(batches):
        images = make_batch(step, pairs)
        memory(torch.ones(2 * pairs, SIZE), images)
        with torch.no_grad():
            keys = encoder(images)
        expected.extend(keys / keys.norm(dim=1, keepdim=True))
    torch.testing.assert_close(memory.queue, torch.stack([*expected]), rtol=1e-4, atol=1e-6)
    assert memory.queue.is_contiguous()


def test_the_queue_begins_random_of_length_one_and_alike_on_all_ranks() -> None:
    first, second, other = (
        KeyMemory(CONFIG, make_encoder(), SIZE, World(rank, 2, rank), seed).queue
        for rank, seed in ((0, 1), (1, 1), (0, 2))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == CONFIG.queue
    torch.testing.assert_close(first.norm(dim=1), torch.ones(CONFIG.queue))


@pytest.mark.parametrize("num_steps", range(STEPS))
def test_a_saved_state_goes_on_as_if_never_stopped(num_steps: int) -> None:
    never_stopped = Training()
    for step in range(num_steps):
        never_stopped.step(make_batch(step))
    stream = BytesIO()
    torch.save(never_stopped.state(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)

    resumed = Training()
    resumed.encoder.load_state_dict(state["encoder"])
    resumed.memory.load_state_dict(state["memory"])
    for step in range(num_steps, STEPS + 1):
        assert resumed.step(make_batch(step)) == never_stopped.step(make_batch(step))
    torch.testing.assert_close(resumed.state(), never_stopped.state(), rtol=0, atol=0)


def test_a_state_does_not_change_with_further_training() -> None:
    training = Training()
    saved = training.memory.state_dict()["queue"]
    before = saved.clone()
    training.step(make_batch(0))
    assert torch.equal(saved, before)


def test_under_autocast_the_encoders_compute_in_bfloat16_and_the_loss_in_float32() -> None:
    training = Training()
    made = {name: recorded(one) for name, one in (("query", training.encoder), ("key", training.memory.key_encoder))}
    images = make_batch(0)
    queue = training.memory.queue.double()
    with torch.autocast("cpu", torch.bfloat16):
        loss = training.loss(images, NO_LABELS, NO_SETS)
    embeddings = torch.cat([one for _, one in made["query"]])
    assert embeddings.dtype == made["key"][0][1].dtype == torch.bfloat16
    assert loss.dtype == training.memory.queue.dtype == torch.float32
    torch.testing.assert_close(training.memory.queue.norm(dim=1), torch.ones(CONFIG.queue))

    queries = nn.functional.normalize(embeddings.double())
    positive = (queries * training.memory.queue[-PAIRS:].double()).sum(1) - CONFIG.margin
    logits = torch.cat([positive[:, None], queries @ queue.T], 1) / CONFIG.temperature
    assert loss.item() == pytest.approx((logits.logsumexp(1) - logits[:, 0]).mean().item(), rel=1e-5)


def test_groups_that_cannot_be_split_over_the_processes_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^contrastive.groups is 4 in 3 processes, .*; set a multiple of the processes"
    ):
        KeyMemory(CONFIG, make_encoder(), SIZE, World(0, 3, 0), 0)


def layouts(training: Training) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Watch the first layers, of which what comes out tells how it was computed."""
    encoders = (training.encoder, training.memory.key_encoder.encoder)
    return [recorded(next(encoder.children())) for encoder in encoders]


def all_channels_last(watched: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> bool:
    made = [made for calls in watched for _, made in calls]
    assert len(made) > 1
    return all(one.is_contiguous(memory_format=torch.channels_last) for one in made)


def test_channels_stay_last() -> None:
    training = Training()
    watched = layouts(training)
    training.step(make_batch(0))
    assert all_channels_last(watched)


def run_rank(rank: int, folder: Path) -> None:
    """All that two processes do in these tests, in one go: starting them is slow."""
    torch.set_num_threads(1)
    world = World(rank, 2, rank)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    training = Training(world=world)
    watched = layouts(training)
    seen: dict[str, Any] = {"steps": []}
    for step in range(STEPS):
        seen["before the last"] = deepcopy(training.state())
        loss = training.step(make_batch(step))
        gradients = [one.grad.clone() for one in training.encoder.parameters() if one.grad is not None]
        seen["steps"].append({"loss": loss, "gradients": gradients, "queue": training.memory.queue})
    seen["channels_last"] = all_channels_last(watched)
    distributed.destroy_process_group()
    torch.save(seen, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(run_rank, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_train_as_one_does_on_the_same_global_batches(two_ranks: list[dict[str, Any]]) -> None:
    training = Training()
    for step in range(STEPS):
        first, second = (rank["steps"][step] for rank in two_ranks)
        loss = training.step(make_batch(step))
        assert first["loss"] != second["loss"]
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(loss, rel=1e-5)
        gradients = [one.grad for one in training.encoder.parameters()]
        for rank in (first, second):
            torch.testing.assert_close(rank["gradients"], gradients, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rank["queue"], training.memory.queue, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["queue"], second["queue"])


def test_what_two_ranks_began_one_goes_on_with(two_ranks: list[dict[str, Any]]) -> None:
    state = two_ranks[0]["before the last"]
    alone = Training()
    alone.encoder.load_state_dict(state["encoder"])
    alone.memory.load_state_dict(state["memory"])
    loss = sum(rank["steps"][-1]["loss"] for rank in two_ranks) / 2
    assert alone.step(make_batch(STEPS - 1)) == pytest.approx(loss, rel=1e-5)


def test_channels_stay_last_where_images_are_exchanged(two_ranks: list[dict[str, Any]]) -> None:
    assert [rank["channels_last"] for rank in two_ranks] == [True, True]
