"""Tagging a finished set: a new revision, whole at any moment, with the old one and the tars as they were."""

import fcntl
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shardgen import files, manifest, retag
from shardgen.errors import DataError, UsageError
from shardgen.manifest import Manifest, hash_file, read_manifest, revision_name
from shardgen.retag import records_of
from shardgen.shardset import ShardSet
from shardgen.tag_tables import join_table, read_table
from shardgen.tags import Tags, join_pattern
from shardgen.verify import faults
from tests.support import make_set


@pytest.fixture
def tagged(small_set: Path, tmp_path: Path) -> Path:
    """A set of its own, to be changed."""
    return Path(shutil.copytree(small_set, tmp_path / "set"))


def by_table(folder: Path, text: str, **options: bool) -> tuple[str, Tags]:
    path = folder.with_name("tags.csv")
    path.write_text(text)
    return "tags.csv", join_table(read_table(path), records_of(ShardSet(folder)), **options)


def samples(path: Path) -> dict[str, dict[str, str]]:
    """Read each sample's tags from the tables, by the name of its source."""
    data = ShardSet(path)
    rows = data.table().to_pylist()
    return {row["source"]: {axis: names[row[axis]] for axis, names in data.manifest.axes.items()} for row in rows}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_whole(folder: Path, found: Manifest) -> bool:
    return all(
        hash_file(folder / f"{shard.name}{suffix}") == info
        for shard in found.shards
        for suffix, info in shard.files.items()
    )


def test_a_new_axis_stands_beside_the_old_ones(tagged: Path) -> None:
    before = samples(tagged)
    found = retag.retag(tagged, [by_table(tagged, "identity,gender\n00000,f\n00001,m\n")])
    known = {"00000": "f", "00001": "m"}
    assert samples(tagged) == {
        name: {"gender": known.get(name.split("/")[0], "unknown"), **tags} for name, tags in before.items()
    }
    assert found == read_manifest(tagged)
    assert (found.revision, found.num_samples) == (2, 32)
    assert found.counts["gender"] == {"unknown": 24, "f": 4, "m": 4}
    assert sum(found.counts["group"].values()) == 32


def test_what_a_source_knows_replaces_and_what_it_does_not_know_stays(tagged: Path) -> None:
    before = samples(tagged)
    found = retag.retag(tagged, [by_table(tagged, "identity,group\n00000,pole\n00001,unknown\n00002,south\n")])
    after = {name: {"group": "pole"} if name.startswith("00000/") else tags for name, tags in before.items()}
    assert samples(tagged) == after
    assert found.counts["group"] == {"unknown": 0, "east": 8, "north": 4, "pole": 4, "south": 8, "west": 8}
    new, own = found.tag_sources
    assert (new.name, new.num_tagged, new.num_unknown) == ("tags.csv", 8, 24)
    assert (own.name, own.conflicts) == ("revision 1", {"group": 4})
    assert len(own.conflict_examples) == 4
    assert all("group is pole by tags.csv, north by revision 1" in line for line in own.conflict_examples)


@pytest.mark.parametrize("column", ["path", "key"])
def test_single_samples_are_found_by_path_and_by_key_in_any_order(tmp_path: Path, column: str) -> None:
    folder = make_set(tmp_path / "set", shard_samples=10, order="shuffled", tagged=False)
    rows = ShardSet(folder).table().to_pylist()
    chosen = {row["source"]: row[{"path": "source", "key": "key"}[column]] for row in rows[3:17:5]}
    text = f"{column},pose\n" + "".join(f"{name},left\n" for name in chosen.values())
    retag.retag(folder, [by_table(folder, text)])
    assert {name for name, tags in samples(folder).items() if tags["pose"] == "left"} == set(chosen)


def test_the_first_of_several_sources_is_believed(tagged: Path) -> None:
    names = list(records_of(ShardSet(tagged)).names())
    first = by_table(tagged, "identity,group,pose\n00000,pole,left\n")
    second = ("names", join_pattern("(?P<group>[0-9])/(?P<pose>[0-9]+)", names))
    found = retag.retag(tagged, [first, second])
    assert [one.name for one in found.tag_sources] == ["tags.csv", "names", "revision 1"]
    assert [dict(one.conflicts) for one in found.tag_sources] == [{}, {"group": 4, "pose": 4}, {"group": 32}]
    assert {tags["group"] for tags in samples(tagged).values()} == {"pole", *"1234567"}


def test_only_tag_columns_differ_and_no_old_byte_does(tagged: Path) -> None:
    before = contents(tagged)
    found = retag.retag(tagged, [by_table(tagged, "identity,5_o_Clock_Shadow,group\n00000,yes,pole\n")])
    after = contents(tagged)
    tables = {f"{shard.name}.r2.parquet" for shard in found.shards}
    assert after.keys() - before.keys() == tables | {"manifest.r1.json"}
    assert {name for name in before if after[name] != before[name]} == {"manifest.json"}
    assert after["manifest.r1.json"] == before["manifest.json"]
    assert is_whole(tagged, found)
    for shard in found.shards:
        old, new = (pq.read_table(tagged / f"{shard.name}{suffix}") for suffix in (".parquet", ".r2.parquet"))
        assert new.drop_columns(["5_o_Clock_Shadow", "group"]) == old.drop_columns(["group"])
        assert new.column_names[4:9] == ["dataset", "origin", "5_o_Clock_Shadow", "group", "width"]


def test_every_revision_stays_readable(tagged: Path) -> None:
    states = [samples(tagged)]
    for value in "ab":
        retag.retag(tagged, [by_table(tagged, f"identity,pose\n00000,{value}\n")])
        states.append(samples(tagged))
    assert [samples(tagged / revision_name(revision)) for revision in (1, 2)] == states[:2]
    assert states[2] == samples(tagged)
    assert len({str(state) for state in states}) == 3
    assert [read_manifest(tagged, revision_name(revision)).revision for revision in (1, 2)] == [1, 2]
    assert list(faults(tagged, deep=True)) == []
    assert all(set(shard.files) == {".tar", ".idx", ".r3.parquet"} for shard in read_manifest(tagged).shards)


@pytest.mark.parametrize("text", ["identity,group\n00000,north\n00001,unknown\n", "identity,group\n00003,west\n"])
def test_tags_that_change_nothing_write_nothing(tagged: Path, text: str) -> None:
    before = contents(tagged)
    assert retag.retag(tagged, [by_table(tagged, text)]) == read_manifest(tagged)
    assert contents(tagged) == before


def test_no_source_writes_nothing(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "set", range(2), 1, tagged=False)
    before = contents(folder)
    assert retag.retag(folder, []).revision == 1
    assert contents(folder) == before


def test_rows_of_other_data_are_refused_before_anything_is_written(tagged: Path) -> None:
    before = contents(tagged)
    with pytest.raises(DataError, match=r"such as 00008 .*--ignore-extra-tags"):
        by_table(tagged, "identity,group\n00000,pole\n00008,pole\n")
    assert contents(tagged) == before
    assert (
        retag.retag(tagged, [by_table(tagged, "identity,group\n00000,pole\n00008,pole\n", ignore_extra=True)]).revision
        == 2
    )


def test_the_same_tags_give_the_same_bytes_and_others_another_job(tagged: Path, tmp_path: Path) -> None:
    twin, other = (Path(shutil.copytree(tagged, tmp_path / name)) for name in ("twin", "other"))
    jobs = [
        retag.retag(folder, [by_table(folder, f"identity,pose\n00000,{pose}\n")]).job
        for folder, pose in ((tagged, "left"), (twin, "left"), (other, "right"))
    ]
    assert contents(tagged) == contents(twin)
    assert jobs[0] == jobs[1]
    assert {name for name in jobs[0] if jobs[0][name] != jobs[2][name]} == {"tags"}
    assert jobs[0]["tags"] != read_manifest(tagged, revision_name(1)).job["tags"]


class Crashed(Exception):
    """Stands for a process that is killed."""


def crash_at_write(doomed: int) -> Callable[[Path, bytes], None]:
    numbers = count()

    def write(path: Path, content: bytes) -> None:
        if next(numbers) == doomed:
            path.with_name(path.name + ".1.part").write_bytes(content[: len(content) // 2])
            raise Crashed
        files.write_durably(path, content)

    return write


@pytest.mark.parametrize("doomed", range(6))
def test_a_crash_leaves_a_whole_set_and_repeating_ends_with_the_same_bytes(
    tagged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doomed: int
) -> None:
    old, old_manifest = samples(tagged), (tagged / "manifest.json").read_bytes()
    undisturbed = Path(shutil.copytree(tagged, tmp_path / "undisturbed"))
    sources = [by_table(tagged, "identity,group\n00000,pole\n")]
    retag.retag(undisturbed, sources)
    write = crash_at_write(doomed)
    for module in (retag, manifest):
        monkeypatch.setattr(module, "write_durably", write)
    with pytest.raises(Crashed):
        retag.retag(tagged, sources)
    monkeypatch.undo()
    assert (tagged / "manifest.json").read_bytes() == old_manifest
    assert is_whole(tagged, read_manifest(tagged))
    assert samples(tagged) == old
    retag.retag(tagged, sources)
    assert contents(tagged) == contents(undisturbed)
    assert retag.retag(tagged, sources) == read_manifest(undisturbed)
    assert contents(tagged) == contents(undisturbed)


def test_other_tags_after_a_crash_leave_nothing_of_the_first(
    tagged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Path(shutil.copytree(tagged, tmp_path / "undisturbed"))
    sources = [by_table(tagged, "identity,pose\n00000,left\n")]
    monkeypatch.setattr(retag, "write_durably", crash_at_write(3))
    with pytest.raises(Crashed):
        retag.retag(tagged, sources)
    monkeypatch.undo()
    for folder in (tagged, undisturbed):
        retag.retag(folder, [by_table(folder, "identity,group\n00000,pole\n")])
    assert contents(tagged) == contents(undisturbed)


def test_two_at_once_are_refused(tagged: Path) -> None:
    sources = [by_table(tagged, "identity,group\n00000,pole\n")]
    before = contents(tagged)
    other = os.open(tagged, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is being tagged by another process"):
            retag.retag(tagged, sources)
        assert contents(tagged) == before
    finally:
        os.close(other)
    assert retag.retag(tagged, sources).revision == 2


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        retag.retag(tmp_path / "none", [])
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        retag.retag(tmp_path, [])
