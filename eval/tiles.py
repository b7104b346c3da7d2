"""Scores of probes against a gallery, tile by tile, in memory that the number of neither changes.

Besides the gallery, which a GPU holds whole (2 GB per million templates of 512), a device holds one tile of scores:
4 bytes x probe_tile x gallery_tile, 8 MiB as they stand, and twice that where identities have several templates.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field

from eval.gallery import Gallery
from eval.protocols import Labels

NO_SCORE = -2.0
"""Below every cosine."""

Result = TypeVar("Result")


class TileOptions(BaseModel):
    """How large a tile is and how exact; large tiles suit GPUs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probe_tile: int = Field(1024, ge=1)
    """Probes of a tile."""
    gallery_tile: int = Field(2048, ge=1)
    """Templates of a tile; an identity of more has a tile to itself."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the products. On unit vectors of 512, float16 errs by up to 3e-4 and bfloat16 by 4e-3."""


@dataclass(frozen=True)
class Workers:
    """Who shares a search: the devices of this process, and this process among its like. Each takes some probes."""

    devices: Sequence[torch.device] = (torch.device("cpu"),)
    rank: int = 0
    world_size: int = 1
    add: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = lambda array: array
    """Sums an array over all processes."""


ALONE = Workers()


def share_out(
    num_probes: int,
    options: TileOptions,
    workers: Workers,
    work: Callable[[torch.device, Sequence[slice]], Result],
) -> list[Result]:
    """Give every device of this process its tiles of probes, all devices at once; return what each makes of them."""
    tiles = [slice(first, first + options.probe_tile) for first in range(0, num_probes, options.probe_tile)]
    here, first = len(workers.devices), workers.rank * len(workers.devices)
    mine = [tiles[first + number :: here * workers.world_size] for number in range(here)]
    with ThreadPoolExecutor(here) as pool:
        return list(pool.map(work, workers.devices, mine))


class TiledGallery:
    """A gallery on a device, with room for one tile of scores."""

    def __init__(self, gallery: Gallery, options: TileOptions, device: torch.device, stops: Sequence[int] = ()) -> None:
        """Tiles end at each of the `stops`, rising numbers of the enrolled, and none comes after the last."""
        self.device = device
        self._templates = torch.from_numpy(gallery.templates).to(device)
        self._precision: torch.dtype = getattr(torch, options.precision)
        self._starts = gallery.starts
        self._lengths = torch.from_numpy(np.diff(gallery.starts)).to(device)
        self._first_rows = torch.from_numpy(gallery.starts[:-1]).to(device)
        self._bounds = _bounds(gallery.starts, options.gallery_tile, stops)
        widest = int(np.diff(gallery.starts[self._bounds]).max())
        self._room = torch.empty(options.probe_tile * widest, dtype=self._precision, device=device)

    def tiles(self, probes: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield (first, last, scores) for the enrolled from first to last - 1, scores `[probes, last - first]`.

        An identity's score is the highest of its templates'. The scores are to be used, and may be changed, before
        the next ones are asked for: they lie in the same place.
        """
        rounded = probes.to(self._precision)
        for first, last in pairwise(self._bounds):
            start, end = self._starts[[first, last]]
            templates = self._templates[start:end].to(self._precision)
            room = self._room[: len(probes) * len(templates)]
            if len(templates) == last - first:
                yield first, last, torch.mm(rounded, templates.T, out=room.view(len(probes), -1))
            else:
                scores = torch.mm(templates, rounded.T, out=room.view(-1, len(probes)))
                lengths = self._lengths[first:last]
                yield first, last, torch.segment_reduce(scores, "max", lengths=lengths, axis=0).T.contiguous()

    def scores_of(self, probes: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return `[probes] float32`: each probe's score with one of the enrolled, exactly; NO_SCORE at position -1."""
        best = torch.full((len(probes),), NO_SCORE, device=probes.device)
        lengths = self._lengths[positions] * (positions >= 0)
        for number in range(int(lengths.max())):
            has = (lengths > number).nonzero()[:, 0]
            templates = self._templates[self._first_rows[positions[has]] + number]
            scores = (probes[has].double() * templates.double()).sum(1).float()
            best[has] = best[has].maximum(scores)
        return best


def take_out_mates(scores: torch.Tensor, columns: torch.Tensor) -> None:
    """Set each probe's score in the column of its mate to NO_SCORE; columns that a tile does not have are not in it."""
    rows = ((columns >= 0) & (columns < scores.shape[1])).nonzero()[:, 0]
    scores[rows, columns[rows]] = NO_SCORE


def _bounds(starts: Labels, width: int, stops: Sequence[int]) -> list[int]:
    """Cut at every stop, and so that only a tile of a single identity has more templates than the width."""
    bounds = [0]
    for stop in stops or [len(starts) - 1]:
        while bounds[-1] < stop:
            last = int(np.searchsorted(starts, starts[bounds[-1]] + width, side="right")) - 1
            bounds.append(min(max(last, bounds[-1] + 1), stop))
    return bounds
