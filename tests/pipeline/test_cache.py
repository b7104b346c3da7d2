"""The decoded cache: what it gives back is what was put, whoever put it and however the process ended."""

import errno
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import cache
from pipeline.cache import DecodedCache, Pixels
from pipeline.order import Ids
from shardgen.errors import UsageError
from tests.support import ROOT, Killed, stop_before, wait_until

NUM, SIZE = 50, 16


def image_of(sample: int) -> Pixels:
    return np.random.default_rng(sample).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def images_of(ids: Ids) -> Pixels:
    return np.stack([image_of(sample) for sample in ids.tolist()])


def cache_in(folder: Path, rank: int = 0, digest: str = "abc", size: int = SIZE) -> DecodedCache:
    return DecodedCache(folder, digest, NUM, size, rank)


def put(into: DecodedCache, *samples: int) -> None:
    ids = np.array(samples)
    into.put(ids, images_of(ids))


def held_by(one: DecodedCache) -> set[int]:
    """The samples that it has, each of which is looked at."""
    ids = np.flatnonzero(one.holds(np.arange(NUM)))
    out = np.empty((len(ids), SIZE, SIZE, 3), np.uint8)
    one.take(ids, out)
    assert len(ids) == 0 or np.array_equal(out, images_of(ids))
    return set(ids.tolist())


def test_what_was_put_is_taken_in_any_order_and_as_often(tmp_path: Path) -> None:
    one = cache_in(tmp_path)
    put(one, 3, 49, 0, 7)
    assert one.holds(np.array([0, 1, 3, 49, 2])).tolist() == [True, False, True, True, False]
    asked = np.array([7, 0, 7, 49, 3])
    out = np.zeros((5, SIZE, SIZE, 3), np.uint8)
    one.take(asked, out)
    assert np.array_equal(out, images_of(asked))
    one.close()


def test_a_closed_cache_is_there_for_the_next_process(tmp_path: Path) -> None:
    one = cache_in(tmp_path / "new" / "folder")
    put(one, *range(0, 50, 3))
    one.close()
    again = cache_in(tmp_path / "new" / "folder")
    assert held_by(again) == set(range(0, 50, 3))
    put(again, 1)
    again.close()
    assert held_by(cache_in(tmp_path / "new" / "folder")) == {1, *range(0, 50, 3)}


@pytest.mark.parametrize("other", [{"digest": "other"}, {"size": SIZE + 1}])
def test_another_data_set_or_size_has_a_cache_of_its_own_and_the_old_one_is_named(
    other: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = cache_in(tmp_path)
    put(one, 1, 2)
    one.close()
    with caplog.at_level(logging.INFO, "facemix.loader"):
        different = cache_in(tmp_path, **other)
    assert not different.holds(np.arange(NUM)).any()
    (line,) = caplog.messages
    assert str(next(path.parent for path in tmp_path.glob("*/*.rows"))) in line
    assert "GB" in line
    different.close()
    assert held_by(cache_in(tmp_path)) == {1, 2}


def test_an_unused_cache_takes_no_space(tmp_path: Path) -> None:
    one = DecodedCache(tmp_path, "abc", 100_000, 112)
    (pixels,) = tmp_path.glob("*/pixels.rgb")
    assert pixels.stat().st_size == 100_000 * 112 * 112 * 3
    assert pixels.stat().st_blocks * 512 < 1 << 20
    one.close()


def test_ranks_share_what_each_of_them_has_put(tmp_path: Path) -> None:
    ranks = [cache_in(tmp_path, rank) for rank in range(3)]
    for rank, one in enumerate(ranks):
        put(one, *range(rank, 50, 5))
    for one in ranks:
        one.close()
    assert (
        held_by(cache_in(tmp_path, 0))
        == held_by(cache_in(tmp_path, 7))
        == set(range(50)) - {*range(3, 50, 5)} - {*range(4, 50, 5)}
    )


def test_ranks_learn_of_each_other_while_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SAVE_SECONDS", -1.0)
    one, other = cache_in(tmp_path, 0), cache_in(tmp_path, 1)

    def of_other_are_known() -> bool:
        put(one, 1)
        put(other, 2)
        return held_by(one) == held_by(other) == {1, 2}

    wait_until(of_other_are_known)
    one.close()
    other.close()


def test_nothing_counts_before_its_pixels_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cache_in(tmp_path)
    put(one, 1)
    happened: list[str] = []
    replace = Path.replace

    def note_replacing(path: Path, to: Path) -> Path:
        happened.append(to.name)
        return replace(path, to)

    monkeypatch.setattr(os, "fdatasync", lambda _: happened.append("pixels synced"))
    monkeypatch.setattr(Path, "replace", note_replacing)
    assert held_by(cache_in(tmp_path)) == set()
    one.close()
    assert happened == ["pixels synced", "rank0.rows"]


@pytest.mark.parametrize("operation", range(4))
def test_a_crash_at_any_moment_of_saving_leaves_whole_rows(
    operation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cache_in(tmp_path)
    put(one, 1, 2)
    one.close()
    again = cache_in(tmp_path)
    put(again, 3, 4)
    with pytest.MonkeyPatch.context() as patch:
        stop_before(patch, operation, "write_bytes")
        patch.setattr(os, "fdatasync", os.fsync)
        with suppress(Killed):
            again._save()
    assert held_by(cache_in(tmp_path)) in ({1, 2}, {1, 2, 3, 4})


_WRITER = """
import sys
from pathlib import Path
from pipeline import cache
from tests.pipeline.test_cache import NUM, cache_in, put
cache.SAVE_SECONDS = -1.0
one = cache_in(Path(sys.argv[1]), rank=1)
for sample in range(NUM):
    put(one, sample)
    if sample == 5:
        print("begun", flush=True)
while True:
    for sample in range(NUM):
        put(one, sample)
"""


def test_a_killed_process_leaves_whole_rows(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    wait_until(lambda: any(tmp_path.glob("*/*.rows")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 in held_by(cache_in(tmp_path))  # whose pixels are compared, as all others' that count


def full_after(monkeypatch: pytest.MonkeyPatch, rows: int, how: str) -> None:
    pwrite = os.pwrite

    def write(file: int, content: memoryview, at: int) -> int:
        nonlocal rows
        rows -= 1
        if rows >= 0:
            return pwrite(file, content, at)
        if how == "nothing fits":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, memoryview(bytes(content))[:100], at)

    monkeypatch.setattr(os, "pwrite", write)


@pytest.mark.parametrize("how", ["nothing fits", "a part fits"])
def test_a_full_disk_ends_caching_with_one_line_and_nothing_else(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = cache_in(tmp_path)
    put(one, 1, 2)
    one.close()
    again = cache_in(tmp_path)
    full_after(monkeypatch, 2, how)
    for sample in range(3, 9):
        put(again, sample)
        assert held_by(again) <= {1, 2, 3, 4}
    (line,) = caplog.messages
    assert "No space left on device" in line
    assert {1, 2} <= held_by(again)
    again.close()
    assert {1, 2} <= held_by(cache_in(tmp_path))
    assert len(caplog.messages) == 1


def test_a_sync_that_fails_takes_back_what_it_was_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = cache_in(tmp_path)
    put(one, 1)
    one.close()
    again = cache_in(tmp_path)
    monkeypatch.setattr(cache, "SAVE_SECONDS", -1.0)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)

    def failed() -> bool:
        put(again, 2)
        return bool(caplog.messages)

    wait_until(failed)
    assert held_by(again) == {1}
    again.close()
    assert len(caplog.messages) == 1


def test_pixels_that_somebody_deleted_are_not_taken_for_there(tmp_path: Path) -> None:
    one = cache_in(tmp_path)
    put(one, 1, 2)
    one.close()
    (pixels,) = tmp_path.glob("*/pixels.rgb")
    pixels.unlink()
    again = cache_in(tmp_path)
    assert held_by(again) == set()
    put(again, 5)
    again.close()
    assert held_by(cache_in(tmp_path)) == {5}


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cache .*file/inner: Not a directory; give a folder on a local disk"):
        cache_in(tmp_path / "file" / "inner")


def test_reading_ahead_changes_nothing(tmp_path: Path) -> None:
    one = cache_in(tmp_path)
    put(one, 1, 2, 30)
    one.read_ahead(np.array([30, 1]))
    one.read_ahead(np.array([], np.int64))
    assert held_by(one) == {1, 2, 30}
    one.close()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from(["put", "save", "crash"]), st.lists(st.integers(0, NUM - 1), min_size=1)
        ),
        max_size=12,
    )
)
def test_ranks_that_put_save_and_crash_never_hold_what_was_not_put(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[int, str, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    ranks = [cache_in(folder, rank) for rank in range(3)]
    ever_put: set[int] = set()
    saved: set[int] = set()
    for rank, act, samples in acts:
        if act == "put":
            put(ranks[rank], *samples)
            ever_put |= set(samples)
        elif act == "save":
            saved |= held_by(ranks[rank])
            ranks[rank]._save()
        else:
            ranks[rank] = cache_in(folder, rank)
            assert saved <= held_by(ranks[rank])
        assert all(held_by(one) <= ever_put for one in ranks)


@pytest.mark.parametrize("name", ["rank0.rows", "pixels.rgb"])
def test_a_cache_that_somebody_cut_short_holds_nothing(name: str, tmp_path: Path) -> None:
    one = cache_in(tmp_path)
    put(one, 1, 2)
    one.close()
    (path,) = tmp_path.glob(f"*/{name}")
    os.truncate(path, path.stat().st_size // 2)
    assert held_by(cache_in(tmp_path)) == set()
