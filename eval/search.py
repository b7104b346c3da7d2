"""Exact 1:N search: candidates, the mate's score and rank, the best impostor, in one pass over tiles of scores.

A tile is read once, for each probe's best score in it. Only the rows whose best score matters, to the candidates or to
the number of impostors ahead of the mate, are read again. The mate's score is computed by itself beforehand, so its
rank is a count, and exact however deep. No score is kept: eval/score_histograms.py counts them for whoever needs all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from eval.embed import Embeddings
from eval.gallery import Gallery
from eval.protocols import Labels
from eval.tiles import ALONE, NO_SCORE, TiledGallery, TileOptions, Workers, share_out, take_out_mates
from shardgen.errors import UsageError

TIE = 1e-6
"""Scores no further apart are ties: sums of 512 products in float32 are exact to 3e-7."""
_SPARE = 16
_CHECKED_PROBES = 512

Scores = npt.NDArray[np.float32]


class SearchOptions(TileOptions):
    """How a search is done.

    Below float32, the candidates and the next 16 impostors are scored again exactly: lists, and ranks within them, are
    then those of float32 unless an impostor falls behind the spare ones by rounding; deeper ranks are approximate.
    """

    candidates: int = Field(10, ge=1)
    """Length of each probe's candidate list."""


EXACT = SearchOptions()


@dataclass(frozen=True)
class SearchResult:
    """What came of each probe."""

    candidates: Labels
    """`[probes, candidates]`: identity numbers, best first; -1 where fewer are enrolled."""
    scores: Scores
    """`[probes, candidates]`: theirs; NaN where fewer are enrolled."""
    mate_scores: Scores
    """`[probes]`: NaN for a probe whose identity is not enrolled."""
    mate_ranks: Labels
    """`[probes]`: 1 + the number of other identities that score as high as the mate, within TIE, or higher: ties count
    against the probe. 0 for a probe whose identity is not enrolled."""
    best_impostor: Scores
    """`[probes]`: the highest score of another identity; NaN when none is enrolled."""

    @property
    def mated(self) -> npt.NDArray[np.bool_]:
        """Return which probes have their identity enrolled."""
        return self.mate_ranks > 0

    def part(self, probes: Labels | npt.NDArray[np.bool_]) -> "SearchResult":
        """Return the result of some probes, say of one group."""
        return SearchResult(**{field.name: getattr(self, field.name)[probes] for field in fields(self)})


def search(
    gallery: Gallery,
    probes: Embeddings,
    identities: Labels,
    options: SearchOptions = EXACT,
    workers: Workers = ALONE,
) -> SearchResult:
    """Search every probe among all enrolled identities.

    `probes` is `[probes, embedding]`, rows of length 1, and `identities` their `[probes]` numbers. Devices and
    processes take different probes; every process returns the result of all.
    """
    return search_growing(gallery, probes, identities, [len(gallery.enrolled)], options, workers)[0]


def search_growing(
    gallery: Gallery,
    probes: Embeddings,
    identities: Labels,
    sizes: Sequence[int],
    options: SearchOptions = EXACT,
    workers: Workers = ALONE,
) -> list[SearchResult]:
    """Search as `search` does, in one pass, and return a result for each of the ascending gallery sizes.

    At every size a probe is searched among the first so many of the enrolled and its mate: no probe loses its mate,
    so all sizes are measured on the same mated and non-mated probes. Raises `UsageError` for sizes there cannot be.
    """
    if not sizes or list(sizes) != sorted({*sizes}) or not 0 < sizes[0] <= sizes[-1] <= len(gallery.enrolled):
        raise UsageError(f"gallery sizes {[*sizes]} must rise, from 1 or more to at most {len(gallery.enrolled)}")
    mates = gallery.positions(identities)
    results = [_nothing(len(probes), options.candidates) for _ in sizes]

    def work(device: torch.device, parts: Sequence[slice]) -> None:
        tiled = TiledGallery(gallery, options, device, sizes)
        for part in parts:
            found = _search(tiled, probes[part], mates[part], sizes, options)
            for result, front in zip(results, found, strict=True):
                front.write(result, part, gallery.enrolled)

    share_out(len(probes), options, workers, work)
    return [SearchResult(*(workers.add(getattr(one, field.name)) for field in fields(one))) for one in results]


def checked(
    options: SearchOptions, gallery: Gallery, probes: Embeddings, identities: Labels, device: torch.device
) -> SearchOptions:
    """Return the options if they give the answers of float32 on 512 of the probes, else the options with float32.

    Answers are the candidates' scores and the best impostor's, within TIE, and the ranks within the candidates.
    """
    some = np.unique(np.linspace(0, len(probes) - 1, _CHECKED_PROBES).astype(int))
    exact = options.model_copy(update={"precision": "float32"})
    given, right = (
        search(gallery, probes[some], identities[some], one, Workers((device,))) for one in (options, exact)
    )
    return options if _agree(given, right, options.candidates) else exact


def _agree(first: SearchResult, second: SearchResult, depth: int) -> bool:
    return (
        np.allclose(first.scores, second.scores, rtol=0, atol=TIE, equal_nan=True)
        and np.allclose(first.best_impostor, second.best_impostor, rtol=0, atol=TIE, equal_nan=True)
        and bool((first.mate_ranks.clip(max=depth + 1) == second.mate_ranks.clip(max=depth + 1)).all())
    )


def _nothing(num_probes: int, candidates: int) -> SearchResult:
    return SearchResult(
        candidates=np.zeros((num_probes, candidates), np.int64),
        scores=np.zeros((num_probes, candidates), np.float32),
        mate_scores=np.zeros(num_probes, np.float32),
        mate_ranks=np.zeros(num_probes, np.int64),
        best_impostor=np.zeros(num_probes, np.float32),
    )


@dataclass(frozen=True)
class _Front:
    """What is known of a tile of probes after some of the gallery; the tensors change."""

    mates: torch.Tensor
    """`[probes]`: their positions among the enrolled, -1 without."""
    mate_scores: torch.Tensor
    ahead: torch.Tensor
    """`[probes]`: the number of impostors that count as ahead of the mate."""
    scores: torch.Tensor
    """`[probes, kept]`: of the best impostors, best first."""
    positions: torch.Tensor
    """`[probes, kept]`: theirs among the enrolled, -1 for none."""

    def look(self, tile: torch.Tensor, first: int) -> None:
        """Learn from the scores of the enrolled from the first on."""
        take_out_mates(tile, self.mates - first)
        best = tile.amax(1).float()
        rows = (best >= self._bar).nonzero()[:, 0]
        self.ahead[rows] += (tile[rows] >= self._bar[rows, None]).sum(1)
        rows = (best > self.scores[:, -1]).nonzero()[:, 0]
        scores, columns = tile[rows].topk(min(self.scores.shape[1], tile.shape[1]))
        scores, order = torch.cat([self.scores[rows], scores.float()], 1).sort(dim=1, descending=True, stable=True)
        positions = torch.cat([self.positions[rows], columns + first], 1).gather(1, order)
        self.scores[rows], self.positions[rows] = (both[:, : self.scores.shape[1]] for both in (scores, positions))

    @property
    def _bar(self) -> torch.Tensor:
        """Above every score for a probe without mate: nobody is ahead of nobody."""
        return (self.mate_scores - TIE).where(self.mates >= 0, -NO_SCORE)

    def rescored(self, tiled: TiledGallery, probes: torch.Tensor) -> "_Front":
        """Return this with exact scores of the impostors."""
        kept = self.scores.shape[1]
        scores = torch.stack([tiled.scores_of(probes, self.positions[:, number]) for number in range(kept)], 1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        exact = (scores >= self._bar[:, None]).sum(1)
        ahead = exact.where(exact < kept, self.ahead.clamp(min=kept))
        return _Front(self.mates, self.mate_scores, ahead, scores, self.positions.gather(1, order))

    def write(self, result: SearchResult, part: slice, enrolled: Labels) -> None:
        """Put the mates in their places among the candidates, and all into the result."""
        width, kept = result.candidates.shape[1], self.scores.shape[1]
        place = torch.where(self.mates >= 0, self.ahead, kept)[:, None]
        number = torch.arange(width, device=place.device)
        take = (number - (number > place).long()).clamp(max=kept - 1)
        positions = torch.where(number == place, self.mates[:, None], self.positions.gather(1, take)).cpu().numpy()
        scores = torch.where(number == place, self.mate_scores[:, None], self.scores.gather(1, take)).cpu().numpy()
        mate_scores, ahead, best = (one.cpu().numpy() for one in (self.mate_scores, self.ahead, self.scores[:, 0]))
        mated = self.mates.cpu().numpy() >= 0
        result.candidates[part] = np.where(positions >= 0, enrolled[positions], -1)
        result.scores[part] = np.where(positions >= 0, scores, np.nan)
        result.mate_scores[part] = np.where(mated, mate_scores, np.nan)
        result.mate_ranks[part] = np.where(mated, ahead + 1, 0)
        result.best_impostor[part] = np.where(best > NO_SCORE, best, np.nan)


def _search(
    tiled: TiledGallery, embeddings: Embeddings, positions: Labels, sizes: Sequence[int], options: SearchOptions
) -> Iterator[_Front]:
    """Yield what is known of some probes at each size."""
    probes = torch.from_numpy(np.ascontiguousarray(embeddings)).to(tiled.device)
    mates = torch.from_numpy(positions).to(tiled.device)
    half = options.precision != "float32"
    kept = options.candidates + _SPARE * half
    front = _Front(
        mates=mates,
        mate_scores=tiled.scores_of(probes, mates),
        ahead=torch.zeros_like(mates),
        scores=torch.full((len(mates), kept), NO_SCORE, device=tiled.device),
        positions=torch.full((len(mates), kept), -1, device=tiled.device),
    )
    for first, last, tile in tiled.tiles(probes):
        front.look(tile, first)
        if last in sizes:
            yield front.rescored(tiled, probes) if half else front
