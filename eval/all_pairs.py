"""Every pair of a set compared: true accept rates at false accept rates that no drawn list of pairs can show.

N faces are N(N - 1)/2 pairs, 8.7e7 for LFW and 5e11 for a million, so no score is kept. The upper triangle of the
score matrix is made tile by tile, and each tile is only counted: into 2^16 bins of a score, genuine and impostor apart,
for each pair of groups. Thresholds are the bins' edges, so that counts at a threshold are counts, not estimates;
a threshold between two edges, 3.1e-5 apart, is what is given up.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from eval.embed import Embeddings
from eval.protocols import Labels
from eval.verification import TarAtFar, allowed_accepts
from shardgen.errors import DataError

BINS = 1 << 16
EDGES = np.linspace(-1, 1, BINS + 1)
"""Of the bins: bin b holds the cosines from EDGES[b] to below EDGES[b + 1], the last one 1 and what rounds above it."""
_TILE = 2048

Codes = npt.NDArray[np.int16]
Counts = npt.NDArray[np.int64]
"""`[groups, groups, BINS]`."""


@dataclass(frozen=True)
class ScoreHistograms:
    """All pairs of a set, each counted once: at [a, b] with a <= b where one face is of group a, the other of b."""

    genuine: Counts
    impostor: Counts

    def tar_at_far(self, target_far: float) -> TarAtFar:
        """Return the true accept rate at the lowest bin edge from which on at most the target of impostors score.

        All groups together; the threshold is a cosine, and the rates at it are exact. Raises `DataError` when there
        is no genuine pair, or too few impostors for the target.
        """
        genuine, impostor = (_at_least(counts.sum((0, 1))) for counts in (self.genuine, self.impostor))
        if not genuine[0]:
            raise DataError("no identity has two faces, so there is no genuine pair; add faces")
        edge = int(np.argmax(impostor <= allowed_accepts(target_far, int(impostor[0]))))
        far, tar = (float(counts[edge] / counts[0]) for counts in (impostor, genuine))
        return TarAtFar(target_far=target_far, far=far, tar=tar, threshold=float(EDGES[edge]))


def _at_least(histogram: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many score at or above each edge."""
    return np.append(np.cumsum(histogram[::-1])[::-1], 0)


def score_all_pairs(
    embeddings: Embeddings,
    identities: Labels,
    device: torch.device,
    codes: Codes | None = None,
    num_groups: int = 1,
    tile: int = _TILE,
) -> ScoreHistograms:
    """Count the scores of all pairs of unit embeddings, by their groups where each face's code is given.

    Beside the embeddings, which may be mapped from a file, it takes `16 * BINS * num_groups^2` bytes for the counts
    (1 MiB, or 64 MiB for 8 groups) and some 24 * tile^2 for a tile.
    """
    codes = np.zeros(len(identities), np.int16) if codes is None else codes
    counts = np.zeros((2, num_groups, num_groups, BINS), np.int64)
    blocks = _blocks_of_groups(codes, tile)
    for number, rows in enumerate(blocks):
        faces, people = _load(embeddings, rows, device), _load(identities, rows, device)
        for others in blocks[number:]:
            bins = _bins(faces, _load(embeddings, others, device))
            same = people[:, None] == _load(identities, others, device)
            if others is rows:
                above = torch.ones_like(same).triu(1)
                bins, same = bins[above], same[above]
            genuine, both = _count(bins[same]), _count(bins.flatten())
            counts[:, codes[rows[0]], codes[others[0]]] += np.stack([genuine, both - genuine])
    return ScoreHistograms(*counts)


def _blocks_of_groups(codes: Codes, tile: int) -> list[Labels]:
    """Return rows of one group each, groups rising: what two blocks have between them is of one pair of groups."""
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    return [rows[start : start + tile] for rows in groups for start in range(0, len(rows), tile)]


def _load(array: npt.NDArray[np.float32] | Labels, rows: Labels, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array[rows])).to(device)


def _bins(faces: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return `[faces, others] int32`; the product is scaled by a power of two, which loses nothing."""
    middle = torch.full((1,), BINS / 2, device=faces.device)
    return torch.addmm(middle, faces * (BINS / 2), others.T).to(torch.int32).clamp_(0, BINS - 1)


def _count(bins: torch.Tensor) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = torch.bincount(bins, minlength=BINS).cpu().numpy()
    return counts


@dataclass(frozen=True)
class AmongDistractors:
    """Identification of one mate among many strangers."""

    num_probes: int
    """Searches: every ordered pair of two faces of an identity."""
    rank_1: dict[int, float]
    """Number of distractors -> share of searches in which the mate scores above all of them."""


def rank_1_among_distractors(
    faces: Embeddings, identities: Labels, distractors: Embeddings, sizes: tuple[int, ...], device: torch.device
) -> AmongDistractors:
    """Search each face in a gallery of one mate and the first so many distractors, as MegaFace's challenge 1 does.

    Kemelmacher-Shlizerman et al., "The MegaFace benchmark", CVPR 2016. A distractor that scores as high as the mate
    counts as above it. Raises `DataError` when no identity has two faces or there are fewer distractors than a size.
    """
    if sizes[-1] > len(distractors):
        raise DataError(f"{len(distractors)} distractors are fewer than {sizes[-1]}; add some, or ask for fewer")
    order = np.argsort(identities, kind="stable")
    people = np.split(order, np.flatnonzero(np.diff(identities[order])) + 1)
    num_probes = sum(len(rows) * (len(rows) - 1) for rows in people)
    if not num_probes:
        raise DataError("no identity has two faces, so no search has a mate; add faces")
    probes, best = torch.from_numpy(faces).to(device), torch.full((len(faces),), -torch.inf, device=device)
    rank_1 = {}
    for start, stop in zip((0, *sizes), sizes, strict=False):
        for rows in np.split(np.arange(start, stop), range(_TILE, stop - start, _TILE)):
            best = torch.maximum(best, (probes @ _load(distractors, rows, device).T).amax(1))
        rank_1[stop] = sum(_wins(probes[rows], best[rows]) for rows in people) / num_probes
    return AmongDistractors(num_probes, rank_1)


def _wins(faces: torch.Tensor, best: torch.Tensor) -> int:
    above = faces @ faces.T > best[:, None]
    return int(above.sum() - above.diagonal().sum())
