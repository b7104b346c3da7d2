"""What margins do over several batches, and to which sample; their formulas are tested with the heads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from train.config import HeadConfig
from train.margins import AdaFace, CurricularFace, MagFace, make_margin

KINDS = sorted(HeadConfig.published)


def config(kind: str, **parameters: float | None) -> HeadConfig:
    return HeadConfig.model_validate({"kind": kind} | parameters)


@pytest.mark.parametrize("kind", ["elastic_cos", "elastic_cos_plus"])
def test_elastic_margins_are_normal_and_follow_the_seed(kind: str) -> None:
    target, norms = torch.zeros(20_000), torch.ones(20_000)
    margin = make_margin(config(kind, margin=0.4, margin_std=0.1))
    torch.manual_seed(1)
    drawn = -margin(target, norms)
    assert drawn.mean().item() == pytest.approx(0.4, abs=0.005)
    assert drawn.std().item() == pytest.approx(0.1, abs=0.005)
    within = ((drawn - 0.4).abs() < 0.1).float().mean().item()
    assert within == pytest.approx(0.683, abs=0.02)
    torch.manual_seed(1)
    assert torch.equal(-margin(target, norms), drawn)
    assert not torch.equal(-margin(target, norms), drawn)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-100, 100), min_size=2, max_size=20, unique=True))
def test_the_plus_form_gives_the_larger_margin_to_the_sample_farther_from_its_centre(cosines: list[int]) -> None:
    target = torch.tensor(cosines) / 100
    margins = target - make_margin(config("elastic_cos_plus", margin_std=0.2))(target, torch.ones(len(target)))
    assert (margins[target.argsort(descending=True)].diff() > -1e-6).all()


def test_adaface_notes_the_norms_of_training_batches_as_a_moving_average() -> None:
    margin = AdaFace(margin=0.4, h=0.333, t_alpha=0.25)
    for norms in ([10.0, 20.0, 30.0], [0.0, 200.0]):  # the second counts as .001 and 100
        margin(torch.zeros(len(norms)), torch.tensor(norms))
    # Worked out by hand, from 20 and 100: (20, 10), then (50.0005, 70.7100).
    assert margin.mean.item() == pytest.approx(0.75 * 20 + 0.25 * 50.0005)
    assert margin.std.item() == pytest.approx(0.75 * (0.75 * 100 + 0.25 * 10) + 0.25 * 99.999 / 2**0.5)
    margin.eval()
    margin(torch.zeros(2), torch.tensor([1.0, 2.0]))
    assert margin.mean.item() == pytest.approx(0.75 * 20 + 0.25 * 50.0005)


def test_adaface_is_arcface_for_the_worst_images_cosface_for_the_middling_and_the_opposite_for_the_best() -> None:
    margin = AdaFace(margin=0.4, h=10, t_alpha=0.01).eval()
    moved = margin(torch.full((3,), 0.5), torch.tensor([0.0, 20, 100]))
    theta = math.acos(0.5)
    assert moved.tolist() == pytest.approx([math.cos(theta + 0.4), 0.5 - 0.4, math.cos(theta - 0.4) - 0.8], abs=1e-6)


def test_adaface_never_asks_a_good_image_to_leave_its_centre() -> None:
    margin = AdaFace(margin=0.4, h=10, t_alpha=0.01).eval()
    target = torch.linspace(0, 0.4, 9).cos().requires_grad_()
    moved = margin(target, torch.full((9,), 100.0))
    assert moved.tolist() == pytest.approx([1 - 0.8] * 9, abs=1e-5)  # not cos(theta - m), which falls again
    assert torch.autograd.grad(moved.sum(), target)[0].min() >= 0


def test_curricularface_counts_hard_negatives_by_the_running_cosine() -> None:
    margin = CurricularFace(margin=0.5, t_alpha=0.5)
    for cosine, expected in ((0.8, 0.4), (0.6, 0.5)):
        moved = margin(torch.full((4,), cosine), torch.ones(4))
        assert margin.t.item() == pytest.approx(expected)
    easy, hard = moved[0].item() - 0.01, moved[0].item() + 0.01
    negatives = margin.negatives(torch.tensor([[easy, hard]]), moved[:1])[0].tolist()
    assert negatives == pytest.approx([easy, hard * (0.5 + hard)])
    margin.eval()
    margin(torch.ones(4), torch.ones(4))
    assert margin.t.item() == pytest.approx(0.5)


def test_magface_asks_more_of_faces_with_large_norms_and_rewards_them() -> None:
    margin = MagFace(l_a=10, u_a=110, l_margin=0.45, u_margin=0.8, lambda_g=35)
    norms = torch.tensor([0.0, 10, 60, 110, 500])
    angles = margin(torch.full((5,), 0.5), norms).acos() - torch.tensor(0.5).acos()
    assert angles.tolist() == pytest.approx([0.45, 0.45, 0.625, 0.8, 0.8], abs=1e-5)
    penalties = margin.penalty(norms)
    assert (penalties[:4].diff() <= 0).all()
    assert penalties[[0, 3]].tolist() == pytest.approx([35 * (10 / 12100 + 0.1), 35 * 2 / 110])


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_the_published_ones_unless_given_and_survive_being_saved(kind: str) -> None:
    published = HeadConfig.published[kind]
    assert config(kind).parameters == published
    first = next(iter(published))
    changed = config(kind, **{first: 0.25})
    assert changed.parameters == {**published, first: 0.25}
    assert HeadConfig.model_validate(changed.model_dump(mode="json")) == changed


@pytest.mark.parametrize(
    ("kind", "parameters", "reason"),
    [
        ("cosface", {"m2": 0.3}, "cosface has no parameter m2; it has margin"),
        ("magface", {"margin": 0.5}, "magface has no parameter margin; it has l_a, u_a"),
        ("magface", {"l_a": 110}, "l_a is 110.0 and u_a 110.0; u_a must be larger"),
        ("arcface", {"sampled": 0.1}, "sampled is 0.1, which needs split=true"),
        ("adaface", {"t_alpha": 0}, "t_alpha"),
    ],
)
def test_parameters_that_would_do_nothing_or_harm_are_refused(
    kind: str, parameters: dict[str, float], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        config(kind, **parameters)
