"""FaceLoader: iterate batches of an exact mix, from any point, on any number of ranks."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.ahead import Ahead
from pipeline.augment_config import AugmentConfig
from pipeline.catalog import Catalog
from pipeline.config import LoaderConfig, flatten
from pipeline.failures import undecodable
from pipeline.graph import DecodingFailed, Inputs, decoded
from pipeline.making import SliceMaker, graph_options
from pipeline.order import Ids
from pipeline.plan import Plan
from pipeline.reader import ShardReader
from pipeline.stats import Throughput
from shardgen.errors import DataError, UsageError

STATE_VERSION = 2


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch; tensors are on one device."""

    images: torch.Tensor
    """`[batch, 3, size, size] uint8`, RGB, channels_last in memory; `normalised` makes an encoder's input of them."""
    labels: torch.Tensor
    """`[batch] int64`: classes, counted from 0 within their head."""
    sample_ids: torch.Tensor
    """`[batch] int64`: rows of the catalog."""
    sets: Ids
    """`[batch] int64`, on the host: positions of the sets, which are those of the heads where every set has its own."""
    tags: Mapping[str, torch.Tensor]
    """Tag axis -> `[batch] int64`: positions in the catalog's values of that axis."""


def normalised(images: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
    """Return uint8 images as encoders take them: float32 in [-1, 1], channels_last in memory as they are.

    Call it on the device: until then a batch is a quarter of the bytes. On the CPU an earlier result that nobody needs
    any more, with as many images of that size or more, may lend its `memory`; new memory costs as much as the floats.
    """
    if images.device.type != "cpu":
        return images.float().sub_(127.5).div_(127.5)
    pixels = images.permute(0, 2, 3, 1).numpy()
    if memory is None:  # NumPy takes huge pages, which torch does not ask for: a third of the time
        memory = torch.from_numpy(np.empty(pixels.shape, np.float32)).permute(0, 3, 1, 2)
    floats = memory.permute(0, 2, 3, 1).numpy()[: len(pixels)]
    rows = (-1, *pixels.shape[2:])
    cv2.LUT(pixels.reshape(rows), _LEVELS, floats.reshape(rows))
    return torch.from_numpy(floats).permute(0, 3, 1, 2)


_LEVELS = (np.arange(256, dtype=np.float32)[None] - 127.5) / 127.5


def resolve_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device that "auto", "cpu" or "gpu" means here.

    Raises `UsageError` when a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "gpu" and not available:
        raise UsageError("device gpu: torch sees none here; use cpu or auto")
    return torch.device("cuda", local_rank) if available and wanted != "cpu" else torch.device("cpu")


class FaceLoader:
    """An endless iterator over one rank's slices of a plan's global batches.

    Rank r of w takes slots r*b..(r+1)*b-1 of every global batch, b being batch_size / w: the sequence of
    global batches is the same for any world size, and the state is the number of the next batch.
    """

    def __init__(
        self,
        plan: Plan,
        augmentation: AugmentConfig,
        config: LoaderConfig,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Take `augmentation` for the sets that have none of their own; nothing is made before it is asked for.

        Raises `UsageError` when batches do not split over the ranks, or the folder of the cache is of no use.
        """
        slots = _slots(plan, rank, world_size)
        augmentations = {name: plan.mix.sets[name].augment or augmentation for name in plan.set_names}
        self._plan = plan
        self._device = device
        self._prefetch = config.prefetch
        self._depends_on = {
            **plan.state_key,
            "augmentation": {name: one.model_dump(mode="json") for name, one in augmentations.items()},
            "image size": config.image_size,
        }
        self._maker = SliceMaker(plan, list(augmentations.values()), config, device, slots, rank)
        self._next_batch = 0
        self._num_images = 0
        self._begun: float | None = None
        self._waiting_seconds = 0.0
        self._batches = self._start()

    def __iter__(self) -> "FaceLoader":
        return self

    def __next__(self) -> Batch:
        asked = perf_counter()
        batch = next(self._batches)
        self._begun = self._begun or asked
        self._waiting_seconds += perf_counter() - asked
        self._num_images += len(batch.labels)
        self._next_batch += 1
        return batch

    def stats(self) -> Throughput:
        """Return what the batches so far have cost, since the first was asked for."""
        return Throughput(
            images=self._num_images,
            seconds=perf_counter() - self._begun if self._begun else 0.0,
            waiting_seconds=self._waiting_seconds,
            cached=self._maker.num_cached,
            failures=len(self._maker.failures),
            **self._maker.clock.seconds(),
        )

    def _start(self) -> Ahead[Batch]:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        return Ahead(_batches(self._maker, self._plan, self._next_batch, stream), self._prefetch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration stands; the same for every rank and any world size."""
        return {"version": STATE_VERSION, "next_batch": self._next_batch, "depends_on": self._depends_on}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; raise `UsageError` naming what differs when it is of another plan."""
        if state["version"] != STATE_VERSION:
            raise UsageError(f"loader state of version {state['version']}, this facemix reads {STATE_VERSION}")
        saved, ours = flatten(state["depends_on"]), flatten(self._depends_on)
        for name in {**ours, **saved}:
            if saved.get(name) != ours.get(name):
                raise UsageError(
                    f"cannot resume: the saved {name} is {saved.get(name)}, now it is {ours.get(name)}; "
                    "resume with what the run was started with, or start a new run"
                )
        self._batches.close()
        self._next_batch = state["next_batch"]
        self._batches = self._start()

    def close(self) -> None:
        """Stop making batches, and save what the cache has got."""
        self._batches.close()
        self._maker.close()


def _slots(plan: Plan, rank: int, world_size: int) -> slice:
    of_units = f" in groups of per_identity {plan.unit}" if plan.unit > 1 else ""
    if plan.batch_size % (plan.unit * world_size):
        raise UsageError(
            f"batch size {plan.batch_size} does not split over {world_size} ranks{of_units}; "
            f"use a multiple of {plan.unit * world_size}"
        )
    per_rank = plan.batch_size // world_size
    return slice(rank * per_rank, (rank + 1) * per_rank)


def _batches(
    maker: SliceMaker, plan: Plan, first: int, stream: torch.cuda.Stream | None
) -> Generator[Batch, None, None]:
    """Run in a thread of its own; what it launches on a GPU goes to the consumer's stream."""
    if stream is not None:
        torch.cuda.set_stream(stream)
    for one, images in maker.slices(first):
        with maker.clock.during("deliver"):
            labels, sets = plan.labels(one.sample_ids), plan.sets(one.planned.strata)
            batch = _batch(images, plan.catalog, one.sample_ids, labels, sets)
        yield batch


def load_in_order(catalog: Catalog, ids: Ids, config: LoaderConfig, device: torch.device) -> Iterator[Batch]:
    """Yield the given samples once, in their order and not augmented, as evaluation wants them.

    Labels count a catalog's identities. Raises `DataError` that names an image which does not decode.
    """
    reader = ShardReader(catalog, config.check_shards)
    starts = list(catalog.set_starts.values())
    parts = deque(ids[start : start + config.batch_size] for start in range(0, len(ids), config.batch_size))
    resize = catalog.image_sizes != {(config.image_size, config.image_size)}
    inputs = (Inputs(reader.read(part)) for part in list(parts))
    try:
        for images in decoded(inputs, graph_options(config, device, resize)):
            part = parts.popleft()
            sets = np.searchsorted(starts, part, "right") - 1
            yield _batch(images, catalog, part, catalog.label[part].astype(np.int64), sets)
    except DecodingFailed:
        for part in parts:
            for sample, reason in undecodable(reader, part).items():
                raise DataError(f"{reader.describe(sample)}: {reason}; evaluation can leave none out") from None
        raise


def decode_images(encoded: Sequence[bytes], config: LoaderConfig, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield batches `[batch, 3, size, size] uint8` of image files that are in memory, in order.

    Raises `DecodingFailed` when one does not decode.
    """
    cuts = range(0, len(encoded), config.batch_size)
    inputs = (Inputs(encoded[start : start + config.batch_size]) for start in cuts)
    for images in decoded(inputs, graph_options(config, device, resize=True)):
        yield images.permute(0, 3, 1, 2)


def _batch(images: torch.Tensor, catalog: Catalog, sample_ids: Ids, labels: Ids, sets: Ids) -> Batch:
    tags = [catalog.codes(axis, sample_ids) for axis in catalog.axes]
    columns = torch.from_numpy(np.stack([labels, sample_ids, *tags]))
    if images.device.type == "cuda":
        columns = columns.pin_memory().to(images.device, non_blocking=True)  # all in one copy
    of_labels, of_samples, *of_tags = columns
    tagged = dict(zip(catalog.axes, of_tags, strict=True))
    return Batch(images.permute(0, 3, 1, 2), of_labels, of_samples, sets, tagged)
