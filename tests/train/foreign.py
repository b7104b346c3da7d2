"""What others' files of weights hold, and the forward passes of their code, restated from it on a state dict alone."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

BLOCKS = {
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 14, 3),
    "100": (3, 13, 30, 3),
    "200": (6, 26, 60, 6),
}
WIDTHS = (64, 128, 256, 512)
Shapes = dict[str, tuple[int, ...]]
State = Mapping[str, torch.Tensor]


def norm_shapes(name: str, channels: int, affine: bool = True) -> Shapes:
    parts = (("weight", "bias") if affine else ()) + ("running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def attention_shapes(name: str, channels: int) -> Shapes:
    between = channels // 16
    return {f"{name}.fc1.weight": (between, channels, 1, 1), f"{name}.fc2.weight": (channels, between, 1, 1)}


def synthetic(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Random weights of a size that keeps activations in range."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("running_var", "num_batches_tracked")):
            state[name] = noise.abs() + 0.5 if shape else torch.tensor(3)
        elif len(shape) > 1:
            state[name] = noise / math.prod(shape[1:]) ** 0.5
        else:
            state[name] = noise * 0.2 + (1 if name.endswith("weight") and "prelu" not in name else 0)
    return state


def faces(number: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def norm(state: State, name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return functional.batch_norm(x, mean, variance, state.get(f"{name}.weight"), state.get(f"{name}.bias"), eps=eps)


def attention(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """`SEModule`, which is the same in CVLface and in Vec2Face's training code."""
    weights = functional.adaptive_avg_pool2d(x, 1)
    weights = functional.relu(functional.conv2d(weights, state[f"{name}.fc1.weight"]))
    return x * torch.sigmoid(functional.conv2d(weights, state[f"{name}.fc2.weight"]))


def iresnet_shapes(blocks: Sequence[int], image_size: int = 112, shortcut_attention: bool = False) -> Shapes:
    """What `recognition/arcface_torch/backbones/iresnet.py` saves; or Vec2Face's `model/iresnet.py` in mode "se"."""
    shapes: Shapes = {"conv1.weight": (64, 3, 3, 3), **norm_shapes("bn1", 64), "prelu.weight": (64,)}
    inputs = 64
    for stage, (width, depth) in enumerate(zip(WIDTHS, blocks, strict=True), 1):
        for number in range(depth):
            block = f"layer{stage}.{number}"
            shapes |= norm_shapes(f"{block}.bn1", inputs)
            shapes[f"{block}.conv1.weight"] = (width, inputs, 3, 3)
            shapes |= norm_shapes(f"{block}.bn2", width)
            shapes[f"{block}.prelu.weight"] = (width,)
            shapes[f"{block}.conv2.weight"] = (width, width, 3, 3)
            shapes |= norm_shapes(f"{block}.bn3", width)
            if number == 0:
                shapes[f"{block}.downsample.0.weight"] = (width, inputs, 1, 1)
                shapes |= norm_shapes(f"{block}.downsample.1", width)
                shapes |= attention_shapes(f"{block}.attn", width) if shortcut_attention else {}
            inputs = width
    places = (image_size // 16) ** 2
    shapes |= norm_shapes("bn2", 512) | {"fc.weight": (512, 512 * places), "fc.bias": (512,)}
    return shapes | norm_shapes("features", 512)


def iresnet_forward(state: State, x: torch.Tensor) -> torch.Tensor:
    x = functional.conv2d(x, state["conv1.weight"], padding=1)
    x = functional.prelu(norm(state, "bn1", x), state["prelu.weight"])
    for block in dict.fromkeys(".".join(name.split(".")[:2]) for name in state if name.startswith("layer")):
        first = block.endswith(".0")
        out = functional.conv2d(norm(state, f"{block}.bn1", x), state[f"{block}.conv1.weight"], padding=1)
        out = functional.prelu(norm(state, f"{block}.bn2", out), state[f"{block}.prelu.weight"])
        out = functional.conv2d(out, state[f"{block}.conv2.weight"], stride=2 if first else 1, padding=1)
        if first:
            x = functional.conv2d(x, state[f"{block}.downsample.0.weight"], stride=2)
            x = norm(state, f"{block}.downsample.1", x)
        if f"{block}.attn.fc1.weight" in state:
            x = attention(state, f"{block}.attn", x)
        x = x + norm(state, f"{block}.bn3", out)
    x = functional.linear(norm(state, "bn2", x).flatten(1), state["fc.weight"], state["fc.bias"])
    return norm(state, "features", x)


def ir_shapes(blocks: Sequence[int], image_size: int = 112, attentive: bool = False) -> Shapes:
    """What AdaFace's `net.py` and CVLface's `iresnet/model.py` save, without a prefix; `attentive` is mode "ir_se"."""
    shapes: Shapes = {"input_layer.0.weight": (64, 3, 3, 3), **norm_shapes("input_layer.1", 64)}
    shapes["input_layer.2.weight"] = (64,)
    places = (image_size // 16) ** 2
    shapes |= norm_shapes("output_layer.0", 512)
    shapes |= {"output_layer.3.weight": (512, 512 * places), "output_layer.3.bias": (512,)}
    shapes |= norm_shapes("output_layer.4", 512, affine=False)
    inputs = 64
    widths = [width for width, depth in zip(WIDTHS, blocks, strict=True) for _ in range(depth)]
    for number, width in enumerate(widths):
        block = f"body.{number}"
        if inputs != width:
            shapes[f"{block}.shortcut_layer.0.weight"] = (width, inputs, 1, 1)
            shapes |= norm_shapes(f"{block}.shortcut_layer.1", width)
        shapes |= norm_shapes(f"{block}.res_layer.0", inputs)
        shapes[f"{block}.res_layer.1.weight"] = (width, inputs, 3, 3)
        shapes |= norm_shapes(f"{block}.res_layer.2", width)
        shapes[f"{block}.res_layer.3.weight"] = (width,)
        shapes[f"{block}.res_layer.4.weight"] = (width, width, 3, 3)
        shapes |= norm_shapes(f"{block}.res_layer.5", width)
        shapes |= attention_shapes(f"{block}.res_layer.se_block", width) if attentive else {}
        inputs = width
    return shapes


def ir_forward(state: State, x: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
    x = functional.conv2d(x, state["input_layer.0.weight"], padding=1)
    x = functional.prelu(norm(state, "input_layer.1", x), state["input_layer.2.weight"])
    strides = [2 if number == 0 else 1 for depth in blocks for number in range(depth)]
    for number, stride in enumerate(strides):
        shortcut, layer = f"body.{number}.shortcut_layer", f"body.{number}.res_layer"
        out = functional.conv2d(norm(state, f"{layer}.0", x), state[f"{layer}.1.weight"], padding=1)
        out = functional.prelu(norm(state, f"{layer}.2", out), state[f"{layer}.3.weight"])
        out = norm(state, f"{layer}.5", functional.conv2d(out, state[f"{layer}.4.weight"], stride=stride, padding=1))
        if f"{layer}.se_block.fc1.weight" in state:
            out = attention(state, f"{layer}.se_block", out)
        if f"{shortcut}.0.weight" in state:
            x = functional.conv2d(x, state[f"{shortcut}.0.weight"], stride=stride)
            x = norm(state, f"{shortcut}.1", x)
        else:
            x = functional.max_pool2d(x, 1, stride)
        x = out + x
    x = norm(state, "output_layer.0", x).flatten(1)
    x = functional.linear(x, state["output_layer.3.weight"], state["output_layer.3.bias"])
    return norm(state, "output_layer.4", x)
