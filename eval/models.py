"""What can embed faces: a network of ours, an ONNX file, or a Python function.

All take what our encoders take, `[batch, 3, size, size] float32` in [-1, 1], RGB. A model that subtracts a mean by
itself, as those converted from MXNet do, has to be exported without.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from eval.embed import Embed
from shardgen.errors import DataError, UsageError
from shardgen.manifest import hash_file


@dataclass(frozen=True)
class Model:
    """An encoder, wherever it is from."""

    embed: Embed
    image_size: int
    """Side of the square images that it takes, in pixels."""
    digest: str
    """SHA-256, in hexadecimal, of all that its embeddings depend on: what they are cached by."""
    description: str
    """What it is, for a person."""


def network_model(network: nn.Module, image_size: int, description: str) -> Model:
    """Return a network of PyTorch, which stays on its device and in its mode, as a model."""
    weights = (
        digest_of(name, str(one.dtype), str(one.shape), one.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        for name, one in sorted(network.state_dict().items())
    )
    return Model(network, image_size, digest_of(image_size, repr(network), *weights), description)


def autocast(model: Model, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Model:
    """Return the model with matrix products in half precision; its embeddings are others, and are cached apart."""

    def embed(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype):
            return model.embed(images)

    name = str(dtype).removeprefix("torch.")
    return Model(embed, model.image_size, digest_of(model.digest, name), f"{model.description} in {name}")


def callable_model(spec: str, image_size: int) -> Model:
    """Return the function `package.module:function` as a model.

    It is called with tensors on the device of the evaluation, with and without faces mirrored, and returns
    `[batch, embedding]`, not normalised, as a tensor or an array. Its digest is of the module's file and no other:
    after a change elsewhere, of weights that it loads, say, change the file too or delete the cached embeddings.

    Raises `UsageError` when there is no such function; calling it, `DataError` when it returns something else.
    """
    module_name, _, name = spec.partition(":")
    try:
        module = import_module(module_name) if module_name else None
    except ModuleNotFoundError as error:
        raise UsageError(f"{spec}: there is no module {error.name}; is its folder in PYTHONPATH?") from None
    function, file = getattr(module, name, None), getattr(module, "__file__", None)
    if not callable(function) or file is None:
        raise UsageError(f"{spec} is no function in a file; write package.module:function")
    digest = digest_of(hash_file(Path(file)).sha256, name, image_size)
    return Model(partial(_called, spec, function), image_size, digest, spec)


def _called(spec: str, function: Callable[[torch.Tensor], Any], images: torch.Tensor) -> torch.Tensor:
    rows = function(images)
    if isinstance(rows, (tuple, list)):
        raise DataError(f"{spec} returns {len(rows)} things; an encoder: [batch, embedding]")
    return _one_a_face(spec, torch.as_tensor(rows), len(images))


def _one_a_face(source: object, rows: torch.Tensor, num_images: int) -> torch.Tensor:
    if rows.ndim != 2 or len(rows) != num_images:
        raise DataError(f"{source} returns {list(rows.shape)} for {num_images} images; an encoder: [batch, embedding]")
    return rows


def onnx_model(path: Path, device: torch.device) -> Model:
    """Return an ONNX file as a model, run by onnxruntime, on a GPU if the device is one and onnxruntime has that.

    It has one input of float32, `[batch, 3, size, size]` or `[batch, size, size, 3]`, of whatever name, batch of any or
    of one size; what counts is its first output, `[batch, embedding]`. Its digest covers weights in files beside it.

    Raises `UsageError` when onnxruntime or the file is absent, `DataError` when the file is no such model; embedding,
    `UsageError` when images are not of its size.
    """
    try:
        runtime = import_module("onnxruntime")
    except ModuleNotFoundError:
        raise UsageError(f"{path} needs the package onnxruntime; pip install onnxruntime") from None
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give an ONNX file")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # else it tells everybody about each weight that it folds
    wanted: list[Any] = [("CUDAExecutionProvider", {"device_id": device.index or 0})] * (device.type == "cuda")
    available = runtime.get_available_providers()
    providers = [one for one in wanted if one[0] in available] + ["CPUExecutionProvider"]
    try:
        session = runtime.InferenceSession(path, options, providers=providers)
        model = _Onnx.of(path, session)
        model(torch.zeros(2, 3, model.image_size, model.image_size))
    except DataError:
        raise
    except Exception as error:  # it has a class for each way to fail
        raise DataError(f"{path} is no model that onnxruntime can run: {' '.join(str(error).split())}") from None
    return Model(model, model.image_size, _digest_of_file(path), f"{path} on {session.get_providers()[0]}")


@dataclass(frozen=True)
class _Onnx:
    """A session, called as encoders are."""

    path: Path
    session: Any
    input: str
    image_size: int
    channels_last: bool
    batch: int | None
    """The only number of images that it takes, if there is one."""

    @classmethod
    def of(cls, path: Path, session: Any) -> "_Onnx":
        inputs = session.get_inputs()
        shape = inputs[0].shape
        channels_last = len(shape) == 4 and shape[1] != 3
        sides = shape[1:3] if channels_last else shape[2:]
        channels = shape[3 if channels_last else 1] if len(shape) == 4 else None
        is_square = channels == 3 and isinstance(sides[0], int) and sides[0] == sides[1]
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not is_square:
            found = "; ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs)
            raise DataError(
                f"{path} takes {found}; a face encoder takes tensor(float) [batch, 3, size, size] or "
                "[batch, size, size, 3] and nothing else, of a size that is in the file"
            )
        batch = shape[0] if isinstance(shape[0], int) else None
        return cls(path, session, inputs[0].name, sides[0], channels_last, batch)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        size = self.image_size
        if images.shape[2:] != (size, size):
            given = " x ".join(map(str, images.shape[2:]))
            raise UsageError(f"{self.path} takes images of {size} x {size}, not {given}; set loader.image_size={size}")
        pixels = (images.permute(0, 2, 3, 1) if self.channels_last else images).cpu().numpy()
        step = self.batch or len(pixels)
        rows = np.concatenate([self._run(pixels[start : start + step]) for start in range(0, len(pixels), step)])
        return _one_a_face(self.path, torch.from_numpy(rows), len(images))

    def _run(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        num_missing = (self.batch or len(pixels)) - len(pixels)
        padded = np.pad(pixels, ((0, num_missing), (0, 0), (0, 0), (0, 0)))
        output: npt.NDArray[np.float32] = self.session.run(None, {self.input: padded})[0]
        return output[: len(output) - num_missing]


_BESIDE = re.compile(rb"\n\x08location\x12([\x01-\x7f])", re.DOTALL)
"""In `external_data` of a tensor: the key "location", and the length of the name of the file that holds its values."""


def _digest_of_file(path: Path) -> str:
    content = path.read_bytes()
    beside = sorted({content[found.end() : found.end() + found[1][0]].decode() for found in _BESIDE.finditer(content)})
    return digest_of(*(hash_file(path.parent / name).sha256 for name in (path.name, *beside)))


def digest_of(*parts: str | int | memoryview) -> str:
    """Return SHA-256, in hexadecimal, over parts, each with its length: no two sequences of them are alike."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, memoryview) else str(part).encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
