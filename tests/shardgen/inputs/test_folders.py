"""Image folders: what counts as an image, and whose it is."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from shardgen.errors import DataError
from shardgen.images import Unreadable
from shardgen.inputs.folders import open_folder
from tests.shardgen.inputs.made import contents


def write_files(root: Path, names: Sequence[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_identities_are_folders(tmp_path: Path) -> None:
    write_files(tmp_path, ["b/2.JPG", "b/10.jpeg", "a/x.y.png", "race/a/1.webp", "race/0.bmp"])
    source = open_folder(tmp_path)
    assert [(name, identity) for name, identity, _ in contents(source)] == [
        ("a/x.y.png", "a"),
        ("b/10.jpeg", "b"),
        ("b/2.JPG", "b"),
        ("race/0.bmp", "race"),
        ("race/a/1.webp", "race/a"),
    ]
    assert all(image == name.encode() for name, _, image in contents(source))
    assert source.ignored == []


def test_images_directly_in_the_root_are_identities_of_their_own(tmp_path: Path) -> None:
    write_files(tmp_path, ["2.jpg", "1.jpg", "a/3.jpg", "a/4.jpg"])
    source = open_folder(tmp_path)
    assert [(name, identity) for name, identity, _ in contents(source)] == [
        ("1.jpg", "1.jpg"),
        ("2.jpg", "2.jpg"),
        ("a/3.jpg", "a"),
        ("a/4.jpg", "a"),
    ]


def test_hidden_files_stay_out_and_other_files_are_reported(tmp_path: Path) -> None:
    write_files(tmp_path, ["a/1.jpg", "a/.2.jpg", ".cache/3.jpg", "a/notes.txt", "readme", "b/Thumbs.db"])
    source = open_folder(tmp_path)
    assert list(source.names()) == ["a/1.jpg"]
    assert sorted(source.ignored) == ["a/notes.txt", "b/Thumbs.db", "readme"]


@pytest.mark.parametrize("names", [[], ["notes.txt"], [".hidden.jpg"]])
def test_a_folder_without_an_image_is_refused(tmp_path: Path, names: list[str]) -> None:
    write_files(tmp_path, names)
    with pytest.raises(DataError, match="holds no image"):
        open_folder(tmp_path)


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.jpg").touch()
    with pytest.raises(DataError, match="UTF-8"):
        open_folder(tmp_path)


def test_a_file_that_went_away_is_unreadable(tmp_path: Path) -> None:
    write_files(tmp_path, ["a/1.jpg", "a/2.jpg"])
    source = open_folder(tmp_path)
    (tmp_path / "a" / "1.jpg").unlink()
    with pytest.raises(Unreadable, match="No such file"):
        source.read(0)
    assert source.read(1) == b"a/2.jpg"


@pytest.mark.parametrize("names", [["a/1.jpg"], ["a/1.jpg", "a/2.jpg", "a/3.jpg"], ["a/1.jpg", "b/2.jpg"]])
def test_other_files_have_another_fingerprint(tmp_path: Path, names: list[str]) -> None:
    write_files(tmp_path / "first", ["a/1.jpg", "a/2.jpg"])
    write_files(tmp_path / "same", ["a/2.jpg", "a/1.jpg"])
    write_files(tmp_path / "other", names)
    first, same, other = (open_folder(tmp_path / name).fingerprint() for name in ("first", "same", "other"))
    assert first == same != other
