"""The images of batches: what the plan and the drawn steps say, whatever fails, and wherever they come from."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import failures, reference
from pipeline.augment import draw_steps
from pipeline.augment_config import AugmentConfig
from pipeline.catalog import Catalog, open_catalog
from pipeline.failures import Failures
from pipeline.loader import Batch
from pipeline.order import Ids
from pipeline.plan import Plan
from pipeline.reader import ShardReader
from shardgen.errors import DataError, UsageError
from shardgen.images import decode
from tests.pipeline.loading import (
    BATCH_SIZE,
    MIX,
    assert_images_are,
    assert_same,
    joined,
    loader_of,
    plan_of,
    take,
)
from tests.pipeline.test_failures import BROKEN, set_with_broken_images
from tests.support import cut_in_half, exchange, extend


def expected_images(plan: Plan, batch: Batch, number: int, augments: dict[str, Any]) -> list[Any]:
    """Decode by OpenCV and augment by the reference."""
    planned = plan.batch(number)
    ids = batch.sample_ids.numpy()
    images = [decode(encoded) for encoded in ShardReader(plan.catalog).read(ids)]
    for set_number, name in enumerate(plan.set_names):
        config = AugmentConfig.model_validate(augments[name])
        replaced_passes = planned.passes + np.where(ids == planned.sample_ids, 0, (planned.sample_ids + 1) << 32)
        steps = draw_steps(config, plan.seed, 112, ids, replaced_passes)
        for slot in np.flatnonzero(batch.sets == set_number).tolist():
            images[slot] = reference.apply(images[slot], steps.ops[slot], steps.parameters[slot])
    return images


@pytest.mark.parametrize("augment", ["none", "flip", {"flip": 0.3, "erasing": 0.5}])
def test_images_are_those_of_their_samples_augmented_as_drawn(catalog: Catalog, augment: Any) -> None:
    plan = plan_of(catalog, seed=3)
    for number, batch in enumerate(take(loader_of(plan, augment=augment), 3)):
        assert_images_are(batch, expected_images(plan, batch, number, {"real": augment, "drawn": augment}))


def test_each_set_is_augmented_as_its_part_of_the_mix_says(catalog: Catalog) -> None:
    augments: dict[str, Any] = {"real": "flip", "drawn": {"flip": 0, "erasing": 1}}
    sets = {name: {**one, "augment": augments[name]} for name, one in MIX["sets"].items()}
    del sets["real"]["augment"]
    plan = plan_of(catalog, {"sets": sets})
    (batch,) = take(loader_of(plan, augment="flip"), 1)
    assert_images_are(batch, expected_images(plan, batch, 0, augments))


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_graph_augments_as_opencv_does(catalog: Catalog, is_cached: bool, tmp_path: Path) -> None:
    """What happens on GPUs, on the CPU; with operations that are exact in both."""
    sets = {name: dict(one) for name, one in MIX["sets"].items()}
    sets["drawn"]["augment"] = {"crop": 0.5, "erasing": 0.5}
    plan = plan_of(catalog, {"sets": sets})
    loader = loader_of(plan, cache=tmp_path if is_cached else None)
    loader._maker._graph_augments = True
    for ours, other in zip(take(loader, 4), take(loader_of(plan), 4), strict=True):
        assert_same(ours, other)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_bytes_are_asked_for_some_batches_before_they_are_read(
    catalog: Catalog, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    ahead: list[int] = []
    read = ShardReader.read

    def noted(self: ShardReader, ids: Ids) -> list[bytes]:
        if depth:
            ahead.append(len(asked) - asked.index(ids.tolist()) - 1)
        return read(self, ids)

    monkeypatch.setattr(ShardReader, "read_ahead", lambda _, ids: asked.append(ids.tolist()))
    monkeypatch.setattr(ShardReader, "read", noted)
    take(loader_of(plan_of(catalog), read_ahead=depth), 5)
    assert set(ahead) == ({depth} if depth else set())
    assert bool(asked) == bool(depth)


def cached_batches(cache: Path, catalog: Catalog, number: int = 4, **options: Any) -> tuple[list[Batch], int]:
    """Return batches and how many of their images came out of the cache."""
    loader = loader_of(plan_of(catalog), cache=cache, **options)
    batches = list(islice(loader, number))
    loader.close()
    return batches, loader.stats().cached


@pytest.mark.parametrize("augment", ["none", "adaface"])
def test_batches_with_a_cache_are_those_without_from_the_first_pass_on(
    catalog: Catalog, tmp_path: Path, augment: str
) -> None:
    without = take(loader_of(plan_of(catalog), augment=augment), 4)
    first, _ = cached_batches(tmp_path, catalog, augment=augment)
    second, cached = cached_batches(tmp_path, catalog, augment=augment)
    for ours, again, other in zip(first, second, without, strict=True):
        assert_same(ours, other)
        assert_same(again, other)
    assert cached >= 4 * BATCH_SIZE


def test_images_are_decoded_once_and_cached_from_then_on(catalog: Catalog, tmp_path: Path) -> None:
    plan = plan_of(catalog)
    loader = loader_of(plan, cache=tmp_path, prefetch=1)
    batches = list(islice(loader, 12))
    stats = loader.stats()
    loader.close()
    distinct = {sample for batch in batches for sample in batch.sample_ids.tolist()}
    assert stats.images - stats.cached < len(distinct) + 3 * BATCH_SIZE  # what was under way before it was there
    assert stats.cached > 6 * BATCH_SIZE


def test_ranks_that_share_a_cache_use_what_the_others_decoded(catalog: Catalog, tmp_path: Path) -> None:
    whole = take(loader_of(plan_of(catalog)), 4)
    for _ in range(2):
        ranks = [cached_batches(tmp_path, catalog, rank=rank, world_size=3) for rank in range(3)]
        for batch, *slices in zip(whole, *(batches for batches, _ in ranks), strict=True):
            assert_same(joined(slices), batch)
    assert all(cached >= 4 * BATCH_SIZE // 3 for _, cached in ranks)


def test_a_cache_of_no_use_is_refused_at_once(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="give a folder on a local disk"):
        loader_of(plan_of(catalog), cache=tmp_path / "file")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return open_catalog({"faces": set_with_broken_images(tmp_path_factory.mktemp("broken") / "set", BROKEN)})


FACES: dict[str, Any] = {"sets": {"faces": {"path": "faces", "balance": "group"}}}


def plan_of_broken(catalog: Catalog, **mix: Any) -> Plan:
    return plan_of(catalog, {**FACES, **mix}, batch_size=12)


def replaced(plan: Plan, number: int) -> list[int]:
    """The samples of a batch, as they should be once all that fail are known."""
    known = Failures(plan, ShardReader(plan.catalog), 100)
    known.look_for(np.arange(len(plan.catalog)))
    return list(known.replace(plan.batch(number)).tolist())


@pytest.mark.parametrize("mix", [{}, {"per_identity": 2}], ids=["images", "identities"])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_failing_images_are_replaced_and_no_batch_is_lost_repeated_or_moved(
    broken: Catalog, mix: dict[str, Any], prefetch: int
) -> None:
    plan = plan_of_broken(broken, **mix)
    loader = loader_of(plan, augment={"erasing": 0.5}, prefetch=prefetch)
    batches = take(loader, 8)
    assert loader.stats().failures == len(BROKEN)
    for number, batch in enumerate(batches):
        ids = batch.sample_ids.numpy()
        assert ids.tolist() == replaced(plan, number)
        assert batch.labels.tolist() == plan.labels(ids).tolist()
        assert batch.tags["group"].tolist() == broken.codes("group", ids).tolist()
        assert_images_are(batch, expected_images(plan, batch, number, {"faces": {"erasing": 0.5}}))


def test_an_image_that_stands_in_for_its_neighbour_does_not_look_like_itself(broken: Catalog) -> None:
    plan = plan_of_broken(broken, per_identity=4)
    for batch in take(loader_of(plan, augment={"photometric": 1}), 6):
        ids = batch.sample_ids.numpy()
        for first, second in zip(*np.nonzero(np.triu(ids[:, None] == ids, 1)), strict=True):
            assert (batch.images[first] != batch.images[second]).any()


@pytest.mark.parametrize("is_cached", [False, True])
def test_replacements_are_the_same_on_any_number_of_ranks_and_after_a_stop(
    broken: Catalog, is_cached: bool, tmp_path: Path
) -> None:
    whole = take(loader_of(plan_of_broken(broken)), 6)
    cache = tmp_path if is_cached else None
    found: list[Batch] = []
    state = loader_of(plan_of_broken(broken)).state_dict()
    for world_size in (3, 1, 2):
        ranks = []
        for rank in range(world_size):
            loader = loader_of(plan_of_broken(broken), rank, world_size, cache=cache)
            loader.load_state_dict(state)
            ranks.append(take(loader, 2))
        state = loader.state_dict()
        found += [joined(slices) for slices in zip(*ranks, strict=True)]
    for ours, other in zip(found, whole, strict=True):
        assert_same(ours, other)


def test_a_failing_image_is_named_once_however_often_it_is_met(
    broken: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    take(loader_of(plan_of_broken(broken)), 12)
    named = [line for line in caplog.messages if "does not decode" in line]
    assert len(named) == len(BROKEN)
    assert {line.split()[0] for line in named} == {f"{number:08x}.jpg" for number in BROKEN}


@pytest.mark.parametrize("most", [0, 2])
def test_more_failures_than_allowed_end_the_run(broken: Catalog, most: int) -> None:
    loader = loader_of(plan_of_broken(broken), max_failures=most)
    with pytest.raises(DataError, match=f"{most + 1} images failed, loader.max_failures is {most}"):
        take(loader, 12)
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


def test_a_failure_that_no_image_is_to_blame_for_ends_the_run(broken: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "check", lambda _: None)
    with pytest.raises(DataError, match="does not decode, though OpenCV decodes all; convert the set again"):
        take(loader_of(plan_of_broken(broken)), 12)


@pytest.mark.parametrize("harm", [extend, cut_in_half, exchange, Path.unlink])
def test_a_shard_that_changes_under_a_run_ends_it_with_its_name(
    harm: Callable[[Path], None], small_set: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(small_set, tmp_path / "set")
    plan = plan_of(open_catalog({"faces": folder}), {"sets": {"faces": {"path": "faces"}}}, batch_size=8)
    loader = loader_of(plan, prefetch=1, read_ahead=0)
    next(loader)
    harm(folder / "000002.tar")
    with pytest.raises(DataError, match=r"000002.tar .*put it back"):
        list(islice(loader, 20))
    loader.close()
