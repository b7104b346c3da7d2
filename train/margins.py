"""Margins: what each published head makes of the cosine between a face and the centre of its identity.

A margin maps the targets' cosines and the embeddings' norms, both `[batch] float32`, to the cosines that the
softmax sees instead. Some also change the other cosines (CurricularFace) or add to the loss (MagFace).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from train.config import HeadConfig

Move = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cosface(target: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """Return cos(theta) - m for the targets' cosines (Wang et al., CVPR 2018, equation 4)."""
    return target - margins


def arcface(target: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """Return cos(theta + m) for the targets' cosines (Deng et al., CVPR 2019, equation 3).

    Where theta + m exceeds pi the cosine would rise again; there, as in the authors' code, it goes on
    falling as cos(theta) - m sin(m).
    """
    sine = (1 - target.square()).clamp(min=1e-9).sqrt()  # 0 would have no gradient
    cosines, sines = margins.cos(), margins.sin()
    return torch.where(target > -cosines, target * cosines - sine * sines, target - margins * sines)


class Margin(nn.Module):
    """A margin that leaves the other cosines and the loss as they are."""

    def forward(self, target: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Map the targets' cosines (rounded, so maybe just beyond 1) and the embeddings' norms to cosines."""
        raise NotImplementedError

    def negatives(self, cosines: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Map all cosines, `[batch, identities]`, given the moved targets; the target's column is not used."""
        return cosines

    def penalty(self, norms: torch.Tensor) -> torch.Tensor:
        """Return what is added to each sample's loss, `[batch]`."""
        return torch.zeros_like(norms)


class Fixed(Margin):
    """One margin for all: CosFace and ArcFace."""

    def __init__(self, move: Move, *, margin: float) -> None:
        super().__init__()
        self._move = move
        self._margin = margin

    def forward(self, target: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Move all by the same margin."""
        return self._move(target, torch.full_like(target, self._margin))


class Combined(Margin):
    """cos(m1 theta + m2) - m3 (Deng et al., CVPR 2019, equation 4; InsightFace's CombinedMarginLoss)."""

    def __init__(self, *, m1: float, m2: float, m3: float) -> None:
        super().__init__()
        self._m1, self._m2, self._m3 = m1, m2, m3

    def forward(self, target: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Multiply the angle, add to it, subtract from its cosine."""
        theta = target.clamp(-1 + 1e-6, 1 - 1e-6).acos()  # at 1 and -1 its gradient is infinite
        return (self._m1 * theta + self._m2).cos() - self._m3


class Elastic(Margin):
    """Margins drawn from N(m, std) for every sample anew (Boutros et al., CVPRW 2022).

    ElasticFace+ gives the largest of the batch's margins to the sample farthest from its centre, and so on. (The
    authors' code indexes the sorted margins by the order of the samples, not by their rank as the paper says.)
    The draw is torch's: seed it by the step.
    """

    def __init__(self, move: Move, *, plus: bool, margin: float, margin_std: float) -> None:
        super().__init__()
        self._move = move
        self._plus = plus
        self._margin, self._std = margin, margin_std

    def forward(self, target: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Move each by a margin of its own."""
        margins = self._margin + self._std * torch.randn_like(target)
        if self._plus:
            ranks = target.detach().argsort(descending=True).argsort()
            margins = margins.sort().values[ranks]
        return self._move(target, margins)


class AdaFace(Margin):
    """A margin that follows image quality, as the embedding's norm tells it (Kim et al., CVPR 2022).

    With q the norm standardised by running statistics, times h, within [-1, 1]: cos(theta - m q) - (m + m q).
    Clipping, initial statistics and the small constants are those of the authors' code.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *, margin: float, h: float, t_alpha: float) -> None:
        super().__init__()
        self._margin, self._h, self._t_alpha = margin, h, t_alpha
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    def forward(self, target: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Move each by the margins of its quality; in training, first note the batch's norms."""
        norms = norms.detach().clamp(0.001, 100)
        if self.training and len(norms) > 1:  # one sample has no deviation
            self.mean.lerp_(norms.mean(), self._t_alpha)
            self.std.lerp_(norms.std(), self._t_alpha)
        quality = ((norms - self.mean) / (self.std + 1e-3) * self._h).clamp(-1, 1)
        theta = target.clamp(-1 + 1e-3, 1 - 1e-3).acos() - self._margin * quality
        return theta.clamp(1e-3, math.pi - 1e-3).cos() - self._margin * (1 + quality)


class CurricularFace(Margin):
    """ArcFace whose hard negatives count more as training goes on (Huang et al., CVPR 2020).

    Cosines c above the moved target become c (t + c), where t is the running mean of the targets' cosines.
    """

    t: torch.Tensor

    def __init__(self, *, margin: float, t_alpha: float) -> None:
        super().__init__()
        self._margin, self._t_alpha = margin, t_alpha
        self.register_buffer("t", torch.tensor(0.0))

    def forward(self, target: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Move as ArcFace does; in training, first note the batch's cosines."""
        if self.training and len(target):
            self.t.lerp_(target.detach().mean(), self._t_alpha)
        return arcface(target, torch.full_like(target, self._margin))

    def negatives(self, cosines: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Reweigh those that are nearer than the moved target."""
        return torch.where(cosines > moved[:, None], cosines * (self.t + cosines), cosines)


class MagFace(Margin):
    """ArcFace with a margin that grows with the norm, and a penalty on small norms (Meng et al., CVPR 2021).

    With a the norm within [l_a, u_a]: m(a) rises linearly from l_margin to u_margin, and lambda_g (a / u_a^2 + 1 / a)
    is added to the loss. The margin applies at every angle; the authors' code spares angles beyond 90 degrees.
    """

    def __init__(self, *, l_a: float, u_a: float, l_margin: float, u_margin: float, lambda_g: float) -> None:
        super().__init__()
        self._l_a, self._u_a = l_a, u_a
        self._l_margin, self._slope = l_margin, (u_margin - l_margin) / (u_a - l_a)
        self._lambda_g = lambda_g

    def forward(self, target: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Move each by the margin of its norm."""
        return arcface(target, self._l_margin + self._slope * (norms.clamp(self._l_a, self._u_a) - self._l_a))

    def penalty(self, norms: torch.Tensor) -> torch.Tensor:
        """Return lambda_g g(a)."""
        norms = norms.clamp(self._l_a, self._u_a)
        return self._lambda_g * (norms / self._u_a**2 + 1 / norms)


_KINDS: dict[str, Callable[..., Margin]] = {
    "cosface": partial(Fixed, cosface),
    "arcface": partial(Fixed, arcface),
    "combined": Combined,
    "elastic_arc": partial(Elastic, arcface, plus=False),
    "elastic_arc_plus": partial(Elastic, arcface, plus=True),
    "elastic_cos": partial(Elastic, cosface, plus=False),
    "elastic_cos_plus": partial(Elastic, cosface, plus=True),
    "adaface": AdaFace,
    "curricularface": CurricularFace,
    "magface": MagFace,
}


def make_margin(config: HeadConfig) -> Margin:
    """Return the margin of a kind, with its own parameters."""
    return _KINDS[config.kind](**config.parameters)
