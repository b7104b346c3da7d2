"""A head split over processes does what a replicated one does, at any number of them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from tests.processes import in_two_processes
from train.config import HeadConfig
from train.distributed import World
from train.heads import MarginHead
from train.partial_fc import PartialFC

KINDS = sorted(HeadConfig.published)
BATCH, SIZE, IDENTITIES, MANY = 8, 16, 7, 60
LR, STEPS = 0.1, 3
WEIGHTS = torch.linspace(0.5, 2, BATCH)  # samples that count differently
ALONE = World()

pytestmark = pytest.mark.usefixtures("one_thread")


def config(kind: str, **more: float) -> HeadConfig:
    fixed = {"margin_std": 0.0} if kind.startswith("elastic") else {}  # ranks draw different margins
    return HeadConfig.model_validate({"kind": kind, "scale": 16, "split": True} | fixed | more)


def make_batch(identities: int = IDENTITIES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(BATCH, SIZE, generator=generator) * 7
    return embeddings, torch.randint(identities, (BATCH,), generator=generator)


def make_split(kind: str, world: World, identities: int = IDENTITIES, **more: float) -> PartialFC:
    torch.manual_seed(2)
    return PartialFC(config(kind, **more), SIZE, identities, world)


def make_whole(kind: str, identities: int = IDENTITIES) -> MarginHead:
    torch.manual_seed(2)
    return MarginHead(config(kind), SIZE, identities)


def one_step(head: PartialFC, world: World, identities: int, seed: int = 0) -> dict[str, Any]:
    """What a rank sees of a weighted step on its part of the batch."""
    embeddings, labels, weights = (
        one.chunk(world.world_size)[world.rank].clone() for one in (*make_batch(identities), WEIGHTS)
    )
    torch.manual_seed(seed + world.rank)
    head.zero_grad()
    losses = head.losses(embeddings.requires_grad_(), labels)
    torch.autograd.backward((losses * weights).mean())
    assert head.weight.grad is not None
    return {
        "losses": losses.detach(),
        "embeddings": embeddings.grad,
        "weight": head.weight.grad.clone(),
        "buffers": dict(head.named_buffers()),
    }


def some_steps(head: PartialFC | MarginHead, optimizer: torch.optim.SGD, world: World) -> None:
    embeddings, labels = (one.chunk(world.world_size)[world.rank] for one in make_batch())
    for _ in range(STEPS):
        optimizer.zero_grad()
        head(embeddings, labels).backward()
        optimizer.step()


def sgd(head: PartialFC | MarginHead) -> torch.optim.SGD:
    return torch.optim.SGD(head.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)


def run_rank(rank: int, folder: Path) -> None:
    """All that two processes do in these tests, in one go: starting them is slow."""
    torch.set_num_threads(1)
    world = World(rank, 2, rank)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    seen: dict[str, Any] = {kind: one_step(make_split(kind, world), world, IDENTITIES) for kind in KINDS}
    sampling = make_split("cosface", world, MANY, sampled=0.4)
    seen["sampled"] = [one_step(sampling, world, MANY, seed) for seed in (10, *range(10, 50, 2))]

    head = make_split("adaface", world)
    optimizer = sgd(head)
    some_steps(head, optimizer, world)
    momentum = head.gather(optimizer.state[head.weight]["momentum_buffer"])
    seen["trained"] = {"head": head.state_dict(), "momentum": momentum}
    distributed.destroy_process_group()
    torch.save(seen, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    in_two_processes(run_rank, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def expected_step(kind: str) -> dict[str, Any]:
    """The same of an unsplit head that sees the whole batch."""
    head = make_whole(kind)
    embeddings, labels = make_batch()
    losses = head.losses(embeddings.requires_grad_(), labels)
    torch.autograd.backward((losses * WEIGHTS).mean())
    return {
        "losses": losses.detach(),
        "embeddings": embeddings.grad,
        "weight": head.weight.grad,
        "buffers": dict(head.named_buffers()),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_losses_and_gradients_of_an_unsplit_head(kind: str, two_ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[kind] for rank in two_ranks)
    expected = expected_step(kind)
    together = {key: torch.cat([first[key], second[key]]) for key in ("losses", "embeddings", "weight")}
    together["embeddings"] /= 2  # each is that of its rank's mean, and their average is applied
    assert len(first["weight"]) != len(second["weight"])
    for buffers in (first["buffers"], second["buffers"]):
        torch.testing.assert_close(buffers, expected["buffers"])
    for key, value in together.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_world_of_one_it_is_the_unsplit_head(kind: str) -> None:
    seen = one_step(make_split(kind, ALONE), ALONE, IDENTITIES)
    torch.testing.assert_close(seen, expected_step(kind), rtol=1e-4, atol=1e-5)


def used_rows(gradient: torch.Tensor) -> list[int]:
    return gradient.any(1).nonzero()[:, 0].tolist()


def test_only_sampled_centres_take_part_and_the_batchs_own_always_do(two_ranks: list[dict[str, Any]]) -> None:
    _, labels = make_batch(MANY)
    for seen in zip(*(rank["sampled"] for rank in two_ranks), strict=True):
        rows = [used_rows(one["weight"]) for one in seen]
        assert [len(one) for one in rows] == [12, 12]  # 0.4 of 30
        used = rows[0] + [30 + row for row in rows[1]]
        assert set(labels.tolist()) <= set(used)
        assert [row for row in rows[0] if row not in labels] != [row for row in rows[1] if row + 30 not in labels]

        whole = make_whole("cosface", MANY)
        whole.weight.data = whole.weight.data[used]
        embeddings, _ = make_batch(MANY)
        losses = whole.losses(embeddings.requires_grad_(), torch.tensor([used.index(label) for label in labels]))
        torch.autograd.backward((losses * WEIGHTS).mean())
        gradient = torch.cat([one["weight"] for one in seen])[used]
        torch.testing.assert_close(torch.cat([one["losses"] for one in seen]), losses.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, whole.weight.grad, rtol=1e-4, atol=1e-5)
        faces = torch.cat([one["embeddings"] for one in seen]) / 2
        torch.testing.assert_close(faces, embeddings.grad, rtol=1e-4, atol=1e-5)


def test_the_draw_follows_the_seed(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        once, again, other, *_ = (used_rows(one["weight"]) for one in rank["sampled"])
        assert once == again != other


def test_targets_of_other_ranks_do_not_change_what_is_drawn(two_ranks: list[dict[str, Any]]) -> None:
    assert {29, 30}.isdisjoint(make_batch(MANY)[1].tolist())
    for rank, nearest in zip(two_ranks, (29, 0), strict=True):
        draws = [used_rows(one["weight"]) for one in rank["sampled"]]
        assert sum(nearest in one for one in draws) < 0.8 * len(draws)


@settings(deadline=None, max_examples=50)
@given(sampled=st.floats(0.01, 1), identities=st.integers(2, 40), seed=st.integers(0, 99))
def test_a_sample_holds_the_share_or_the_batch_and_all_positives(sampled: float, identities: int, seed: int) -> None:
    head = make_split("cosface", ALONE, identities, sampled=sampled)
    rows = used_rows(one_step(head, ALONE, identities, seed)["weight"])
    assert len(rows) == min(identities, max(-int(-sampled * identities // 1), BATCH))
    assert set(make_batch(identities)[1].tolist()) <= set(rows)


def test_over_many_steps_every_centre_is_drawn() -> None:
    head = make_split("cosface", ALONE, MANY, sampled=0.2)
    rows = [used_rows(one_step(head, ALONE, MANY, seed)["weight"]) for seed in range(200)]
    assert set().union(*rows) == set(range(MANY))


def test_what_two_ranks_trained_is_saved_whole_and_goes_on_in_a_world_of_one(two_ranks: list[dict[str, Any]]) -> None:
    whole = make_whole("adaface")
    optimizer = sgd(whole)
    some_steps(whole, optimizer, ALONE)
    for rank in two_ranks:
        torch.testing.assert_close(rank["trained"]["head"], whole.state_dict(), rtol=1e-4, atol=1e-5)

    saved = two_ranks[0]["trained"]
    resumed = make_split("adaface", ALONE)
    resumed.load_state_dict(saved["head"])
    going_on = sgd(resumed)
    going_on.state[resumed.weight]["momentum_buffer"] = resumed.own(saved["momentum"])
    some_steps(resumed, going_on, ALONE)
    some_steps(whole, optimizer, ALONE)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(identities=st.integers(9, 40), ranks=st.integers(1, 9))
def test_a_whole_state_loads_into_any_number_of_ranks(identities: int, ranks: int) -> None:
    whole = make_whole("cosface", identities)
    heads = [make_split("cosface", World(rank, ranks, rank), identities) for rank in range(ranks)]
    assert torch.equal(torch.cat([head.weight for head in heads]), whole.weight)  # the same centres to begin with
    torch.nn.init.normal_(whole.weight)
    for head in heads:
        head.load_state_dict(whole.state_dict())
    assert torch.equal(torch.cat([head.weight for head in heads]), whole.weight)
    assert all(abs(len(one.weight) - len(other.weight)) <= 1 for one, other in pairwise(heads))


@pytest.mark.parametrize("number", [IDENTITIES - 1, IDENTITIES + 1])
def test_a_state_of_other_identities_is_refused(number: int) -> None:
    with pytest.raises(RuntimeError, match=r"\[3, 4\]"):
        make_split("cosface", World(1, 2, 1)).load_state_dict(make_whole("cosface", number).state_dict())


def test_a_state_does_not_change_with_further_training() -> None:
    head = make_split("cosface", ALONE)
    saved = head.state_dict()["weight"]
    before = saved.clone()
    some_steps(head, sgd(head), ALONE)
    assert torch.equal(saved, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, -1, 0], ids=["cosine 1", "cosine -1", "norm 0"])
def test_no_loss_or_gradient_is_nan_at_the_edges(kind: str, length: int) -> None:
    head = make_split(kind, ALONE)
    embeddings = (length * head.weight.detach()).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(embeddings, torch.arange(IDENTITIES))
    loss.backward()
    assert loss.dtype == torch.float32
    for value in (loss, embeddings.grad, head.weight.grad):
        assert value is not None
        assert value.isfinite().all()
