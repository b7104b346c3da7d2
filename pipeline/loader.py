"""FaceLoader: iterate batches of an exact mix, from any point, on any number of ranks."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline import augment
from pipeline.catalog import Catalog
from pipeline.config import AugmentConfig, LoaderConfig
from pipeline.graph import GraphOptions, Inputs, decoded
from pipeline.plan import Ids, Plan
from pipeline.reader import Encoded, ShardReader
from shardgen.errors import UsageError

STATE_VERSION = 1

Flips = npt.NDArray[np.int32]
"""1 for each image to be flipped, else 0."""


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch, everything on one device."""

    images: torch.Tensor
    """`[batch, 3, size, size] float32` in [-1, 1], RGB, channels_last in memory."""
    labels: torch.Tensor
    """`[batch] int64`, 0 <= label < number of identities that take part."""
    sample_ids: torch.Tensor
    """`[batch] int64`: rows of the catalog."""
    tags: Mapping[str, torch.Tensor]
    """Tag axis -> `[batch] int64`: positions in the catalog's values of that axis."""


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
        if plan.batch_size % world_size:
            raise UsageError(
                f"batch size {plan.batch_size} does not split over {world_size} ranks; use a multiple of {world_size}"
            )
        self._plan = plan
        self._augmentation = augmentation
        self._config = config
        self._device = device
        self._depends_on = {
            **plan.state_key,
            "augmentation": augmentation.model_dump_json(),
            "image size": config.image_size,
        }
        per_rank = plan.batch_size // world_size
        self._slots = slice(rank * per_rank, (rank + 1) * per_rank)
        self._next_batch = 0
        self._batches = self._start()

    def __iter__(self) -> "FaceLoader":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._next_batch += 1
        return batch

    def _start(self) -> Iterator[Batch]:
        return load(self._plan.catalog, self._slices(), self._config, self._device)

    def _slices(self) -> Iterator[tuple[Ids, Flips]]:
        for number in count(self._next_batch):
            planned = self._plan.batch(number)
            ids, passes = planned.sample_ids[self._slots], planned.passes[self._slots]
            yield ids, augment.flips(self._plan.seed, self._augmentation.flip, ids, passes)

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration stands; the same for every rank and any world size."""
        return {"version": STATE_VERSION, "next_batch": self._next_batch, "depends_on": self._depends_on}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; raise `UsageError` naming what differs when it is of another plan."""
        if state["version"] != STATE_VERSION:
            raise UsageError(f"loader state of version {state['version']}, this facemix reads {STATE_VERSION}")
        saved = state["depends_on"]
        for name, ours in self._depends_on.items():
            if saved.get(name) != ours:
                raise UsageError(
                    f"cannot resume: the saved {name} is {saved.get(name)}, now it is {ours}; "
                    "resume with what the run was started with, or start a new run"
                )
        self.close()
        self._next_batch = state["next_batch"]
        self._batches = self._start()

    def close(self) -> None:
        """Stop decoding and free the pipeline."""
        self._batches.close()  # type: ignore[attr-defined]  # a generator


def load(
    catalog: Catalog,
    slices: Iterable[tuple[Ids, Flips]],
    config: LoaderConfig,
    device: torch.device,
) -> Iterator[Batch]:
    """Yield a batch for each (sample ids, flips), made `config.prefetch` batches ahead."""
    reader = ShardReader(catalog)
    under_way: deque[tuple[Ids, Inputs]] = deque()  # DALI reads this memory until the batch is out

    def inputs() -> Iterator[Inputs]:
        for ids, flips in slices:
            under_way.append((ids, (reader.read(ids), flips)))
            yield under_way[-1][1]

    resize = catalog.image_sizes != {(config.image_size, config.image_size)}
    for images in decoded(inputs(), _options(config, device, resize)):
        ids, _ = under_way.popleft()
        columns = {axis: column[ids] for axis, column in catalog.tags.items()}
        yield Batch(
            images=images,
            labels=_tensor(catalog.label[ids], device),
            sample_ids=_tensor(ids, device),
            tags={axis: _tensor(column, device) for axis, column in columns.items()},
        )


def load_in_order(catalog: Catalog, ids: Ids, config: LoaderConfig, device: torch.device) -> Iterator[Batch]:
    """Yield the given samples once, in their order and not augmented, as evaluation wants them."""
    cuts = range(0, len(ids), config.batch_size)
    slices = (ids[start : start + config.batch_size] for start in cuts)
    yield from load(catalog, ((part, np.zeros(len(part), np.int32)) for part in slices), config, device)


def decode_images(encoded: Sequence[Encoded], config: LoaderConfig, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield batches `[batch, 3, size, size] float32` of image files that are in memory, in order."""
    cuts = range(0, len(encoded), config.batch_size)
    batches = (list(encoded[start : start + config.batch_size]) for start in cuts)
    inputs = ((batch, np.zeros(len(batch), np.int32)) for batch in batches)
    yield from decoded(inputs, _options(config, device, resize=True))


def _options(config: LoaderConfig, device: torch.device, resize: bool) -> GraphOptions:
    return GraphOptions(
        max_batch_size=config.batch_size,
        image_size=config.image_size,
        resize=resize,
        device=device,
        threads=config.threads,
        prefetch=config.prefetch,
    )


def _tensor(column: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(column.astype(np.int64)).to(device, non_blocking=True)
