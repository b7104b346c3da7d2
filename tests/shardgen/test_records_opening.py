"""Opening a large RecordIO file: the same records as a naive reading finds, in little memory."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError
from shardgen.inputs.records import RecordIOSource, open_recordio
from shardgen.recordio import RecordWriter, pack, write_insightface
from shardgen.sample import sample_key
from shardgen.sources import CHUNK_RECORDS, Source
from shardgen.tags import no_tags
from tests.support import ROOT

# Records are looked at in hundreds and in tens of thousands; these fill several of either.
MANY = 2 * CHUNK_RECORDS + 300


def write(folder: Path, keys: Sequence[int], labels: Sequence[float]) -> Path:
    """Write records whose images are their keys."""
    with RecordWriter(folder / "train") as writer:
        for key, label in zip(keys, labels, strict=True):
            writer.write(key, pack([label], 0, str(key).encode()))
    return folder / "train.rec"


Row = tuple[str, str | None, bytes | None]


def naive(keys: Sequence[int], labels: Sequence[float]) -> list[Row]:
    """Return what a source of these records holds: name, identity, and image of those that have one."""
    rows: list[Row] = []
    for key, label in sorted(zip(keys, labels, strict=True)):
        is_identity = 0 <= label < 2**24 and label % 1 == 0
        rows.append((str(key), str(int(label)), str(key).encode()) if is_identity else (str(key), None, None))
    return rows


def found(source: Source) -> list[Row]:
    records = enumerate(zip(source.names(), source.labels.tolist(), strict=True))
    return [
        (name, source.identities[label], source.read(record)) if label >= 0 else (name, None, None)
        for record, (name, label) in records
    ]


labels_of_all_kinds = st.one_of(st.integers(0, 9).map(float), st.floats(width=32))


@settings(deadline=None, max_examples=150)
@given(
    records=st.dictionaries(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), labels_of_all_kinds, min_size=1),
    shuffle=st.randoms(),
)
def test_any_keys_and_labels_come_back_sorted_by_key(
    tmp_path_factory: pytest.TempPathFactory, records: dict[int, float], shuffle: Random
) -> None:
    path = write(tmp_path_factory.mktemp("rec"), list(records), list(records.values()))
    lines = path.with_suffix(".idx").read_text().splitlines()
    shuffle.shuffle(lines)
    path.with_suffix(".idx").write_text("\n".join(lines))
    source = open_recordio(path)
    assert found(source) == naive(list(records), list(records.values()))
    assert source.identities == sorted(set(source.identities), key=int)


ORDERS: dict[str, Callable[[int], list[int]]] = {
    "counting": lambda count: list(range(count)),
    "from far above": lambda count: list(range(2**40, 2**40 + count)),
    "with gaps": lambda count: list(range(0, 3 * count, 3)),
    "backwards": lambda count: list(range(count))[::-1],
    "shuffled": lambda count: np.random.default_rng(0).permutation(count).tolist(),
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_large_file_holds_what_a_naive_reading_finds(tmp_path: Path, order: str) -> None:
    keys = ORDERS[order](MANY)
    labels = np.random.default_rng(1).integers(-1, 2000, MANY).astype(float).tolist()
    source, rows = open_recordio(write(tmp_path, keys, labels)), naive(keys, labels)
    assert found(source) == rows
    some = np.random.default_rng(2).permutation(MANY)[:500]
    part = replace(source.part(some), identities=source.identities)
    assert found(part) == [rows[row] for row in some]


def whole_columns(source: RecordIOSource, first_key: int) -> str:
    """Hash what a fingerprint is of, each column as one piece."""
    keys = np.arange(first_key, first_key + len(source), dtype=np.int64)
    columns = [source.labels.astype(np.int32).tobytes()]
    columns += [column.astype(np.int64).tobytes() for column in (keys, source.offsets, source.ends)]
    return hashlib.sha256("\0".join(source.identities).encode() + b"".join(columns)).hexdigest()


@pytest.mark.parametrize("first_key", [0, 5])
def test_a_fingerprint_is_of_whole_columns_of_8_byte_numbers_and_4_byte_labels(tmp_path: Path, first_key: int) -> None:
    keys = range(first_key, first_key + MANY)
    source = open_recordio(write(tmp_path, keys, [float(key // 10) for key in keys]))
    assert source.fingerprint() == whole_columns(source, first_key)


def test_records_end_where_the_next_one_starts_and_the_last_where_the_file_does(tmp_path: Path) -> None:
    source = open_recordio(write(tmp_path, range(9), [0.0] * 9))
    assert [*source.offsets.tolist()[1:], (tmp_path / "train.rec").stat().st_size] == source.ends.tolist()
    write_insightface(tmp_path, [[b"a", b"b"], [b"c"]])  # where records without images follow the last image
    assert open_recordio(tmp_path).ends.tolist() == [36, 72, 108]


@pytest.mark.parametrize("row", [0, 1, 255, 256, 257, 511, 512, 598])
@pytest.mark.parametrize("repeated", [True, False])
def test_a_record_that_the_index_lacks_or_repeats_is_named_by_its_bytes(
    tmp_path: Path, row: int, repeated: bool
) -> None:
    path = write(tmp_path, range(600), [0.0] * 600)
    index = path.with_suffix(".idx")
    lines = index.read_text().splitlines()
    start, following = (int(line.split("\t")[1]) for line in lines[row : row + 2])
    lines[row : row + 1] = [lines[row], f"1000\t{start}"] if repeated else []
    index.write_text("\n".join(lines))
    at, due = (start, following) if repeated else (following, start)
    with pytest.raises(DataError, match=f"continues at byte {at} where a record should start at {due}:"):
        open_recordio(path)


def test_an_index_that_stops_early_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = write(tmp_path, range(600), [0.0] * 600)
    index = path.with_suffix(".idx")
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[:-1]))
    size_bytes = path.stat().st_size
    with pytest.raises(DataError, match=f"ends at byte {int(lines[-1].split()[1])} of {size_bytes};"):
        open_recordio(path)


LACKS, IS_NONE = "has a line that lacks its key or offset", "is no index of key<TAB>offset lines"


@pytest.mark.parametrize(
    ("bad", "reason"), [("77\t", LACKS), ("\t77", LACKS), ("77", IS_NONE), ("x\t0", IS_NONE), ("77\t0\t0", IS_NONE)]
)
def test_a_bad_line_far_behind_is_found(tmp_path: Path, bad: str, reason: str) -> None:
    path = write(tmp_path, range(MANY), [0.0] * MANY)
    index = path.with_suffix(".idx")
    lines = index.read_text().splitlines()
    index.write_text("\n".join([*lines[:-9], bad, *lines[-9:]]))
    with pytest.raises(DataError, match=rf"train\.idx {reason}"):
        open_recordio(path)


def test_a_record_without_an_image_among_images_stays_out(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "train") as writer:
        for key, payload in enumerate(
            [pack([3, 5], 0, b""), pack([0], 1, b"a"), pack([1, 3], 2, b""), pack([0], 3, b"b")]
        ):
            writer.write(key, payload)
        writer.write(4, pack([3, 4], 4, b""))
    assert found(open_recordio(tmp_path)) == [("1", "0", b"a"), ("3", "0", b"b")]


def test_without_key_0_there_is_no_header_and_every_record_counts(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(1, pack([5], 1, b"a"))
        writer.write(2, pack([7, 8], 2, b""))
    assert found(open_recordio(tmp_path)) == [("1", "5", b"a"), ("2", "7", b"")]


def test_a_shuffled_set_has_the_order_of_numpy_s_permutation(tmp_path: Path) -> None:
    face = bytes(cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1])
    with RecordWriter(tmp_path / "train") as writer:
        for key in range(2**40, 2**40 + 300):
            writer.write(key, pack([0], 0, face))
    source = open_recordio(tmp_path)
    convert(source, no_tags(300), tmp_path / "set", ShardConfig(name="faces", origin="authentic", seed=3))
    table, order = (
        pq.read_table(tmp_path / "set" / "000000.parquet"),
        np.random.default_rng(3).permutation(300).tolist(),
    )
    assert table["key"].to_pylist() == [sample_key(record) for record in order]
    assert table["source"].to_pylist() == [str(2**40 + record) for record in order]


MEASURED = """
import re, sys
from pathlib import Path
import shardgen.convert
from shardgen.inputs.records import open_recordio
source = open_recordio(Path(sys.argv[1]))
print(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures through /proc")
def test_opening_takes_a_few_dozen_bytes_a_record(tmp_path: Path) -> None:
    sizes, peaks = (100_000, 500_000), []
    for size in sizes:
        write_insightface(tmp_path / f"{size}", ([b""] * 100 for _ in range(size // 100)))
        command = [sys.executable, "-c", MEASURED, str(tmp_path / f"{size}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
    assert (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]) < 50
