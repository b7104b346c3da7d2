"""Checkpoints: whole or not there, newest first, and no code runs while one is loaded."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.errors import DataError, UsageError
from train import checkpoint

STATE = {"weight": torch.arange(50_000.0), "names": ["a"], "nested": {"rate": 0.5, "none": None}}


class Call:
    """Pickles into a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return checkpoint.save(tmp_path_factory.mktemp("content"), 7, STATE, keep=1).read_bytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to write damaged checkpoints into."""
    return tmp_path_factory.mktemp("damaged") / "step-00000007.pt"


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        checkpoint.load(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, STATE, keep=1)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["weight"], STATE["weight"])  # type: ignore[arg-type]
    assert (loaded["step"], loaded["names"], loaded["nested"]) == (7, STATE["names"], STATE["nested"])


@settings(deadline=None, max_examples=15)
@given(steps=st.sets(st.integers(0, 10**6), min_size=1, max_size=6), keep=st.integers(1, 4))
def test_the_newest_are_kept(steps: set[int], keep: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    saved = [checkpoint.save(run / "checkpoints", step, {}, keep) for step in sorted(steps)]
    assert checkpoint.all_in(run / "checkpoints") == saved[-keep:]
    assert sorted((run / "checkpoints").iterdir()) == saved[-keep:]
    assert checkpoint.find(run) == saved[-1]


def test_a_crash_while_saving_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint.save(tmp_path / "checkpoints", 7, STATE, keep=1)

    def crash(state: object, stream: Any) -> None:
        stream.write(b"PK half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "checkpoints", 8, STATE, keep=1)
    assert checkpoint.find(tmp_path) == before
    assert checkpoint.load(before)["step"] == 7


def test_a_leftover_of_a_crash_is_no_checkpoint_and_hinders_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-00000009.part").write_bytes(b"half a file")
    with pytest.raises(DataError, match="no checkpoint"):
        checkpoint.find(tmp_path)
    saved = checkpoint.save(folder, 9, STATE, keep=1)
    assert checkpoint.load(checkpoint.find(tmp_path))["step"] == 9
    assert list(folder.iterdir()) == [saved]


def test_a_file_means_itself(tmp_path: Path) -> None:
    older = checkpoint.save(tmp_path / "checkpoints", 1, STATE, keep=2)
    checkpoint.save(tmp_path / "checkpoints", 2, STATE, keep=2)
    assert checkpoint.find(older) == older


def test_a_path_that_does_not_exist_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent does not exist"):
        checkpoint.find(tmp_path / "absent")


@pytest.mark.parametrize("as_torch", [True, False], ids=["torch", "pickle"])
@pytest.mark.parametrize("function", ["system", "eval"])
def test_a_file_that_would_run_code_is_refused_before_it_does(function: str, as_torch: bool, tmp_path: Path) -> None:
    path, sentinel = tmp_path / "step-00000001.pt", tmp_path / "ran"
    calls = {"system": Call(os.system, f"touch {sentinel}"), "eval": Call(eval, f"open({str(sentinel)!r}, 'w')")}
    state = {"version": checkpoint.VERSION, "step": 1, "weight": calls[function]}
    if as_torch:
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    refused(path)
    assert not sentinel.exists()


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(share: float, content: bytes, file: Path) -> None:
    file.write_bytes(content[: int(share * len(content))])
    refused(file)


def test_changed_weights_are_noticed(content: bytes, file: Path) -> None:
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1  # amid the weights, which are nearly all of the file
    file.write_bytes(damaged)
    refused(file)


@pytest.mark.parametrize("text", [b"", b".", b"hello", b"# facemix\n", b"{}", b"\x80\x02.", b"PK\x03\x04"])
def test_a_file_of_something_else_is_refused(text: bytes, file: Path) -> None:
    file.write_bytes(text)
    refused(file)


@settings(deadline=None, max_examples=60)
@given(noise=st.binary(max_size=100))
def test_noise_is_refused(noise: bytes, file: Path) -> None:
    file.write_bytes(noise)
    refused(file)


@pytest.mark.parametrize("state", [{"version": 0}, {"model": 1}, [1, 2], 3], ids=str)
def test_another_version_is_refused(state: object, file: Path) -> None:
    torch.save(state, file)
    assert f"this facemix reads {checkpoint.VERSION}" in refused(file)
