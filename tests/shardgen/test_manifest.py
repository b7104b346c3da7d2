"""The manifest is published last, and is believed only as it was written."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.errors import DataError, UsageError
from shardgen.files import write_durably
from shardgen.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    FileInfo,
    Manifest,
    ShardInfo,
    hash_file,
    read_manifest,
    write_manifest,
)


def manifest(**fields: Any) -> Manifest:
    empty = FileInfo(bytes=0, sha256=hashlib.sha256().hexdigest())
    shard = ShardInfo(name="000000", num_samples=2, files={".tar": empty, ".idx": empty, ".parquet": empty})
    some: dict[str, Any] = {
        "name": "faces",
        "origin": "authentic",
        "num_read": 3,
        "num_samples": 2,
        "num_rejected": 1,
        "rejected_reasons": {"empty": 1},
        "rejected_file": empty,
        "axes": {"city": ["unknown", "Orléans"]},
        "counts": {"city": {"unknown": 1, "Orléans": 1}},
        "identities": ["a", "é/ü"],
        "num_identities": 2,
        "shards": [shard],
        "job": {"inputs": "00", "seed": 0, "order": "shuffled"},
        "tag_sources": [],
    }
    return Manifest(**some | fields)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    found = read_manifest(tmp_path)
    assert found == manifest().model_copy(update={"seal": found.seal})
    assert f'"manifest_sha256": "{found.seal}"' in (tmp_path / MANIFEST).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_the_bytes_depend_on_the_content_only(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest(job={"seed": 0, "order": "shuffled"}))
    first = (tmp_path / MANIFEST).read_bytes()
    write_manifest(tmp_path, manifest(job={"order": "shuffled", "seed": 0}))
    assert (tmp_path / MANIFEST).read_bytes() == first


def test_no_byte_can_change_unnoticed(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    path = tmp_path / MANIFEST
    written = path.read_bytes()

    @settings(deadline=None, max_examples=200)
    @given(position=st.integers(0, len(written) - 1), flip=st.integers(1, 255))
    def flip_one(position: int, flip: int) -> None:
        path.write_bytes(written[:position] + bytes([written[position] ^ flip]) + written[position + 1 :])
        with pytest.raises(DataError, match="not as it was written"):
            read_manifest(tmp_path)

    flip_one()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"[]", b'["manifest_sha256"]', b"null", b"1", b'"text"', b"\xff", b'{"manifest_sha256": 0}'],
)
def test_anything_else_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match="not as it was written"):
        read_manifest(tmp_path)


def test_another_layout_of_the_same_fields_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    fields = json.loads((tmp_path / MANIFEST).read_bytes())
    (tmp_path / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(DataError, match="not as it was written"):
        read_manifest(tmp_path)


def test_another_format_version_is_refused_by_name(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest(format_version=FORMAT_VERSION + 1))
    with pytest.raises(DataError, match=f"has format {FORMAT_VERSION + 1}, this facemix reads {FORMAT_VERSION}"):
        read_manifest(tmp_path)


def test_a_folder_without_manifest_is_unfinished_and_a_missing_one_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did not finish"):
        read_manifest(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        read_manifest(tmp_path / "nowhere")


def test_a_file_that_cannot_be_completed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    write_durably(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 20, (1 << 20) + 1])
def test_a_file_s_hash_is_its_sha_256(tmp_path: Path, size_bytes: int) -> None:
    content = b"x" * size_bytes
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == FileInfo(bytes=size_bytes, sha256=hashlib.sha256(content).hexdigest())
