"""Every backbone, by its name, is the published one and fits the training loop."""

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.train.foreign import faces
from train.backbones import make_encoder
from train.config import EncoderConfig

ALL = get_args(EncoderConfig.model_fields["backbone"].annotation)
SMALL = ("iresnet_mini", "ir18", "mobilefacenet", "vit_t")
# In millions, published for arcface_torch's backbones at 112x112 and 512-d.
PARAMETERS = {"iresnet18": 24.02, "iresnet34": 34.14, "iresnet50": 43.59, "iresnet100": 65.15}
# In G multiply-adds, from the tables of arcface_torch's README.
OPERATIONS = {
    "iresnet18": 2.6,
    "iresnet50": 6.3,
    "iresnet100": 12.1,
    "iresnet200": 23.5,
    "mobilefacenet": 0.45,
    "vit_t": 1.5,
    "vit_s": 5.7,
    "vit_b": 11.4,
}

pytestmark = pytest.mark.usefixtures("one_thread")


def make(backbone: str, image_size: int = 32, **options: Any) -> nn.Module:
    return make_encoder(EncoderConfig.model_validate({"backbone": backbone, **options}), image_size)


def shape_of_embeddings(backbone: str, image_size: int, **options: Any) -> torch.Size:
    """What a forward pass gives two images, without its arithmetic."""
    with torch.device("meta"):
        encoder = make(backbone, image_size, **options).eval()
    state = encoder.state_dict()
    with FakeTensorMode(), torch.inference_mode():
        weights = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in state.items()}
        shape: torch.Size = functional_call(encoder, weights, torch.zeros(2, 3, image_size, image_size)).shape
    return shape


@pytest.mark.parametrize("backbone", list(PARAMETERS))
def test_parameters_are_as_many_as_published(backbone: str) -> None:
    with torch.device("meta"):
        encoder = make(backbone, 112)
    number = sum(parameter.numel() for parameter in encoder.parameters())
    assert number / 1e6 == pytest.approx(PARAMETERS[backbone], abs=0.01)


@pytest.mark.parametrize("backbone", list(OPERATIONS))
def test_operations_are_as_many_as_published(backbone: str) -> None:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # of fused kernels it knows nothing
        shape_of_embeddings(backbone, 112)
    assert counter.get_total_flops() / 2 / 2 / 1e9 == pytest.approx(OPERATIONS[backbone], abs=0.09)


@pytest.mark.parametrize(("backbone", "same_depth"), [("ir18", "iresnet18"), ("ir101", "iresnet100")])
def test_ir_lacks_the_first_projection_and_the_last_scale_and_shift(backbone: str, same_depth: str) -> None:
    with torch.device("meta"):
        ours, others = (make(name, 112).state_dict() for name in (backbone, same_depth))
    projection = [name for name in others if name.startswith("layer1.0.downsample")]
    assert others.keys() - ours.keys() == {*projection, "features.weight", "features.bias"}
    assert not ours.keys() - others.keys()


@pytest.mark.parametrize("backbone", ALL)
def test_every_backbone_has_embeddings_of_the_length_asked_for(backbone: str) -> None:
    assert shape_of_embeddings(backbone, 64, embedding_size=24) == (2, 24)


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("image_size", [16, 50, 112])
def test_other_image_sizes_fit(backbone: str, image_size: int) -> None:
    assert shape_of_embeddings(backbone, image_size, embedding_size=8) == (2, 8)


@pytest.mark.parametrize(("backbone", "kernels"), [("iresnet_mini", 13), ("mobilefacenet", 49), ("vit_t", 1)])
def test_weights_are_channels_last_and_stay_so_when_others_are_loaded(backbone: str, kernels: int) -> None:
    encoder = make(backbone)
    encoder.load_state_dict({name: value.contiguous() for name, value in encoder.state_dict().items()})
    found = [parameter for parameter in encoder.parameters() if parameter.ndim == 4]
    assert len(found) == kernels
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in found)


@pytest.mark.parametrize("squeeze_excitation", [False, True, "shortcut"])
def test_activations_are_channels_last(squeeze_excitation: object) -> None:
    encoder = make("iresnet_mini", squeeze_excitation=squeeze_excitation)
    seen: list[torch.Tensor] = []
    encoder.get_submodule("layer2").register_forward_hook(lambda module, given, out: seen.append(out))
    encoder(torch.zeros(2, 3, 32, 32).to(memory_format=torch.channels_last))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()


@pytest.mark.parametrize("backbone", SMALL)
def test_embeddings_are_float32_under_bf16_autocast(backbone: str) -> None:
    torch.manual_seed(0)
    encoder = make(backbone, embedding_size=64)
    with torch.no_grad():
        encoder(faces(8))  # so that activations are in range at evaluation
    encoder.eval()
    with torch.inference_mode():
        exact = encoder(faces(4))
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = encoder(faces(4))
    assert embeddings.shape == (4, 64)
    assert embeddings.dtype == torch.float32
    assert not torch.equal(embeddings, exact)
    assert functional.cosine_similarity(embeddings, exact).min() > 0.99


@pytest.mark.parametrize("backbone", SMALL)
def test_every_weight_learns(backbone: str) -> None:
    encoder = make(backbone, embedding_size=16)
    # A fixed direction: the squares of normalised features sum to the same whatever the weights are.
    (encoder(faces(6)) * torch.arange(16)).square().mean().backward()
    without = {name for name, one in encoder.named_parameters() if one.requires_grad and one.grad is None}
    assert not without


@pytest.mark.parametrize("options", [{"dropout": 0.4}, {"squeeze_excitation": True}])
@pytest.mark.parametrize("backbone", ["mobilefacenet", "vit_s"])
def test_options_of_residual_networks_are_refused_for_others(backbone: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{backbone} has no dropout and no squeeze_excitation"):
        make(backbone, **options)


def test_squeeze_excitation_adds_its_weights_to_every_block_or_each_first_shortcut() -> None:
    with torch.device("meta"):
        plain, every, first = (
            sum(one.numel() for one in make("iresnet50", squeeze_excitation=kind).parameters())
            for kind in (False, True, "shortcut")
        )
    each = [2 * width * width // 16 for width in (64, 128, 256, 512)]
    assert every - plain == sum(depth * one for depth, one in zip((3, 4, 14, 3), each, strict=True))
    assert first - plain == sum(each)
