"""FaceLoader: batches that line up with the catalog, from any point, on any number of ranks."""

import json
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.catalog import Catalog, open_catalog
from pipeline.config import LoaderConfig
from pipeline.graph import DecodingFailed
from pipeline.loader import Batch, decode_images, load_in_order, normalised, resolve_device
from pipeline.plan import Plan
from pipeline.reader import ShardReader
from pipeline.stats import Throughput
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import DataError, UsageError
from shardgen.images import decode
from shardgen.inputs.folders import open_folder
from shardgen.tags import no_tags
from tests.pipeline.loading import (
    BATCH_SIZE,
    CPU,
    MIX,
    assert_images_are,
    assert_same,
    columns,
    joined,
    loader_of,
    plan_of,
    take,
)
from tests.pipeline.test_failures import set_with_broken_images

GPU = torch.device("cuda", 0)


def test_everything_in_a_batch_belongs_to_its_samples(catalog: Catalog) -> None:
    plan = plan_of(catalog, seed=3)
    for number, batch in enumerate(take(loader_of(plan), 3)):
        ids = plan.batch(number).sample_ids
        assert columns(batch) == {
            "ids": ids.tolist(),
            "labels": plan.labels(ids).tolist(),
            "sets": [int(sample >= 32) for sample in ids],
            **{axis: catalog.codes(axis, ids).tolist() for axis in ("origin", "group")},
        }


def test_a_batch_has_the_promised_types_and_memory(catalog: Catalog) -> None:
    (batch,) = take(loader_of(plan_of(catalog)), 1)
    assert batch.images.shape == (BATCH_SIZE, 3, 112, 112)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    tensors = [batch.labels, batch.sample_ids, *batch.tags.values()]
    assert {(column.dtype, column.shape) for column in tensors} == {(torch.int64, (BATCH_SIZE,))}
    assert batch.sets.dtype == np.int64
    assert batch.sets.shape == (BATCH_SIZE,)


@pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (1, 256, 1, 3)])
def test_encoders_take_float_images_from_minus_1_to_1_in_channels_last_memory(
    shape: tuple[int, ...], device: torch.device
) -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(12)[: int(np.prod(shape))].reshape(shape).permute(0, 3, 1, 2)
    images = normalised(levels.to(device))
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images.cpu(), (levels.float() - 127.5) / 127.5)
    assert (images.min().item(), images.max().item()) == (-1, 1)


def test_floats_can_take_the_memory_of_earlier_ones() -> None:
    earlier, later = (torch.randint(0, 256, (number, 3, 8, 8), dtype=torch.uint8) for number in (5, 3))
    later = later.contiguous(memory_format=torch.channels_last)
    memory = normalised(earlier)
    found = normalised(later, memory)
    assert found.data_ptr() == memory.data_ptr()
    assert torch.equal(found, normalised(later))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_with_separate_labels_every_set_counts_from_0(catalog: Catalog) -> None:
    plan = plan_of(catalog, {**MIX, "labels": "separate"})
    (batch,) = take(loader_of(plan), 1)
    for number, name in enumerate(plan.set_names):
        labels = batch.labels[batch.sets == number]
        own = set(catalog.label[list(catalog.ids_of(name))].tolist())
        assert set((labels + min(own)).tolist()) == own


def test_batches_stay_valid_after_the_loader_moved_on(catalog: Catalog) -> None:
    loader = loader_of(plan_of(catalog))
    held = [(batch, joined([batch])) for batch in islice(loader, 12)]
    loader.close()
    del loader
    for batch, as_it_came in held:
        assert_same(batch, as_it_came)


def named_mix(name: str) -> dict[str, Any]:
    """Mixes between them use all that a slice can be made of."""
    sets = {name: dict(one) for name, one in MIX["sets"].items()}
    mixes: dict[str, dict[str, Any]] = {
        "shares": MIX,
        "natural": {"sets": {name: {"path": name} for name in sets}},
        "pairs": {"sets": sets, "per_identity": 2, "labels": "separate"},
        "windows": {"sets": sets, "window_shards": 2},
    }
    sets["drawn"]["augment"] = "adaface"
    return mixes[name]


RUNS = st.fixed_dictionaries(
    {
        "world_size": st.sampled_from([1, 2, 3, 8]),
        "threads": st.integers(1, 3),
        "prefetch": st.integers(1, 3),
        "read_ahead": st.integers(0, 3),
        "is_cached": st.booleans(),
    }
)


def run(plan: Plan, options: dict[str, Any], cache: Path, state: str | None, number: int) -> tuple[list[Batch], str]:
    """Return global batches put together from all ranks, and one rank's state in the end."""
    own = dict(options)
    world_size, is_cached = own.pop("world_size"), own.pop("is_cached")
    ranks = []
    for rank in range(world_size):
        loader = loader_of(plan, rank, world_size, "flip", cache=cache if is_cached else None, **own)
        if state is not None:
            loader.load_state_dict(json.loads(state))
        ranks.append(take(loader, number))
        states = json.dumps(loader.state_dict())
    return [joined(slices) for slices in zip(*ranks, strict=True)], states


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mix=st.sampled_from(["shares", "natural", "pairs", "windows"]),
    runs=st.lists(RUNS, min_size=2, max_size=3),
    seed=st.integers(0, 3),
)
def test_a_run_stopped_and_resumed_with_other_ranks_threads_and_caches_equals_one_that_never_stopped(
    catalog: Catalog, folders: dict[str, Path], mix: str, runs: list[dict[str, Any]], seed: int
) -> None:
    whole = take(loader_of(plan_of(catalog, named_mix(mix), seed)), 2 * len(runs))
    found: list[Batch] = []
    state = None
    with tempfile.TemporaryDirectory() as cache:
        for options in runs:
            plan = plan_of(open_catalog(folders), named_mix(mix), seed)
            batches, state = run(plan, options, Path(cache), state, 2)
            found += batches
    for ours, other in zip(found, whole, strict=True):
        assert_same(ours, other)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_the_ranks_slices_are_the_global_batches(catalog: Catalog, world_size: int) -> None:
    whole = take(loader_of(plan_of(catalog)), 3)
    ranks = [take(loader_of(plan_of(catalog), rank, world_size), 3) for rank in range(world_size)]
    for batch, *slices in zip(whole, *ranks, strict=True):
        assert all(len(part.labels) == BATCH_SIZE // world_size for part in slices)
        assert_same(joined(slices), batch)


@pytest.mark.parametrize(
    ("mix", "world_size", "message"),
    [
        (MIX, 5, r"batch size 48 does not split over 5 ranks; use a multiple of 5"),
        ({**MIX, "per_identity": 2}, 16, r"over 16 ranks in groups of per_identity 2; use a multiple of 32"),
    ],
)
def test_a_batch_that_does_not_split_over_the_ranks_is_refused(
    mix: dict[str, Any], world_size: int, message: str, catalog: Catalog
) -> None:
    with pytest.raises(UsageError, match=message):
        loader_of(plan_of(catalog, mix), rank=0, world_size=world_size)


def test_going_on_from_any_batch_equals_never_stopping(catalog: Catalog, folders: dict[str, Path]) -> None:
    unbroken = loader_of(plan_of(catalog))
    states = [json.dumps(unbroken.state_dict())]
    whole: list[Batch] = []
    for batch in islice(unbroken, 6):
        whole.append(batch)
        states.append(json.dumps(unbroken.state_dict()))
    unbroken.close()
    for start, state in enumerate(states):
        resumed = loader_of(plan_of(open_catalog(folders)))
        resumed.load_state_dict(json.loads(state))
        for ours, other in zip(take(resumed, 6 - start), whole[start:], strict=True):
            assert_same(ours, other)


def test_a_loader_under_way_can_go_back(catalog: Catalog) -> None:
    loader = loader_of(plan_of(catalog))
    state = loader.state_dict()
    first = list(islice(loader, 3))
    loader.load_state_dict(state)
    for ours, other in zip(take(loader, 3), first, strict=True):
        assert_same(ours, other)


def test_a_state_is_small_and_does_not_grow(catalog: Catalog) -> None:
    loader = loader_of(plan_of(catalog))
    begun = json.dumps(loader.state_dict())
    take(loader, 3)
    assert len(begun) == len(json.dumps(loader.state_dict())) < 4000


def other_mix(share: str) -> dict[str, Any]:
    rest = {"path": "data/real", "share": "1/2", "balance": "group"}
    return {"sets": {"real": rest, "drawn": {"path": "data/drawn", "share": share}}}


@pytest.mark.parametrize(
    ("message", "change", "augment"),
    [
        ("mix.sets.real.share is 1/3, now it is 1/2", {"mix": other_mix("1/2")}, "flip"),
        ("mix.per_identity is 1, now it is 2", {"mix": {**MIX, "per_identity": 2}}, "flip"),
        ("seed is 0, now it is 1", {"seed": 1}, "flip"),
        ("batch size is 48, now it is 16", {"batch_size": 16}, "flip"),
        ("augmentation.real.flip is 0.5, now it is 0.25", {}, {"flip": 0.25}),
        ("augmentation.real.randaugment.operations is None, now it is 4", {}, "randaugment"),
    ],
)
def test_a_state_of_another_run_is_refused_by_the_one_setting_that_differs(
    catalog: Catalog, message: str, change: dict[str, Any], augment: Any
) -> None:
    state = json.loads(json.dumps(loader_of(plan_of(catalog)).state_dict()))
    loader = loader_of(plan_of(catalog, **change), augment=augment)
    with pytest.raises(UsageError, match=f"cannot resume: the saved {message}") as refused:
        loader.load_state_dict(state)
    assert len(str(refused.value)) < 200


def test_a_state_of_another_image_size_is_refused(catalog: Catalog) -> None:
    state = loader_of(plan_of(catalog)).state_dict()
    with pytest.raises(UsageError, match="the saved image size is 112, now it is 64"):
        loader_of(plan_of(catalog), image_size=64).load_state_dict(state)


def test_a_state_of_another_data_set_is_refused(folders: dict[str, Path], catalog: Catalog) -> None:
    state = loader_of(plan_of(catalog)).state_dict()
    loader = loader_of(plan_of(open_catalog({"real": folders["real"], "drawn": folders["real"]})))
    with pytest.raises(UsageError, match="cannot resume: the saved data set is"):
        loader.load_state_dict(state)


def test_a_refused_state_leaves_the_loader_where_it_was(catalog: Catalog) -> None:
    whole = take(loader_of(plan_of(catalog)), 3)
    loader = loader_of(plan_of(catalog))
    next(loader)
    with pytest.raises(UsageError, match="seed"):
        loader.load_state_dict(loader_of(plan_of(catalog, seed=9)).state_dict())
    for ours, other in zip(take(loader, 2), whole[1:], strict=True):
        assert_same(ours, other)


def test_a_state_of_another_version_is_refused(catalog: Catalog) -> None:
    loader = loader_of(plan_of(catalog))
    with pytest.raises(UsageError, match="version 99"):
        loader.load_state_dict({**loader.state_dict(), "version": 99})


def test_a_closed_loader_has_no_more_batches(catalog: Catalog) -> None:
    loader = loader_of(plan_of(catalog))
    next(loader)
    loader.close()
    loader.close()
    with pytest.raises(StopIteration):
        next(loader)


def test_samples_are_loaded_in_the_order_given_with_a_last_short_batch(catalog: Catalog) -> None:
    ids = np.array([46, 0, 33, 33, 7, 12, 40, 1, 2, 3, 45])
    batches = list(load_in_order(catalog, ids, LoaderConfig(batch_size=4), CPU))
    assert [len(batch.labels) for batch in batches] == [4, 4, 3]
    whole = joined(batches)
    assert whole.sample_ids.tolist() == ids.tolist()
    assert whole.labels.tolist() == catalog.label[ids].tolist()
    assert whole.tags["group"].tolist() == catalog.codes("group", ids).tolist()
    assert whole.sets.tolist() == [int(sample >= 32) for sample in ids]
    assert_images_are(whole, [decode(encoded) for encoded in ShardReader(catalog).read(ids)])


@pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=pytest.mark.gpu)])
def test_an_image_to_evaluate_that_does_not_decode_is_named(tmp_path: Path, device: torch.device) -> None:
    broken = open_catalog({"faces": set_with_broken_images(tmp_path / "set", [13, 20])})
    batches = load_in_order(broken, np.arange(24), LoaderConfig(batch_size=4), device)
    first = next(batches)
    assert first.sample_ids.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"0000000d.jpg of set faces in .*000001.tar: does not decode"):
        list(batches)


@pytest.mark.parametrize(("number", "sizes"), [(0, []), (1, [1]), (4, [4]), (9, [4, 4, 1])])
def test_image_files_in_memory_are_decoded_in_order(catalog: Catalog, number: int, sizes: list[int]) -> None:
    encoded = ShardReader(catalog).read(np.arange(number))
    batches = list(decode_images(encoded, LoaderConfig(batch_size=4), CPU))
    assert [len(batch) for batch in batches] == sizes
    for image, data in zip((image for batch in batches for image in batch), encoded, strict=True):
        assert np.abs(image.permute(1, 2, 0).numpy().astype(np.int16) - decode(data)).max() <= 1


def test_an_image_file_in_memory_that_does_not_decode_is_an_error(catalog: Catalog) -> None:
    encoded = ShardReader(catalog).read(np.arange(3))
    with pytest.raises(DecodingFailed):
        list(decode_images([encoded[0], encoded[1][:-500], encoded[2]], LoaderConfig(batch_size=4), CPU))


def test_real_sets_of_different_image_sizes_mix(real_faces: Path, tmp_path: Path) -> None:
    kinds = {"real": sorted((real_faces / "utkface" / "images").iterdir())[:8]}
    kinds["standin"] = sorted((real_faces / "standin" / "images").glob("*/*"))[:8]
    for kind, paths in kinds.items():
        (tmp_path / kind / "faces").mkdir(parents=True)
        for path in paths:
            (tmp_path / kind / "faces" / path.name).symlink_to(path)
        source = open_folder(tmp_path / kind / "faces")
        convert(source, no_tags(len(source)), tmp_path / kind / "set", ShardConfig(name=kind, origin="authentic"))
    catalog = open_catalog({kind: tmp_path / kind / "set" for kind in kinds})
    assert catalog.image_sizes == {(200, 200), (112, 112)}
    plan = plan_of(catalog, {"sets": {kind: {"path": kind, "share": "1/2"} for kind in kinds}})
    encoded = ShardReader(catalog).read(np.arange(len(catalog)))
    (plain,) = take(loader_of(plan, augment="none"), 1)
    (cached, *_) = take(loader_of(plan, augment="none", cache=tmp_path / "cache"), 1)
    assert_same(cached, plain)
    assert sorted(plain.sets.tolist()) == [0] * 24 + [1] * 24
    for image, sample in zip(plain.images, plain.sample_ids.tolist(), strict=True):
        expected = cv2.resize(decode(encoded[sample]), (112, 112), interpolation=cv2.INTER_AREA)
        found = image.permute(1, 2, 0).numpy().astype(np.int16)
        assert np.abs(found - expected).mean() < 2  # another filter, the same face


def test_stats_add_up_to_the_batches_taken(catalog: Catalog) -> None:
    loader = loader_of(plan_of(catalog))
    assert loader.stats() == Throughput()
    for _ in range(4):
        next(loader)
    first = loader.stats()
    assert (first.images, first.cached, first.failures) == (4 * BATCH_SIZE, 0, 0)
    assert 0 < first.waiting_seconds <= first.seconds
    assert all(0 < share < 1 for share in first.occupancy.values())
    assert sum(first.occupancy.values()) <= 1
    next(loader)
    assert (loader.stats() - first).images == BATCH_SIZE
    loader.close()


def test_devices_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(UsageError, match="use cpu or auto"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cpu", local_rank=3) == CPU
    assert resolve_device("auto", local_rank=3) == resolve_device("gpu", local_rank=3) == torch.device("cuda", 3)


@pytest.mark.gpu
@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("augment", ["none", "flip"])
def test_a_batch_lies_on_the_gpu_and_is_that_of_the_cpu(
    catalog: Catalog, augment: str, is_cached: bool, tmp_path: Path
) -> None:
    plan = plan_of(catalog)
    loader = loader_of(plan, augment=augment, device=GPU, cache=tmp_path if is_cached else None)
    for ours, other in zip(take(loader, 4), take(loader_of(plan, augment=augment), 4), strict=True):
        tensors = [ours.images, ours.labels, ours.sample_ids, *ours.tags.values()]
        assert {tensor.device for tensor in tensors} == {GPU}
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours.images.cpu(), other.images)
        assert columns(ours) == columns(other)
