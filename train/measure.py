"""Measuring encoders, wherever they are from, and comparing them: what `facemix eval` does."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from eval.compare import Difference, compare
from eval.embed import Ranks
from eval.embedding_cache import Embedder
from eval.evaluate import Protocols, evaluate
from eval.intervals import difference
from eval.models import Model, callable_model, network_model, onnx_model
from eval.pages import page_of, write_report
from eval.report import write_page
from eval.results import Evaluation
from eval.tiles import Workers
from pipeline.config import LoaderConfig
from pipeline.loader import resolve_device
from train.distributed import gathered, join, leave, this_world
from train.encoder import load_encoder

_log = logging.getLogger("facemix.eval")


@dataclass(frozen=True)
class Source:
    """An encoder and where its results belong."""

    model: Model
    loader: LoaderConfig
    home: Path


def open_encoder(spec: str, device: torch.device) -> Source:
    """Open a run, a checkpoint, an ONNX file, or `package.module:function`; raise as opening it does."""
    path = Path(spec)
    if ":" in spec and not path.exists():
        model = callable_model(spec, LoaderConfig().image_size)
        return Source(model, LoaderConfig(), Path("runs") / spec.replace(":", "."))
    if path.suffix == ".onnx":  # its folder is no run's
        return Source(onnx_model(path, device), LoaderConfig(), Path("runs") / path.name)
    trained = load_encoder(path, device)
    model = network_model(trained.network, trained.loader.image_size, trained.description)
    return Source(model, trained.loader, trained.run)


@contextmanager
def together(device: str) -> Iterator[torch.device]:
    """Connect the processes that torchrun has started, and give each its device."""
    world = this_world()
    where = resolve_device(device, world.local_rank)
    join(world, where)
    try:
        yield where
    finally:
        leave(world)


def measure(spec: str | None, protocols: Protocols, out: Path | None, device: torch.device) -> tuple[Evaluation, Path]:
    """Measure an encoder, or embeddings that somebody else has made; write the report and return its path.

    Ranks share the embedding; rank 0 writes. Raises what opening, embedding and measuring raise.
    """
    world = this_world()
    ranks = Ranks(world.rank, world.world_size, partial(gathered, world=world))
    source = None if spec is None else open_encoder(spec, device)
    folder = out or (Path("runs/embeddings") if source is None else source.home)
    embedder = None
    if source is not None:
        embedder = Embedder(source.model, source.loader, device, source.home / "embeddings", ranks)
    name = "embeddings" if source is None else source.model.description
    workers = Workers((device,), world.rank, world.world_size, lambda part: gathered(part[None], world).sum(0))
    result = evaluate(name, embedder, protocols, device, workers)
    page = write_report(result, folder) if world.rank == 0 else folder
    return result, page


def compare_all(specs: Sequence[str], protocols: Protocols, out: Path, device: torch.device) -> tuple[list[str], Path]:
    """Measure several encoders into folders of their own; return lines and the page that compares them."""
    results = {}
    for spec in specs:
        name = spec.strip("/").replace("/", "-")
        _log.info("measuring %s", spec)
        results[spec], _ = measure(spec, protocols, out / name, device)
    pages = {spec: page_of(one) for spec, one in results.items()}
    page = out / "comparison.html"
    if this_world().rank == 0:
        write_page(compare(pages, differences(results)), page)
    return [line for spec, one in results.items() for line in (f"{spec}:", *one.lines())], page


def differences(results: Mapping[str, Evaluation]) -> list[Difference]:
    """Return how much each encoder's figures differ from the first one's, in percent, with intervals over people."""
    (baseline, first), *others = results.items()
    shared = [(figure, name, one) for name, one in others for figure in first.outcomes if figure in one.outcomes]
    # What is counted is errors: the first one's less this one's is how much better this one is.
    found = [(figure, name, difference(first.outcomes[figure], one.outcomes[figure])) for figure, name, one in shared]
    return [
        Difference(figure, name, baseline, 100 * one.estimate, 100 * one.low, 100 * one.high)
        for figure, name, one in found
    ]
