"""Encoders by the name of their backbone.

Every encoder maps `[batch, 3, size, size] float32` in [-1, 1], RGB, to `[batch, embedding] float32`, not normalised.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from train.config import EncoderConfig
from train.iresnet import IR, IResNet
from train.mobilefacenet import MobileFaceNet
from train.vit import VisionTransformer

_RESNETS: dict[str, Callable[..., nn.Module]] = {
    # At full size the first layers alone cost a CPU half its time.
    "iresnet_mini": partial(IResNet, (1, 1, 1, 1), (32, 32, 64, 128, 256), stem_stride=2),
    "iresnet18": partial(IResNet, (2, 2, 2, 2)),
    "iresnet34": partial(IResNet, (3, 4, 6, 3)),
    "iresnet50": partial(IResNet, (3, 4, 14, 3)),
    "iresnet100": partial(IResNet, (3, 13, 30, 3)),
    "iresnet200": partial(IResNet, (6, 26, 60, 6)),
    "ir18": partial(IR, (2, 2, 2, 2)),
    "ir34": partial(IR, (3, 4, 6, 3)),
    "ir50": partial(IR, (3, 4, 14, 3)),
    "ir101": partial(IR, (3, 13, 30, 3)),
}
_OTHERS: dict[str, Callable[..., nn.Module]] = {
    "mobilefacenet": MobileFaceNet,
    "vit_t": partial(VisionTransformer, 256, 12),
    "vit_s": partial(VisionTransformer, 512, 12),
    "vit_b": partial(VisionTransformer, 512, 24),
}


def make_encoder(config: EncoderConfig, image_size: int) -> nn.Module:
    """Return an untrained encoder for square images of `image_size` pixels, channels_last in memory."""
    sizes = {"embedding_size": config.embedding_size, "image_size": image_size}
    if config.backbone in _OTHERS:
        encoder = _OTHERS[config.backbone](**sizes)
    else:
        options = {"dropout": config.dropout, "squeeze_excitation": config.squeeze_excitation}
        encoder = _RESNETS[config.backbone](**sizes, **options)
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
