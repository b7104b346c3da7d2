"""The figures of a set: counted over all of it, or seen in the heads of some of its images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardgen import summary as summary_module
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError
from shardgen.inputs.folders import open_folder
from shardgen.manifest import (
    MANIFEST,
    Manifest,
    OrderStatistics,
    TagSource,
    read_manifest,
    revision_name,
    write_manifest,
)
from shardgen.summary import Spread, lines_of_conversion, summarise
from shardgen.tags import Tags, join_pattern, no_tags

WHERE_FROM: dict[str, Any] = {
    "order": OrderStatistics(adjacent_same_identity=0.25, expected_if_random=0.125, identities_per_shard=2.5),
    "edited": {"aligned": 3, "resized": 1},
    "tag_sources": [
        TagSource(
            name="people.csv",
            axes=["half"],
            num_tagged=2,
            num_unknown=1,
            unknown_examples=["p2/0.png"],
            conflicts={},
            conflict_examples=[],
        )
    ],
}


def png(identity: int, _image: int) -> bytes:
    picture = np.zeros((8 + identity, 8, 3), np.uint8)
    return bytes(cv2.imencode(".png", picture)[1])


def jpeg(quality: int) -> bytes:
    return bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def set_of(
    out: Path,
    images_of: Sequence[int],
    pattern: str | None = None,
    draw: Callable[[int, int], bytes] = png,
    **config: Any,
) -> Path:
    """Convert so many images of each identity, 8 x (8 + identity) pixels unless drawn otherwise."""
    raw = out.with_name("raw")
    for identity, num_images in enumerate(images_of):
        (raw / f"p{identity}").mkdir(parents=True)
        for image in range(num_images):
            (raw / f"p{identity}" / f"{image:03d}.png").write_bytes(draw(identity, image))
    source = open_folder(raw)
    tags: Tags = no_tags(len(source)) if pattern is None else join_pattern(pattern, source.names())
    options: dict[str, Any] = {"name": "some", "origin": "synthetic"}
    convert(source, tags, out, ShardConfig(**options | config))
    return out


def rewrite(folder: Path, **fields: Any) -> Manifest:
    """Give a set other fields in its manifest."""
    manifest = read_manifest(folder).model_copy(update=fields)
    write_manifest(folder, manifest)
    return manifest


def retable(folder: Path, column: str, value: int) -> None:
    """Set a column of every shard's table to one value."""
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        place = table.column_names.index(column)
        values = pa.array([value] * len(table), table.schema.field(column).type)
        pq.write_table(table.set_column(place, column, values), path)


def test_figures_of_a_drawn_set(small_set: Path) -> None:
    summary = summarise(small_set)
    assert (summary.name, summary.origin, summary.folder) == ("small", "authentic", str(small_set))
    assert (summary.num_samples, summary.num_identities, summary.num_rejected) == (32, 8, 0)
    assert summary.images_per_identity == Spread(8, 4, 4, 4, 4)
    assert summary.identities_by_images == {4: 8}
    assert summary.image_sizes == {"112x112": 32}
    assert (summary.formats, summary.samples_by_quality) == ({"jpg": 32}, {95: 32})
    assert {value: group.samples for value, group in summary.groups["group"].items()} == {
        "east": 8,
        "north": 8,
        "south": 8,
        "west": 8,
    }


def test_what_a_person_reads_of_a_set(tmp_path: Path) -> None:
    out = set_of(tmp_path / "set", [1, 2, 4], r"p(?P<half>[01])", lambda identity, _: jpeg(70 + 10 * identity))
    rewrite(out, rejected_reasons={"empty": 2}, num_rejected=2, **WHERE_FROM)
    sizes = [len(jpeg(quality)) / 1000 for quality in (70, 80, 90)]
    assert summarise(out).lines() == [
        f"{out} (synthetic): 7 samples, 3 identities, 2 rejected",
        "  images per identity: 1 to 4, median 2, mean 2.3",
        "  sizes: 8x8 7",
        f"  files: {min(sizes):.1f} to {max(sizes):.1f} kB, median {sizes[2]:.1f} kB; jpg 7 (all looked at)",
        "  JPEG quality: 70 to 90, median 90, mean 84.3",
        "  rejected: 2: empty",
        "  edited: aligned 3, resized 1",
        "  order: 25.00 % of neighbours are of one identity (12.50 % if random); 2.5 identities a shard",
        "  tags by people.csv: half; 2 tagged, 1 unknown",
        "    unknown: p2/0.png",
        "  group         samples  identities  images each  size  JPEG quality",
        "  half unknown        4           1      4 (4-4)   8x8    90 (90-90)",
        "  half 0              1           1      1 (1-1)   8x8    70 (70-70)",
        "  half 1              2           1      2 (2-2)   8x8    80 (80-80)",
    ]


def test_what_a_person_reads_when_a_conversion_is_done(tmp_path: Path) -> None:
    out = set_of(tmp_path / "set", [1, 1, 1], r"p(?P<half>[01])")
    manifest = rewrite(out, **WHERE_FROM)
    first, *rest = lines_of_conversion(manifest, out)
    assert first == f"{out} (synthetic): read 3 = written 3 + rejected 0; 3 identities, 1 shards"
    assert rest == [
        "  edited: aligned 3, resized 1",
        "  order: 25.00 % of neighbours are of one identity (12.50 % if random); 2.5 identities a shard",
        "  half: 2 values, 1 samples unknown",
    ]
    bare = manifest.model_copy(update={"order": None, "edited": {}})
    assert lines_of_conversion(bare, out) == [first, rest[-1]]


def test_figures_are_one_json_document(tmp_path: Path) -> None:
    out = set_of(tmp_path / "set", [1, 2], r"p(?P<half>[01])", lambda identity, _: jpeg(70 + identity))
    rewrite(out, **WHERE_FROM)
    read = json.loads(json.dumps(asdict(summarise(out))))
    assert read["samples_by_quality"] == {"70": 1, "71": 2}
    assert read["groups"]["half"]["1"]["jpeg_quality"]["median"] == 71
    assert read["order"]["identities_per_shard"] == 2.5
    assert read["tag_sources"][0]["name"] == "people.csv"


def test_sizes_and_images_per_identity_are_counted_over_all_shards(tmp_path: Path) -> None:
    summary = summarise(set_of(tmp_path / "set", [1, 5, 3], shard_samples=2))
    assert summary.images_per_identity == Spread(3, 1, 3, 3, 5)
    assert summary.identities_by_images == {1: 1, 3: 1, 5: 1}
    assert list(summary.image_sizes.items()) == [("8x9", 5), ("8x10", 3), ("8x8", 1)]


def test_a_group_counts_its_own_samples_identities_and_sizes(tmp_path: Path) -> None:
    out = set_of(tmp_path / "set", [6, 2, 1], r"/00(?P<image>[01])", shard_samples=2)
    groups = summarise(out).groups["image"]
    assert {value: (g.samples, g.identities, g.size) for value, g in groups.items()} == {
        "unknown": (4, 1, "8x8"),
        "0": (3, 3, "8x9"),
        "1": (2, 2, "8x8.5"),
    }
    assert groups["unknown"].images_per_identity == Spread(1, 4, 4, 4, 4)
    assert groups["0"].images_per_identity == Spread(3, 1, 1, 1, 1)


def test_an_identity_without_a_sample_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "raw" / "q").mkdir(parents=True)
    (tmp_path / "raw" / "q" / "0.png").touch()
    summary = summarise(set_of(tmp_path / "set", [2, 4], max_rejected=0.5))
    assert (summary.num_identities, summary.num_rejected) == (2, 1)
    assert summary.images_per_identity == Spread(2, 2, 3, 3, 4)
    (reason,) = summary.rejected_reasons
    assert f"  rejected: 1: {reason}" in summary.lines()


def test_values_without_a_sample_are_left_out(tmp_path: Path) -> None:
    summary = summarise(set_of(tmp_path / "set", [2, 1], r"p(?P<person>[0-9])"))
    assert list(summary.groups["person"]) == ["0", "1"]


def test_ages_are_listed_in_the_order_of_numbers_and_in_one_line(tmp_path: Path) -> None:
    summary = summarise(set_of(tmp_path / "set", [1] * 13, r"p(?P<age>[0-9]+)"))
    assert list(summary.groups["age"]) == [str(age) for age in range(13)]
    listed = ", ".join(f"{age} 1" for age in range(12))
    assert summary.lines()[-1] == f"  age: {listed}, and 1 more"


def test_a_set_without_jpegs_has_no_quality(tmp_path: Path) -> None:
    summary = summarise(set_of(tmp_path / "set", [2], r"p(?P<person>[0-9])"))
    assert (summary.formats, summary.jpeg_quality, summary.samples_by_quality) == ({"png": 2}, None, {})
    assert summary.lines()[-1].endswith("8x8             -")
    assert not any("JPEG quality:" in line for line in summary.lines())


def test_groups_that_differ_in_jpeg_quality_are_pointed_out(tmp_path: Path) -> None:
    pattern = r"p(?P<half>[01])"
    far = summarise(set_of(tmp_path / "far" / "set", [100, 100], pattern, lambda half, _: jpeg(70 + 20 * half)))
    assert far.lines()[-1] == (
        "  note: JPEG quality differs by half: median 70 for 0, 90 for 1; an encoder can tell them apart by compression"
    )
    near = summarise(set_of(tmp_path / "near" / "set", [100, 100], pattern, lambda half, _: jpeg(70 + 4 * half)))
    assert near.notes() == []
    few = summarise(set_of(tmp_path / "few" / "set", [99, 100], pattern, lambda half, _: jpeg(70 + 20 * half)))
    assert few.notes() == []


def test_of_a_large_set_evenly_spaced_samples_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "LOOKED_AT", 4)
    out = set_of(
        tmp_path / "set", [10], draw=lambda _, image: jpeg(60 if image < 5 else 80), order="source", shard_samples=3
    )
    summary = summarise(out)
    assert (summary.num_samples, summary.num_looked_at) == (10, 4)
    assert summary.samples_by_quality == {60: 2, 80: 2}
    assert "(4 evenly spaced ones looked at)" in "\n".join(summary.lines())
    assert summarise(out) == summary


def test_sizes_that_nobody_looked_at_are_unknown(tmp_path: Path) -> None:
    out = set_of(tmp_path / "set", [2], r"p(?P<person>[0-9])")
    retable(out, "width", 0)
    retable(out, "height", 0)
    summary = summarise(out)
    assert summary.image_sizes == {"unknown": 2}
    assert summary.groups["person"]["0"].size == "unknown"


def test_bytes_that_are_no_image_have_no_format(tmp_path: Path) -> None:
    out = set_of(tmp_path / "set", [3])
    with (out / "000000.tar").open("r+b") as tar:
        tar.seek(512)
        tar.write(bytes(16))
    assert summarise(out).formats == {"png": 2, "unknown": 1}


def test_an_older_revision_is_summarised_through_its_manifest(tmp_path: Path) -> None:
    out = set_of(tmp_path / "set", [2, 1], r"p(?P<half>[01])")
    (out / MANIFEST).rename(out / revision_name(1))
    first = read_manifest(out, revision_name(1))
    (out / "000000.r2.parquet").write_bytes((out / "000000.parquet").read_bytes())
    (shard,) = first.shards
    files = {suffix.replace(".parquet", ".r2.parquet"): info for suffix, info in shard.files.items()}
    newer = {"half": ["unknown", "low", "high"]}
    write_manifest(
        out,
        first.model_copy(update={"revision": 2, "axes": newer, "shards": [shard.model_copy(update={"files": files})]}),
    )
    (out / "000000.parquet").rename(out / "kept")
    assert (summarise(out).revision, list(summarise(out).groups["half"])) == (2, ["low", "high"])
    (out / "kept").rename(out / "000000.parquet")
    (out / "000000.r2.parquet").unlink()
    old = summarise(out / revision_name(1))
    assert (old.revision, list(old.groups["half"]), old.folder) == (1, ["0", "1"], str(out / revision_name(1)))


def test_an_unfinished_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did not finish"):
        summarise(tmp_path)
