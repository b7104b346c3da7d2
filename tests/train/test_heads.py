"""Every head against its paper's formula in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from train.config import HeadConfig
from train.heads import MarginHead

BATCH, SIZE, IDENTITIES, SEED = 12, 16, 5, 5
KINDS = sorted(HeadConfig.published)
HEADS: list[tuple[str, dict[str, float]]] = [
    *((kind, {}) for kind in KINDS),
    ("cosface", {"margin": 0}),
    ("arcface", {"margin": 1.5}),
    ("arcface", {"margin": 0}),
    ("combined", {"m1": 0.9, "m2": 0.4, "m3": 0.15}),
    ("combined", {"m1": 1.35, "m2": 0, "m3": 0}),
    ("adaface", {"h": 5, "t_alpha": 0.9}),
    ("curricularface", {"t_alpha": 0.9}),
    ("magface", {"l_a": 27, "u_a": 29, "lambda_g": 20}),
]
named = pytest.mark.parametrize(("kind", "parameters"), HEADS, ids=[f"{one[0]}-{one[1]}" for one in HEADS])


def make_head(kind: str, parameters: dict[str, float] | None = None, scale: float = 64.0) -> MarginHead:
    torch.manual_seed(2)  # which also seeds the next margins drawn
    return MarginHead(HeadConfig.model_validate({"kind": kind, "scale": scale} | (parameters or {})), SIZE, IDENTITIES)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Faces near to and far from their centres, with norms of about 28."""
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(BATCH, SIZE, generator=generator) * 7
    return embeddings, torch.randint(IDENTITIES, (BATCH,), generator=generator)


def arc(theta: torch.Tensor, margin: torch.Tensor | float) -> torch.Tensor:
    """cos(theta + m), and cos(theta) - m sin(m) where theta + m > pi."""
    margin = torch.as_tensor(margin, dtype=torch.float64)
    return torch.where(theta + margin > math.pi, theta.cos() - margin * margin.sin(), (theta + margin).cos())


def adaface(theta: torch.Tensor, norms: torch.Tensor, p: dict[str, float]) -> torch.Tensor:
    norms, alpha = norms.detach(), p["t_alpha"]
    mean = alpha * norms.mean() + (1 - alpha) * 20
    std = alpha * (norms - norms.mean()).square().sum().div(BATCH - 1).sqrt() + (1 - alpha) * 100
    quality = ((norms - mean) / (std + 0.001) * p["h"]).clip(-1, 1)
    return (theta - p["margin"] * quality).clip(0.001, math.pi - 0.001).cos() - (p["margin"] * quality + p["margin"])


def drawn(p: dict[str, float]) -> torch.Tensor:
    torch.manual_seed(SEED)
    return p["margin"] + p["margin_std"] * torch.randn(BATCH).double()


def by_difficulty(theta: torch.Tensor, p: dict[str, float]) -> torch.Tensor:
    """The largest margin for the largest angle, and so on."""
    margins = sorted(drawn(p).tolist())
    order = sorted(range(BATCH), key=lambda row: theta[row].item())
    return torch.tensor([margins[order.index(row)] for row in range(BATCH)], dtype=torch.float64)


def magface_margin(norms: torch.Tensor, p: dict[str, float]) -> torch.Tensor:
    a = norms.clip(p["l_a"], p["u_a"])
    return (p["u_margin"] - p["l_margin"]) / (p["u_a"] - p["l_a"]) * (a - p["l_a"]) + p["l_margin"]


Formula = Callable[[torch.Tensor, torch.Tensor, dict[str, float]], torch.Tensor]
FORMULAS: dict[str, Formula] = {
    "cosface": lambda theta, norms, p: theta.cos() - p["margin"],
    "arcface": lambda theta, norms, p: arc(theta, p["margin"]),
    "combined": lambda theta, norms, p: (p["m1"] * theta + p["m2"]).cos() - p["m3"],
    "elastic_arc": lambda theta, norms, p: arc(theta, drawn(p)),
    "elastic_cos": lambda theta, norms, p: theta.cos() - drawn(p),
    "elastic_arc_plus": lambda theta, norms, p: arc(theta, by_difficulty(theta, p)),
    "elastic_cos_plus": lambda theta, norms, p: theta.cos() - by_difficulty(theta, p),
    "adaface": adaface,
    "curricularface": lambda theta, norms, p: arc(theta, p["margin"]),
    "magface": lambda theta, norms, p: arc(theta, magface_margin(norms, p)),
}


def expected_losses(
    kind: str, p: dict[str, float], embeddings: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Each sample's loss in torch's float64, so that it can be differentiated."""
    norms = embeddings.square().sum(1).sqrt()
    cosines = (embeddings / norms[:, None]) @ (weight / weight.norm(dim=1, keepdim=True)).T
    own = functional.one_hot(labels, IDENTITIES).bool()
    moved = FORMULAS[kind](torch.acos(cosines[own]), norms, p)
    if kind == "curricularface":
        t = p["t_alpha"] * cosines[own].mean().detach()
        cosines = torch.where(cosines > moved[:, None], cosines * (t + cosines), cosines)
    logits = 64 * torch.where(own, moved[:, None], cosines)
    losses = logits.logsumexp(1) - logits[own]
    if kind == "magface":
        a = norms.clip(p["l_a"], p["u_a"])
        losses = losses + p["lambda_g"] * (a / p["u_a"] ** 2 + 1 / a)
    return losses


@named
def test_loss_and_gradients_are_the_formula(kind: str, parameters: dict[str, float]) -> None:
    head = make_head(kind, parameters)
    embeddings, labels = make_batch()
    embeddings.requires_grad_()
    torch.manual_seed(SEED)
    losses = head.losses(embeddings, labels)
    torch.autograd.backward(losses.mean())
    faces, centres = (one.detach().double().requires_grad_() for one in (embeddings, head.weight))
    expected = expected_losses(kind, {**HeadConfig.published[kind], **parameters}, faces, centres, labels)
    gradients = torch.autograd.grad(expected.mean(), (faces, centres))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip((embeddings.grad, head.weight.grad), gradients, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_of_the_samples(kind: str) -> None:
    losses = make_head(kind).losses(*make_batch())
    loss = make_head(kind)(*make_batch())
    assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert len(set(losses.tolist())) == BATCH


@pytest.mark.parametrize("margin", [0.5, 1.5])
def test_a_target_beyond_pi_minus_the_margin_gets_ever_smaller_logits(margin: float) -> None:
    head = make_head("arcface", {"margin": margin}, scale=1)
    first, second = torch.eye(SIZE)[:2]
    head.weight.data[0] = first
    angles = torch.linspace(0, math.pi, 181)
    embeddings = angles.cos()[:, None] * first + angles.sin()[:, None] * second
    labels = torch.zeros(len(angles), dtype=torch.int64)
    logits = head.logits(embeddings, labels)[:, 0].detach()
    expected = arc(angles.double(), margin)
    # Within float32's rounding of pi - margin either branch may be taken; their values differ there.
    away = (angles + margin - math.pi).abs() > 1e-3
    np.testing.assert_allclose(logits[away].numpy(), expected[away].numpy(), atol=1e-3)
    assert (logits.diff() < 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, -1, 0], ids=["cosine 1", "cosine -1", "norm 0"])
def test_no_loss_or_gradient_is_nan_at_the_edges(kind: str, length: int) -> None:
    head = make_head(kind)
    labels = torch.arange(IDENTITIES)
    embeddings = (length * head.weight.detach()).requires_grad_()
    loss = head(embeddings, labels)
    loss.backward()
    assert loss.isfinite()
    for gradient in (embeddings.grad, head.weight.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_may_have_one_sample_or_none(kind: str, rows: int) -> None:
    head = make_head(kind)
    embeddings, labels = (one[:rows] for one in make_batch())
    losses = head.losses(embeddings.requires_grad_(), labels)
    torch.autograd.backward(losses.sum())
    assert losses.shape == (rows,)
    for value in (embeddings.grad, head.weight.grad, *head.buffers()):
        assert value is not None
        assert value.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_does_not_depend_on_autocast(kind: str) -> None:
    embeddings, labels = make_batch()
    plain = make_head(kind)(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        under = make_head(kind)(embeddings, labels)
    assert under.dtype == torch.float32
    assert torch.equal(under, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_may_come_in_half_precision(kind: str) -> None:
    embeddings, labels = make_batch()
    loss = make_head(kind)(embeddings.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, make_head(kind)(embeddings.bfloat16().float(), labels))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"combined", "magface"}))
def test_a_margin_makes_the_task_harder(kind: str) -> None:
    embeddings, labels = make_batch()
    losses = [make_head(kind, {"margin": margin})(embeddings, labels).item() for margin in (0, 0.1, 0.3, 0.5)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]
