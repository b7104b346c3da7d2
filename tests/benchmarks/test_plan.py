"""The planning benchmark: simulated sets are what conversion writes, and its tables say what was measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import plan
from benchmarks.simulated import SimulatedSet, simulate, write_indices
from pipeline.catalog import Catalog, open_catalog
from shardgen.shardset import ShardSet
from shardgen.tar import BLOCK_BYTES

SETS = (SimulatedSet("real", "authentic", 20_500, 1_000), SimulatedSet("drawn", "synthetic", 900, 40))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, SETS)
    return folder


@pytest.fixture(scope="module")
def catalog(root: Path) -> Catalog:
    return open_catalog({one.name: root / one.name for one in SETS})


def test_simulated_sets_open_like_any_other(catalog: Catalog) -> None:
    assert [len(catalog.ids_of(one.name)) for one in SETS] == [20_500, 900]
    assert len(catalog.shards) == 4
    assert len(catalog.identities) == 1_040
    assert catalog.image_sizes == {(112, 112)}
    assert {axis: len(values) for axis, values in catalog.axes.items()} == {"origin": 3, "ethnicity": 5, "gender": 3}


def test_every_record_is_there_once_and_shuffled(catalog: Catalog) -> None:
    keys = catalog.columns("real", ["key"])["key"].astype(np.int64)
    assert np.array_equal(np.sort(keys), np.arange(20_500))
    labels = catalog.label[:20_500][np.argsort(keys)]
    assert (np.diff(labels) >= 0).all()  # the input lay identity by identity
    assert (np.diff(catalog.label[:20_500]) == 0).mean() < 0.01


def test_all_of_an_identity_have_its_tags(catalog: Catalog) -> None:
    for axis in ("ethnicity", "gender"):
        pairs = np.unique(np.stack([catalog.label, catalog.codes(axis, range(len(catalog)))]), axis=1)
        assert pairs.shape[1] == 1_040


def test_images_lie_one_after_another_within_their_tars(catalog: Catalog) -> None:
    shards, offsets, sizes = catalog.places(np.arange(len(catalog)))
    following = np.flatnonzero(np.diff(shards) == 0)
    assert (offsets[following + 1] >= offsets[following] + sizes[following] + 2 * BLOCK_BYTES).all()
    last = np.flatnonzero(np.diff(shards, append=len(catalog.shards)))
    ends = offsets[last] + sizes[last]
    assert (ends < [shard.path.stat().st_size for shard in catalog.shards]).all()


def test_an_index_lists_the_images_of_its_shard(root: Path) -> None:
    assert write_indices(root / "drawn", num_shards=1) == 900
    (first, *lines) = (root / "drawn" / "000000.idx").read_text().splitlines()
    assert first == "v1.2 900"
    rows = [line.split() for line in lines]
    table = ShardSet(root / "drawn").table(["key", "offset", "size"]).to_pydict()
    assert [(row[3], int(row[1]), int(row[2])) for row in rows] == [
        (f"{key}.jpg", offset, size) for key, offset, size in zip(*table.values(), strict=True)
    ]
    ends = [int(row[5]) + int(row[6]) for row in rows]
    assert all(end <= int(row[1]) for end, row in zip(ends, rows[1:], strict=False))


def fake_apart(what: str, *arguments: Any) -> dict[str, Any]:
    """Let opening take 4 s and 16 bytes a sample, batches 1 ms; DALI 3 s and 320 bytes a sample for a tenth of it."""
    if what == "dali":
        return {"num_samples": 100, "seconds": 3.0, "resident_bytes": 32_000}
    return {
        "num_samples": 1000,
        "catalog_seconds": 3.0,
        "strata_seconds": 1.0,
        "open_cpu_seconds": 6.0,
        "resident_bytes": 16_000,
        "peak_bytes": 3 << 20,
        "first_seconds": 0.1,
        "later_seconds": [0.001, 0.001, 0.009],
        "later_cpu_seconds": 0.006,
        "far_seconds": 0.5,
    }


def test_the_slowest_mix_stands_against_the_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "_apart", fake_apart)
    plan.main(smoke=True)
    printed = capsys.readouterr().out
    assert "| natural | 1,000 | 3.00 | 1.00 | 6.00 | 0 | 3 | 16.0 |" in printed
    assert "| windows of 16 shards | 1,000 | 100.0 | 2000 | 1000 | 9000 | 500.0 |" in printed
    assert "| opening the catalog (median), s | 3 | 5 | 0.60 | 30 | 10.0 |" in printed
    assert "| opening it and laying out the strata, s | 4 | 5 | 0.80 | 30 | 7.5 |" in printed
    assert "| resident, bytes a sample | 16 | 32 | 0.50 | 320 | 20.0 |" in printed
    assert "| first batch, ms | 500 | 1000 | 0.50 | - | - |" in printed
    assert "| later batches, median ms | 1 | 2 | 0.50 | - | - |" in printed
