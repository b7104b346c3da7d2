"""Checkpoints: whole or not there, and loaded without running code.

`checkpoints/step-00000123.pt` holds encoder, heads, optimiser, loader position and recipe; `checkpoints/best.pt` is the
one that did best on the validation.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shardgen.errors import DataError, UsageError
from shardgen.files import sync_folder

VERSION = 2
State = dict[str, Any]


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint aside, sync it and rename it; then drop all but the newest `keep`."""
    path = folder / f"step-{step:08d}.pt"
    _write(path, step, state)
    for old in all_in(folder)[:-keep]:
        old.unlink()
    return path


def save_best(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the checkpoint that did best so far, in the place of the one before."""
    _write(folder / "best.pt", step, state)


def _write(path: Path, step: int, state: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    with aside.open("wb") as stream:
        torch.save({"version": VERSION, "step": step, **state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def all_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def find(path: Path) -> Path:
    """Return the checkpoint that a path means: itself, or the newest of a run folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path} does not exist; give a run folder or a checkpoint")
    found = all_in(path / "checkpoints")
    if not found:
        raise DataError(f"{path} has no checkpoint in checkpoints/; train it first: facemix train RECIPE run={path}")
    return found[-1]


def is_finished(run: Path) -> bool:
    """Return whether a run's newest checkpoint is of its last step."""
    found = all_in(run / "checkpoints")
    if not found:
        return False
    state = load(found[-1])
    return bool(state["step"] == state["num_steps"])


class Damaged(Exception):
    """A file is not as it was written; the text says where."""


def read_file(path: Path) -> Any:
    """Return what is in a file of `torch.save`, tensors on the CPU; only tensors and plain values are accepted.

    So a file from elsewhere cannot run code. Raises `Damaged` when a part of it differs from its checksum, which torch
    writes and does not read, and whatever a file of something else makes torch raise.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise Damaged(f"{damaged} in it differs from its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def load(path: Path) -> State:
    """Return a checkpoint's content, tensors on the CPU.

    Raises `DataError` when it is damaged, something else, or of another version.
    """
    try:
        state = read_file(path)
    except Damaged as error:
        raise DataError(f"{path} is damaged: {error}; delete it, and --resume goes on from the one before") from None
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no checkpoint of facemix, or damaged: {reason}") from None
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version", "none") if isinstance(state, dict) else "none"
        raise DataError(f"{path}: checkpoint version {found}, this facemix reads {VERSION}")
    return state


def encoder_weights(state: State) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint's encoder that are worth measuring: their average, where one was kept."""
    average = state["updates"].get("average")
    if average is None:
        weights: dict[str, torch.Tensor] = state["encoder"]
        return weights
    return {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}
