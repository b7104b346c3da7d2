"""FaceLoader: batches that line up with the catalog, from any point, on any number of ranks."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline import augment
from pipeline.catalog import Catalog, open_catalog
from pipeline.config import AugmentConfig, LoaderConfig, MixConfig
from pipeline.loader import Batch, FaceLoader, decode_images, load_in_order, resolve_device
from pipeline.plan import Plan
from pipeline.reader import Encoded, ShardReader
from shardgen.config import ShardConfig
from shardgen.convert import convert
from shardgen.errors import UsageError
from shardgen.inputs.folders import open_folder
from shardgen.tags import no_tags
from tests.support import make_set

CPU = torch.device("cpu")
BATCH_SIZE = 8
MIX = {
    "sets": {
        "real": {"path": "data/real", "share": "1/3", "balance": "group"},
        "drawn": {"path": "data/drawn", "share": "2/3"},
    }
}


@pytest.fixture(scope="module")
def folders(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    drawn = make_set(tmp_path_factory.mktemp("drawn") / "drawn", range(8, 13), 3, seed=1, origin="synthetic")
    return {"real": small_set, "drawn": drawn}


@pytest.fixture(scope="module")
def catalog(folders: dict[str, Path]) -> Catalog:
    return open_catalog(folders)


def plan_of(catalog: Catalog, mix: dict[str, Any] = MIX, seed: int = 0, batch_size: int = BATCH_SIZE) -> Plan:
    return Plan(catalog, MixConfig.model_validate(mix), seed, batch_size)


def loader_of(plan: Plan, rank: int = 0, world_size: int = 1, flip: float = 0.5, **config: Any) -> FaceLoader:
    options = LoaderConfig(**{"batch_size": plan.batch_size, **config})
    return FaceLoader(plan, AugmentConfig(flip=flip), options, CPU, rank, world_size)


def take(loader: FaceLoader, number: int) -> list[Batch]:
    batches = list(islice(loader, number))
    loader.close()
    return batches


def assert_same(ours: Batch, other: Batch) -> None:
    assert torch.equal(ours.sample_ids, other.sample_ids)
    assert torch.equal(ours.labels, other.labels)
    assert torch.equal(ours.images, other.images)
    assert ours.tags.keys() == other.tags.keys()
    assert all(torch.equal(column, other.tags[axis]) for axis, column in ours.tags.items())


def joined(slices: Sequence[Batch]) -> Batch:
    return Batch(
        images=torch.cat([part.images for part in slices]),
        labels=torch.cat([part.labels for part in slices]),
        sample_ids=torch.cat([part.sample_ids for part in slices]),
        tags={axis: torch.cat([part.tags[axis] for part in slices]) for axis in slices[0].tags},
    )


def opencv(encoded: Encoded) -> torch.Tensor:
    """Return `[3, height, width]` RGB in [-1, 1]."""
    rgb = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return (torch.from_numpy(rgb).permute(2, 0, 1).float() - 127.5) / 127.5


def test_everything_in_a_batch_belongs_to_its_samples(catalog: Catalog) -> None:
    plan = plan_of(catalog, seed=3)
    reader = ShardReader(catalog)
    flipped: list[int] = []
    for number, batch in enumerate(take(loader_of(plan, flip=0.3), 6)):
        planned = plan.batch(number)
        ids = planned.sample_ids
        assert batch.sample_ids.tolist() == ids.tolist()
        assert batch.labels.tolist() == catalog.label[ids].tolist()
        tags = {axis: column.tolist() for axis, column in batch.tags.items()}
        assert tags == {axis: catalog.tags[axis][ids].tolist() for axis in ("origin", "group")}
        flips = augment.flips(3, 0.3, ids, planned.passes)
        upright = torch.stack([opencv(encoded) for encoded in reader.read(ids)])
        expected = torch.where(torch.from_numpy(flips)[:, None, None, None] > 0, upright.flip(3), upright)
        torch.testing.assert_close(batch.images, expected, rtol=0, atol=1.01 / 127.5)
        flipped += flips.tolist()
    assert 0 < sum(flipped) < len(flipped)


def test_a_batch_has_the_promised_types_and_memory(catalog: Catalog) -> None:
    (batch,) = take(loader_of(plan_of(catalog)), 1)
    assert batch.images.shape == (BATCH_SIZE, 3, 112, 112)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    columns = [batch.labels, batch.sample_ids, *batch.tags.values()]
    assert {(column.dtype, column.shape) for column in columns} == {(torch.int64, (BATCH_SIZE,))}


def test_flipping_all_mirrors_what_flipping_none_gives(catalog: Catalog) -> None:
    plan = plan_of(catalog)
    for none, every in zip(take(loader_of(plan, flip=0), 3), take(loader_of(plan, flip=1), 3), strict=True):
        assert torch.equal(every.images, none.images.flip(3))


def test_batches_stay_valid_after_the_loader_moved_on(catalog: Catalog) -> None:
    loader = loader_of(plan_of(catalog))
    held = [(batch, joined([batch])) for batch in islice(loader, 12)]
    loader.close()
    del loader
    for batch, as_it_came in held:
        assert_same(batch, as_it_came)


@pytest.mark.parametrize("config", [{"threads": 3}, {"prefetch": 1}, {"prefetch": 5}])
def test_threads_and_prefetch_change_nothing(catalog: Catalog, config: dict[str, int]) -> None:
    plan = plan_of(catalog)
    for ours, other in zip(take(loader_of(plan), 4), take(loader_of(plan, **config), 4), strict=True):
        assert_same(ours, other)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_slices_are_the_global_batches(catalog: Catalog, world_size: int) -> None:
    whole = take(loader_of(plan_of(catalog)), 5)
    ranks = [take(loader_of(plan_of(catalog), rank, world_size), 5) for rank in range(world_size)]
    for batch, *slices in zip(whole, *ranks, strict=True):
        assert all(len(part.labels) == BATCH_SIZE // world_size for part in slices)
        assert_same(joined(slices), batch)


def test_a_batch_that_does_not_split_over_the_ranks_is_refused(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match=r"batch size 8 .* 3 ranks; use a multiple of 3"):
        loader_of(plan_of(catalog), rank=0, world_size=3)


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


def test_a_state_goes_on_with_another_number_of_ranks(catalog: Catalog) -> None:
    whole = take(loader_of(plan_of(catalog)), 4)
    ranks = [loader_of(plan_of(catalog), rank, 2) for rank in range(2)]
    for rank in ranks:
        take(rank, 2)
    assert ranks[0].state_dict() == ranks[1].state_dict()
    resumed = loader_of(plan_of(catalog), world_size=1)
    resumed.load_state_dict(ranks[1].state_dict())
    for ours, other in zip(take(resumed, 2), whole[2:], strict=True):
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
    assert len(begun) == len(json.dumps(loader.state_dict())) < 1000


def other_mix(share: str) -> dict[str, Any]:
    rest = {"path": "data/real", "share": "1/2", "balance": "group"}
    return {"sets": {"real": rest, "drawn": {"path": "data/drawn", "share": share}}}


@pytest.mark.parametrize(
    ("name", "change"),
    [("mix", {"mix": other_mix("1/2")}), ("seed", {"seed": 1}), ("batch size", {"batch_size": 16})],
)
def test_a_state_of_another_plan_is_refused_by_what_differs(
    catalog: Catalog, name: str, change: dict[str, Any]
) -> None:
    state = loader_of(plan_of(catalog)).state_dict()
    loader = loader_of(plan_of(catalog, **change))
    with pytest.raises(UsageError, match=f"cannot resume: the saved {name} is"):
        loader.load_state_dict(state)


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
    assert whole.tags["group"].tolist() == catalog.tags["group"][ids].tolist()
    upright = torch.stack([opencv(encoded) for encoded in ShardReader(catalog).read(ids)])
    torch.testing.assert_close(whole.images, upright, rtol=0, atol=1.01 / 127.5)


@pytest.mark.parametrize(("number", "sizes"), [(0, []), (1, [1]), (4, [4]), (9, [4, 4, 1])])
def test_image_files_in_memory_are_decoded_in_order(catalog: Catalog, number: int, sizes: list[int]) -> None:
    encoded = ShardReader(catalog).read(np.arange(number))
    batches = list(decode_images(encoded, LoaderConfig(batch_size=4), CPU))
    assert [len(batch) for batch in batches] == sizes
    for image, data in zip((image for batch in batches for image in batch), encoded, strict=True):
        torch.testing.assert_close(image, opencv(data), rtol=0, atol=1.01 / 127.5)


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
    for batch in take(loader_of(plan, flip=0), 2):
        assert batch.images.shape == (BATCH_SIZE, 3, 112, 112)
        assert sorted(batch.tags["origin"].tolist()) == [1] * BATCH_SIZE
        for image, sample in zip(batch.images, batch.sample_ids.tolist(), strict=True):
            whole = opencv(encoded[sample]).permute(1, 2, 0).numpy()
            expected = torch.from_numpy(cv2.resize(whole, (112, 112), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)
            assert (image - expected).abs().mean() < 2 / 127.5  # another filter, the same face


def test_devices_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(UsageError, match="use cpu or auto"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cpu", local_rank=3) == CPU
    assert resolve_device("auto", local_rank=3) == resolve_device("gpu", local_rank=3) == torch.device("cuda", 3)


@pytest.mark.gpu
def test_a_batch_lies_on_the_gpu_and_is_that_of_the_cpu(catalog: Catalog) -> None:
    plan, gpu = plan_of(catalog), torch.device("cuda", 0)
    loader = FaceLoader(plan, AugmentConfig(), LoaderConfig(batch_size=BATCH_SIZE), gpu)
    for ours, other in zip(take(loader, 4), take(loader_of(plan), 4), strict=True):
        tensors = [ours.images, ours.labels, ours.sample_ids, *ours.tags.values()]
        assert {tensor.device for tensor in tensors} == {gpu}
        torch.testing.assert_close(ours.images.cpu(), other.images, rtol=0, atol=1e-5)
        assert ours.sample_ids.tolist() == other.sample_ids.tolist()
        assert ours.labels.tolist() == other.labels.tolist()
