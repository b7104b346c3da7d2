"""A network in an ONNX file gives onnxruntime the embeddings that it gives here."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from shardgen.errors import UsageError
from train.iresnet import IR, IResNet
from train.mobilefacenet import MobileFaceNet
from train.onnx import export_onnx
from train.vit import VisionTransformer

SIZE = 64

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(real_faces: Path) -> torch.Tensor:
    """Eight faces `[8, 3, size, size] float32` in [-1, 1], RGB."""
    files = sorted((real_faces / "utkface" / "images").iterdir())[::90][:8]
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE))) for file in files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def ends(path: Path) -> dict[str, tuple[int, list[str | int]]]:
    """The element types and shapes of what goes in and out, of a file that the standard's own checker accepts."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    types = {end.name: end.type.tensor_type for end in (*model.graph.input, *model.graph.output)}
    return {
        name: (one.elem_type, [size.dim_param or size.dim_value for size in one.shape.dim])
        for name, one in types.items()
    }


def run(path: Path, images: torch.Tensor) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(["embedding"], {"input": images.numpy()})
    return torch.from_numpy(embeddings)


SHALLOW: dict[str, Callable[..., nn.Module]] = {
    "iresnet": partial(IResNet, (1, 2, 1, 1), (32, 32, 64, 128, 256), squeeze_excitation=True, dropout=0.4),
    "ir": partial(IR, (1, 1, 1, 1)),
    "mobilefacenet": MobileFaceNet,
    "vit": partial(VisionTransformer, 128, 2),
}


@pytest.mark.parametrize("kind", list(SHALLOW))
def test_embeddings_of_real_faces_are_the_same(kind: str, images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = SHALLOW[kind](embedding_size=64, image_size=SIZE)
    with torch.no_grad():
        encoder(images)  # so that its record of activations is of real faces
    export_onnx(encoder, tmp_path / "model.onnx", SIZE)
    assert ends(tmp_path / "model.onnx") == {
        "input": (onnx.TensorProto.FLOAT, ["batch", 3, SIZE, SIZE]),
        "embedding": (onnx.TensorProto.FLOAT, ["batch", 64]),
    }
    assert encoder.training
    encoder.eval()
    for batch in (images, images[:1]):
        with torch.inference_mode():
            expected = encoder(batch)
        embeddings = run(tmp_path / "model.onnx", batch)
        assert functional.cosine_similarity(embeddings, expected).min() > 1 - 1e-5
        torch.testing.assert_close(embeddings, expected, rtol=1e-3, atol=1e-3)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match="the package onnxscript; pip install onnx onnxscript"):
        export_onnx(nn.Identity(), tmp_path / "model.onnx", 32)
    assert not list(tmp_path.iterdir())
