"""Weights that others trained, under our names.

Each known format is a map from our names to theirs. Loading is strict: every weight of the encoder is in the file,
every weight in the file is one of the encoder's, and shapes agree; anything else would be another network.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shardgen.errors import DataError, UsageError
from train.checkpoint import Damaged, encoder_weights, read_file
from train.iresnet import IR

# Where the state dict is: Lightning (AdaFace), arcface_torch's checkpoints; otherwise the file is the dict.
_ENVELOPES = ("state_dict", "state_dict_backbone")
# CVLface's files have the prefix "net." or, from its model hub, "model.net."; its input is RGB.
_CVLFACE = ("net.", "model.net.")
_ADAFACE = "model."
_ONLY_FOR_TRAINING = re.compile(r"head\..*|mask_token")  # AdaFace's classifier; what stands for a ViT's masked patches
_IR_PLACES = {
    "conv1": "input_layer.0",
    "bn1": "input_layer.1",
    "prelu": "input_layer.2",
    "bn2": "output_layer.0",
    "fc": "output_layer.3",
    "features": "output_layer.4",
}
_IR_PLACES_IN_BLOCK = {
    "downsample": "shortcut_layer",
    "bn1": "res_layer.0",
    "conv1": "res_layer.1",
    "bn2": "res_layer.2",
    "prelu": "res_layer.3",
    "conv2": "res_layer.4",
    "bn3": "res_layer.5",
    "se": "res_layer.se_block",
}
_WAY_OUT = (
    "choose the network that it was made with: encoder.backbone, squeeze_excitation, embedding_size, and the image size"
)
State = Mapping[str, torch.Tensor]


def load_weights(encoder: nn.Module, path: Path) -> None:
    """Give an encoder the weights in a file: of InsightFace, AdaFace, CVLface or facemix.

    It then expects RGB, whatever they expected. Raises `UsageError` when file and encoder are not the same network,
    naming the first weight in which they differ, and `DataError` when the file cannot be read. Nothing but tensors
    and plain values is read, so a file from elsewhere cannot run code.
    """
    found = _read(path)
    wanted = encoder.state_dict()
    prefix = _ir_prefix(path, found)
    if prefix is None:
        names = {name: name for name in wanted}
    elif isinstance(encoder, IR):
        names = {ours: prefix + theirs for ours, theirs in _ir_names(wanted).items()}
    else:
        raise UsageError(f"{path} holds an IR network of AdaFace or CVLface; choose encoder.backbone ir18 to ir101")
    _refuse_difference(path, found, {names[ours]: value for ours, value in wanted.items()})
    weights = {ours: found[theirs] for ours, theirs in names.items()}
    if prefix == _ADAFACE:
        weights["conv1.weight"] = weights["conv1.weight"].flip(1)  # AdaFace is trained on BGR
    encoder.load_state_dict(weights)


def _read(path: Path) -> State:
    """Return the weights that matter at evaluation, without the prefix of a wrapper for several devices."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give a file of weights")
    try:
        content = read_file(path)
    except Damaged as error:
        raise DataError(f"{path} is damaged: {error}; fetch it again") from None
    except Exception:  # a damaged file can raise anything, with a page of advice
        raise DataError(
            f"{path} is damaged, not PyTorch's, or holds more than tensors and plain values, which could run code; "
            "save the network's state_dict() alone, where it came from"
        ) from None
    if isinstance(content, dict) and "updates" in content:  # a checkpoint of ours
        content = encoder_weights(content)
    state = next((content[key] for key in _ENVELOPES if isinstance(content, dict) and key in content), content)
    if not _is_state(state):
        raise DataError(f"{path} holds no weights by name; save a network's state_dict()")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    named = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value for name, value in named.items() if not _ONLY_FOR_TRAINING.fullmatch(name)}


def _is_state(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())


def _ir_prefix(path: Path, found: State) -> str | None:
    """Return the prefix of an IR network's names, or None for names that are ours already."""
    if "input_layer.0.weight" in found:
        raise UsageError(
            f"{path} holds an IR network and not whether it expects RGB or BGR; "
            "put model. (AdaFace) or net. (CVLface) before its names"
        )
    return next((prefix for prefix in (*_CVLFACE, _ADAFACE) if f"{prefix}input_layer.0.weight" in found), None)


def _ir_names(ours: Iterable[str]) -> dict[str, str]:
    """Return, for each of our names, what an IR network calls it: its blocks are counted through all stages."""
    names: dict[str, str] = {}
    blocks: dict[tuple[str, str], int] = {}
    for name in ours:
        place, _, rest = name.partition(".")
        if place.startswith("layer"):
            block, place, rest = rest.split(".", 2)
            number = blocks.setdefault((name.split(".")[0], block), len(blocks))
            names[name] = f"body.{number}.{_IR_PLACES_IN_BLOCK.get(place, place)}.{rest}"
        else:
            names[name] = f"{_IR_PLACES[place]}.{rest}"
    return names


def _refuse_difference(path: Path, found: State, wanted: State) -> None:
    for name, value in wanted.items():
        if name not in found:
            raise UsageError(f"{path} lacks {name}; {_WAY_OUT}")
        if found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)}, not {tuple(value.shape)}"
            raise UsageError(f"{path}: {name} is of shape {shapes}; {_WAY_OUT}")
    left = [name for name in found if name not in wanted]
    if left:
        raise UsageError(f"{path} also holds {left[0]}, which the encoder has no place for; {_WAY_OUT}")
