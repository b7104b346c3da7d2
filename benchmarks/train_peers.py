"""Steps of training in the ways that they can be taken, each in a process of its own.

`python -m benchmarks.train_peers JOB` takes a `Job` as JSON and prints `Measured` as JSON. Every way begins with the
same weights of the same network and head, and draws from the same images.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.loader_peers import SIZE
from benchmarks.timing import timed
from pipeline.loader import Batch, FaceLoader, resolve_device
from pipeline.plan import open_plan
from pipeline.stats import Throughput
from train.backbones import make_encoder
from train.config import EncoderConfig, HeadConfig
from train.distributed import World
from train.heads import MarginHead
from train.objective import make_objective
from train.recipe import Recipe
from train.updates import Updater, autocast_dtype

_LR = 0.01

Item = TypeVar("Item")
_Pair = tuple[torch.Tensor, torch.Tensor]
"""Images `[batch, 3, size, size] float32` and labels, on the device."""
Step = Callable[[Item], torch.Tensor]
"""Takes a step of a batch and returns its loss; it need not wait for the device."""


@dataclass(frozen=True)
class Way:
    """How steps are taken: as InsightFace's `arcface_torch` does (`train_v2.py`), but for what is switched on."""

    precision: str = "fp32"
    """As `train.config.TrainingConfig` has it."""
    channels_last: bool = False
    """Channels innermost in memory, rather than NCHW."""
    fused: bool = False
    """One kernel for the whole optimiser."""
    compile: bool = False
    """The encoder by torch.compile."""
    facemix: bool = False
    """By our own `Updater` and `FaceLoader`, which have the two before `compile` in any case."""


INCUMBENT = Way()
OURS = Way("auto", channels_last=True, fused=True, facemix=True)


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    backbone: str
    way: Way
    shards: str
    """Folder of a shard set of which identities are numbers."""
    batch: int
    identities: int
    """Classes of the head, CosFace."""
    threads: int
    """Of torch on the CPU, and threads or processes of the loader."""
    seconds: float
    """How long each of the two measurements takes, to the nearest step."""


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    images_per_second: float
    """Of steps with a batch that is there already."""
    loaded_images_per_second: float
    """Of steps with batches from a loader."""
    waiting_share: float
    """Share of the latter's time spent waiting for data, 0 to 1."""
    peak_bytes: int
    """Most memory: of tensors on a GPU, else of all that is resident, libraries too."""
    matmul_flops: float
    """FLOP a second of a large matrix product in the type that "auto" means here."""


def measure(job: Job) -> Measured:
    """Take steps in one way, first with one batch again and again, then with a loader's."""
    torch.set_num_threads(job.threads)
    device = resolve_device("auto")
    step, batches = start(job, device)
    first = next(batches)
    take(step, repeat(first, 1), job.batch, device)
    steps = max(1, round(job.seconds / take(step, repeat(first, 1), job.batch, device).seconds))
    alone = timed(lambda: take(step, repeat(first, steps), job.batch, device).images)
    loaded = take(step, islice(batches, steps), job.batch, device)
    return Measured(
        images_per_second=alone.items / alone.wall_seconds,
        loaded_images_per_second=loaded.images_per_second,
        waiting_share=loaded.waiting_share,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else alone.peak_bytes,
        matmul_flops=_matmul_flops(autocast_dtype("auto", device) or torch.float32, device),
    )


def take(step: Callable[[Item], object], batches: Iterator[Item], batch_size: int, device: torch.device) -> Throughput:
    """Take a step of each batch and wait for the last; the clock runs from when the first batch is asked for."""
    begun, waiting, images = perf_counter(), 0.0, 0
    asked = begun
    for batch in batches:
        waiting += perf_counter() - asked
        step(batch)
        images += batch_size
        asked = perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Throughput(images, perf_counter() - begun, waiting)


def start(job: Job, device: torch.device) -> tuple[Step[Any], Iterator[Any]]:
    """Return how to take a step, from weights that are the same for every way, and the way's endless loader."""
    torch.manual_seed(0)
    return _facemix(job, device) if job.way.facemix else _plain(job, device)


def _facemix(job: Job, device: torch.device) -> tuple[Step[Batch], FaceLoader]:
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "mix": {"sets": {"drawn": {"path": job.shards}}},
            "loader": {"batch_size": job.batch, "threads": job.threads},
            "encoder": {"backbone": job.backbone},
            "training": {"precision": job.way.precision, "compile": job.way.compile},
        }
    )
    plan = open_plan(recipe.mix, recipe.seed, job.batch)
    objective = make_objective(recipe, [job.identities], plan.set_names, World(), device)
    step = partial(Updater(objective, recipe, World(), device).step, lr=_LR)
    return step, FaceLoader(plan, recipe.augment, recipe.loader, device)


def _plain(job: Job, device: torch.device) -> tuple[Step[_Pair], Iterator[_Pair]]:
    """Return the loop of `train_v2.py`, which lets cuDNN try its algorithms and waits for the loss of every step."""
    torch.backends.cudnn.benchmark = True
    way = job.way
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    encoder, head = _network(job.backbone, job.identities)
    encoder.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    head.to(device)
    if way.compile:
        encoder.compile()
    parameters = [one for one in (*encoder.parameters(), *head.parameters()) if one.requires_grad]
    optimizer = torch.optim.SGD(parameters, _LR, momentum=0.9, weight_decay=5e-4, fused=way.fused or None)
    dtype = autocast_dtype(way.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step(batch: _Pair) -> torch.Tensor:
        images, labels = batch
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss: torch.Tensor = head(encoder(images.contiguous(memory_format=layout)), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(encoder.parameters(), 5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach().cpu()

    return step, _from_processes(job, device)


def _network(backbone: str, identities: int) -> tuple[nn.Module, MarginHead]:
    encoder = make_encoder(EncoderConfig.model_validate({"backbone": backbone}), SIZE)
    return encoder, MarginHead(HeadConfig(), 512, identities)


def _from_processes(job: Job, device: torch.device) -> Iterator[_Pair]:
    loader = DataLoader(faces(job.shards), job.batch, num_workers=job.threads, pin_memory=device.type == "cuda")
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def faces(shards: str) -> IterableDataset[tuple[torch.Tensor, int]]:
    """Return an endless data set of (`[3, size, size] float32` in [-1, 1], RGB; label), decoded by OpenCV, flipped."""
    import cv2
    import numpy as np
    import webdataset

    def decode(sample: dict[str, bytes]) -> tuple[torch.Tensor, int]:
        bgr: Any = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR)
        image = bgr[..., ::-1]
        if np.random.default_rng().random() < 0.5:
            image = image[:, ::-1]
        image = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 127.5 - 1
        return torch.from_numpy(image), int(json.loads(sample["json"])["identity"])

    urls = [str(tar) for tar in sorted(Path(shards).glob("*.tar"))]
    samples: IterableDataset[Any] = (
        webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(1000).map(decode)
    )
    return samples


def _matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    size = 8192 if device.type == "cuda" else 2048
    factor = torch.randn(size, size, device=device, dtype=dtype)
    tries = [take(factor.matmul, repeat(factor, 1), 1, device).seconds for _ in range(10)]
    return 2.0 * size**3 / min(tries)


def flops_per_image(backbone: str, identities: int) -> float:
    """Return the floating-point operations of a step for one image: encoder and head, forward and backward."""
    encoder, head = _network(backbone, identities)
    images, labels = torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, dtype=torch.int64)
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=corrected)
    with counter, sdpa_kernel(SDPBackend.MATH):  # it does not know the CPU's fused attention
        head(encoder(images), labels).backward()
    return counter.get_total_flops() / len(images)


def _convolution_backward(gradient: Any, images: Any, weight: Any, *options: Any, **_: Any) -> int:
    """Count each gradient like the forward pass: torch counts that of grouped weights once more for every group."""
    flops: int = conv_flop_count(images, weight, gradient) * sum(options[-1][:2])
    return flops


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    print(json.dumps(asdict(measure(Job(**{**fields, "way": Way(**fields["way"])})))))
