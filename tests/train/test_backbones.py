"""IResNet is InsightFace's, name for name, shape for shape and operation for operation."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch.nn import functional

from train.backbones import make_encoder
from train.config import EncoderConfig

BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
# Published for arcface_torch's backbones at 112x112 and 512-d, in millions.
PARAMETERS = {"iresnet18": 24.02, "iresnet34": 34.14, "iresnet50": 43.59, "iresnet100": 65.15}
State = Mapping[str, torch.Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def batch_norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def expected_shapes(blocks: tuple[int, ...], image_size: int = 112) -> dict[str, tuple[int, ...]]:
    """What `recognition/arcface_torch/backbones/iresnet.py` saves, written down from its definition."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), **batch_norm("bn1", 64), "prelu.weight": (64,)}
    inputs = 64
    for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
        for number in range(depth):
            block = f"layer{stage}.{number}"
            shapes |= batch_norm(f"{block}.bn1", inputs)
            shapes[f"{block}.conv1.weight"] = (width, inputs, 3, 3)
            shapes |= batch_norm(f"{block}.bn2", width)
            shapes[f"{block}.prelu.weight"] = (width,)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            shapes |= batch_norm(f"{block}.bn3", width)
            if number == 0:
                shapes[f"{block}.downsample.0.weight"] = (width, inputs, 1, 1)
                shapes |= batch_norm(f"{block}.downsample.1", width)
            inputs = width
    places = (image_size // 16) ** 2
    shapes |= batch_norm("bn2", 512) | {"fc.weight": (512, 512 * places), "fc.bias": (512,)}
    return shapes | batch_norm("features", 512)


def synthetic_state(blocks: tuple[int, ...], image_size: int) -> dict[str, torch.Tensor]:
    """Random weights of a size that keeps activations in range."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in expected_shapes(blocks, image_size).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("running_var", "num_batches_tracked")):
            state[name] = noise.abs() + 0.5 if shape else torch.tensor(3)
        elif len(shape) > 1:
            state[name] = noise / math.prod(shape[1:]) ** 0.5
        else:
            state[name] = noise * 0.2 + (1 if name.endswith("weight") and "prelu" not in name else 0)
    return state


def restated(state: State, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of InsightFace's `iresnet.py` at evaluation, from a state dict alone."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, weight, bias, eps=1e-5)

    x = functional.conv2d(x, state["conv1.weight"], padding=1)
    x = functional.prelu(norm("bn1", x), state["prelu.weight"])
    for block in dict.fromkeys(".".join(name.split(".")[:2]) for name in state if name.startswith("layer")):
        first = block.endswith(".0")
        out = functional.conv2d(norm(f"{block}.bn1", x), state[f"{block}.conv1.weight"], padding=1)
        out = functional.prelu(norm(f"{block}.bn2", out), state[f"{block}.prelu.weight"])
        out = functional.conv2d(out, state[f"{block}.conv2.weight"], stride=2 if first else 1, padding=1)
        if first:
            x = norm(f"{block}.downsample.1", functional.conv2d(x, state[f"{block}.downsample.0.weight"], stride=2))
        x = x + norm(f"{block}.bn3", out)
    x = functional.linear(norm("bn2", x).flatten(1), state["fc.weight"], state["fc.bias"])
    return norm("features", x)


@pytest.mark.parametrize("backbone", list(BLOCKS))
def test_names_and_shapes_are_those_of_insightface(backbone: str) -> None:
    with torch.device("meta"):
        encoder = make_encoder(EncoderConfig.model_validate({"backbone": backbone}), 112)
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes == expected_shapes(BLOCKS[backbone])
    assert list(shapes) == list(expected_shapes(BLOCKS[backbone]))
    number = sum(parameter.numel() for parameter in encoder.parameters())
    assert number / 1e6 == pytest.approx(PARAMETERS[backbone], abs=0.01)


def test_foreign_weights_load_strictly_and_compute_what_insightface_computes() -> None:
    state = synthetic_state(BLOCKS["iresnet18"], 32)
    encoder = make_encoder(EncoderConfig(backbone="iresnet18", dropout=0.4), 32).eval()
    encoder.load_state_dict(state, strict=True)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), restated(state, images), rtol=1e-4, atol=1e-4)


def test_foreign_weights_of_another_network_are_refused() -> None:
    state = synthetic_state(BLOCKS["iresnet18"], 32)
    encoder = make_encoder(EncoderConfig(backbone="iresnet18"), 32)
    with pytest.raises(RuntimeError, match=r"fc\.bias"):
        encoder.load_state_dict({name: value for name, value in state.items() if name != "fc.bias"}, strict=True)


def test_weights_and_activations_are_channels_last() -> None:
    encoder = make_encoder(EncoderConfig(backbone="iresnet_mini"), 32)
    encoder.load_state_dict({name: value.contiguous() for name, value in encoder.state_dict().items()})
    seen: list[torch.Tensor] = []
    encoder.layer2.register_forward_hook(lambda module, given, out: seen.append(out))
    encoder(torch.zeros(2, 3, 32, 32).to(memory_format=torch.channels_last))
    kernels = [parameter for parameter in encoder.parameters() if parameter.ndim == 4]
    assert len(kernels) == 13
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in [*kernels, *seen])
    assert not seen[0].is_contiguous()


@pytest.mark.parametrize("embedding_size", [512, 64])
def test_embeddings_are_float32_under_bf16_autocast(embedding_size: int) -> None:
    encoder = make_encoder(EncoderConfig(backbone="iresnet_mini", embedding_size=embedding_size), 32).eval()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        exact = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = encoder(images)
    assert embeddings.shape == (4, embedding_size)
    assert embeddings.dtype == torch.float32
    assert not torch.equal(embeddings, exact)
    assert functional.cosine_similarity(embeddings, exact).min() > 0.99


def test_the_last_scale_is_frozen_and_all_else_trains() -> None:
    encoder = make_encoder(EncoderConfig(backbone="iresnet_mini", embedding_size=16), 32)
    encoder(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, one in encoder.named_parameters() if one.grad is None] == ["features.weight"]
    assert torch.equal(encoder.features.weight, torch.ones(16))


@pytest.mark.parametrize("image_size", [16, 50, 112])
def test_other_image_sizes_fit(image_size: int) -> None:
    encoder = make_encoder(EncoderConfig(backbone="iresnet_mini", embedding_size=8), image_size).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(1, 3, image_size, image_size)).shape == (1, 8)


def test_dropout_acts_in_training_only() -> None:
    encoder = make_encoder(EncoderConfig(backbone="iresnet_mini", dropout=0.5), 32)
    images = torch.rand(2, 3, 32, 32)
    assert not torch.equal(encoder(images), encoder(images))
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))
