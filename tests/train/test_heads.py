"""CosFace and ArcFace against their formulas in float64."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from train.config import HeadConfig
from train.heads import MarginHead

Array = npt.NDArray[np.float64]
BATCH, SIZE, IDENTITIES = 12, 16, 5
HEADS = [("cosface", 0.35), ("cosface", 0.0), ("arcface", 0.5), ("arcface", 1.5), ("arcface", 0.0)]


def make_head(kind: str, margin: float, scale: float = 64.0) -> MarginHead:
    torch.manual_seed(2)
    config = HeadConfig.model_validate({"kind": kind, "margin": margin, "scale": scale})
    return MarginHead(config, SIZE, IDENTITIES)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(BATCH, SIZE, generator=generator) * 7
    return embeddings, torch.randint(IDENTITIES, (BATCH,), generator=generator)


def unit(rows: Array) -> Array:
    result: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


def expected_logits(
    kind: str, margin: float, embeddings: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> Array:
    """CosFace: s (cos - m); ArcFace: s cos(theta + m), and s (cos - m sin m) where theta + m > pi."""
    cosines = unit(embeddings.double().numpy()) @ unit(weight.detach().double().numpy()).T
    rows = np.arange(len(labels)), labels.numpy()
    target = cosines[rows]
    if kind == "cosface":
        cosines[rows] = target - margin
    else:
        theta = np.arccos(np.clip(target, -1, 1))
        cosines[rows] = np.where(theta + margin <= math.pi, np.cos(theta + margin), target - margin * math.sin(margin))
    return 64 * cosines


def expected_loss(
    kind: str, margin: float, embeddings: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The same in torch's float64, so that it can be differentiated."""
    cosines = (embeddings / embeddings.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T
    own = torch.nn.functional.one_hot(labels, IDENTITIES).bool()
    theta = torch.acos(cosines)
    beyond = cosines - margin * math.sin(margin)
    moved = (
        cosines - margin if kind == "cosface" else torch.where(theta + margin > math.pi, beyond, (theta + margin).cos())
    )
    logits = 64 * torch.where(own, moved, cosines)
    return (logits.logsumexp(1) - logits[own]).mean()


@pytest.mark.parametrize(("kind", "margin"), HEADS)
def test_logits_are_the_formula(kind: str, margin: float) -> None:
    head = make_head(kind, margin)
    embeddings, labels = make_batch()
    logits = head.logits(embeddings, labels)
    assert logits.dtype == torch.float32
    expected = expected_logits(kind, margin, embeddings, head.weight, labels)
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-3)


@pytest.mark.parametrize(("kind", "margin"), HEADS)
def test_loss_and_gradients_are_the_formula(kind: str, margin: float) -> None:
    head = make_head(kind, margin)
    embeddings, labels = make_batch()
    embeddings.requires_grad_()
    loss = head(embeddings, labels)
    loss.backward()
    faces, centres = (one.detach().double().requires_grad_() for one in (embeddings, head.weight))
    expected = expected_loss(kind, margin, faces, centres, labels)
    gradients = torch.autograd.grad(expected, (faces, centres))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip((embeddings.grad, head.weight.grad), gradients, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("margin", [0.5, 1.5])
def test_a_target_beyond_pi_minus_the_margin_gets_ever_smaller_logits(margin: float) -> None:
    head = make_head("arcface", margin, scale=1)
    first, second = torch.eye(SIZE)[:2]
    head.weight.data[0] = first
    angles = torch.linspace(0, math.pi, 181)
    embeddings = angles.cos()[:, None] * first + angles.sin()[:, None] * second
    labels = torch.zeros(len(angles), dtype=torch.int64)
    logits = head.logits(embeddings, labels)[:, 0].detach()
    expected = expected_logits("arcface", margin, embeddings, head.weight, labels)[:, 0] / 64
    # Within float32's rounding of pi - margin either branch may be taken; their values differ there.
    away = (angles + margin - math.pi).abs() > 1e-3
    np.testing.assert_allclose(logits[away].numpy(), expected[away.numpy()], atol=1e-3)
    assert (logits.diff() < 1e-6).all()


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_gradient_is_nan_where_a_cosine_is_one(kind: str, sign: int) -> None:
    head = make_head(kind, 0.5)
    labels = torch.arange(IDENTITIES)
    embeddings = (sign * head.weight.detach()).requires_grad_()
    loss = head(embeddings, labels)
    loss.backward()
    assert loss.isfinite()
    for gradient in (embeddings.grad, head.weight.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_the_loss_does_not_depend_on_autocast(kind: str) -> None:
    head = make_head(kind, 0.35)
    embeddings, labels = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        under = head(embeddings, labels)
    assert under.dtype == torch.float32
    assert torch.equal(under, head(embeddings, labels))


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_a_margin_makes_the_task_harder(kind: str) -> None:
    embeddings, labels = make_batch()
    losses = [make_head(kind, margin)(embeddings, labels).item() for margin in (0, 0.1, 0.3, 0.5)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]
