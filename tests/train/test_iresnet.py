"""IResNet is InsightFace's, name for name, shape for shape and operation for operation; IR is AdaFace's."""

import pytest
import torch

from tests.train.foreign import BLOCKS, attention, faces, iresnet_forward, iresnet_shapes, synthetic
from train.iresnet import IR, ChannelWeights, IResNet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("depth", list(BLOCKS))
def test_names_and_shapes_are_those_of_insightface(depth: str) -> None:
    with torch.device("meta"):
        encoder = IResNet(BLOCKS[depth])
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes == iresnet_shapes(BLOCKS[depth])
    assert list(shapes) == list(iresnet_shapes(BLOCKS[depth]))


def test_foreign_weights_load_strictly_and_compute_what_insightface_computes() -> None:
    state = synthetic(iresnet_shapes(BLOCKS["18"], 32))
    encoder = IResNet(BLOCKS["18"], image_size=32, dropout=0.4).eval()
    encoder.load_state_dict(state, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(faces()), iresnet_forward(state, faces()), rtol=1e-4, atol=1e-4)


def test_attention_on_shortcuts_is_that_of_vec2face() -> None:
    state = synthetic(iresnet_shapes(BLOCKS["18"], 32, shortcut_attention=True))
    encoder = IResNet(BLOCKS["18"], image_size=32, squeeze_excitation="shortcut").eval()
    encoder.load_state_dict(state, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(faces()), iresnet_forward(state, faces()), rtol=1e-4, atol=1e-4)


def test_channels_are_weighted_by_what_the_image_holds() -> None:
    x = torch.randn(2, 32, 5, 5, generator=torch.Generator().manual_seed(0))
    module = ChannelWeights(32)
    state = {f"se.{name}": value for name, value in module.state_dict().items()}
    torch.testing.assert_close(module(x), attention(state, "se", x))


def test_the_last_scale_is_frozen_and_all_else_trains() -> None:
    encoder = IResNet((1, 1, 1, 1), embedding_size=16, image_size=16, squeeze_excitation=True)
    encoder(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert [name for name, one in encoder.named_parameters() if one.grad is None] == ["features.weight"]
    assert torch.equal(encoder.features.weight, torch.ones(16))


def test_ir_starts_as_its_authors_start_it() -> None:
    torch.manual_seed(0)
    encoder = IR((1, 1, 1, 1), image_size=32)
    expected = (2 / (512 * 3 * 3)) ** 0.5
    weight = encoder.get_parameter("layer4.0.conv2.weight")
    assert weight.std().item() == pytest.approx(expected, rel=0.01)
    assert encoder.fc.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    assert not encoder.fc.bias.any()


def test_dropout_acts_in_training_only() -> None:
    encoder = IResNet((1, 1, 1, 1), (16, 16, 16, 16, 16), image_size=32, dropout=0.5)
    assert not torch.equal(encoder(faces()), encoder(faces()))
    encoder.eval()
    assert torch.equal(encoder(faces()), encoder(faces()))
