"""Images that do not decode: each named once, and replaced by the same one whoever meets it."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.catalog import Catalog, open_catalog
from pipeline.config import MixConfig
from pipeline.failures import Failures, undecodable
from pipeline.plan import Plan, PlannedBatch
from pipeline.reader import ShardReader
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError
from shardgen.inputs.folders import open_folder
from shardgen.procedural import draw_folder
from shardgen.tag_tables import join_table, read_table
from shardgen.tags import Records
from tests.support import cut_in_half


def set_with_broken_images(out: Path, broken: Collection[int], images: int = 24) -> Path:
    """Convert drawn faces, 4 of an identity, of which some are cut short; sample ids are their numbers."""
    raw = out.with_name(f"{out.name}.raw")
    draw_folder(raw, 0, range(images // 4), range(4))
    source = open_folder(raw / "images")
    names = list(source.names())
    for number in broken:
        path = raw / "images" / names[number]
        path.write_bytes(path.read_bytes()[:-1000])
    tags = join_table(read_table(raw / "identities.csv"), Records(source.names, source.identities, source.labels))
    options: dict[str, Any] = {"check": "header", "order": "source", "shard_samples": 10}
    convert(source, tags, out, ShardConfig(name=out.name, origin="authentic", **options))
    return out


BROKEN = frozenset({3, 8, 9, 17})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return set_with_broken_images(tmp_path_factory.mktemp("broken") / "set", BROKEN)


@pytest.fixture(scope="module")
def catalog(folder: Path) -> Catalog:
    return open_catalog({"faces": folder})


def plan_of(catalog: Catalog, **mix: Any) -> Plan:
    return Plan(catalog, MixConfig.model_validate({"sets": {"faces": {"path": "faces", **mix}}}), 0, 8)


def failures_of(catalog: Catalog, most: int = 100, **mix: Any) -> Failures:
    return Failures(plan_of(catalog, **mix), ShardReader(catalog), most)


def test_undecodable_images_are_found_with_the_reason(catalog: Catalog) -> None:
    found = undecodable(ShardReader(catalog), np.arange(24))
    assert found.keys() == BROKEN
    assert all("does not decode" in reason for reason in found.values())
    assert undecodable(ShardReader(catalog), np.array([0, 1, 23])) == {}


def test_each_failing_image_is_counted_and_named_once(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    failures = failures_of(catalog)
    assert not failures.look_for(np.array([0, 1, 2]))
    assert failures.look_for(np.array([3, 0, 3]))
    assert failures.look_for(np.array([3, 17]))
    assert len(failures) == 2
    first, second = caplog.messages
    assert "00000003.jpg of set faces in " in first
    assert "000000.tar: does not decode" in first
    assert "another of its stratum replaces it" in first
    assert "00000011.jpg of set faces in " in second
    assert "000001.tar" in second


def test_too_many_failing_images_end_the_run_with_the_way_out(catalog: Catalog) -> None:
    failures = failures_of(catalog, most=2)
    failures.look_for(np.array([3, 8]))
    with pytest.raises(
        DataError, match=r"00000009.jpg .*3 images failed.*loader.max_failures is 2: raise it"
    ) as caught:
        failures.look_for(np.array([8, 9]))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="max_failures is 0"):
        failures_of(catalog, most=0).look_for(np.array([17]))


def test_failing_images_are_replaced_by_decodable_ones_of_their_stratum(catalog: Catalog) -> None:
    failures = failures_of(catalog, balance="group")
    plan = plan_of(catalog, balance="group")
    failures.look_for(np.arange(24))
    replaced = 0
    for number in range(9):
        planned = plan.batch(number)
        sample_ids = failures.replace(planned)
        kept = ~np.isin(planned.sample_ids, [*BROKEN])
        assert np.array_equal(sample_ids[kept], planned.sample_ids[kept])
        assert not set(sample_ids.tolist()) & BROKEN
        groups = catalog.codes("group", planned.sample_ids)
        assert np.array_equal(catalog.codes("group", sample_ids), groups)
        replaced += int((~kept).sum())
    assert replaced >= 8


def slots(planned: PlannedBatch, some: slice) -> PlannedBatch:
    return PlannedBatch(planned.sample_ids[some], planned.passes[some], planned.strata[some])


def test_the_replacement_depends_on_nothing_that_was_met_before(catalog: Catalog) -> None:
    plan = plan_of(catalog)
    knows_all, seen = failures_of(catalog), failures_of(catalog)
    knows_all.look_for(np.arange(24))
    for number in range(6):
        planned = plan.batch(number)
        whole = knows_all.replace(planned)
        fresh = failures_of(catalog)
        fresh.look_for(planned.sample_ids)
        assert np.array_equal(fresh.replace(planned), whole)
        seen.look_for(planned.sample_ids)
        halves = [seen.replace(slots(planned, some)) for some in (slice(4), slice(4, 8))]
        assert np.array_equal(np.concatenate(halves), whole)


def test_a_stratum_of_which_nothing_decodes_is_named(tmp_path: Path) -> None:
    catalog = open_catalog({"faces": set_with_broken_images(tmp_path / "set", range(8), 8)})
    failures = failures_of(catalog)
    planned = plan_of(catalog).batch(0)
    failures.look_for(planned.sample_ids[:1])
    with pytest.raises(DataError, match="no image of faces decodes"):
        failures.replace(planned)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    places = [at for at in range(0, len(content), 512) if content[at : at + 3] == b"\xff\xd8\xff"]
    for at in places:
        content[at : at + 2] = b"\0\0"
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut_in_half, damage, Path.unlink])
def test_a_shard_that_changed_is_to_blame_and_not_its_images(harm: Callable[[Path], None], tmp_path: Path) -> None:
    folder = set_with_broken_images(tmp_path / "set", [])
    failures = failures_of(open_catalog({"faces": folder}))
    harm(folder / "000001.tar")
    with pytest.raises(DataError, match=r"000001.tar (is|has|cannot).*put it back"):
        failures.look_for(np.array([12, 13]))
    assert len(failures) == 0


def test_what_is_logged_goes_to_the_loaders_log(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    failures_of(catalog).look_for(np.array([3]))
    assert [(one.name, one.levelno) for one in caplog.records] == [("facemix.loader", logging.WARNING)]
