"""Files and folders that are there whole or not at all."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from shardgen.errors import UsageError

ASIDE = "*.part"
"""Matches what a killed process leaves of files that it did not complete."""


_MAX_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An open file, closed when nobody holds it any more."""

    number: int

    def __del__(self) -> None:
        os.close(self.number)


def keeping_open() -> Callable[[Path], Descriptor]:
    """Return what opens files for reading and keeps the last few of them open, for as long as it is kept itself."""
    return lru_cache(_MAX_OPEN_FILES)(lambda path: Descriptor(os.open(path, os.O_RDONLY)))


@contextmanager
def writing_durably(path: Path, sync_renaming: bool = True) -> Iterator[BinaryIO]:
    """Write a file so that after a crash it is there whole or not at all.

    It is written aside under a name of this process' own, synced, renamed, and its folder synced, unless
    another file follows whose presence is what counts.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(path)
    if sync_renaming:
        sync_folder(path.parent)


def write_durably(path: Path, content: bytes, sync_renaming: bool = True) -> None:
    """Write all of a file at once, whole or not at all."""
    with writing_durably(path, sync_renaming) as stream:
        stream.write(content)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder's lock, which the system lets go of when the process ends, however it ends.

    Raises `UsageError` with the text `busy` while another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(busy) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def becoming(out: Path) -> Iterator[Path]:
    """Give the folder `OUT.unfinished` to write to, alone; when the body is done, one rename makes it `out`.

    Raises `UsageError` when `out` already holds something or another process is at it.
    """
    out = out.resolve()
    _refuse_occupied(out)
    unfinished = out.with_name(out.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    with locked(unfinished, f"{unfinished} is being written by another process; wait for it, or choose another OUT"):
        if not unfinished.exists():  # it was just renamed by the one that held the lock
            _refuse_occupied(out)
        yield unfinished
        unfinished.replace(out)
        sync_folder(out.parent)


def _refuse_occupied(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already holds something; choose another folder, or delete it first")
