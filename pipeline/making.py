"""The images of a rank's slices of global batches, made one slice after another: plan, read, decode, augment.

DALI decodes some slices ahead, in threads of its own. On a CPU, OpenCV then augments in place what was decoded or came
from the cache; on a GPU a graph does. When an image fails, the slices under way begin anew without it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, count, zip_longest

import numpy as np
import torch

from pipeline.augment import draw_steps, join_steps, possible_ops
from pipeline.augment_config import AugmentConfig
from pipeline.cache import DecodedCache
from pipeline.config import LoaderConfig
from pipeline.failures import Failures
from pipeline.fused import apply_steps
from pipeline.graph import DecodingFailed, GraphOptions, Images, Inputs, augmented, decoded
from pipeline.order import Ids
from pipeline.plan import Plan, PlannedBatch
from pipeline.reader import ShardReader
from pipeline.stats import StageClock
from pipeline.steps import Op, Steps
from shardgen.errors import DataError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Slice:
    """A rank's part of a global batch, on its way."""

    planned: PlannedBatch
    sample_ids: Ids
    """Those planned, and others in place of those that fail."""
    steps: Steps
    missing: Ids
    """Slots whose images the cache does not have."""
    encoded: Sequence[bytes]
    """Images of the missing, or of the first slot: the decoder gets something from every slice, for it waits for it."""


Made = Iterator[tuple[Slice, torch.Tensor]]
"""Slices with their images `[slots, size, size, 3] uint8`, RGB."""


class SliceMaker:
    """What making the slices of one rank takes, and what it has cost."""

    def __init__(
        self,
        plan: Plan,
        augmentations: Sequence[AugmentConfig],
        config: LoaderConfig,
        device: torch.device,
        slots: slice,
        rank: int,
    ) -> None:
        """Take the augmentation of each of the plan's sets, and the rank's slots of a batch."""
        catalog = plan.catalog
        self._plan = plan
        self._augmentations = list(dict.fromkeys(augmentations))
        self._augmentation_of = np.array([self._augmentations.index(one) for one in augmentations])
        self._config = config
        self._device = device
        self._graph_augments = device.type == "cuda"
        self._slots = slots
        self._reader = ShardReader(catalog, config.check_shards)
        self._cache = (
            DecodedCache(config.cache, catalog.digest, len(catalog), config.image_size, rank) if config.cache else None
        )
        self._pool = ThreadPoolExecutor(config.threads, "augment")
        self._resources = ExitStack()
        self._resources.callback(self._pool.shutdown)
        if self._cache is not None:
            self._resources.callback(self._cache.close)
        self.failures = Failures(plan, self._reader, config.max_failures)
        self.clock = StageClock()
        self.num_cached = 0
        """Images that came out of the cache."""

    def slices(self, first_batch: int) -> Made:
        """Yield the slices of batch `first_batch` and all that follow, their images on the device.

        Raises `DataError` when too many images fail, or a shard changes.
        """
        planned = self._planned(first_batch)
        if self._cache is None:
            made = self._decoded(planned, self._options(self._device, self._graph_augments))
            return made if self._graph_augments else self._augmented_by_opencv(made)
        made = self._completed(self._cache, self._decoded(planned, self._options(CPU, augments=False)))
        return self._augmented_by_graph(made) if self._graph_augments else self._augmented_by_opencv(made)

    def close(self) -> None:
        """Save what the cache has got, and end all threads; a second call does nothing."""
        self._resources.close()

    def _planned(self, first_batch: int) -> Iterator[PlannedBatch]:
        """Yield what is planned for the rank's slots, once its bytes have had the time of some batches to be read."""
        waiting: deque[PlannedBatch] = deque()
        for number in count(first_batch):
            with self.clock.during("plan"):
                batch = self._plan.batch(number)
            slots = self._slots
            waiting.append(PlannedBatch(batch.sample_ids[slots], batch.passes[slots], batch.strata[slots]))
            if self._config.read_ahead:
                with self.clock.during("read"):
                    self._read_ahead(waiting[-1].sample_ids)
            if len(waiting) > self._config.read_ahead:
                yield waiting.popleft()

    def _read_ahead(self, sample_ids: Ids) -> None:
        if self._cache is not None:
            cached = self._cache.holds(sample_ids)
            self._cache.read_ahead(sample_ids[cached])
            sample_ids = sample_ids[~cached]
        self._reader.read_ahead(sample_ids)

    def _decoded(self, planned: Iterator[PlannedBatch], options: GraphOptions) -> Made:
        under_way: deque[Slice] = deque()

        def inputs() -> Iterator[Inputs]:
            for one in planned:
                under_way.append(self._prepared(one))
                yield Inputs(under_way[-1].encoded, under_way[-1].steps if options.possible_ops else None)

        while True:
            try:
                for images in self.clock.counting("decode", decoded(inputs(), options)):
                    yield under_way.popleft(), images
                return
            except DecodingFailed as error:
                if not self.failures.look_for(np.concatenate([one.sample_ids for one in under_way])):
                    raise DataError(
                        f"{error}, though OpenCV decodes all; convert the set again with --check decode"
                    ) from error
                planned = chain([one.planned for one in under_way], planned)
                under_way.clear()

    def _options(self, device: torch.device, augments: bool) -> GraphOptions:
        config = self._config
        resize = self._plan.catalog.image_sizes != {(config.image_size, config.image_size)}
        options = graph_options(config, device, resize)
        if not augments:
            return options
        steps = zip_longest(*map(possible_ops, self._augmentations), fillvalue=frozenset({Op.NOTHING}))
        return replace(options, possible_ops=[frozenset.union(*ops) for ops in steps])

    def _prepared(self, planned: PlannedBatch) -> Slice:
        with self.clock.during("plan"):
            sample_ids = self.failures.replace(planned)
            steps = self._steps(sample_ids, planned)
        with self.clock.during("read"):
            missing = np.arange(len(sample_ids))
            if self._cache is not None:
                missing = np.flatnonzero(~self._cache.holds(sample_ids))
            encoded = self._reader.read(sample_ids[missing if len(missing) else [0]])
        return Slice(planned, sample_ids, steps, missing, encoded)

    def _steps(self, sample_ids: Ids, planned: PlannedBatch) -> Steps:
        of_slot = self._augmentation_of[self._plan.sets(planned.strata)]
        # One that stands in for another may have a slot of its own beside it, and must not look the same.
        instead = sample_ids != planned.sample_ids
        passes = np.where(instead, planned.passes + ((planned.sample_ids + 1) << 32), planned.passes)
        parts = []
        for number, augmentation in enumerate(self._augmentations):
            rows = np.flatnonzero(of_slot == number)
            drawn = draw_steps(augmentation, self._plan.seed, self._config.image_size, sample_ids[rows], passes[rows])
            parts.append((rows, drawn))
        return join_steps(parts, len(sample_ids))

    def _completed(self, cache: DecodedCache, made: Made) -> Made:
        for one, images in made:
            with self.clock.during("augment"):
                complete = self._exchanged(cache, one, images)
            yield one, complete

    def _exchanged(self, cache: DecodedCache, one: Slice, decoded_images: torch.Tensor) -> torch.Tensor:
        """Give the cache the images that it was missing, and return them among those that it had."""
        sample_ids, missing = one.sample_ids, one.missing
        fresh = decoded_images.numpy()[: len(missing)]
        cache.put(sample_ids[missing], fresh)
        self.num_cached += len(sample_ids) - len(missing)
        if len(missing) == len(sample_ids):
            return decoded_images
        there = sample_ids.copy()
        there[missing] = np.delete(sample_ids, missing)[0]
        images = torch.empty((len(sample_ids), *fresh.shape[1:]), dtype=torch.uint8)
        cache.take(there, images.numpy())
        images.numpy()[missing] = fresh
        return images

    def _augmented_by_opencv(self, made: Made) -> Made:
        for one, images in made:
            with self.clock.during("augment"):
                flips_at_most = one.steps.ops.shape[1] <= 1  # handing them out takes longer than flipping
                apply_steps(images.numpy(), one.steps, pool=None if flips_at_most else self._pool)
            yield one, images

    def _augmented_by_graph(self, made: Made) -> Made:
        under_way: deque[Slice] = deque()

        def inputs() -> Iterator[tuple[Images, Steps]]:
            for one, images in made:
                under_way.append(one)
                yield images.numpy(), one.steps

        options = self._options(self._device, augments=True)
        for images in self.clock.counting("augment", augmented(inputs(), options)):
            yield under_way.popleft(), images


def graph_options(config: LoaderConfig, device: torch.device, resize: bool) -> GraphOptions:
    """Return the options of a graph that decodes and does nothing else."""
    return GraphOptions(
        max_batch_size=config.batch_size,
        image_size=config.image_size,
        resize=resize,
        device=device,
        threads=config.threads,
        prefetch=config.prefetch,
    )
