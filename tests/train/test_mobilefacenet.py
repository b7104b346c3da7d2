"""MobileFaceNet is that of InsightFace, name for name, shape for shape and operation for operation."""

import pytest
import torch
from torch.nn import functional

from tests.train.foreign import Shapes, State, faces, norm, norm_shapes, synthetic
from train.mobilefacenet import MobileFaceNet

pytestmark = pytest.mark.usefixtures("one_thread")

# (channels in, between and out, stride, number), of one or of several residual bottlenecks, in order from layers.2 on
BOTTLENECKS = (
    (128, 128, 128, 2, 1),
    (128, 128, 128, 1, 4),
    (128, 256, 256, 2, 1),
    (256, 256, 256, 1, 6),
    (256, 512, 256, 2, 1),
    (256, 256, 256, 1, 2),
)


def conv_shapes(name: str, inputs: int, outputs: int, kernel: int = 1, prelu: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.layers.0.weight": (outputs, inputs, kernel, kernel)}
    shapes |= norm_shapes(f"{name}.layers.1", outputs)
    return shapes | ({f"{name}.layers.2.weight": (outputs,)} if prelu else {})


def names_of(place: int, stride: int, number: int) -> list[str]:
    return [f"layers.{place}"] if stride == 2 else [f"layers.{place}.layers.{one}" for one in range(number)]


def expected_shapes(kernel: int = 7) -> Shapes:
    """What `recognition/arcface_torch/backbones/mobilefacenet.py` saves, written down from its definition."""
    shapes = conv_shapes("layers.0", 3, 128, 3) | conv_shapes("layers.1", 2, 128, 3)
    for place, (inputs, between, outputs, stride, number) in enumerate(BOTTLENECKS, 2):
        for name in names_of(place, stride, number):
            shapes |= conv_shapes(f"{name}.layers.0", inputs, between)
            shapes |= conv_shapes(f"{name}.layers.1", 1, between, 3)
            shapes |= conv_shapes(f"{name}.layers.2", between, outputs, prelu=False)
    shapes |= conv_shapes("conv_sep", 256, 512)
    shapes |= conv_shapes("features.layers.0", 1, 512, kernel, prelu=False)
    shapes["features.layers.2.weight"] = (512, 512)
    return shapes | norm_shapes("features.layers.3", 512)


def conv(state: State, name: str, x: torch.Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> torch.Tensor:
    weight = state[f"{name}.layers.0.weight"]
    x = norm(state, f"{name}.layers.1", functional.conv2d(x, weight, None, stride, padding, groups=groups))
    slope = state.get(f"{name}.layers.2.weight")
    return x if slope is None else functional.prelu(x, slope)


def restated(state: State, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of InsightFace's `mobilefacenet.py` at evaluation, from a state dict alone."""
    x = conv(state, "layers.1", conv(state, "layers.0", x, 2, 1), 1, 1, groups=64)
    for place, (_, between, _, stride, number) in enumerate(BOTTLENECKS, 2):
        for name in names_of(place, stride, number):
            out = conv(state, f"{name}.layers.1", conv(state, f"{name}.layers.0", x), stride, 1, between)
            out = conv(state, f"{name}.layers.2", out)
            x = out if stride == 2 else x + out
    x = conv(state, "features.layers.0", conv(state, "conv_sep", x), groups=512)
    return norm(state, "features.layers.3", functional.linear(x.flatten(1), state["features.layers.2.weight"]))


def test_names_and_shapes_are_those_of_insightface() -> None:
    shapes = {name: tuple(value.shape) for name, value in MobileFaceNet().state_dict().items()}
    assert shapes == expected_shapes()


def test_foreign_weights_compute_what_insightface_computes() -> None:
    state = synthetic(expected_shapes(kernel=3))
    encoder = MobileFaceNet(image_size=48).eval()
    encoder.load_state_dict(state, strict=True)
    images = faces(size=48)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), restated(state, images), rtol=1e-4, atol=1e-4)
