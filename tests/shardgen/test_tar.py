"""Our tar bytes are plain USTAR, and our index is the one DALI would make."""

import io
import shutil
import subprocess
import tarfile
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wds2idx import IndexCreator

from shardgen.tar import END_OF_ARCHIVE, TarWriter

Sample = tuple[str, str, bytes, bytes]
sizes = st.one_of(st.integers(0, 40), st.sampled_from([511, 512, 513, 1024, 3000]))
samples_strategy = st.lists(st.tuples(sizes, sizes), max_size=6)


def written(samples: list[Sample]) -> tuple[bytes, bytes, list[int]]:
    """Return the tar, its index and the offset of every sample's first member."""
    stream = io.BytesIO()
    tar = TarWriter(stream)
    offsets = tar.add_samples(samples)
    index = tar.finish()
    return stream.getvalue(), index, offsets


def samples_of(member_sizes: list[tuple[int, int]]) -> list[Sample]:
    return [(f"{key:08x}", "jpg", b"\xff" * image, b"{" * text) for key, (image, text) in enumerate(member_sizes)]


@settings(deadline=None)
@given(member_sizes=samples_strategy)
def test_tarfile_reads_what_was_written(member_sizes: list[tuple[int, int]]) -> None:
    samples = samples_of(member_sizes)
    content, _, offsets = written(samples)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
        read = [(member.name, content[member.offset_data : member.offset_data + member.size]) for member in members]
    due = [((f"{key}.{extension}", image), (f"{key}.json", text)) for key, extension, image, text in samples]
    assert read == list(chain.from_iterable(due))
    assert [member.offset_data for member in members[::2]] == offsets
    assert all((member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644) for member in members)
    assert all(member.isreg() and not member.pax_headers for member in members)
    assert content.endswith(END_OF_ARCHIVE)


class Long(bytes):
    """Says that it is longer than a test could hold."""

    size_bytes = 0

    def __len__(self) -> int:
        return self.size_bytes


def first_member(key: str, extension: str, size_bytes: int) -> tarfile.TarInfo:
    """Return what `tarfile` makes of the header of an image."""
    stream, image = io.BytesIO(), Long()
    image.size_bytes = size_bytes
    tar = TarWriter(stream)
    tar.add_samples([(key, extension, image, b"{}")])
    tar.flush()
    return tarfile.TarInfo.frombuf(stream.getvalue()[:512], "ascii", "strict")


@pytest.mark.parametrize("size_bytes", [0, 1, 7000, 8**11 - 1])
def test_a_header_holds_the_largest_size_too(size_bytes: int) -> None:
    info = first_member("000012ab", "jpg", size_bytes)
    assert (info.name, info.size) == ("000012ab.jpg", size_bytes)


@given(keys=st.lists(st.text("0123456789abcdef", min_size=1, max_size=15), max_size=5), size=sizes)
def test_keys_of_any_length_and_samples_one_by_one_give_the_same_bytes(keys: list[str], size: int) -> None:
    samples = [(key, "png", b"i" * size, b"{}") for key in keys]
    at_once, one_by_one = io.BytesIO(), io.BytesIO()
    together, single = TarWriter(at_once), TarWriter(one_by_one)
    offsets = together.add_samples(samples)
    for sample, offset in zip(samples, offsets, strict=True):
        assert single.add_samples([sample]) == [offset]
        single.flush()
    assert together.finish() == single.finish()
    assert at_once.getvalue() == one_by_one.getvalue()
    with tarfile.open(fileobj=io.BytesIO(at_once.getvalue())) as tar:
        assert tar.getnames() == [f"{key}.{extension}" for key in keys for extension in ("png", "json")]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
def test_the_tar_program_lists_every_member(tmp_path: Path) -> None:
    samples = samples_of([(0, 1), (512, 3), (7000, 200)])
    (tmp_path / "set.tar").write_bytes(written(samples)[0])
    done = subprocess.run(["tar", "-tf", tmp_path / "set.tar"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{key}.{end}" for key, extension, *_ in samples for end in (extension, "json")]
    assert not done.stderr


@pytest.mark.parametrize(
    "member_sizes", [[(5, 0)], [(512, 511), (0, 1), (7000, 130)], [(100 * i, i) for i in range(40)]]
)
def test_the_index_is_the_one_that_dali_makes(tmp_path: Path, member_sizes: list[tuple[int, int]]) -> None:
    content, index, _ = written(samples_of(member_sizes))
    (tmp_path / "set.tar").write_bytes(content)
    with IndexCreator(str(tmp_path / "set.tar"), str(tmp_path / "dali.idx"), verbose=False) as creator:
        creator.create_index()
    assert index == (tmp_path / "dali.idx").read_bytes()


def test_the_same_members_give_the_same_bytes() -> None:
    samples = samples_of([(5, 7), (600, 20)])
    assert written(samples) == written(samples)


@pytest.mark.parametrize(("key", "size_bytes"), [("k" * 97, 1), ("k", 8**11), ("é", 1)])
def test_what_does_not_fit_a_header_is_refused(key: str, size_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"\.jpg .* does not fit a ustar header|ascii"):
        first_member(key, "jpg", size_bytes)
