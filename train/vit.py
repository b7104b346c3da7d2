"""The vision transformers that InsightFace trains on faces, with the parameter names of arcface_torch's `vit.py`.

No class token: the embedding is made of all patches, so most weights are in one linear layer. What only serves
masking is left out. Input `[batch, 3, size, size] float32` in [-1, 1], RGB; patches of 9x9 pixels, the rest is cut off.
"""

import torch
from torch import nn
from torch.nn import functional

PATCH = 9
HEADS = 8


class Attention(nn.Module):
    """Multi-head self-attention, by the fused kernel where there is one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, tokens, width]` to the same shape."""
        query, key, value = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers with ReLU6 between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, tokens, width]` to the same shape."""
        out: torch.Tensor = self.fc2(functional.relu6(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input; in training each is dropped at a rate."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.drop_rate = drop_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, tokens, width]` to the same shape."""
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: torch.Tensor) -> torch.Tensor:
        """Zero the whole branch of some samples, and scale that of others (Huang et al., ECCV 2016)."""
        if not self.training:
            return branch
        return branch * functional.dropout(branch.new_ones(len(branch), 1, 1), self.drop_rate)


class PatchEmbedding(nn.Module):
    """Patches to tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, 3, size, size]` to `[batch, tokens, width]`."""
        tokens: torch.Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class VisionTransformer(nn.Module):
    """Faces to embeddings, not normalised; `drop_rate` is that of the last block, and the first has none."""

    def __init__(
        self, width: int, depth: int, *, embedding_size: int = 512, image_size: int = 112, drop_rate: float = 0.1
    ) -> None:
        super().__init__()
        tokens = (image_size // PATCH) ** 2
        self.patch_embed = PatchEmbedding(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.Sequential(*(Block(width, drop_rate * place / (depth - 1)) for place in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * tokens, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, 3, size, size]` to `[batch, embedding] float32`; after the last block, in float32 as theirs."""
        x = self.blocks(self.patch_embed(x) + self.pos_embed)
        with torch.autocast(x.device.type, enabled=False):
            embedding: torch.Tensor = self.feature(self.norm(x.float()).flatten(1))
        return embedding
