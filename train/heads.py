"""Margin softmax heads: cosine logits whose target is made harder by a margin."""

import torch
from torch import nn
from torch.nn import functional

from train.config import HeadConfig
from train.margins import make_margin


class MarginHead(nn.Module):
    """A centre per identity; the loss is cross-entropy over scaled cosines with the margin applied."""

    def __init__(self, config: HeadConfig, embedding_size: int, num_identities: int) -> None:
        super().__init__()
        self.margin = make_margin(config)
        self._scale = config.scale
        self.weight = nn.Parameter(torch.empty(num_identities, embedding_size).normal_(0, 0.01))

    def logits(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Map `[batch, embedding]` and `[batch] int64` to `[batch, identities]`, in float32."""
        cosines = functional.linear(functional.normalize(embeddings), functional.normalize(self.weight))
        columns = labels[:, None]
        moved = self.margin(cosines.gather(1, columns)[:, 0], embeddings.norm(dim=1))
        return self.margin.negatives(cosines, moved).scatter(1, columns, moved[:, None]) * self._scale

    def losses(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return each sample's loss, `[batch]`, computed in float32 whatever the autocast."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            losses = functional.cross_entropy(self.logits(embeddings, labels), labels, reduction="none")
            return losses + self.margin.penalty(embeddings.norm(dim=1))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss."""
        return self.losses(embeddings, labels).mean()
