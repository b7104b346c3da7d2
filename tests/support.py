"""What tests share: one factory of small shard sets, and the command line as a user calls it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.inputs.folders import open_folder
from shardgen.procedural import draw_folder
from shardgen.tag_tables import join_table, read_table
from shardgen.tags import Records, no_tags

ROOT = Path(__file__).parent.parent


def make_set(
    out: Path,
    identities: range = range(8),
    images: int = 4,
    *,
    tagged: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Draw faces and convert them to a shard set, with the tag axis `group` unless told otherwise."""
    raw = out.with_name(out.name + ".raw")
    draw_folder(raw, seed, identities, range(images))
    source = open_folder(raw / "images")
    tags = no_tags(len(source))
    if tagged:
        tags = join_table(read_table(raw / "identities.csv"), Records(source.names, source.identities, source.labels))
    options: dict[str, Any] = {"name": out.name, "origin": "authentic"}
    convert(source, tags, out, ShardConfig(**options | config))
    return out


class Killed(BaseException):
    """Stands for the end of the process."""


def stop_before(monkeypatch: pytest.MonkeyPatch, operation: int, *more: str) -> None:
    """Let the process end before its so-manieth sync, rename, removal, or other named operation on a path."""
    done = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done > operation:
                raise Killed
            return original(*arguments, **options)

        return wrapped

    monkeypatch.setattr(os, "fsync", counted(lambda _: None))  # syncing for real would take most of the time
    for name in ("replace", "rename", "unlink", *more):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


def facemix(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait up to 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def cut_in_half(path: Path) -> None:
    """Cut a file short where it lies."""
    os.truncate(path, path.stat().st_size // 2)


def extend(path: Path) -> None:
    """Append to a file."""
    with path.open("ab") as stream:
        stream.write(b"more")


def exchange(path: Path) -> None:
    """Rename another file of the same size over it."""
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes()[::-1])
    other.replace(path)
