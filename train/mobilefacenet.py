"""MobileFaceNet (Chen et al., 2018) as InsightFace trains it: twice the width, 0.45 GFLOP.

Parameter names are those of arcface_torch's `mobilefacenet.py`, blocks (1, 4, 6, 2) and scale 2.
Input `[batch, 3, size, size] float32` in [-1, 1], RGB.
"""

import torch
from torch import nn

from train.iresnet import initialise


class Layers(nn.Module):
    """A sequence by the name of `layers`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layers make of `x`."""
        out: torch.Tensor = self.layers(x)
        return out


class Residual(Layers):
    """A sequence that adds to its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, channels, h, w]` to the same shape."""
        return x + super().forward(x)


def _linear(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, padding: int = 0) -> Layers:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return Layers(convolution, nn.BatchNorm2d(outputs))


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Layers:
    linear = _linear(inputs, outputs, kernel, stride, groups, kernel // 2)
    return Layers(*linear.layers, nn.PReLU(outputs))


def _bottleneck(inputs: int, between: int, outputs: int, stride: int) -> tuple[Layers, Layers, Layers]:
    return _conv(inputs, between), _conv(between, between, 3, stride, between), _linear(between, outputs)


def _residuals(number: int, channels: int, between: int) -> Layers:
    return Layers(*(Residual(*_bottleneck(channels, between, channels, 1)) for _ in range(number)))


class MobileFaceNet(nn.Module):
    """Faces to embeddings, not normalised."""

    def __init__(self, *, embedding_size: int = 512, image_size: int = 112) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _conv(3, 128, 3, 2),
            _conv(128, 128, 3, 1, groups=64),
            Layers(*_bottleneck(128, 128, 128, 2)),
            _residuals(4, 128, 128),
            Layers(*_bottleneck(128, 256, 256, 2)),
            _residuals(6, 256, 256),
            Layers(*_bottleneck(256, 512, 256, 2)),
            _residuals(2, 256, 256),
        )
        self.conv_sep = _conv(256, 512)
        self.features = Layers(
            _linear(512, 512, -(-image_size // 16), groups=512),
            nn.Flatten(),
            nn.Linear(512, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, 3, size, size]` to `[batch, embedding] float32`; from the last map on, in float32 as theirs."""
        x = self.layers(x)
        with torch.autocast(x.device.type, enabled=False):
            embedding: torch.Tensor = self.features(self.conv_sep(x.float()))
        return embedding
