"""RecordIO files: which records count, whose they are, and what is refused at once."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shardgen.errors import DataError, UsageError
from shardgen.images import Unreadable, check
from shardgen.inputs.records import open_recordio
from shardgen.recordio import MAGIC, RecordWriter, pack, read_index, write_insightface
from tests.shardgen.inputs.made import at_once, contents, one_by_one

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


def test_odd_records_among_plain_ones_read_as_they_do_alone(tmp_path: Path) -> None:
    in_parts = MAGIC_BYTES + b"in" + MAGIC_BYTES + b"parts"
    payloads = [
        pack([3.0], 0, b"plain"),
        pack([4.0, 9.0], 1, b"labels"),
        pack([5.0], 2, in_parts),
        pack([0.5], 3, b"nobody"),
        b"short",
        pack([6.0], 5, b""),
        b"\x09" + pack([7.0], 6, b"promises")[1:],
    ]
    write_records(tmp_path, list(enumerate(payloads)))
    source = open_recordio(tmp_path)
    read = at_once(source)
    assert read == one_by_one(source)
    assert read[:3] == [b"plain", b"labels", in_parts]
    assert [str(one).partition(":")[0] for one in read[3:5]] == ["no identity", "damaged record"]
    assert (read[5], str(read[6]).partition(":")[0]) == (b"", "damaged record")


def test_a_record_written_over_after_opening_is_unreadable_and_the_others_are_not(tmp_path: Path) -> None:
    write_records(tmp_path, [(key, pack([key], key, b"image%d" % key)) for key in range(3)])
    source = open_recordio(tmp_path)
    with source.path.open("r+b") as stream:
        stream.seek(int(source.offsets[1]))
        stream.write(b"gone")
    assert [str(one).partition(":")[0] for one in at_once(source)] == ["b'image0'", "damaged record", "b'image2'"]


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


FILES = {"ann/1.jpg": b"one", "ann/2.jpg": b"two", "bob/3.jpg": b"three"}
LISTED = [(name, name.partition("/")[0], content) for name, content in FILES.items()]


def listed(folder: Path, text: str, name: str = "list.txt", keys: Sequence[int] = (0, 1, 2)) -> Path:
    """Write the files as records that know no identity, and a list of them."""
    contents = zip(keys, FILES.values(), strict=True)
    rec = write_records(folder, [(key, pack([0.0], key, content)) for key, content in contents])
    (folder / name).write_text(text)
    return rec


TEXTS = {
    "DCFace's": ("list.txt", "0\tann/1.jpg\n1\tann/2.jpg\n2\tbob/3.jpg\n"),
    "DCFace's with labels": ("list.txt", "0\tann/1.jpg\t0\n1\tann/2.jpg\t0\n2\tbob/3.jpg\t1"),
    "im2rec's": ("train.lst", "2\t1.000000\tbob/3.jpg\n0\t0.000000\tann/1.jpg\n1\t0.000000\tann/2.jpg\n"),
    "im2rec's with more labels": ("train.lst", "0\t0\t7\tann/1.jpg\n1\t0\t7\tann/2.jpg\n2\t1\t7\tbob/3.jpg\n"),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("given", [True, False])
def test_a_list_names_records_and_their_folders_are_identities(tmp_path: Path, text: str, given: bool) -> None:
    name, lines = TEXTS[text]
    rec = listed(tmp_path, lines, name)
    if given:
        (tmp_path / name).rename(tmp_path / f"elsewhere{Path(name).suffix}")
    source = open_recordio(rec, tmp_path / f"elsewhere{Path(name).suffix}" if given else None)
    assert contents(source) == LISTED


@pytest.mark.parametrize(
    ("label", "identity"), [("3.000000", "3"), ("7", "7"), ("0.5", "0.5"), ("ann", "ann"), ("nan", "nan"), ("", None)]
)
def test_a_label_is_the_identity_of_a_path_without_a_folder(tmp_path: Path, label: str, identity: str | None) -> None:
    source = open_recordio(listed(tmp_path, f"0\t1.jpg\t{label}\n1\ta/2.jpg\t4\n2\ta/3.jpg\t4\n"))
    assert [found for _, found, _ in contents(source)] == [identity, "a", "a"]
    if identity is None:
        with pytest.raises(Unreadable, match="no identity: its list gives neither a folder nor a label"):
            source.read(0)


BAD_LISTS = {
    "0\ta/1.jpg\n1\ta/2.jpg\n": r"lacks 1 of 3 records \(such as 2\) and lists 0 others",
    "0\ta/1\n1\ta/2\n2\ta/3\n7\ta/4\n8\ta/5\n": r"lacks 0 of 3 records \(none\) and lists 2 others \(such as 7\)",
    "1\ta/1.jpg\t0\n1\ta/2.jpg\t0\n1\ta/3.jpg\t0\n": "line 2 repeats index 1",
    "0\ta/1.jpg\n1\ta/2.jpg\n0\ta/3.jpg\n": "index 0 twice",
    "a/1.jpg\na/2.jpg\n": "line 1: 'a/1.jpg' is not index<TAB>path",
    "0\ta/1.jpg\n\n": "line 2: '' is not index<TAB>path",
    "-1\ta/1.jpg\n": "line 1",
    f"{2**70}\ta/1.jpg\n": "line 1",
    "": "lacks 3 of 3 records",
}


@pytest.mark.parametrize("text", BAD_LISTS)
def test_a_list_of_other_records_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=rf"list\.txt.*{BAD_LISTS[text]}"):
        open_recordio(listed(tmp_path, text))
    (tmp_path / "list.txt").rename(tmp_path / "given.lst")
    with pytest.raises(DataError, match=r"given\.lst"):
        open_recordio(tmp_path, tmp_path / "given.lst")


@pytest.mark.parametrize("text", BAD_LISTS)
def test_an_lst_that_numbers_nothing_stays_out_with_a_notice(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "facemix.shard")
    source = open_recordio(listed(tmp_path, text, "train.lst"))
    assert list(source.names()) == ["0", "1", "2"]
    assert ["train.lst stays out" in message for message in caplog.messages] == [True]


def test_a_list_is_not_of_the_header_and_the_identity_records(tmp_path: Path) -> None:
    write_layout(tmp_path, "last")
    (tmp_path / "list.txt").write_text("".join(f"{key}\tp{key}/face.jpg\n" for key in range(1, 7)))
    assert [(name, identity) for name, identity, _ in contents(open_recordio(tmp_path))] == [
        (f"p{key}/face.jpg", f"p{key}") for key in range(1, 7)
    ]


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    rec = listed(tmp_path, "")
    (tmp_path / "list.txt").write_bytes(b"0\t\xff\xfe.jpg\n")
    with pytest.raises(DataError, match="no UTF-8 text"):
        open_recordio(rec)


def test_a_missing_list_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.txt does not exist"):
        open_recordio(listed(tmp_path, ""), tmp_path / "nowhere.txt")
