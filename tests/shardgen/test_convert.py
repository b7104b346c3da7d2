"""Conversions: verbatim, reproducible, complete, and restartable wherever they are stopped."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from shardgen.align import TEMPLATE
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError, UsageError
from shardgen.export import export_folder
from shardgen.inputs import open_source
from shardgen.inputs.folders import FolderSource, open_folder
from shardgen.inputs.records import open_recordio
from shardgen.manifest import MANIFEST, REJECTED, Manifest, read_manifest
from shardgen.procedural import draw_face, draw_folder, encode
from shardgen.recordio import MAGIC, RecordWriter, pack, write_insightface
from shardgen.sample import content_hash
from shardgen.shardset import ShardSet
from shardgen.sources import Source
from shardgen.tag_tables import join_table, read_table
from shardgen.tags import Records, Tags, join_pattern, no_tags
from shardgen.verify import faults
from tests.support import ROOT, Killed, stop_before

JPEG = encode(draw_face(0, 0, 0))


def run(source: Source, out: Path, tags: Tags | None = None, **options: Any) -> Manifest:
    config = {"name": "faces", "origin": "authentic", "shard_samples": 5} | options
    return convert(source, tags or no_tags(len(source)), out, ShardConfig(**config))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members_of(tar: Path) -> list[str]:
    with tarfile.open(tar) as opened:
        return opened.getnames()


def keys_of(folder: Path) -> list[list[str]]:
    """Return the keys that each shard's tar holds."""
    shards = sorted(folder.glob("*.tar"))
    return [[name[:-5] for name in members_of(shard) if name.endswith(".json")] for shard in shards]


def rejections(folder: Path) -> list[dict[str, str]]:
    with (folder / REJECTED).open(newline="") as stream:
        return list(csv.DictReader(stream))


def folder_of(root: Path, images: Mapping[str, bytes]) -> FolderSource:
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image)
    return open_folder(root)


def half_bad(root: Path) -> FolderSource:
    """Return six records of which the middle shard of two, and one more, cannot become samples."""
    return folder_of(root, {f"{n}.jpg": b"" if n in (2, 3, 5) else JPEG for n in range(6)})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn identities with four images each, and their table of tags; never change it."""
    root = tmp_path_factory.mktemp("drawn")
    draw_folder(root, 0, range(6), range(4))
    return root


@pytest.fixture(scope="module")
def source(drawn: Path) -> FolderSource:
    return open_folder(drawn / "images")


@pytest.fixture(scope="module")
def tags(drawn: Path, source: FolderSource) -> Tags:
    return join_table(read_table(drawn / "identities.csv"), Records(source.names, source.identities, source.labels))


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset's
def test_webdataset_gives_back_the_source_s_bytes(
    drawn: Path, source: FolderSource, tags: Tags, tmp_path: Path
) -> None:
    run(source, tmp_path / "set", tags)
    shards = [str(shard) for shard in sorted((tmp_path / "set").glob("*.tar"))]
    group_of = dict(line.split(",") for line in (drawn / "identities.csv").read_text().split())
    seen = set()
    for sample in wds.WebDataset(shards, shardshuffle=False):
        name = json.loads(sample["json"])["attributes"]["source"]
        assert sample["jpg"] == (drawn / "images" / name).read_bytes()
        expected = {
            "identity": name.partition("/")[0],
            "dataset": "faces",
            "origin": "authentic",
            "tags": {"group": group_of[name.partition("/")[0]]},
            "attributes": {"source": name},
        }
        assert sample["json"] == json.dumps(expected, sort_keys=True, separators=(",", ":")).encode()
        seen.add(name)
    assert sorted(seen) == list(source.names())


def test_the_table_leads_to_every_image(source: FolderSource, tags: Tags, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "set", tags)
    names = list(source.names())
    for shard in manifest.shards:
        tar = (tmp_path / "set" / f"{shard.name}.tar").read_bytes()
        for row in pq.read_table(tmp_path / "set" / f"{shard.name}.parquet").to_pylist():
            record = int(row["key"], 16)
            image = tar[row["offset"] : row["offset"] + row["size"]]
            assert image == source.read(record)
            assert row["content_hash"] == content_hash(image)
            assert (row["width"], row["height"]) == (112, 112)
            assert (row["source"], row["dataset"], row["origin"]) == (names[record], "faces", "authentic")
            assert manifest.identities[row["identity"]] == names[record].partition("/")[0]
            assert {"group": manifest.axes["group"][row["group"]]} == tags.values_of(record)


def test_the_manifest_counts_what_is_there(source: FolderSource, tags: Tags, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "set", tags, shard_samples=10)
    assert (manifest.num_read, manifest.num_samples, manifest.num_rejected) == (24, 24, 0)
    assert manifest.num_identities == 6
    assert manifest.counts == {"group": {"unknown": 0, "east": 8, "north": 8, "south": 4, "west": 4}}
    assert [shard.num_samples for shard in manifest.shards] == [10, 10, 4]
    assert read_manifest(tmp_path / "set") == manifest
    assert not list(faults(tmp_path / "set", deep=True))
    expected = {f"00000{n}{suffix}" for n in range(3) for suffix in (".tar", ".idx", ".parquet")}
    assert bytes_of(tmp_path / "set").keys() == expected | {MANIFEST, REJECTED}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_depend_on_neither_run_nor_workers(tmp_path: Path, workers: int) -> None:
    source = half_bad(tmp_path / "raw")
    run(source, tmp_path / "first", shard_samples=1, max_rejected=1)
    run(source, tmp_path / "second", shard_samples=1, max_rejected=0.5, workers=workers)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")


@pytest.mark.parametrize("num_bytes", [1, 20_000])
def test_the_bytes_do_not_depend_on_how_many_images_are_held_at_once(
    source: FolderSource, tags: Tags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    run(source, tmp_path / "whole", tags, shard_samples=20)
    monkeypatch.setattr("shardgen.writer._BLOCK_BYTES", num_bytes)
    monkeypatch.setattr("shardgen.tar._FLUSH_BYTES", num_bytes)
    run(source, tmp_path / "pieces", tags, shard_samples=20)
    assert bytes_of(tmp_path / "pieces") == bytes_of(tmp_path / "whole")


def test_source_order_is_kept_and_a_shuffle_spreads_identities(source: FolderSource, tmp_path: Path) -> None:
    run(source, tmp_path / "source", order="source", shard_samples=8)
    run(source, tmp_path / "shuffled", shard_samples=8)
    run(source, tmp_path / "reseeded", shard_samples=8, seed=1)
    ordered = [f"{record:08x}" for record in range(24)]
    in_source, shuffled, reseeded = (
        list(chain(*keys_of(tmp_path / name))) for name in ("source", "shuffled", "reseeded")
    )
    assert in_source == ordered
    assert sorted(shuffled) == sorted(reseeded) == ordered
    assert len({tuple(keys) for keys in (in_source, shuffled, reseeded)}) == 3
    for keys in keys_of(tmp_path / "shuffled"):
        assert len({int(key, 16) // 4 for key in keys}) > 3  # in source order a shard of 8 holds 2 of the 6


def test_read_is_written_plus_rejected_and_each_rejection_is_named(tmp_path: Path) -> None:
    images = {"a/1.jpg": JPEG, "a/2.jpg": b"", "b/3, really.jpg": b"<html>", "b/4.jpg": JPEG[:-2], "c/5.png": JPEG}
    manifest = run(folder_of(tmp_path / "raw", images), tmp_path / "set", max_rejected=0.6, order="source")
    assert (manifest.num_read, manifest.num_samples, manifest.num_rejected) == (5, 2, 3)
    assert manifest.rejected_reasons == {"empty": 1, "not an image": 1, "does not decode": 1}
    assert manifest.num_identities == 2
    assert [(one["key"], one["source"]) for one in rejections(tmp_path / "set")] == [
        ("00000001", "a/2.jpg"),
        ("00000002", "b/3, really.jpg"),
        ("00000003", "b/4.jpg"),
    ]
    assert keys_of(tmp_path / "set") == [["00000000", "00000004"]]  # a rejected record shifts no other's key
    assert (
        members_of(tmp_path / "set" / "000000.tar")[2] == "00000004.jpg"
    )  # its bytes are a JPEG's, whatever its file was called


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_a_shard_without_samples_leaves_no_gap(tmp_path: Path, empty: int) -> None:
    source = folder_of(tmp_path / "raw", {f"{n}.jpg": b"" if n // 2 == empty else JPEG for n in range(6)})
    manifest = run(source, tmp_path / "set", order="source", shard_samples=2, max_rejected=0.5)
    assert [shard.name for shard in manifest.shards] == ["000000", "000001"]
    kept = [[f"{2 * shard:08x}", f"{2 * shard + 1:08x}"] for shard in range(3) if shard != empty]
    assert keys_of(tmp_path / "set") == kept
    assert not list(faults(tmp_path / "set", deep=True))


def test_too_many_rejections_publish_nothing(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(DataError, match=r"3 of 6 records rejected, .* first 2\.jpg: empty"):
        run(half_bad(tmp_path / "raw"), out, max_rejected=0.49, order="source")
    assert not out.exists()
    unfinished = tmp_path / "set.unfinished"
    assert [one["source"] for one in rejections(unfinished)] == ["2.jpg", "3.jpg", "5.jpg"]
    assert not (unfinished / MANIFEST).exists()


@pytest.mark.parametrize("num_records", [3, 7, 11, 150])
def test_the_share_that_the_message_offers_is_accepted(tmp_path: Path, num_records: int) -> None:
    images = {f"{record:03d}.jpg": JPEG if record else b"" for record in range(num_records)}
    source = folder_of(tmp_path / "raw", images)
    with pytest.raises(DataError, match="--max-rejected") as refused:
        run(source, tmp_path / "set", max_rejected=0)
    offered = re.search(r"--max-rejected (\S+)", str(refused.value))
    assert offered
    assert run(source, tmp_path / "set", max_rejected=float(offered[1])).num_rejected == 1


def test_a_set_without_any_sample_is_never_published(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample would be left"):
        run(folder_of(tmp_path / "raw", {"a/1.jpg": b""}), tmp_path / "set", max_rejected=1)
    assert not (tmp_path / "set").exists()


def test_records_without_any_identity_are_rejected(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(0, pack([0.5], 0, JPEG))
    with pytest.raises(DataError, match="no identity: label"):
        run(open_recordio(tmp_path / "train.rec"), tmp_path / "set", max_rejected=1)


@pytest.mark.parametrize("indexed", [True, False])
def test_the_odd_records_are_kept_or_named(real_faces: Path, tmp_path: Path, indexed: bool) -> None:
    (tmp_path / "odd.rec").symlink_to(real_faces / "odd_records" / "train.rec")
    if indexed:
        (tmp_path / "odd.idx").symlink_to(real_faces / "odd_records" / "train.idx")
    with (real_faces / "odd_records" / "records.csv").open() as stream:
        expected = list(csv.DictReader(stream))
    source = open_recordio(tmp_path / "odd.rec")
    assert [len(source.read(record)) for record in range(11)] == [int(one["payload_bytes"]) for one in expected]
    manifest = run(source, tmp_path / "set", max_rejected=0.3, order="source", shard_samples=20)
    assert (manifest.num_read, manifest.num_samples, manifest.num_rejected) == (11, 8, 3)
    named = {
        expected[int(one["source"])]["what"]: one["reason"].partition(":")[0] for one in rejections(tmp_path / "set")
    }
    assert named == {"truncated": "does not decode", "empty": "empty", "not_an_image": "not an image"}
    with tarfile.open(tmp_path / "set" / "000000.tar") as tar:
        images = {member.name: tar.extractfile(member) for member in tar if not member.name.endswith(".json")}
    assert images.keys() == {f"{n:08x}.{'png' if n == 3 else 'jpg'}" for n in (0, 1, 2, 3, 4, 5, 6, 10)}
    assert MAGIC.to_bytes(4, "little") in source.read(1)
    table = pq.read_table(tmp_path / "set" / "000000.parquet").to_pylist()
    assert [(row["width"], row["height"]) for row in table if row["key"] == "0000000a"] == [(250, 200)]


def test_the_real_set_is_the_same_with_and_without_its_index(real_faces: Path, tmp_path: Path) -> None:
    (tmp_path / "train.rec").symlink_to(real_faces / "orl" / "train.rec")
    manifest = run(open_recordio(real_faces / "orl"), tmp_path / "indexed", shard_samples=100)
    run(open_recordio(tmp_path / "train.rec"), tmp_path / "scanned", shard_samples=100)
    assert (manifest.num_samples, manifest.num_identities, len(manifest.shards)) == (240, 24, 3)
    assert bytes_of(tmp_path / "indexed") == bytes_of(tmp_path / "scanned")


@pytest.mark.parametrize("is_folder", [True, False])
def test_an_out_that_holds_something_is_refused_and_kept(source: FolderSource, tmp_path: Path, is_folder: bool) -> None:
    out = tmp_path / "set"
    holds = out / "mine" if is_folder else out
    holds.parent.mkdir(exist_ok=True)
    holds.write_text("mine")
    with pytest.raises(UsageError, match="already holds something"):
        run(source, out)
    assert holds.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_empty_out_and_missing_parents_are_fine(source: FolderSource, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run(source, tmp_path / "empty")
    run(source, tmp_path / "some" / "where")
    assert bytes_of(tmp_path / "empty") == bytes_of(tmp_path / "some" / "where")


@pytest.fixture
def refused(tmp_path: Path) -> FolderSource:
    """A source whose conversion to `set` has made every shard and was refused in the end."""
    source = half_bad(tmp_path / "raw")
    with pytest.raises(DataError, match="rejected"):
        run(source, tmp_path / "set", max_rejected=0)
    return source


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", 1), ("order", "source"), ("shard_samples", 4), ("name", "other"), ("origin", "synthetic")],
)
def test_an_unfinished_conversion_goes_on_only_with_the_same_options(
    refused: FolderSource, tmp_path: Path, option: str, value: str | int
) -> None:
    other: dict[str, Any] = {option: value}
    with pytest.raises(UsageError, match=f"begun with {option} .* now it is {value}"):
        run(refused, tmp_path / "set", max_rejected=1, **other)


def test_an_unfinished_conversion_goes_on_only_with_the_same_tags(refused: FolderSource, tmp_path: Path) -> None:
    tags = join_pattern("(?P<number>[0-9])", refused.names())
    with pytest.raises(UsageError, match="begun with tags"):
        run(refused, tmp_path / "set", tags, max_rejected=1)
    with pytest.raises(DataError, match="rejected"):
        run(refused, tmp_path / "tagged", tags, max_rejected=0)
    with pytest.raises(UsageError, match="begun with tags"):
        run(refused, tmp_path / "tagged", Tags(tags.axes, tags.codes[::-1]), max_rejected=1)


def test_an_unfinished_conversion_goes_on_only_with_the_same_input(refused: FolderSource, tmp_path: Path) -> None:
    more = folder_of(tmp_path / "raw", {"6.jpg": JPEG})
    with pytest.raises(UsageError, match="begun with inputs"):
        run(more, tmp_path / "set", max_rejected=1)


def test_going_on_reads_no_record_of_a_finished_shard(
    refused: FolderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: FolderSource, record: int) -> bytes:
        raise AssertionError(f"record {record} was read again")

    monkeypatch.setattr(FolderSource, "read", read)
    assert run(refused, tmp_path / "set", max_rejected=1, workers=1).num_samples == 3


@pytest.mark.parametrize("name", ["000000.tar", "000000.idx", "000000.parquet", "000000.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_going_on_makes_damaged_shards_again(
    refused: FolderSource, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / "set.unfinished" / name)
    run(refused, tmp_path / "set", max_rejected=1)
    run(refused, tmp_path / "whole", max_rejected=1)
    assert bytes_of(tmp_path / "set") == bytes_of(tmp_path / "whole")


def test_shards_of_no_known_conversion_are_left_alone(source: FolderSource, tmp_path: Path) -> None:
    stranger = tmp_path / "set.unfinished" / "000000.tar"
    stranger.parent.mkdir()
    stranger.write_text("mine")
    with pytest.raises(UsageError, match="no known conversion"):
        run(source, tmp_path / "set")
    assert stranger.read_text() == "mine"


def test_stopped_before_any_operation_it_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = half_bad(tmp_path / "raw")
    options: dict[str, Any] = {"order": "source", "shard_samples": 2, "max_rejected": 1}  # shard 1 of 3 stays empty
    run(source, tmp_path / "whole", **options)
    whole = bytes_of(tmp_path / "whole")
    failed: dict[int, str] = {}
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for operation in range(1000):
        out = tmp_path / f"set{operation}"
        try:
            with monkeypatch.context() as patched:
                stop_before(patched, operation)
                run(source, out, **options)
            break
        except Killed:
            pass
        try:
            if not out.exists():
                run(source, out, **options)
            if bytes_of(out) != whole:
                failed[operation] = "other bytes"
        except ValueError as error:
            failed[operation] = str(error)
    assert operation > 30
    assert failed == {}


def shard_command(raw: Path, out: Path, *more: object) -> list[str]:
    options = ["--name", "faces", "--origin", "authentic", "--shard-samples", 1, "--order", "source", *more]
    return [sys.executable, str(ROOT / "cli.py"), "shard", "folder", *map(str, [raw, out, *options])]


def kill_after(command: list[str], unfinished: Path, num_shards: int) -> int:
    """Kill a conversion and its workers once it has made some shards; return its exit code."""
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(unfinished.glob("[0-9]*.json"))) < num_shards:
        time.sleep(0.001)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    draw_folder(tmp_path / "drawn", 0, range(15), range(2))
    raw, out, unfinished = tmp_path / "drawn" / "images", tmp_path / "set", tmp_path / "set.unfinished"
    exits = [kill_after(shard_command(raw, out, "--workers", 2), unfinished, number) for number in (1, 7, 14)]
    assert -signal.SIGKILL in exits
    if not out.exists():
        subprocess.run(shard_command(raw, out, "--workers", 1), check=True, capture_output=True)
    run(open_folder(raw), tmp_path / "whole", order="source", shard_samples=1)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from cli import main
main(sys.argv[2:])
"""


def test_a_full_disk_publishes_nothing_and_room_lets_it_go_on(drawn: Path, tmp_path: Path) -> None:
    out, raw = tmp_path / "set", drawn / "images"
    arguments = shard_command(raw, out, "--shard-samples", 5, "--workers", 2)[2:]
    limited = [sys.executable, "-c", LIMITED, "20000", *arguments]  # a shard of 5 faces needs more
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"facemix: .*File too large\n", done.stderr)
    assert not out.exists()
    run(open_folder(raw), out, order="source")
    run(open_folder(raw), tmp_path / "whole", order="source")
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


MEASURED = """
import re, sys
from pathlib import Path
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.inputs.records import open_recordio
from shardgen.tags import no_tags
source = open_recordio(Path(sys.argv[1]))
config = ShardConfig(name="faces", origin="authentic", shard_samples=200)
convert(source, no_tags(len(source)), Path(sys.argv[2]), config)
print(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures through /proc")
@pytest.mark.parametrize("indexed", [True, False])
def test_memory_does_not_grow_with_the_images(tmp_path: Path, indexed: bool) -> None:
    face = bytes(cv2.imencode(".bmp", draw_face(0, 0, 0))[1])  # decodes at once, so the test is about memory alone
    peaks = []
    for megabytes in (10, 60):
        folder = tmp_path / f"{megabytes}"
        write_insightface(folder, [[face] * (megabytes * 1_000_000 // len(face))])
        if not indexed:
            (folder / "train.idx").unlink()
        # VmHWM and not ru_maxrss, which a child inherits from the parent that forked it.
        command = [sys.executable, "-c", MEASURED, str(folder), str(folder / "set")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
    assert peaks[1] - peaks[0] < 25_000_000  # half of what holding the 50 MB more would take


def test_a_file_written_over_in_place_is_noticed(refused: FolderSource, tmp_path: Path) -> None:
    first = tmp_path / "raw" / "0.jpg"
    first.write_bytes(first.read_bytes()[::-1])  # as long as before
    os.utime(first, ns=(1, 1))
    with pytest.raises(UsageError, match="begun with files that have changed since"):
        run(open_folder(tmp_path / "raw"), tmp_path / "set", max_rejected=1)


def test_shards_of_another_conversion_do_not_count_as_done(refused: FolderSource, tmp_path: Path) -> None:
    unfinished = tmp_path / "set.unfinished"
    (unfinished / "job.json").unlink()
    for left in unfinished.iterdir():
        left.rename(tmp_path / left.name)
    run(refused, tmp_path / "reseeded", max_rejected=1, seed=9)
    with pytest.raises(DataError, match="rejected"):
        run(refused, tmp_path / "set", max_rejected=0, seed=9)
    for shard in tmp_path.glob("[0-9]*.*"):  # shards that are whole, but of seed 0
        shard.replace(unfinished / shard.name)
    run(refused, tmp_path / "set", max_rejected=1, seed=9)
    assert bytes_of(tmp_path / "set") == bytes_of(tmp_path / "reseeded")


KILLED_AGAIN_AND_AGAIN = """
import os, random, signal, sys, time
from pathlib import Path
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.inputs.folders import open_folder
from shardgen.tags import no_tags

raw, folder = Path(sys.argv[1]), Path(sys.argv[2])
source = open_folder(raw)
config = ShardConfig(name="faces", origin="authentic", shard_samples=1, order="source")

def start(out):
    child = os.fork()
    if child == 0:
        convert(source, no_tags(len(source)), out, config)
        os._exit(0)
    return child

begun = time.monotonic()
os.waitpid(start(folder / "whole"), 0)
longest = time.monotonic() - begun
whole = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
moments, kills, sets = random.Random(int(sys.argv[3])), 0, 0
while kills < 50:
    out = folder / f"set{sets}"
    child = start(out)
    time.sleep(moments.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if out.exists():
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole, f"{out} after {kills} kills"
        sets += 1
os.waitpid(start(out), 0) if not out.exists() else None
assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
assert not list(folder.glob("*.unfinished"))
"""


def test_killed_at_fifty_random_moments_it_ends_with_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AGAIN_AND_AGAIN, str(drawn / "images"), str(tmp_path), "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def workers_of(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds workers through /proc")
def test_a_killed_worker_is_named_and_repeating_the_command_goes_on(tmp_path: Path) -> None:
    draw_folder(tmp_path / "drawn", 0, range(30), range(4))
    raw, out, unfinished = tmp_path / "drawn" / "images", tmp_path / "set", tmp_path / "set.unfinished"
    command = shard_command(raw, out, "--workers", 2)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(list(unfinished.glob("[0-9]*.json"))) < 2:
        time.sleep(0.001)
        assert process.poll() is None
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1
    assert re.fullmatch(r"facemix: a worker process was killed, .*: repeat the command to go on, .*\n", said)
    assert not out.exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    run(open_folder(raw), tmp_path / "whole", order="source", shard_samples=1)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_a_second_conversion_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    draw_folder(tmp_path / "drawn", 0, range(30), range(4))
    raw, out = tmp_path / "drawn" / "images", tmp_path / "set"
    first = subprocess.Popen(shard_command(raw, out, "--workers", 1), stdout=subprocess.DEVNULL)
    while not list((tmp_path / "set.unfinished").glob("[0-9]*.json")):
        time.sleep(0.001)
        assert first.poll() is None
    with pytest.raises(UsageError, match=r"set.unfinished is being written by another process"):
        run(open_folder(raw), out, order="source", shard_samples=1)
    assert first.wait() == 0
    run(open_folder(raw), tmp_path / "whole", order="source", shard_samples=1)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system with some options; needs the right to."""
    mounts: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path / f"mount{len(mounts)}"
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "facemix-test", str(point)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a small file system here")
        mounts.append(point)
        return point

    yield mount
    for point in mounts:
        subprocess.run(["umount", str(point)], check=True)


def test_a_disk_that_fills_up_publishes_nothing_and_room_lets_it_go_on(
    drawn: Path, tmp_path: Path, mounted: Callable[[str], Path]
) -> None:
    point = mounted("size=64k")
    command = shard_command(drawn / "images", point / "set", "--workers", 2, "--shard-samples", 4)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"facemix: .*No space left on device\n", done.stderr)
    assert [path.name for path in point.iterdir()] == ["set.unfinished"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(point)], check=True)
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    run(open_folder(drawn / "images"), tmp_path / "whole", order="source", shard_samples=4)
    assert bytes_of(point / "set") == bytes_of(tmp_path / "whole")


def test_a_place_that_cannot_be_written_is_named(drawn: Path, mounted: Callable[[str], Path]) -> None:
    done = subprocess.run(
        shard_command(drawn / "images", mounted("ro") / "set"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(r"facemix: .*set.unfinished: Read-only file system\n", done.stderr)


HOSTILE = [
    "../../outside.jpg",
    "/etc/outside.jpg",
    "line\nbreak/1.jpg",
    "n" * 300 + "/1.jpg",
    'quote",comma/1.jpg',
    " /1.jpg",
]


def test_hostile_names_are_names_and_nothing_else(tmp_path: Path) -> None:
    archive = tmp_path / "faces.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in HOSTILE:
            opened.writestr(name, JPEG)
        opened.writestr("bad\nname/2.jpg", b"")
    source = open_source("zip", archive)
    manifest = run(source, tmp_path / "deep" / "set", max_rejected=0.5)
    assert manifest.num_samples == len(HOSTILE)
    assert not list(faults(tmp_path / "deep" / "set", deep=True))
    assert [one["source"] for one in rejections(tmp_path / "deep" / "set")] == ["bad\nname/2.jpg"]
    export_folder(tmp_path / "deep" / "set", tmp_path / "deep" / "exported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "faces.zip"]
    assert len(list((tmp_path / "deep" / "exported").rglob("*.jpg"))) == len(HOSTILE)


def test_order_statistics_tell_a_shuffle_from_the_source_s_order(source: FolderSource, tmp_path: Path) -> None:
    ordered = run(source, tmp_path / "ordered", order="source").order
    shuffled = run(source, tmp_path / "shuffled").order
    assert ordered is not None
    assert shuffled is not None
    assert ordered.adjacent_same_identity == pytest.approx(18 / 23)  # six identities of four
    assert ordered.expected_if_random == pytest.approx(24 * 3 / (24 * 23))
    assert shuffled.adjacent_same_identity < 0.4
    assert shuffled.identities_per_shard > ordered.identities_per_shard


def test_edited_images_are_counted_and_the_others_are_verbatim(tmp_path: Path) -> None:
    small = encode(draw_face(0, 1, 0)[:100])
    manifest = run(folder_of(tmp_path / "raw", {"a/1.jpg": JPEG, "a/2.jpg": small}), tmp_path / "set", size=112)
    assert manifest.edited == {"resized": 1}
    assert not list(faults(tmp_path / "set", deep=True))
    images = ShardSet(tmp_path / "set")
    assert [images.image(row) == JPEG for row in range(2)].count(True) == 1
    assert set(images.table(["width", "height"]).to_pylist()[0].values()) == {112}


@pytest.mark.parametrize("check", ["header", "none"])
def test_a_set_that_was_not_decoded_verifies_and_deep_finds_what_does_not_decode(tmp_path: Path, check: str) -> None:
    source = folder_of(tmp_path / "raw", {"a/1.jpg": JPEG, "a/2.jpg": JPEG[:-300]})
    assert run(source, tmp_path / "set", check=check).num_samples == 2
    assert list(faults(tmp_path / "set")) == []
    assert any("does not decode" in fault for fault in faults(tmp_path / "set", deep=True))


def test_faces_without_landmarks_are_rejected_and_the_others_aligned(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "raw", {"a/1.jpg": JPEG, "a/2.jpg": JPEG})
    landmarks = np.stack([TEMPLATE * 0.8 + 5, np.full((5, 2), np.nan)])
    config = ShardConfig(name="faces", origin="authentic", max_rejected=0.5)
    manifest = convert(source, no_tags(2), tmp_path / "set", config, landmarks=landmarks)
    assert (manifest.num_samples, manifest.edited) == (1, {"aligned": 1})
    assert manifest.rejected_reasons == {"no landmarks": 1}
