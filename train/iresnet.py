"""IResNet, with the parameter names of InsightFace's `iresnet.py`: the field's exchange format.

And IR, the form of it that AdaFace and CVLface train, under the same names. They differ in two places only:
the first shortcut, and whether the last scale and shift exist. Input `[batch, 3, size, size] float32` in [-1, 1], RGB.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

WIDTHS = (64, 64, 128, 256, 512)
SqueezeExcitation = bool | Literal["shortcut"]


class ChannelWeights(nn.Module):
    """Squeeze and excitation (Hu et al., CVPR 2018): channels weighted by what the whole image holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, channels, h, w]` to the same shape."""
        squeezed = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(squeezed))))


class Block(nn.Module):
    """The improved residual block: BN-Conv-BN-PReLU-Conv-BN (Deng et al., 2019, section 3.1)."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, weigh: bool, weigh_shortcut: bool = False) -> None:
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
            else nn.Identity()
        )
        self.se = ChannelWeights(outputs) if weigh else nn.Identity()
        self.attn = ChannelWeights(outputs) if weigh_shortcut else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, inputs, h, w]` to `[batch, outputs, h/stride, w/stride]`."""
        out = self.conv1(self.bn1(x))
        out = self.conv2(self.prelu(self.bn2(out)))
        return torch.add(self.se(self.bn3(out)), self.attn(self.downsample(x)))


def _stage(inputs: int, outputs: int, depth: int, squeeze_excitation: SqueezeExcitation) -> nn.Sequential:
    weigh = squeeze_excitation is True
    first = Block(inputs, outputs, 2, weigh=weigh, weigh_shortcut=squeeze_excitation == "shortcut")
    return nn.Sequential(first, *(Block(outputs, outputs, 1, weigh=weigh) for _ in range(1, depth)))


class IResNet(nn.Module):
    """Faces to embeddings, not normalised."""

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int] = WIDTHS,
        *,
        stem_stride: int = 1,
        embedding_size: int = 512,
        image_size: int = 112,
        dropout: float = 0.0,
        squeeze_excitation: SqueezeExcitation = False,
    ) -> None:
        super().__init__()
        stem, *stages = widths
        self.conv1 = nn.Conv2d(3, stem, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = nn.PReLU(stem)
        inputs = [stem, *stages[:-1]]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(before, after, depth, squeeze_excitation)
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


class IR(IResNet):
    """The IR-18 to IR-101 of AdaFace's `net.py` and CVLface's `iresnet/model.py`, as they initialise it."""

    def __init__(self, blocks: Sequence[int], *, embedding_size: int = 512, **options: Any) -> None:
        super().__init__(blocks, embedding_size=embedding_size, **options)
        self.layer1[0].downsample = nn.MaxPool2d(1, 2)  # it keeps the number of channels, so they project nothing
        self.features = nn.BatchNorm1d(embedding_size, affine=False)
        initialise(self)


def initialise(network: nn.Module) -> None:
    """Draw weights as He et al. (ICCV 2015) for the backward pass, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
