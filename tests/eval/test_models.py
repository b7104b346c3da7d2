"""Encoders from elsewhere embed as they do there, and a hash tells them apart."""

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from eval.embed import embed_images
from eval.models import Model, autocast, callable_model, network_model, onnx_model
from pipeline.config import LoaderConfig
from shardgen.errors import DataError, UsageError
from shardgen.procedural import draw_face, encode
from train.backbones import make_encoder
from train.config import EncoderConfig
from train.onnx import export_onnx

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE = 32
WEIGHTS = np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32)


def projected(images: torch.Tensor) -> torch.Tensor:
    """What the ONNX files of `write_onnx` compute: `[batch, 3, 32, 32]` to `[batch, 8]`."""
    return functional.avg_pool2d(images, 8).flatten(1) @ torch.from_numpy(WEIGHTS)


def write_onnx(path: Path, shape: Sequence[Any], nodes: Sequence[Any] = (), **changes: Any) -> Path:
    """A small encoder with an input of a shape; `nodes` work on its output, and give what counts as "last"."""
    channels_last = shape[3] == 3
    num_pooled = math.prod(side if side <= 3 else side // 8 for side in shape[1:] if isinstance(side, int))
    kind = changes.get("kind", TensorProto.FLOAT)
    ends = [helper.make_tensor_value_info("faces:0", kind, shape), *changes.get("more_inputs", ())]
    inside = [
        helper.make_node("Transpose", ["faces:0"], ["image"], perm=[0, 3, 1, 2])
        if channels_last
        else helper.make_node("Identity", ["faces:0"], ["image"]),
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["embedding/0"]),
        *nodes,
    ]
    output = "last" if nodes else "embedding/0"
    matrix = np.resize(WEIGHTS, (num_pooled, 8)).astype(helper.tensor_dtype_to_np_dtype(kind))
    weights = numpy_helper.from_array(matrix, "weights")
    outputs = [helper.make_empty_tensor_value_info(output)]
    graph = helper.make_graph(inside, "encoder", ends, outputs, [weights, *changes.get("constants", ())])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save_model(model, path, **changes.get("saving", {}))
    return path


@pytest.fixture(scope="module")
def faces() -> list[bytes]:
    return [encode(draw_face(0, identity, 0)) for identity in range(7)]


def embedded(model: Model, faces: list[bytes]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return embed_images(model.embed, faces, LoaderConfig(batch_size=5, image_size=model.image_size, threads=1), CPU)


def test_a_run_and_its_export_embed_alike(faces: list[bytes], tmp_path: Path) -> None:
    network = make_encoder(EncoderConfig(backbone="iresnet_mini", embedding_size=16), SIZE).eval()
    export_onnx(network, tmp_path / "run.onnx", SIZE)
    exported = onnx_model(tmp_path / "run.onnx", CPU)
    assert exported.image_size == SIZE
    assert exported.description == f"{tmp_path / 'run.onnx'} on CPUExecutionProvider"
    expected = embedded(network_model(network, SIZE, "a run"), faces)
    np.testing.assert_allclose(embedded(exported, faces), expected, atol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        ("n", 3, SIZE, SIZE),
        (None, SIZE, SIZE, 3),
        (4, 3, SIZE, SIZE),
        (1, SIZE, SIZE, 3),
        (16, 3, SIZE, SIZE),
    ],
)
def test_any_layout_and_number_of_images_will_do(shape: Sequence[Any], faces: list[bytes], tmp_path: Path) -> None:
    model = onnx_model(write_onnx(tmp_path / "model.onnx", shape), CPU)
    expected = embedded(Model(projected, SIZE, "", ""), faces)
    np.testing.assert_allclose(embedded(model, faces), expected, atol=1e-5)


MORE = [helper.make_tensor_value_info("quality", TensorProto.FLOAT, [1])]


@pytest.mark.parametrize(
    ("shape", "changes", "found"),
    [
        (("n", 1, SIZE, SIZE), {}, r"faces:0: tensor\(float\) \['n', 1, 32, 32\]"),
        (("n", 3, SIZE, 48), {}, r"\['n', 3, 32, 48\]"),
        (("n", 3, "height", "width"), {}, r"\['n', 3, 'height', 'width'\]"),
        (("n", SIZE, 48, 3), {}, r"\['n', 32, 48, 3\]"),
        (("n", 3, SIZE, SIZE), {"kind": TensorProto.FLOAT16}, r"tensor\(float16\) \['n', 3, 32, 32\]"),
        (("n", 3, SIZE, SIZE), {"more_inputs": MORE}, r"32\]; quality: tensor\(float\) \[1\]"),
    ],
)
def test_files_that_take_no_square_faces_of_a_known_size_are_refused(
    shape: Sequence[Any], changes: dict[str, Any], found: str, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "model.onnx", shape, **changes)
    with pytest.raises(DataError, match=rf"model\.onnx takes .*{found}; a face encoder takes") as caught:
        onnx_model(path, CPU)
    assert "\n" not in str(caught.value)


def test_a_file_that_gives_no_row_a_face_is_refused(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, -1]), "shape")
    flat = [helper.make_node("Reshape", ["embedding/0", "shape"], ["last"])]
    path = write_onnx(tmp_path / "model.onnx", ("n", 3, SIZE, SIZE), flat, constants=[shape])
    with pytest.raises(DataError, match=r"model\.onnx returns \[1, 16\] for 2 images"):
        onnx_model(path, CPU)


def test_a_file_that_fails_when_it_is_run_is_refused_in_one_line(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([3, 5]), "shape")
    odd = [helper.make_node("Reshape", ["embedding/0", "shape"], ["last"])]
    path = write_onnx(tmp_path / "model.onnx", ("n", 3, SIZE, SIZE), odd, constants=[shape])
    with pytest.raises(DataError, match=r"model\.onnx is no model that onnxruntime can run: .*[Rr]eshape") as caught:
        onnx_model(path, CPU)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused(faces: list[bytes], tmp_path: Path) -> None:
    model = onnx_model(write_onnx(tmp_path / "model.onnx", ("n", 3, SIZE, SIZE)), CPU)
    with pytest.raises(UsageError, match=r"model\.onnx takes images of 32 x 32, not 64 x 64; set loader.image_size=32"):
        embed_images(model.embed, faces, LoaderConfig(batch_size=5, image_size=64), CPU)


def test_what_is_no_onnx_file_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UsageError, match=r"model\.onnx does not exist"):
        onnx_model(path, CPU)
    whole = write_onnx(path, ("n", 3, SIZE, SIZE)).read_bytes()
    for content in (b"", b"no model", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"model\.onnx is no model that onnxruntime can run") as caught:
            onnx_model(path, CPU)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="needs the package onnxruntime; pip install onnxruntime"):
        onnx_model(path, CPU)


@pytest.mark.parametrize(
    "saving", [{}, {"save_as_external_data": True, "location": "weights of it", "size_threshold": 0}]
)
def test_other_weights_are_another_model_wherever_they_are(saving: dict[str, Any], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", ("n", 3, SIZE, SIZE), saving=saving)
    before = onnx_model(path, CPU).digest
    assert onnx_model(path, CPU).digest == before
    weights = tmp_path / "weights of it" if saving else path
    content = weights.read_bytes()
    place = content.index(WEIGHTS[5, 3].tobytes())
    weights.write_bytes(content[:place] + np.float32(1).tobytes() + content[place + 4 :])
    assert onnx_model(path, CPU).digest != before


def test_a_network_is_known_by_its_weights_its_records_and_its_image_size() -> None:
    def make(seed: int = 0, change: Callable[[nn.Module], Any] = lambda network: None, size: int = SIZE) -> str:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
        change(network)
        return network_model(network, size, "").digest

    def later(network: nn.Module) -> None:
        network[2].running_mean[3] += 1e-6  # type: ignore[index]

    digests = [make(), make(1), make(change=later), make(change=nn.Module.half), make(size=48)]
    assert len(set(digests)) == len(digests)
    assert make() == digests[0]
    assert make(change=nn.Module.requires_grad_) == digests[0]


def test_half_precision_is_near_and_another_model(faces: list[bytes]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 16))
    model = network_model(network, SIZE, "a run")
    half = autocast(model, CPU)
    assert half.digest not in (model.digest, autocast(model, CPU, torch.float16).digest)
    assert half.description == "a run in bfloat16"
    near, exact = embedded(half, faces), embedded(model, faces)
    assert near.dtype == np.float32
    assert 0 < abs(near - exact).max() < 0.02


CODE = """
import torch
table = {"no": "function"}

def of_tensors(images):
    return torch.nn.functional.avg_pool2d(images, 8).flatten(1)

def of_arrays(images):
    return of_tensors(images).numpy().astype("float64")

def wrong(images):
    return images.mean()
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the path, of a name of its own: Python keeps what it has imported."""
    name = f"encoder_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}.py").write_text(CODE)
    return tmp_path / f"{name}.py"


def test_a_function_may_return_tensors_or_arrays(code: Path, faces: list[bytes]) -> None:
    models = [callable_model(f"{code.stem}:{name}", SIZE) for name in ("of_tensors", "of_arrays")]
    first, second = (embedded(model, faces) for model in models)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert first.shape == (7, 48)
    assert models[0].digest != models[1].digest
    assert models[0].description == f"{code.stem}:of_tensors"


def test_a_function_in_a_changed_file_is_another_model(code: Path) -> None:
    spec = f"{code.stem}:of_tensors"
    before = callable_model(spec, SIZE).digest
    assert callable_model(spec, SIZE).digest == before
    assert callable_model(spec, SIZE + 1).digest != before
    code.write_text(CODE.replace("8", "4"))
    assert callable_model(spec, SIZE).digest != before


def test_what_is_no_function_is_named(code: Path, faces: list[bytes]) -> None:
    with pytest.raises(UsageError, match=r"^nowhere\.at_all:f: there is no module nowhere; .* PYTHONPATH"):
        callable_model("nowhere.at_all:f", SIZE)
    for spec in (f"{code.stem}:absent", f"{code.stem}:table", code.stem, "", ":f", "sys:exit"):
        with pytest.raises(UsageError, match="is no function in a file; write package"):
            callable_model(spec, SIZE)
    with pytest.raises(DataError, match=rf"{code.stem}:wrong returns \[\] for 5 images"):
        embedded(callable_model(f"{code.stem}:wrong", SIZE), faces)
