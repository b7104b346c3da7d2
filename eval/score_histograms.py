"""All impostor scores of a search, counted by probe group x gallery group instead of stored.

The bins are those of eval/all_pairs.py. Each takes a pass of its own, as counting takes longer than the product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from eval.all_pairs import BINS, Codes, Counts
from eval.embed import Embeddings
from eval.gallery import Gallery
from eval.protocols import Labels
from eval.tiles import ALONE, TiledGallery, TileOptions, Workers, share_out, take_out_mates

TILES = TileOptions()


@dataclass(frozen=True)
class SearchGroups:
    """The demographic groups of an axis on both sides of a search."""

    number: int
    of_probes: Codes
    """`[probes]`: from 0 to number - 1."""
    of_enrolled: Codes
    """`[enrolled]`: of the enrolled identities, in the gallery's order."""


def impostor_histograms(
    gallery: Gallery,
    probes: Embeddings,
    identities: Labels,
    groups: SearchGroups,
    options: TileOptions = TILES,
    workers: Workers = ALONE,
) -> Counts:
    """Return `[groups, groups, BINS]`: scores of probes of the one group with other identities of the other.

    Beside what a search holds, it takes 8 * BINS * groups^2 bytes (32 MiB for 8 groups) and a copy of a group's
    templates.
    """
    counts = np.zeros((groups.number, groups.number, BINS), np.int64)
    order = np.argsort(groups.of_probes, kind="stable")
    for group in np.unique(groups.of_enrolled):
        enrolled = gallery.part(np.flatnonzero(groups.of_enrolled == group))
        mates = enrolled.positions(identities)

        def work(device: torch.device, parts: Sequence[slice]) -> Counts:
            tiled = TiledGallery(enrolled, options, device)  # noqa: B023 - runs within this turn of the loop
            found = np.zeros((groups.number, BINS), np.int64)
            for rows in (rows for part in parts for rows in _by_group(order[part], groups.of_probes)):
                found[groups.of_probes[rows[0]]] += _count(tiled, probes[rows], mates[rows])  # noqa: B023
            return found

        counts[:, group] = sum(share_out(len(probes), options, workers, work))
    return workers.add(counts)


def _by_group(rows: Labels, codes: Codes) -> list[Labels]:
    return np.split(rows, np.flatnonzero(np.diff(codes[rows])) + 1)


def _count(tiled: TiledGallery, embeddings: Embeddings, mates: Labels) -> Counts:
    probes, positions = (torch.from_numpy(one).to(tiled.device) for one in (embeddings, mates))
    counts = torch.zeros(BINS, dtype=torch.int64, device=tiled.device)
    for first, _, tile in tiled.tiles(probes):
        take_out_mates(tile, positions - first)
        bins = tile.float().add_(1).mul_(BINS // 2).to(torch.int32).clamp_(0, BINS - 1)
        counts += torch.bincount(bins.flatten(), minlength=BINS)
    counts[0] -= (positions >= 0).sum()  # below every bin, the mates were counted in the lowest
    found: Counts = counts.cpu().numpy()
    return found
