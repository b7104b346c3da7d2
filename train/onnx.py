"""An encoder as an ONNX file, for whatever runs faces without PyTorch."""

import copy
import logging
import warnings
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from shardgen.errors import UsageError
from shardgen.files import write_durably

OPSET = 18


def export_onnx(network: nn.Module, path: Path, image_size: int) -> None:
    """Write a network as it evaluates, in float32, to one file that is there whole or not at all.

    Its input is `input [batch, 3, image_size, image_size] float32` in [-1, 1], RGB, its output
    `embedding [batch, embedding] float32`, not normalised; batch is of any size. The network stays as it is.

    Raises `UsageError` where the packages that this needs are absent.
    """
    try:
        import_module("onnxscript")
    except ModuleNotFoundError as error:
        raise UsageError(f"ONNX export needs the package {error.name}; pip install onnx onnxscript") from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells everybody that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export uses what torch deprecates
        program = torch.onnx.export(
            copy.deepcopy(network).cpu().float().eval(),
            (torch.zeros(2, 3, image_size, image_size),),
            input_names=["input"],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    write_durably(path, program.model_proto.SerializeToString())
