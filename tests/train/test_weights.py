"""Weights of others give the embeddings that others' code gives, or are refused with what differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shardgen.errors import DataError, UsageError
from tests.train.foreign import State, faces, ir_forward, ir_shapes, iresnet_forward, iresnet_shapes, synthetic
from train.backbones import make_encoder
from train.config import EncoderConfig
from train.iresnet import IR, IResNet
from train.weights import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 32
DEPTHS = (1, 2, 1, 1)
FACES = faces(size=SIZE)
IRESNET_STATE = synthetic(iresnet_shapes(DEPTHS, SIZE))
IR_STATE = synthetic(ir_shapes(DEPTHS, SIZE))


def prefixed(prefix: str, state: State) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def iresnet(**options: Any) -> IResNet:
    return IResNet(DEPTHS, image_size=SIZE, **options)


def ir(**options: Any) -> IR:
    return IR(DEPTHS, image_size=SIZE, **options)


def embed(path: Path, content: object, encoder: nn.Module) -> torch.Tensor:
    """Embed three faces with the weights that a file of this content gives an encoder."""
    torch.save(content, path)
    load_weights(encoder, path)
    with torch.inference_mode():
        embeddings: torch.Tensor = encoder.eval()(FACES)
    return embeddings


def assert_same(embeddings: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-4)


def refused(path: Path, content: object, encoder: nn.Module) -> str:
    with pytest.raises(UsageError) as refusal:
        embed(path, content, encoder)
    assert str(refusal.value).startswith(str(path))
    return str(refusal.value)


INSIGHTFACE: dict[str, Callable[[State], object]] = {
    "backbone.pth": lambda state: state,
    "DataParallel": lambda state: prefixed("module.", state),
    "checkpoint_gpu_0.pt": lambda state: {"epoch": 3, "state_dict_backbone": state, "state_dict_softmax_fc": {}},
    "of facemix": lambda state: {"version": 2, "step": 9, "encoder": state, "updates": {}},
}


@pytest.mark.parametrize("wrap", INSIGHTFACE.values(), ids=list(INSIGHTFACE))
def test_iresnets_of_insightface(wrap: Callable[[State], object], tmp_path: Path) -> None:
    embeddings = embed(tmp_path / "weights", wrap(IRESNET_STATE), iresnet(dropout=0.4))
    assert_same(embeddings, iresnet_forward(IRESNET_STATE, FACES))


def test_iresnets_with_attention_of_vec2face(tmp_path: Path) -> None:
    state = synthetic(iresnet_shapes(DEPTHS, SIZE, shortcut_attention=True))
    embeddings = embed(tmp_path / "model.pth", state, iresnet(squeeze_excitation="shortcut"))
    assert_same(embeddings, iresnet_forward(state, FACES))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    halves = {name: value.half() if value.is_floating_point() else value for name, value in IRESNET_STATE.items()}
    rounded = {name: value.float() if value.is_floating_point() else value for name, value in halves.items()}
    assert_same(embed(tmp_path / "half.pt", halves, iresnet()), iresnet_forward(rounded, FACES))


def test_adaface_reads_rgb_as_its_authors_network_reads_bgr(tmp_path: Path) -> None:
    head = {"head.kernel": torch.ones(512, 7), "head.eps": torch.tensor(1e-3), "head.batch_mean": torch.ones(1)}
    lightning = {"epoch": 25, "global_step": 9, "state_dict": prefixed("model.", IR_STATE) | head}
    assert_same(embed(tmp_path / "adaface.ckpt", lightning, ir()), ir_forward(IR_STATE, FACES.flip(1), DEPTHS))


@pytest.mark.parametrize("prefix", ["net.", "model.net.", "module.net."])
def test_cvlface_reads_rgb(prefix: str, tmp_path: Path) -> None:
    assert_same(embed(tmp_path / "model.pt", prefixed(prefix, IR_STATE), ir()), ir_forward(IR_STATE, FACES, DEPTHS))


def test_attention_of_cvlface(tmp_path: Path) -> None:
    state = synthetic(ir_shapes(DEPTHS, SIZE, attentive=True))
    embeddings = embed(tmp_path / "model.pt", prefixed("net.", state), ir(squeeze_excitation=True))
    assert_same(embeddings, ir_forward(state, FACES, DEPTHS))


@pytest.mark.parametrize("backbone", ["mobilefacenet", "vit_t"])
def test_other_networks_of_insightface_load_without_what_is_only_for_training(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = EncoderConfig.model_validate({"backbone": backbone})
    trained = make_encoder(config, SIZE).eval()
    state = trained.state_dict() | ({"mask_token": torch.zeros(1, 1, 256)} if backbone == "vit_t" else {})
    with torch.inference_mode():
        assert torch.equal(embed(tmp_path / "model.pt", state, make_encoder(config, SIZE)), trained(FACES))


@pytest.mark.parametrize("name", ["conv1.weight", "layer2.1.bn2.running_var", "features.num_batches_tracked"])
def test_a_missing_weight_is_named(name: str, tmp_path: Path) -> None:
    without = {other: value for other, value in IRESNET_STATE.items() if other != name}
    assert f"lacks {name}; choose the network" in refused(tmp_path / "model.pt", without, iresnet())


def test_a_missing_weight_is_named_as_the_file_would_name_it(tmp_path: Path) -> None:
    without = {name: value for name, value in prefixed("net.", IR_STATE).items() if "body.4.res_layer.4" not in name}
    assert "lacks net.body.4.res_layer.4.weight; choose the network" in refused(tmp_path / "model.pt", without, ir())


@pytest.mark.parametrize("name", ["layer1.2.bn1.weight", "layer1.0.se.fc1.weight", "module.conv1.weight"])
def test_a_weight_left_over_is_named(name: str, tmp_path: Path) -> None:
    message = refused(tmp_path / "model.pt", {**IRESNET_STATE, name: torch.ones(3)}, iresnet())
    assert f"also holds {name}, which the encoder has no place for; choose the network" in message


@pytest.mark.parametrize("name", ["model.body.5.res_layer.0.weight", "net.input_layer.1.weight"])
def test_a_weight_left_over_in_another_format_is_named(name: str, tmp_path: Path) -> None:
    content = {"state_dict": {**prefixed("model.", IR_STATE), name: torch.ones(3)}}
    assert f"also holds {name}, which the encoder has no place for" in refused(tmp_path / "model.ckpt", content, ir())


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    message = refused(tmp_path / "model.pt", IRESNET_STATE, iresnet(embedding_size=64))
    assert "fc.weight is of shape (512, 2048), not (64, 2048); choose the network" in message


def test_ir_is_not_iresnet(tmp_path: Path) -> None:
    assert "encoder.backbone ir18 to ir101" in refused(tmp_path / "model.pt", prefixed("net.", IR_STATE), iresnet())
    assert "also holds layer1.0.downsample.0.weight" in refused(tmp_path / "model.pt", IRESNET_STATE, ir())


def test_ir_without_the_prefix_that_tells_its_colours_is_refused(tmp_path: Path) -> None:
    assert "RGB or BGR; put model. (AdaFace) or net. (CVLface)" in refused(tmp_path / "model.pt", IR_STATE, ir())


def test_refused_weights_leave_the_encoder_as_it_was(tmp_path: Path) -> None:
    encoder = iresnet()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.save({**IRESNET_STATE, "more": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(UsageError):
        load_weights(encoder, tmp_path / "model.pt")
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class Arbitrary:
    """What only running code could bring back."""


@pytest.mark.parametrize("content", [{"state_dict": {}, "more": Arbitrary()}, [1, 2], {"a": 1}, torch.ones(3)])
def test_a_file_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"save (the|a) network's state_dict\(\)"):
        embed(tmp_path / "model.pt", content, iresnet())


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(IRESNET_STATE, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"^[^\n]*cut.pt is damaged[^\n]*$"):
        load_weights(iresnet(), tmp_path / "cut.pt")


def test_a_flipped_bit_is_found_as_in_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "flipped.pt"
    torch.save(IRESNET_STATE, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"flipped.pt is damaged: [^\n]* differs from its checksum; fetch it again"):
        load_weights(iresnet(), path)


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_weights(iresnet(), tmp_path / "absent.pt")
