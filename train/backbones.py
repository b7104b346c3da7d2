"""IResNet, with the parameter names of InsightFace's `iresnet.py`: the field's exchange format.

Pretrained InsightFace weights load strictly. Input `[batch, 3, size, size] float32` in [-1, 1], RGB.
"""

from collections.abc import Sequence

import torch
from torch import nn

from train.config import EncoderConfig

WIDTHS = (64, 64, 128, 256, 512)
MINI_WIDTHS = (32, 32, 64, 128, 256)
_DEPTHS: dict[str, Sequence[int]] = {
    "iresnet_mini": (1, 1, 1, 1),
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}


class Block(nn.Module):
    """The improved residual block: BN-Conv-BN-PReLU-Conv-BN (Deng et al., 2019, section 3.1)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, inputs, h, w]` to `[batch, outputs, h/stride, w/stride]`."""
        out = self.conv1(self.bn1(x))
        out = self.conv2(self.prelu(self.bn2(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.add(self.bn3(out), shortcut)


class IResNet(nn.Module):
    """Faces to embeddings, not normalised."""

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int] = WIDTHS,
        *,
        stem_stride: int = 1,
        embedding_size: int = 512,
        dropout: float = 0.0,
        image_size: int = 112,
    ) -> None:
        super().__init__()
        stem, *stages = widths
        self.conv1 = nn.Conv2d(3, stem, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = nn.PReLU(stem)
        inputs = [stem, *stages[:-1]]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(Block(before, after, 2), *(Block(after, after, 1) for _ in range(1, depth)))
            for before, after, depth in zip(inputs, stages, blocks, strict=True)
        )
        self.bn2 = nn.BatchNorm2d(stages[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(stages[-1] * (-(-image_size // (16 * stem_stride))) ** 2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, 3, size, size]` to `[batch, embedding] float32`."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.fc(self.dropout(torch.flatten(self.bn2(x), 1)))
        embedding: torch.Tensor = self.features(x.float())
        return embedding


def make_encoder(config: EncoderConfig, image_size: int) -> IResNet:
    """Return an untrained encoder for square images of `image_size` pixels, channels_last in memory."""
    mini = config.backbone == "iresnet_mini"
    encoder = IResNet(
        _DEPTHS[config.backbone],
        MINI_WIDTHS if mini else WIDTHS,
        stem_stride=2 if mini else 1,  # at full size the first layers alone cost a CPU half its time
        embedding_size=config.embedding_size,
        dropout=config.dropout,
        image_size=image_size,
    )
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
