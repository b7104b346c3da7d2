"""The vision transformers are those of InsightFace, name for name, shape for shape and operation for operation."""

import pytest
import torch
from torch.nn import functional

from tests.train.foreign import Shapes, State, faces, norm, norm_shapes, synthetic
from train.vit import VisionTransformer

pytestmark = pytest.mark.usefixtures("one_thread")


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def expected_shapes(width: int, depth: int, image_size: int = 112) -> Shapes:
    """What `recognition/arcface_torch/backbones/vit.py` saves, without its mask token, written down from it."""
    tokens = (image_size // 9) ** 2
    shapes: Shapes = {"pos_embed": (1, tokens, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 9, 9), "patch_embed.proj.bias": (width,)}
    for block in (f"blocks.{number}" for number in range(depth)):
        for part in ("norm1", "norm2"):
            shapes |= {f"{block}.{part}.weight": (width,), f"{block}.{part}.bias": (width,)}
        shapes[f"{block}.attn.qkv.weight"] = (3 * width, width)
        shapes |= linear_shapes(f"{block}.attn.proj", width, width)
        shapes |= linear_shapes(f"{block}.mlp.fc1", width, 4 * width)
        shapes |= linear_shapes(f"{block}.mlp.fc2", 4 * width, width)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"feature.0.weight": (width, width * tokens), "feature.2.weight": (512, width)}
    return shapes | norm_shapes("feature.1", width) | norm_shapes("feature.3", 512)


def restated(state: State, x: torch.Tensor, depth: int) -> torch.Tensor:
    """The forward pass of InsightFace's `vit.py` at evaluation, from a state dict alone."""

    def layer_norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    x = functional.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=9)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    batch, tokens, width = x.shape
    for block in (f"blocks.{number}" for number in range(depth)):
        qkv = linear(f"{block}.attn.qkv", layer_norm(f"{block}.norm1", x))
        query, key, value = qkv.reshape(batch, tokens, 3, 8, width // 8).permute(2, 0, 3, 1, 4)
        weights = ((query @ key.transpose(-2, -1)) * (width // 8) ** -0.5).softmax(-1)
        x = x + linear(f"{block}.attn.proj", (weights @ value).transpose(1, 2).reshape(batch, tokens, width))
        hidden = functional.relu6(linear(f"{block}.mlp.fc1", layer_norm(f"{block}.norm2", x)))
        x = x + linear(f"{block}.mlp.fc2", hidden)
    x = layer_norm("norm", x).reshape(batch, tokens * width)
    x = linear("feature.2", norm(state, "feature.1", linear("feature.0", x), eps=2e-5))
    return norm(state, "feature.3", x, eps=2e-5)


@pytest.mark.parametrize(("width", "depth"), [(256, 12), (512, 12), (512, 24)])
def test_names_and_shapes_are_those_of_insightface(width: int, depth: int) -> None:
    with torch.device("meta"):
        encoder = VisionTransformer(width, depth)
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes == expected_shapes(width, depth)


def test_foreign_weights_compute_what_insightface_computes() -> None:
    state = synthetic(expected_shapes(64, 3, 32))
    encoder = VisionTransformer(64, 3, image_size=32).eval()
    encoder.load_state_dict(state, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(faces()), restated(state, faces(), 3), rtol=1e-4, atol=1e-4)


def test_branches_are_dropped_by_sample_and_scaled_in_training_only() -> None:
    block = VisionTransformer(64, 2, image_size=32, drop_rate=0.25).blocks[1]
    tokens = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(1)).expand(400, -1, -1)
    torch.manual_seed(0)
    with torch.inference_mode():
        trained, evaluated = block(tokens), block.eval()(tokens)
    changed = (trained - tokens).abs().amax((1, 2)) > 0
    assert (~changed).float().mean() == pytest.approx(0.25**2, abs=0.03)  # both branches dropped
    assert len(trained.unique(dim=0)) == 4  # whole samples: none, either, both
    assert torch.equal(evaluated[0], evaluated[1])


def test_the_first_block_drops_nothing() -> None:
    rates = [block.drop_rate for block in VisionTransformer(64, 5, image_size=32, drop_rate=0.1).blocks]
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
