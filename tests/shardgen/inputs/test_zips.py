"""Zip archives: the records of the unpacked folder, and nothing that the archive did not promise."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError
from shardgen.images import Unreadable
from shardgen.inputs import zips
from shardgen.inputs.folders import open_folder
from shardgen.inputs.zips import open_zip
from shardgen.tags import no_tags
from tests.shardgen.inputs.made import FACES, contents, held, write_folder, write_zip


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_real_faces_in_a_zip_make_the_set_that_their_folder_makes(
    real_faces: Path, tmp_path: Path, compression: int
) -> None:
    images = real_faces / "standin" / "images"
    files = {
        path.relative_to(images).as_posix(): path.read_bytes()
        for number in (31, 2, 100)
        for path in (images / f"id{number:05}").iterdir()
    }
    sources = [
        open_folder(write_folder(tmp_path / "folder", files)),
        open_zip(write_zip(tmp_path / "faces.zip", files, compression)),
    ]
    config = ShardConfig(name="faces", origin="synthetic", shard_samples=10)
    manifests = [
        convert(source, no_tags(len(source)), tmp_path / f"set{number}", config)
        for number, source in enumerate(sources)
    ]
    assert manifests[0].num_samples == 24
    assert manifests[0].shards == manifests[1].shards
    assert manifests[0].identities == manifests[1].identities


def test_order_and_identities_are_those_of_the_unpacked_folder(tmp_path: Path) -> None:
    names = [
        "b/2.JPG",
        "b/10.jpeg",
        "b-/1.png",
        "b/a/1.png",
        "1.jpg",
        "a/x.y.png",
        "race/a/1.webp",
        "race/0.bmp",
        "B/1.tif",
    ]
    files = {name: name.encode() for name in names}
    assert contents(open_zip(write_zip(tmp_path / "faces.zip", files))) == contents(
        open_folder(write_folder(tmp_path / "faces", files))
    )


def test_archives_in_a_folder_are_read_as_if_unpacked_into_one(tmp_path: Path) -> None:
    write_zip(tmp_path / "subjects_1.zip", {"1/0.png": b"one", "2/0.png": b"two"})
    write_zip(tmp_path / "more" / "subjects_0.zip", {"0/0.png": b"zero", "1/1.png": b"one more"})
    source = open_zip(tmp_path)
    assert [(name, identity) for name, identity, _ in contents(source)] == [
        ("0/0.png", "0"),
        ("1/0.png", "1"),
        ("1/1.png", "1"),
        ("2/0.png", "2"),
    ]
    assert source.part(np.array([0])).read(0) == b"zero"


@pytest.mark.parametrize("second", ["b.zip", "a.zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, second: str) -> None:
    for archive in ("a.zip", second):
        with zipfile.ZipFile(tmp_path / archive, "a") as opened:
            opened.writestr("ann/1.jpg", archive)
    with pytest.raises(DataError, match=r"a\.zip: 'ann/1\.jpg' is there twice") as refused:
        open_zip(tmp_path)
    assert f"the second time in {'it' if second == 'a.zip' else second};" in str(refused.value)


def test_hidden_members_stay_out_and_others_are_reported(tmp_path: Path) -> None:
    names = ["ann/1.jpg", "ann/.2.jpg", "__MACOSX/ann/._1.jpg", ".cache/3.jpg", "ann/notes.txt", "ann/", "readme"]
    source = open_zip(write_zip(tmp_path / "faces.zip", dict.fromkeys(names, b"")))
    assert list(source.names()) == ["ann/1.jpg"]
    assert source.ignored == ["ann/notes.txt", "readme"]


def test_an_archive_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"faces\.zip holds no image \(1 other files\)"):
        open_zip(write_zip(tmp_path / "faces.zip", {"ann/notes.txt": b""}))


def test_an_archive_written_as_a_stream_is_read(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FACES.items():
            archive.writestr(name, content)
    (tmp_path / "faces.zip").write_bytes(pipe.getvalue())
    assert contents(open_zip(tmp_path / "faces.zip")) == held(FACES)


def test_an_archive_behind_other_bytes_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "faces.zip", FACES)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert contents(open_zip(path)) == held(FACES)


def test_zip64_archives_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = write_zip(tmp_path / "faces.zip", FACES)
    content = path.read_bytes()
    assert b"PK\6\6" in content
    assert contents(open_zip(path)) == held(FACES)
    at = content.index(b"PK\6\6") + 32
    path.write_bytes(content[:at] + b"\5" + content[at + 1 :])
    with pytest.raises(DataError, match="promises 5 members, its directory lists 4"):
        open_zip(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("<2xH=1", "encrypted"), ("<4xH=12", "packed by method 12"), ("<4xH=9", "packed by method 9")],
)
def test_a_member_that_cannot_be_read_is_named(tmp_path: Path, change: str, reason: str) -> None:
    path = write_zip(tmp_path / "faces.zip", FACES)
    content = bytearray(path.read_bytes())
    form, _, value = change.partition("=")
    struct.pack_into(form.replace("x", "x", 1), content, content.index(b"PK\1\2") + 6, int(value))
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"faces\.zip: 'ann/1\.jpg' is {reason}; unpack the archive"):
        open_zip(path)


def edited(path: Path, at: int, value: bytes) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[:at] + value + content[at + len(value) :])
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("at", [0, 14, 30, 40, 60])
def test_a_damaged_member_is_unreadable_and_the_others_are_not(tmp_path: Path, at: int, compression: int) -> None:
    files = {"ann/1.jpg": bytes(range(256)), "ann/2.jpg": b"two"}
    path = write_zip(tmp_path / "faces.zip", files, compression)
    source = open_zip(edited(path, at, b"\xa5"))
    if at == 14:  # the checksum's copy, which the directory overrules
        assert source.read(0) == files["ann/1.jpg"]
    else:
        with pytest.raises(Unreadable, match="damaged"):
            source.read(0)
    assert source.read(1) == b"two"


@pytest.mark.parametrize("promised", [0, 1, 999, 1001, 2**28 - 1, 2**28 + 1, 2**32 - 2])
def test_a_member_is_never_unpacked_beyond_what_is_promised(tmp_path: Path, promised: int) -> None:
    path = write_zip(tmp_path / "faces.zip", {"ann/1.jpg": bytes(1000)})
    entry = path.read_bytes().index(b"PK\1\2")
    source = open_zip(edited(path, entry + 24, struct.pack("<I", promised)))
    with pytest.raises(Unreadable, match="damaged" if promised < 2**28 else "too large"):
        source.read(0)


def test_a_bomb_stays_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "_MAX_IMAGE_BYTES", 1 << 20)
    path = write_zip(tmp_path / "faces.zip", {"ann/1.jpg": bytes(1 << 24)})
    with pytest.raises(Unreadable, match=f"too large: {1 << 24} bytes"):
        open_zip(path).read(0)


def test_a_directory_that_swallows_members_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "faces.zip", {f"ann/{number}.jpg": b"" for number in range(9)})
    entry = path.read_bytes().index(b"PK\1\2")
    with pytest.raises(DataError, match="promises 9 members, its directory lists 8"):
        open_zip(edited(path, entry + 32, struct.pack("<H", 46 + len("ann/0.jpg"))))


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_a_cut_archive_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_zip(tmp_path / "faces.zip", FACES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"faces\.zip is no whole zip archive"):
        open_zip(path)


def test_an_archive_cut_while_it_is_read_is_unreadable(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "faces.zip", FACES)
    source = open_zip(path)
    path.write_bytes(b"PK")
    with pytest.raises(Unreadable, match=r"cut: faces\.zip ends before byte 30"):
        source.read(0)
    path.unlink()
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        source.part(np.array([0])).read(0)
