"""The DALI graph: decode, resize where needed, flip, normalise. The only module that knows DALI.

Encoded images and flips come from outside (`external_source`), because DALI's own readers shuffle
only within a buffer, and its own random numbers belong to batch slots instead of samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def, types
from torch.utils.dlpack import from_dlpack

from pipeline.reader import Encoded

Inputs = tuple[list[Encoded], npt.NDArray[np.int32]]
"""Encoded images, and 1 for each one to be flipped, else 0."""


@dataclass(frozen=True)
class GraphOptions:
    """What a graph is built for."""

    max_batch_size: int
    image_size: int
    resize: bool
    """Whether any image may have another size."""
    device: torch.device
    threads: int
    prefetch: int


def decoded(inputs: Iterator[Inputs], options: GraphOptions) -> Iterator[torch.Tensor]:
    """Yield `[batch, 3, size, size] float32` in [-1, 1] for each of the inputs, in order.

    The memory is channels_last, RGB, on `options.device`. Inputs are asked for ahead, `prefetch` at a time.
    """
    pipe = _graph(
        lambda: next(inputs),
        options,
        batch_size=options.max_batch_size,
        num_threads=options.threads,
        device_id=options.device.index or 0 if options.device.type == "cuda" else None,
        prefetch_queue_depth=options.prefetch,
        exec_dynamic=True,  # outputs own their memory, so a batch stays valid as long as torch holds it
    )
    pipe.build()
    # On a GPU, outputs are handed over on torch's stream: no wait on the host, no reuse before torch is done.
    stream = torch.cuda.current_stream(options.device) if options.device.type == "cuda" else None
    while True:
        try:
            (images,) = pipe.run(stream)
        except StopIteration:
            return
        yield from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(source: Callable[[], Inputs], options: GraphOptions) -> object:
    encoded, flip = fn.external_source(
        source=source, num_outputs=2, batch=True, no_copy=True, dtype=[types.UINT8, types.INT32], ndim=[1, 0]
    )
    images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    if options.resize:
        images = fn.resize(images, size=options.image_size, interp_type=types.INTERP_LINEAR, antialias=True)
    if options.device.type == "cuda":
        images = images.gpu()  # a quarter of the bytes that float images would be
    return fn.crop_mirror_normalize(
        images, mirror=flip, dtype=types.FLOAT, output_layout="HWC", mean=[127.5] * 3, std=[127.5] * 3
    )
