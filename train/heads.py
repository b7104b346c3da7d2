"""Margin softmax heads: cosine logits whose target is made harder by a margin."""

import math

import torch
from torch import nn
from torch.nn import functional

from train.config import HeadConfig


def cosface(target: torch.Tensor, margin: float) -> torch.Tensor:
    """Return cos(theta) - m for the targets' cosines (Wang et al., CVPR 2018, equation 4)."""
    return target - margin


def arcface(target: torch.Tensor, margin: float) -> torch.Tensor:
    """Return cos(theta + m) for the targets' cosines (Deng et al., CVPR 2019, equation 3).

    Where theta + m exceeds pi the cosine would rise again; there, as in the authors' code, it goes on
    falling as cos(theta) - m sin(m).
    """
    sine = (1 - target.square()).clamp(min=1e-9).sqrt()  # 0 would have no gradient
    shifted = target * math.cos(margin) - sine * math.sin(margin)
    return torch.where(target > math.cos(math.pi - margin), shifted, target - margin * math.sin(margin))


_MARGINS = {"cosface": cosface, "arcface": arcface}


class MarginHead(nn.Module):
    """A centre per identity; the loss is cross-entropy over scaled cosines with the margin applied."""

    def __init__(self, config: HeadConfig, embedding_size: int, num_identities: int) -> None:
        super().__init__()
        self._apply_margin = _MARGINS[config.kind]
        self._margin = config.margin
        self._scale = config.scale
        self.weight = nn.Parameter(torch.empty(num_identities, embedding_size).normal_(0, 0.01))

    def logits(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Map `[batch, embedding]` and `[batch] int64` to `[batch, identities]`, in float32."""
        cosines = functional.linear(functional.normalize(embeddings), functional.normalize(self.weight))
        cosines = cosines.clamp(-1, 1)
        target = cosines.gather(1, labels[:, None])
        return cosines.scatter(1, labels[:, None], self._apply_margin(target, self._margin)) * self._scale

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss, computed in float32 whatever the autocast."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return functional.cross_entropy(self.logits(embeddings.float(), labels), labels)
