"""Every kind of input gives the same records, and is told apart from the others."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shardgen.errors import DataError, UsageError
from shardgen.inputs import KINDS, open_source, recognise
from shardgen.sources import Source
from tests.shardgen.inputs.made import FACES, WRITERS, contents, held, write_folder, write_tar, write_zip

HOSTILE = {
    "../../etc/passwd/1.jpg": b"up",
    "/etc/2.jpg": b"absolute",
    "a\nb/3.jpg": b"newline",
    "x" * 100 + "/" + "y" * 300 + "/4.jpg": b"long",
    "ümlaut/5.jpg": b"not ASCII",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_holds_what_a_folder_holds(tmp_path: Path, kind: str) -> None:
    source = open_source("auto", WRITERS[kind](tmp_path / "faces", FACES))
    assert recognise(tmp_path / "faces") == kind
    assert contents(source) == held(FACES)
    assert [source.read(record) for record in range(len(source))] == list(source.read_all()) == list(FACES.values())


def read_all(source: Source) -> list[tuple[str, bytes]]:
    return [(name, source.read(record)) for record, name in enumerate(source.names())]


def test_a_part_reads_just_its_records_in_another_process(tmp_path: Path) -> None:
    sources = [open_source("auto", write(tmp_path / kind, FACES)) for kind, write in WRITERS.items()]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        read = list(pool.map(read_all, [source.part(np.array([3, 0])) for source in sources]))
    assert read == [[list(FACES.items())[record] for record in (3, 0)]] * len(WRITERS)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_part_is_small(tmp_path: Path, kind: str) -> None:
    files = {f"{number}/{number}.jpg": b"" for number in range(2000)}
    source = open_source("auto", WRITERS[kind](tmp_path / "faces", files))
    assert len(pickle.dumps(source.part(np.array([7])))) < 2000


@pytest.mark.parametrize("kind", WRITERS)
def test_the_fingerprint_moves_with_the_content_and_not_with_the_place(tmp_path: Path, kind: str) -> None:
    write = WRITERS[kind]
    versions = {
        "here": FACES,
        "there": FACES,
        "renamed": {name.replace("2.png", "3.png"): content for name, content in FACES.items()},
        "other identity": {name.replace("bob/c", "eve"): content for name, content in FACES.items()},
        "longer": FACES | {"ann/1.jpg": b"longer" * 50},
        "fewer": dict(list(FACES.items())[1:]),
    }
    prints = [open_source("auto", write(tmp_path / name, files)).fingerprint() for name, files in versions.items()]
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1


@pytest.mark.parametrize("kind", WRITERS)
def test_the_stamp_changes_with_a_file_written_over(tmp_path: Path, kind: str) -> None:
    source = open_source("auto", WRITERS[kind](tmp_path / "faces", FACES))
    before = source.stamp()
    assert before == source.stamp()
    last = list(source.files())[-1]
    status = last.stat()
    last.write_bytes(last.read_bytes())
    assert last.stat().st_mtime_ns != status.st_mtime_ns
    assert source.stamp() != before


@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"folder", "recordio"}))
def test_hostile_names_are_just_names(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = open_source("auto", WRITERS[kind](tmp_path / "faces", HOSTILE))
    assert sorted(contents(source)) == sorted(held(HOSTILE))


@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"recordio"}))
def test_an_identity_pattern_goes_before_what_the_input_says(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / "faces", FACES)
    source = open_source("auto", path, identity_pattern=r"/(?P<identity>[0-9a-z])")
    assert [identity for _, identity, _ in contents(source)] == ["1", "2", "a", "c"]


@pytest.mark.parametrize("kind", WRITERS)
def test_an_option_for_another_kind_is_wrong_use(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / "faces", FACES)
    if kind != "recordio":
        with pytest.raises(UsageError, match="is for recordio inputs"):
            open_source("auto", path, list_file=tmp_path / "list.txt")
    if kind != "parquet":
        with pytest.raises(UsageError, match="is for parquet inputs"):
            open_source("auto", path, identity_column="person")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_input_is_wrong_use_of_every_kind(tmp_path: Path, kind: str) -> None:
    for asked in (kind, "auto"):
        with pytest.raises(UsageError, match="nowhere"):
            open_source(asked, tmp_path / "nowhere")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_folder_is_refused_by_every_kind(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=tmp_path.name):
        open_source(kind, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [[], ["notes.txt"], [".hidden.jpg"]])
def test_what_is_no_input_is_not_guessed_at(tmp_path: Path, names: list[str]) -> None:
    write_folder(tmp_path, dict.fromkeys(names, b""))
    with pytest.raises(UsageError, match="none of them; say which input it is: recordio"):
        open_source("auto", tmp_path)


def test_what_could_be_two_inputs_is_asked_about(tmp_path: Path) -> None:
    write_folder(tmp_path, FACES)
    write_zip(tmp_path / "again.zip", FACES)
    with pytest.raises(UsageError, match="looks like folder and zip; say which"):
        open_source("auto", tmp_path)
    assert contents(open_source("folder", tmp_path)) == contents(open_source("zip", tmp_path)) == held(FACES)


def test_a_single_image_is_no_input(tmp_path: Path) -> None:
    write_folder(tmp_path, {"1.jpg": b""})
    with pytest.raises(UsageError, match="looks like folder"):
        open_source("auto", tmp_path / "1.jpg")


def test_an_input_without_any_identity_shows_the_way_out(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "faces.tar", {"1_ann.jpg": b"one", "2_bob.jpg": b"two"})
    with pytest.raises(DataError, match=r"identity pattern that finds it in names such as '1_ann\.jpg'"):
        open_source("auto", path)
    source = open_source("auto", path, identity_pattern="_([a-z]+)")
    assert contents(source) == [("1_ann.jpg", "ann", b"one"), ("2_bob.jpg", "bob", b"two")]
