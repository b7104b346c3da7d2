"""Thousands of damaged archives: each is refused in one line, or gives what is provably in it."""

import resource
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from shardgen.errors import DataError
from shardgen.images import Unreadable
from shardgen.inputs.records import open_recordio
from shardgen.inputs.webdataset import open_webdataset
from shardgen.inputs.zips import open_zip
from shardgen.recordio import MAGIC, write_insightface
from shardgen.sources import Source
from tests.shardgen.inputs.made import at_once, one_by_one, write_tar, write_zip

MAGIC_BYTES = MAGIC.to_bytes(4, "little")
IMAGES = {"ann/1.jpg": b"one" * 30, "ann/2.png": b"two" + MAGIC_BYTES * 3, "bob/3.jpg": b"three" * 9, "bob/4.jpg": b""}
MORE_BYTES = 256 << 20
MAX_SECONDS = 5.0


def mutants(original: bytes, count: int, words: list[bytes]) -> Iterator[bytes]:
    """Yield the original with one or a few bytes changed, cut out, put in, or copied from elsewhere in it."""
    rng = np.random.default_rng(0)
    words = [*words, bytes(4), b"\xff" * 4, b"\xff" * 8, b"\0\0\0\x80", b"\1", b"\xff"]
    for _ in range(count):
        at, other = (int(rng.integers(len(original))) for _ in range(2))
        length = int(rng.integers(1, 40))
        changed = bytearray(original)
        match int(rng.integers(6)):
            case 0 | 1:
                changed[at] ^= 1 << int(rng.integers(8))
            case 2:
                changed[at : at + length] = b""
            case 3:
                changed = changed[:at]
            case 4:
                changed[at : at + length] = changed[other : other + length]
            case 5:
                word = words[int(rng.integers(len(words)))]
                changed[at : at + len(word)] = word
        yield bytes(changed)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let an allocation that a damaged size asks for fail here and not on somebody's machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcomes(
    path: Path, opener: Callable[[Path], Source], count: int, words: list[bytes], damaged: Path | None = None
) -> Iterator[tuple[Source, int, bytes]]:
    """Yield every (source, record, image) that can be read from mutants of a file, in little memory and time."""
    damaged = damaged or path
    for mutant in mutants(damaged.read_bytes(), count, words):
        damaged.write_bytes(mutant)
        refusals: list[str] = []
        read: list[tuple[Source, int, bytes]] = []
        begun = time.monotonic()
        with little_memory():
            try:
                source = opener(path)
                for record in range(len(source)):
                    try:
                        read.append((source, record, source.image(record)))
                    except Unreadable as error:
                        refusals.append(str(error))
            except DataError as error:
                refusals.append(str(error))
                assert path.parent.name in refusals[-1]
        assert not any("\n" in refusal for refusal in refusals)
        assert time.monotonic() - begun < MAX_SECONDS
        yield from read


@pytest.mark.parametrize("compression", [0, 8])
def test_a_damaged_zip_gives_original_bytes_under_original_names_or_none(tmp_path: Path, compression: int) -> None:
    path = write_zip(tmp_path / "faces.zip", IMAGES, compression)
    num_read = 0
    for source, record, image in outcomes(
        path, open_zip, 1500, [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"]
    ):
        name = list(source.names())[record]
        assert IMAGES[name] == image
        num_read += 1
    assert num_read > 500


def naive_record(content: bytes, offset: int) -> bytes:
    """Return the image of the record at an offset, as the format's description has it."""
    payload, flag = b"", 1
    while flag in (1, 2):
        magic, word = struct.unpack_from("<II", content, offset)
        assert magic == MAGIC
        flag, length = word >> 29, word & ((1 << 29) - 1)
        payload += (MAGIC_BYTES if flag in (2, 3) else b"") + content[offset + 8 : offset + 8 + length]
        offset += 8 + length + -length % 4
    return payload[24 + 4 * int.from_bytes(payload[:4], "little") :]


@pytest.mark.parametrize("damaged", ["train.rec", "train.idx", "no idx"])
def test_a_damaged_rec_gives_what_a_naive_reader_finds_or_none(tmp_path: Path, damaged: str) -> None:
    write_insightface(tmp_path, [list(IMAGES.values())[:2], list(IMAGES.values())[2:]])
    path = tmp_path / "train.rec"
    if damaged == "no idx":
        (tmp_path / "train.idx").unlink()
    damaged_path = tmp_path / damaged if damaged != "no idx" else path
    num_read = 0
    for source, record, image in outcomes(path, open_recordio, 1000, [MAGIC_BYTES], damaged_path):
        assert image == naive_record(path.read_bytes(), int(source.offsets[record]))  # type: ignore[attr-defined]
        if record == 0:
            assert at_once(source) == one_by_one(source)
        num_read += 1
    assert num_read > (10 if damaged == "train.idx" else 500)


def naive_members(content: bytes) -> dict[str, bytes]:
    """Return the plain members of a ustar archive up to its end, as the format's description has it."""
    members, at = {}, 0
    while content[at : at + 1] not in (b"", b"\0"):
        header = content[at : at + 512]
        name, size = header[:100].partition(b"\0")[0].decode("utf-8", "replace"), int(header[124:135], 8)
        members[name] = content[at + 512 : at + 512 + size]
        at += 512 + size + -size % 512
    return members


def test_a_damaged_tar_gives_what_a_naive_reader_finds_or_none(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "faces.tar", IMAGES, tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[: 512 * 10])  # not all the zeros of the end
    num_read = 0
    for source, record, image in outcomes(
        path, open_webdataset, 1000, [b"ustar", b"\x80", b"L", b"x", b"g", b"S", b"5"]
    ):
        assert naive_members(path.read_bytes())[list(source.names())[record]] == image
        num_read += 1
    assert num_read > 500


def with_checksums(content: bytes) -> bytes:
    """Make every header of a tar vouch for itself again, so that damage gets past the checksum."""
    blocks = [content[at : at + 512] for at in range(0, len(content), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_that_lies_in_its_headers_is_read_inside_its_bounds(tmp_path: Path, form: int) -> None:
    long_names = {f"{'ü' * 70}/{name}": image for name, image in IMAGES.items()}
    path = write_tar(tmp_path / "faces.tar", long_names, form)

    def opener(given: Path) -> Source:
        given.write_bytes(with_checksums(given.read_bytes()))
        return open_webdataset(given)

    path.write_bytes(path.read_bytes().rstrip(b"\0") + bytes(2048))
    num_read = 0
    words = [b"\x80", b"\xff" * 12, b"L", b"x", b"g", b"S", b"K", b"path=", b"size=", b"GNU.sparse.major=1\n"]
    for _, _, image in outcomes(path, opener, 800, words):
        assert image in path.read_bytes()
        num_read += 1
    assert num_read > 500


def test_the_mutants_are_damaged() -> None:
    original = zlib.compress(b"face" * 100)
    assert sum(mutant != original for mutant in mutants(original, 100, [])) > 90
