"""The whole way of data on real faces: convert, tag, audit, export, and convert again, as a user calls it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shardgen.shardset import ShardSet
from tests.support import facemix

INPUTS: dict[str, tuple[str, str, list[object]]] = {
    "orl": ("recordio", "orl", []),
    "standin": ("folder", "standin/images", ["--origin", "synthetic"]),
    "utkface": ("folder", "utkface/images", ["--tag-pattern", "utkface"]),
    "odd": ("recordio", "odd_records", ["--max-rejected", 0.3]),
}


def ask(*arguments: object) -> Any:
    done = facemix(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(*arguments: object) -> str:
    done = facemix(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> Counter[bytes]:
    data = ShardSet(folder)
    return Counter(data.image(row) for row in range(len(data)))


@pytest.fixture(scope="module")
def sets(real_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set of each input; never change it."""
    folder = tmp_path_factory.mktemp("sets")
    for name, (kind, place, more) in INPUTS.items():
        made = ask("shard", kind, real_faces / place, folder / name, *more)
        assert made["num_read"] == made["num_samples"] + made["num_rejected"]
    return folder


@pytest.mark.parametrize("name", INPUTS)
def test_a_set_comes_back_from_every_export_with_identical_bytes(sets: Path, tmp_path: Path, name: str) -> None:
    assert "intact" in run("verify", sets / name, "--deep")
    run("export", "recordio", sets / name, tmp_path / "rec")
    run("export", "folder", sets / name, tmp_path / "folder")
    for kind, place in (("recordio", "rec"), ("folder", "folder")):
        tags = ["--tags", tmp_path / place / "tags.csv"] if (tmp_path / place / "tags.csv").exists() else []
        again = tmp_path / f"{place}-again"
        made = ask("shard", kind, tmp_path / place, again, *tags)
        assert contents(again) == contents(sets / name)
        first, second = ShardSet(sets / name).manifest, ShardSet(again).manifest
        assert second.num_identities == first.num_identities
        assert second.counts == first.counts
        assert made["num_rejected"] == 0
    made = ask("shard", "webdataset", sets / name, tmp_path / "set-again")
    assert contents(tmp_path / "set-again") == contents(sets / name)
    assert made["counts"] == ShardSet(sets / name).manifest.counts


def test_utkface_s_names_tag_all_but_the_two_that_are_malformed(sets: Path) -> None:
    manifest = ShardSet(sets / "utkface").manifest
    (source,) = manifest.tag_sources
    assert (manifest.num_samples, source.num_tagged, source.num_unknown) == (1502, 1500, 2)
    assert list(source.unknown_examples) == [
        "61_1_20170109142408075.jpg.chip.jpg",
        "61_3_20170109150557335.jpg.chip.jpg",
    ]
    assert {manifest.counts[axis]["unknown"] for axis in ("age", "gender", "ethnicity")} == {2}


def test_an_audit_finds_every_image_of_a_set_in_a_copy_of_it_and_none_in_another(sets: Path, tmp_path: Path) -> None:
    run("export", "folder", sets / "orl", tmp_path / "folder")
    run("shard", "folder", tmp_path / "folder", tmp_path / "copy")
    found = ask("audit", sets / "orl", tmp_path / "copy", "--sheet", tmp_path / "sheet.png", "--workers", 1)
    assert (found["exact"]["num_across_sets"], found["clean"]) == (240, False)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    apart = ask("audit", sets / "orl", sets / "standin", "--workers", 1)
    assert apart["exact"]["num_groups"] == apart["near"]["num_groups"] == 0


def test_tagging_real_faces_keeps_what_the_table_does_not_know(real_faces: Path, tmp_path: Path) -> None:
    run("shard", "folder", real_faces / "standin" / "images", tmp_path / "set", "--origin", "synthetic")
    tagged = ask("tag", tmp_path / "set", real_faces / "standin" / "identities.csv")
    assert (tagged["revision"], tagged["counts"]["gender"]["unknown"]) == (2, 0)
    (tmp_path / "camera.csv").write_text("identity,camera,gender\nid00000,A,Other\n")
    said = run("tag", tmp_path / "set", tmp_path / "camera.csv")
    assert "now revision 3" in said
    assert "gender is Other" in said
    assert "intact" in run("verify", tmp_path / "set", "--deep")
    first, third = ShardSet(tmp_path / "set" / "manifest.r1.json"), ShardSet(tmp_path / "set")
    assert not first.manifest.axes
    assert third.manifest.counts["camera"] == {"unknown": 2552, "A": 8}
    assert "has these tags already" in run("tag", tmp_path / "set", tmp_path / "camera.csv")


def test_pairs_of_real_faces_become_a_verification_set(sets: Path, tmp_path: Path) -> None:
    from eval.protocols import read_bin

    run("export", "bin", sets / "standin", tmp_path / "pairs.bin", "--draw", 600)
    pairs = read_bin("pairs", tmp_path / "pairs.bin")
    assert len(pairs.same) == 600
    assert sum(pairs.same) == 300


def test_several_inputs_of_several_kinds_become_one_set(real_faces: Path, tmp_path: Path) -> None:
    done = facemix(
        "shard", "auto", real_faces / "orl", real_faces / "standin" / "images", tmp_path / "set", "--shard-samples", 500
    )
    assert done.returncode == 0, done.stderr
    assert "read 2800 = written 2800 + rejected 0; 344 identities" in done.stdout
    assert "intact" in run("verify", tmp_path / "set", "--deep")
