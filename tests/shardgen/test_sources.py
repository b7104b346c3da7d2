"""Inputs: which records a source has, whose they are, and what it refuses at once."""

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable, check
from shardgen.recordio import MAGIC, RecordWriter, pack, read_index, write_insightface
from shardgen.sources import FolderSource, RecordIOSource, open_folder, open_recordio

MAGIC_BYTES = MAGIC.to_bytes(4, "little")
# Nothing decodes at opening, so these need not be faces; one of them is cut into parts.
IMAGES = [[b"one" * 5, b"1234" + MAGIC_BYTES + b"two" * 20], [b"three"], [b"four", b"", b"six" * 20]]
FLAT = [image for images in IMAGES for image in images]


def write_records(folder: Path, records: Sequence[tuple[int, bytes]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / "train") as writer:
        for key, payload in records:
            writer.write(key, payload)
    return folder / "train.rec"


def write_layout(folder: Path, header: str) -> Path:
    """Write InsightFace's layout with record 0 `first`, `last` or in the `middle`, or the images alone (`none`).

    The middle, between the images and the identity records, is where InsightFace's own face2rec2.py puts it.
    """
    images = [(key, pack([0 if key <= 2 else 1 if key == 3 else 2], key, image)) for key, image in enumerate(FLAT, 1)]
    ranges = [
        (key, pack(first_end, key, b"")) for key, first_end in zip((7, 8, 9), ((1, 3), (3, 4), (4, 7)), strict=True)
    ]
    zero = [(0, pack((7, 10), 0, b""))]
    order = {
        "first": [zero, images, ranges],
        "middle": [images, zero, ranges],
        "last": [images, ranges, zero],
        "none": [images],
    }
    return write_records(folder, [record for part in order[header] for record in part])


def contents(source: RecordIOSource | FolderSource) -> list[tuple[str, str, bytes]]:
    """Return (name, identity, image) of every record."""
    records = enumerate(zip(source.names(), source.labels.tolist(), strict=True))
    return [(name, source.identities[label], source.read(record)) for record, (name, label) in records]


LAYOUT = list(zip("123456", "001222", FLAT, strict=True))


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("header", ["first", "middle", "last", "none"])
def test_only_images_count_wherever_the_header_is(tmp_path: Path, header: str, indexed: bool) -> None:
    path = write_layout(tmp_path, header)
    if not indexed:
        path.with_suffix(".idx").unlink()
    first_key = 0 if header == "none" and not indexed else 1
    assert contents(open_recordio(path)) == [(str(key), *rest) for key, (_, *rest) in enumerate(LAYOUT, first_key)]


def test_the_order_of_the_index_does_not_matter(tmp_path: Path) -> None:
    index = write_layout(tmp_path, "last").with_suffix(".idx")
    index.write_text("\n".join(reversed(index.read_text().splitlines())))
    assert contents(open_recordio(tmp_path)) == LAYOUT


def test_without_a_header_every_record_counts(tmp_path: Path) -> None:
    write_records(tmp_path, [(7, pack([3], 7, b"a")), (2, pack([3], 2, b"b")), (5, pack([1], 5, b"c"))])
    assert contents(open_recordio(tmp_path)) == [("2", "3", b"b"), ("5", "1", b"c"), ("7", "3", b"a")]
    (tmp_path / "train.idx").unlink()
    assert contents(open_recordio(tmp_path)) == [("0", "3", b"a"), ("1", "3", b"b"), ("2", "1", b"c")]


def test_the_first_of_several_labels_is_the_identity(tmp_path: Path) -> None:
    write_records(tmp_path, [(0, pack([4, 0], 0, b"two labels")), (1, pack([9, 8, 7, 6], 1, b"four"))])
    assert contents(open_recordio(tmp_path)) == [("0", "4", b"two labels"), ("1", "9", b"four")]


def test_a_header_that_the_magic_cuts_into_parts_is_read(tmp_path: Path) -> None:
    write_records(tmp_path, [(0, pack([5.0], MAGIC, b"image")), (1, pack([6.0, 0.0], MAGIC << 32, b"image"))])
    assert contents(open_recordio(tmp_path)) == [("0", "5", b"image"), ("1", "6", b"image")]


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), float("-inf"), 2.0**24])
@pytest.mark.parametrize("more", [[], [1.0]])
def test_a_label_that_is_no_identity_leaves_its_record_without_one(
    tmp_path: Path, label: float, more: list[float]
) -> None:
    write_records(tmp_path, [(0, pack([label, *more], 0, b"image")), (1, pack([2**24 - 1], 1, b"image"))])
    source = open_recordio(tmp_path)
    assert (source.labels.tolist(), source.identities) == ([-1, 0], ["16777215"])
    assert source.read(1) == b"image"
    with pytest.raises(Unreadable, match="no identity: label"):
        source.read(0)


@pytest.mark.parametrize("payload", [b"", b"short", pack([1.0, 2.0], 0, b"")[:26]])
def test_a_record_too_short_for_its_header_is_unreadable_and_the_others_are_not(tmp_path: Path, payload: bytes) -> None:
    write_records(tmp_path, [(0, payload), (1, pack([1], 1, b"image"))])
    source = open_recordio(tmp_path)
    assert (source.labels.tolist(), source.read(1)) == ([-1, 0], b"image")
    with pytest.raises(Unreadable, match=f"{len(payload)} bytes"):
        source.read(0)


def lengths_that_open(path: Path, written: bytes) -> list[int]:
    """Return to which lengths a file can be cut without being refused at opening."""
    opened = []
    for length in range(len(written)):
        path.write_bytes(written[:length])
        try:
            open_recordio(path.with_suffix(".rec"))
        except DataError:
            continue
        opened.append(length)
    return opened


@pytest.mark.parametrize("indexed", [True, False])
def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path, indexed: bool) -> None:
    write_insightface(tmp_path, IMAGES)
    path = tmp_path / "train.rec"
    shutil.copy(path.with_suffix(".idx"), path.with_suffix(".idx.kept"))
    if not indexed:
        path.with_suffix(".idx").unlink()
    written, starts = path.read_bytes(), read_index(path.with_suffix(".idx.kept"))[1]
    # Without an index, images cut off between two of them leave what could be a file without header.
    whole_images = {start - padding for start in starts[1:8].tolist() for padding in range(4)}
    assert set(lengths_that_open(path, written)) <= (set() if indexed else whole_images)


def test_a_file_without_header_cut_inside_a_record_is_refused(tmp_path: Path) -> None:
    path = write_layout(tmp_path, "none")
    written, starts = path.read_bytes(), [line.split()[1] for line in path.with_suffix(".idx").read_text().splitlines()]
    path.with_suffix(".idx").unlink()
    # A cut between two records leaves a whole, shorter file; padding that lacks costs no byte of an image.
    between = {int(start) - padding for start in starts[1:] for padding in range(4)}
    assert set(lengths_that_open(path, written)) <= between | {len(written) - padding for padding in (1, 2, 3)}


@pytest.mark.parametrize("header", ["first", "middle", "last", "none"])
def test_an_index_cut_at_any_byte_is_refused(tmp_path: Path, header: str) -> None:
    index = write_layout(tmp_path, header).with_suffix(".idx")
    written = index.read_bytes()
    assert lengths_that_open(index, written) == [len(written) - 1]  # lacks just the last line's end


Edit = Callable[[list[str]], list[str]]
DAMAGE: dict[str, Edit] = {
    "an offset inside a record": lambda lines: [lines[0].replace("\t0", "\t4"), *lines[1:]],
    "the second part of a record": lambda lines: ["2\t84", *lines[:1], *lines[2:]],
    "an offset past the end": lambda lines: [*lines[:-1], "0\t100000"],
    "an offset past all files": lambda lines: [*lines[:-1], f"0\t{2**63 - 1}"],
    "a negative offset": lambda lines: [*lines[:-1], "0\t-40"],
    "an offset before all files": lambda lines: [*lines[:-1], f"0\t{-(2**40)}"],
    "a key twice": lambda lines: [*lines, lines[0]],
    "a record under two keys": lambda lines: [lines[0], lines[1].partition("\t")[0] + "\t0", *lines[2:]],
    "a line less": lambda lines: lines[:-1],
    "a line more": lambda lines: [*lines, "77\t0"],
    "text": lambda lines: ["<html>", "not found"],
    "nothing": lambda lines: [],
    "a key without offset": lambda lines: [*lines[:-1], "0\t"],
}


@pytest.mark.parametrize("header", ["last", "none"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_refused(tmp_path: Path, damage: str, header: str) -> None:
    path = write_layout(tmp_path, header)
    assert path.read_bytes()[84:88] == MAGIC_BYTES  # where the second record's second part starts
    index = path.with_suffix(".idx")
    index.write_text("".join(f"{line}\n" for line in DAMAGE[damage](index.read_text().splitlines())))
    with pytest.raises(DataError, match=r"train\.(rec|idx)"):
        open_recordio(path)


@pytest.mark.parametrize("line", range(10))
def test_an_index_with_fewer_lines_than_the_header_counts_is_refused(tmp_path: Path, line: int) -> None:
    index = write_layout(tmp_path, "last").with_suffix(".idx")
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(DataError, match=r"train\.(rec|idx)"):
        open_recordio(tmp_path)


@pytest.mark.parametrize("counts", [(6, 10), (8, 10), (7, 9), (7, 11)])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_header_that_miscounts_is_refused(tmp_path: Path, counts: tuple[int, int], indexed: bool) -> None:
    path = write_layout(tmp_path, "last")
    content = path.read_bytes()
    path.write_bytes(content.removesuffix(pack((7, 10), 0, b"")) + pack(counts, 0, b""))
    if not indexed:
        path.with_suffix(".idx").unlink()
    with pytest.raises(DataError, match=r"train\.rec"):
        open_recordio(path)


@pytest.mark.parametrize("content", [b"", b"no records at all", b"\x0a\x23"])
def test_a_file_that_is_no_recordio_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.rec").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.rec"):
        open_recordio(tmp_path)


@pytest.mark.parametrize(
    ("names", "found"), [(["train", "val"], "train"), (["faces"], "faces"), (["a", "b"], None), ([], None)]
)
def test_a_folder_must_say_which_file_is_meant(tmp_path: Path, names: list[str], found: str | None) -> None:
    for name in names:
        write_records(tmp_path, [(0, pack([1], 0, name.encode()))])
        (tmp_path / "train.idx").unlink()
        (tmp_path / "train.rec").rename(tmp_path / f"{name}.made")
    for name in names:
        (tmp_path / f"{name}.made").rename(tmp_path / f"{name}.rec")
    if found is None:
        with pytest.raises(DataError, match="give the file itself"):
            open_recordio(tmp_path)
    else:
        assert open_recordio(tmp_path).read(0) == found.encode()


@pytest.mark.parametrize("opener", [open_recordio, open_folder])
def test_a_missing_input_is_wrong_use(tmp_path: Path, opener: Callable[[Path], object]) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        opener(tmp_path / "nowhere")


@pytest.mark.parametrize("indexed", [True, False])
def test_the_real_file_holds_ten_images_of_each_of_24_people(real_faces: Path, tmp_path: Path, indexed: bool) -> None:
    path = tmp_path / "train.rec"
    path.symlink_to(real_faces / "orl" / "train.rec")
    if indexed:
        path.with_suffix(".idx").symlink_to(real_faces / "orl" / "train.idx")
    source = open_recordio(path)
    assert list(source.names()) == [str(key) for key in range(1, 241)]
    assert source.identities == [str(number) for number in range(24)]
    assert source.labels.tolist() == [number for number in range(24) for _ in range(10)]
    assert {(check(source.read(record)).width, check(source.read(record)).height) for record in range(240)} == {
        (112, 112)
    }


def open_both(tmp_path: Path) -> list[tuple[RecordIOSource | FolderSource, list[tuple[str, str, bytes]]]]:
    """Return a source of each kind with what it holds."""
    write_insightface(tmp_path / "records", IMAGES)
    write_files(tmp_path / "files", ["a/1.jpg", "b/2.jpg", "b/3.jpg"])
    sources: list[RecordIOSource | FolderSource] = [
        open_recordio(tmp_path / "records"),
        open_folder(tmp_path / "files")[0],
    ]
    return [(source, contents(source)) for source in sources]


def write_files(root: Path, names: Sequence[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_a_part_of_a_source_reads_just_its_records_in_another_process(tmp_path: Path) -> None:
    for source, held in open_both(tmp_path):
        part = pickle.loads(pickle.dumps(source.part(np.array([2, 0]))))
        assert len(part) == 2
        assert list(part.names()) == [held[2][0], held[0][0]]
        assert [part.read(0), part.read(1)] == [held[2][2], held[0][2]]
        assert [source.identities[label] for label in part.labels] == [held[2][1], held[0][1]]


def test_identities_are_folders(tmp_path: Path) -> None:
    write_files(tmp_path, ["b/2.JPG", "b/10.jpeg", "a/x.y.png", "race/a/1.webp", "race/0.bmp"])
    source, ignored = open_folder(tmp_path)
    assert [(name, identity) for name, identity, _ in contents(source)] == [
        ("a/x.y.png", "a"),
        ("b/10.jpeg", "b"),
        ("b/2.JPG", "b"),
        ("race/0.bmp", "race"),
        ("race/a/1.webp", "race/a"),
    ]
    assert all(image == name.encode() for name, _, image in contents(source))
    assert ignored == []


def test_images_directly_in_the_root_are_identities_of_their_own(tmp_path: Path) -> None:
    write_files(tmp_path, ["2.jpg", "1.jpg", "a/3.jpg", "a/4.jpg"])
    source, _ = open_folder(tmp_path)
    assert [(name, identity) for name, identity, _ in contents(source)] == [
        ("1.jpg", "1.jpg"),
        ("2.jpg", "2.jpg"),
        ("a/3.jpg", "a"),
        ("a/4.jpg", "a"),
    ]


def test_hidden_files_stay_out_and_other_files_are_reported(tmp_path: Path) -> None:
    write_files(tmp_path, ["a/1.jpg", "a/.2.jpg", ".cache/3.jpg", "a/notes.txt", "readme", "b/Thumbs.db"])
    source, ignored = open_folder(tmp_path)
    assert list(source.names()) == ["a/1.jpg"]
    assert sorted(ignored) == ["a/notes.txt", "b/Thumbs.db", "readme"]


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
    source, _ = open_folder(tmp_path)
    (tmp_path / "a" / "1.jpg").unlink()
    with pytest.raises(Unreadable, match="No such file"):
        source.read(0)
    assert source.read(1) == b"a/2.jpg"


@pytest.mark.parametrize("names", [["a/1.jpg"], ["a/1.jpg", "a/2.jpg", "a/3.jpg"], ["a/1.jpg", "b/2.jpg"]])
def test_other_files_have_another_fingerprint(tmp_path: Path, names: list[str]) -> None:
    write_files(tmp_path / "first", ["a/1.jpg", "a/2.jpg"])
    write_files(tmp_path / "same", ["a/2.jpg", "a/1.jpg"])
    write_files(tmp_path / "other", names)
    first, same, other = (open_folder(tmp_path / name)[0].fingerprint() for name in ("first", "same", "other"))
    assert first == same != other


@pytest.mark.parametrize(
    "records",
    [
        [(0, pack([1], 0, b"a")), (1, pack([3], 1, b"b"))],
        [(0, pack([1], 0, b"a")), (2, pack([2], 2, b"b"))],
        [(0, pack([1], 0, b"aaaaa")), (1, pack([2], 1, b"b"))],
        [(0, pack([1], 0, b"a"))],
    ],
)
def test_other_records_have_another_fingerprint(tmp_path: Path, records: list[tuple[int, bytes]]) -> None:
    original = [(0, pack([1], 0, b"a")), (1, pack([2], 1, b"b"))]
    made = {"first": original, "same": original, "other": records}
    prints = [open_recordio(write_records(tmp_path / name, content)).fingerprint() for name, content in made.items()]
    assert prints[0] == prints[1] != prints[2]
