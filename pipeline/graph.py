"""The DALI graphs: image files -> uint8 batches, resized where needed, and augmented by drawn steps where asked for.

Images and steps come from outside (`external_source`), because DALI's own readers shuffle only within
a buffer, and its own random numbers belong to batch slots instead of samples.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.tensors import TensorCPU
from torch.utils.dlpack import from_dlpack

from pipeline.graph_steps import Node, apply_steps, step_arguments
from pipeline.steps import Op, Steps
from shardgen.images import Unreadable, read_header

Source = Callable[[], Sequence[object]]
Images = npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]
"""`[batch, size, size, 3]`, RGB; or files as arrays."""

JPEG = b"\xff\xd8\xff"


class DecodingFailed(RuntimeError):
    """An image of a batch under way does not decode, so none of the batches asked for and not yet out will come."""


class Inputs(NamedTuple):
    """A batch on its way in: 1 to `max_batch_size` images."""

    files: Sequence[bytes]
    """Image files."""
    steps: Steps | None = None
    """What happens to each of them, in a graph with `possible_ops`."""


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
    possible_ops: Sequence[frozenset[Op]] = ()
    """What each step of an image may be; empty where nothing happens to images in the graph."""


def decoded(inputs: Iterator[Inputs], options: GraphOptions) -> Iterator[torch.Tensor]:
    """Yield `[batch, size, size, 3] uint8`, RGB, on `options.device` for each of the inputs, in order.

    Inputs are asked for ahead, `prefetch` at a time. A batch stays valid as long as it is held. Raises `DecodingFailed`
    when an image does not decode.
    """
    return _run(_checked(inputs, options.max_batch_size), options, _decoding)


def augmented(inputs: Iterator[tuple[Images, Steps]], options: GraphOptions) -> Iterator[torch.Tensor]:
    """Yield as `decoded` does, of images that are decoded already; their memory is read until their batch is out."""
    return _run(inputs, options, _augmenting)


def _checked(inputs: Iterator[Inputs], max_batch_size: int) -> Iterator[tuple[Sequence[TensorCPU], Steps | None]]:
    """Pass the inputs on; raise `DecodingFailed` for images whose header DALI cannot read.

    DALI 2.4's decoder segfaults where one of its threads meets such a header (what is broken further on it
    refuses as it should); reading headers alone does not. That takes 10 us an image, so JPEGs are spared it.
    """
    headers = _headers(batch_size=max_batch_size, num_threads=1, device_id=None, prefetch_queue_depth=1)
    for files, steps in inputs:
        tensors = list(map(TensorCPU, files))  # DALI would make them of arrays, and look at each a dozen times before
        doubtful = [tensor for tensor, file in zip(tensors, files, strict=True) if not _is_sound_jpeg(file)]
        try:
            if doubtful:
                headers.run(encoded=doubtful)
        except RuntimeError as error:
            raise DecodingFailed("an image of the batches under way has no readable header") from error
        yield tensors, steps


def _is_sound_jpeg(content: bytes) -> bool:
    try:
        return content.startswith(JPEG) and bool(read_header(content))
    except Unreadable:
        return False


@pipeline_def  # type: ignore[untyped-decorator]
def _headers() -> Node:
    return fn.peek_image_shape(fn.external_source(name="encoded", no_copy=True, dtype=types.UINT8, ndim=1))


def _run(
    inputs: Iterator[tuple[Images | Sequence[TensorCPU], Steps | None]],
    options: GraphOptions,
    graph: Callable[..., Pipeline],
) -> Iterator[torch.Tensor]:
    under_way: deque[Sequence[object]] = deque()  # the memory that DALI reads

    def source() -> Sequence[object]:
        images, steps = next(inputs)
        arguments = [] if steps is None else [step_arguments(steps, options.image_size)]
        under_way.append([images, *arguments])
        return under_way[-1]

    pipe = graph(
        source,
        options,
        batch_size=options.max_batch_size,
        num_threads=options.threads,
        device_id=options.device.index or 0 if options.device.type == "cuda" else None,
        prefetch_queue_depth=options.prefetch,
        exec_dynamic=True,  # outputs own their memory, so a batch stays valid as long as torch holds it
        enable_conditionals=bool(options.possible_ops),
    )
    pipe.build()
    # On a GPU, outputs are handed over on torch's stream: no wait on the host, no reuse before torch is done.
    stream = torch.cuda.current_stream(options.device) if options.device.type == "cuda" else None
    while True:
        try:
            (images,) = pipe.run(stream)
        except StopIteration:
            return
        except RuntimeError as error:
            if "nvidia.dali.fn.decoders.image" not in str(error):
                raise
            raise DecodingFailed("an image of the batches under way does not decode") from error
        under_way.popleft()
        yield from_dlpack(images.as_tensor())


@pipeline_def  # type: ignore[untyped-decorator]
def _decoding(source: Source, options: GraphOptions) -> Node:
    encoded, *steps = _inputs(source, options, ndim=1, layout=None)
    images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
    if options.resize:
        images = fn.resize(images, size=options.image_size, interp_type=types.INTERP_LINEAR, antialias=True)
    return _after_steps(images, steps, options)


@pipeline_def  # type: ignore[untyped-decorator]
def _augmenting(source: Source, options: GraphOptions) -> Node:
    images, *steps = _inputs(source, options, ndim=3, layout="HWC")
    return _after_steps(images, steps, options)


def _inputs(source: Source, options: GraphOptions, ndim: int, layout: str | None) -> Sequence[Node]:
    number = 2 if options.possible_ops else 1
    nodes: Sequence[Node] = fn.external_source(
        source=source,
        num_outputs=number,
        batch=True,
        no_copy=True,
        dtype=[types.UINT8, types.FLOAT][:number],
        ndim=[ndim, 2][:number],
        layout=layout and [layout, ""][:number],
    )
    return nodes


def _after_steps(images: Node, steps: Sequence[Node], options: GraphOptions) -> Node:
    if options.device.type == "cuda":
        images = images.gpu()  # as uint8: a quarter of the bytes that float images would be
    if options.possible_ops:
        images = apply_steps(images, steps[0], options.possible_ops, options.image_size)
    return images
