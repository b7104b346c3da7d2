"""RecordIO: whatever is written comes back, and nothing damaged passes."""

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.errors import DataError
from shardgen.images import Unreadable
from shardgen.recordio import MAGIC, RecordFile, RecordWriter, pack, read_index, unpack, write_insightface

MAGIC_BYTES = struct.pack("<I", MAGIC)
# Any length, with the magic at aligned and unaligned places, at the ends, repeated, and in halves.
pieces = st.one_of(st.binary(max_size=9), st.just(MAGIC_BYTES), st.just(MAGIC_BYTES[:2]), st.just(MAGIC_BYTES[2:]))
payloads = st.lists(pieces, max_size=8).map(b"".join)


def write(stem: Path, payloads_of: dict[int, bytes]) -> RecordFile:
    with RecordWriter(stem) as writer:
        for key, payload in payloads_of.items():
            writer.write(key, payload)
    return RecordFile(stem.with_suffix(".rec"))


@settings(deadline=None, max_examples=200)
@given(written=st.lists(payloads, min_size=1, max_size=5))
def test_payloads_come_back_by_scanning(tmp_path_factory: pytest.TempPathFactory, written: list[bytes]) -> None:
    file = write(tmp_path_factory.mktemp("rec") / "train", dict(enumerate(written)))
    assert [file.payload(offset) for offset in file.scan().tolist()] == written


@settings(deadline=None, max_examples=60)
@given(written=st.dictionaries(st.integers(0, 2**40), payloads, min_size=1, max_size=6), shuffle=st.randoms())
def test_payloads_come_back_through_an_index_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, written: dict[int, bytes], shuffle: random.Random
) -> None:
    stem = tmp_path_factory.mktemp("rec") / "train"
    file = write(stem, written)
    lines = stem.with_suffix(".idx").read_text().splitlines()
    shuffle.shuffle(lines)
    stem.with_suffix(".idx").write_text("\n".join(lines))
    keys, offsets = read_index(stem.with_suffix(".idx"))
    assert offsets.tolist() == file.scan().tolist()
    assert {key: file.payload(at) for key, at in zip(keys.tolist(), offsets.tolist(), strict=True)} == written


@settings(deadline=None)
@given(
    labels=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    record_id=st.integers(0, 2**64 - 1),
    image=payloads,
)
def test_labels_and_image_come_back(labels: list[float], record_id: int, image: bytes) -> None:
    record = unpack(pack(labels, record_id, image))
    assert (list(record.labels), record.id, record.image) == (labels, record_id, image)


@pytest.mark.parametrize(
    ("payload", "framed"),
    [
        (b"", [MAGIC, 0]),
        (b"abcde", [MAGIC, 5, b"abcde\0\0\0"]),
        (b"a" + MAGIC_BYTES, [MAGIC, 5, b"a", MAGIC, b"\0\0\0"]),  # not at a boundary: left alone
        (b"abcd" + MAGIC_BYTES + b"ef", [MAGIC, 1 << 29 | 4, b"abcd", MAGIC, 3 << 29 | 2, b"ef\0\0"]),
        (MAGIC_BYTES * 2, [MAGIC, 1 << 29, MAGIC, 2 << 29, MAGIC, 3 << 29]),
    ],
)
def test_the_frame_is_what_dmlc_core_writes(tmp_path: Path, payload: bytes, framed: list[int | bytes]) -> None:
    file = write(tmp_path / "train", {0: payload})
    expected = b"".join(part if isinstance(part, bytes) else struct.pack("<I", part) for part in framed)
    assert file.path.read_bytes() == expected


@pytest.mark.parametrize("name", ["orl", "odd_records"])
def test_files_of_mxnet_are_written_again_byte_by_byte(real_faces: Path, tmp_path: Path, name: str) -> None:
    original = RecordFile(real_faces / name / "train.rec")
    written = write(tmp_path / "train", {key: original.payload(at) for key, at in enumerate(original.scan().tolist())})
    assert written.path.read_bytes() == original.path.read_bytes()


def test_insightface_s_layout_has_images_ranges_and_a_header(tmp_path: Path) -> None:
    write_insightface(tmp_path, [[b"a", b"b"], [b"c"]])
    file = RecordFile(tmp_path / "train.rec")
    keys, offsets = read_index(tmp_path / "train.idx")
    records = {key: unpack(file.payload(at)) for key, at in zip(keys.tolist(), offsets.tolist(), strict=True)}
    assert {key: (record.labels, record.image) for key, record in records.items()} == {
        0: ((4, 6), b""),
        1: ((0,), b"a"),
        2: ((0,), b"b"),
        3: ((1,), b"c"),
        4: ((1, 3), b""),
        5: ((3, 4), b""),
    }
    assert (tmp_path / "property").read_text() == "2,112,112\n"


@pytest.mark.parametrize("offset", [12, 4, -8, 1000])
def test_an_offset_that_starts_no_record_is_refused(tmp_path: Path, offset: int) -> None:
    file = write(tmp_path / "train", {0: b"abcd" + MAGIC_BYTES + b"ef"})  # 12 is where its second part starts
    with pytest.raises(DataError, match=r"train\.rec"):
        file.payload(offset)


def test_a_record_that_lacks_its_last_part_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "train", {0: b"abcd" + MAGIC_BYTES + b"ef", 1: b"whole"})
    content = file.path.read_bytes()
    file.path.write_bytes(content[:12] + content[24:])  # the first part, then another record
    with pytest.raises(DataError, match="lacks its last"):
        RecordFile(file.path).payload(0)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.rec").touch()
    with pytest.raises(DataError, match="is empty"):
        RecordFile(tmp_path / "train.rec")


@pytest.mark.parametrize(
    "text", ["", "key\toffset\n", "0 0\n", "0\t0.5\n", "0\n", "0\t0\t0\n", "0\t\n", "\t0\n", "NA\t0\n", "0\t0\n0\t8\n"]
)
def test_anything_but_distinct_keys_with_offsets_is_no_index(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.idx"
    path.write_text(text)
    with pytest.raises(DataError, match=r"train\.idx"):
        read_index(path)


@pytest.mark.parametrize("payload", [b"", b"short", struct.pack("<IfQQ", 3, 0, 0, 0) + bytes(11)])
def test_a_payload_shorter_than_its_header_is_unreadable(payload: bytes) -> None:
    with pytest.raises(Unreadable, match=f"{len(payload)} bytes"):
        unpack(payload)
