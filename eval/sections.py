"""Protocols beside verification sets and a gallery, each measured into the panel that shows it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from eval import ijb
from eval.all_pairs import rank_1_among_distractors, score_all_pairs
from eval.embed import Embeddings
from eval.faces import Faces
from eval.gallery import enrol
from eval.identification import search_sizes
from eval.ijb_files import read_images, read_search_protocol, read_template_pairs
from eval.intervals import PairCounts, wilson
from eval.pairs import FacePairs, disjoint_folds
from eval.plots import Curve, cmc
from eval.report import Measured, Panel
from eval.table import Column, Table
from eval.tiles import ALONE, Workers
from eval.verification import (
    TarAtFar,
    accuracy,
    equal_error_rate,
    measurable_tars,
    pair_distances,
    roc,
    told_wrong,
)
from shardgen.errors import DataError

FAR_TARGETS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_SEED = 0


def listed_pairs(name: str, faces: Faces, pairs: FacePairs) -> Panel:
    """Verify the pairs of a list; where it gives no folds, no two folds share an identity."""
    folded = pairs if pairs.folds is not None else disjoint_folds(pairs, faces)
    assert folded.folds is not None
    first, second = folded.rows.T
    distances = pair_distances(faces.embeddings[first], faces.embeddings[second])
    found = accuracy(distances, folded.same, folded.folds)
    people = faces.identities[first], faces.identities[second]
    errors = told_wrong(distances, folded.same, folded.folds)
    right = wilson(PairCounts.from_pairs(*people, errors, len(faces.names))).complement
    tars = measurable_tars(distances, folded.same, FAR_TARGETS)
    figures: dict[Column, float | None] = {
        Column("pairs", None, 0): found.num_pairs,
        Column("accuracy, mean of folds %"): 100 * found.mean,
        Column("STD of folds %", None): 100 * found.std,
        Column("accuracy of all pairs %"): Measured(100 * right.estimate, 100 * right.low, 100 * right.high),
        Column("EER %", "lowest"): 100 * equal_error_rate(roc(distances, folded.same)),
        **{Column(f"TAR % at FAR {one.target_far:g}"): 100 * one.tar for one in tars},
    }
    text = [f"{folded.num_dropped} pairs are left out, so that no two folds share a person. Interval: 95 %, by person."]
    return Panel(
        f"Pairs of {name}", text, [Table("Listed pairs", "set", list(figures), {name: list(figures.values())})]
    )


def all_pairs(name: str, faces: Faces, device: torch.device) -> Panel:
    """Compare every face of a set with every other."""
    scores = score_all_pairs(faces.embeddings, faces.identities, device)
    genuine, impostor = int(scores.genuine.sum()), int(scores.impostor.sum())
    points = [scores.tar_at_far(target) for target in FAR_TARGETS if target * impostor >= 1]
    text = [f"{genuine:,} genuine and {impostor:,} impostor pairs; thresholds are exact to 3e-5 of a cosine."]
    return Panel(f"All pairs of {name}", text, [_tar_table(points)])


def _tar_table(points: Sequence[TarAtFar]) -> Table:
    columns = [Column("TAR %"), Column("realised FAR", None, 8), Column("threshold", None, 4)]
    rows = {f"FAR {one.target_far:g}": [100 * one.tar, one.far, one.threshold] for one in points}
    return Table("TAR at FAR", "target", columns, rows)


def among_distractors(name: str, probes: Faces, distractors: Faces, device: torch.device) -> Panel:
    """Search each probe's mates one by one among growing numbers of distractors, as MegaFace does.

    Raises `DataError` when a distractor has the name of a probe's identity.
    """
    known = [{one.names[number] for number in np.unique(one.identities).tolist()} for one in (probes, distractors)]
    if shared := sorted(known[0] & known[1]):
        raise DataError(f"{len(shared)} people of {name} are among the probes, such as {shared[0]}; leave them out")
    sizes = tuple(_powers_of_ten(len(distractors)))
    found = rank_1_among_distractors(probes.embeddings, probes.identities, distractors.embeddings, sizes, device)
    table = Table(
        "Rank 1 among distractors",
        "distractors",
        [Column("rank 1 %")],
        {f"{size:,}": [100 * share] for size, share in found.rank_1.items()},
    )
    return Panel(f"Distractors of {name}", [f"{found.num_probes:,} searches, one for each pair of a person."], [table])


def growing_gallery(gallery: Faces, probes: Faces, workers: Workers = ALONE) -> Panel:
    """Search the probes in nested random parts of a gallery."""
    enrolled = enrol(gallery.embeddings, gallery.identities)
    sizes = _powers_of_ten(len(enrolled.enrolled))
    found = search_sizes(enrolled, probes.embeddings, probes.identities, sizes, _SEED, workers=workers)
    table = Table(
        "Rank 1 by size of the gallery",
        "enrolled",
        [Column("rank 1 %")],
        {f"{one.size:,}": [100 * one.closed.rate(1)] for one in found},
    )
    sizes_drawn = np.array([one.size for one in found], np.float64)
    curve = Curve("rank 1", sizes_drawn, np.array([one.closed.rate(1) for one in found]))
    plots = [replace(cmc([curve], "Rank 1 by size of the gallery"), x_label="enrolled")] if len(found) > 1 else []
    return Panel("Gallery size", ["Nested random parts of the gallery; every probe's mate is in each."], [table], plots)


def _powers_of_ten(most: int) -> list[int]:
    return sorted({*(10**power for power in range(1, 9) if 10**power < most), most})


def janus(meta: Path, embeddings: Embeddings, sources: Sequence[str]) -> Panel:
    """Measure IJB-B or IJB-C, 1:1 and 1:N, by the files of its folder `meta`.

    `embeddings` are not normalised, and each one's source ends in the image's name. Raises as reading and pooling do.
    """
    templates = ijb.pool(read_images(meta), embeddings, [source.rpartition("/")[2] for source in sources])
    pairs = read_template_pairs(meta)
    verified = ijb.verify(ijb.template_distances(templates, pairs), pairs)
    found = ijb.identify(templates, read_search_protocol(meta))
    columns = [
        *(Column(f"rank {rank} %") for rank in found.found_by_rank),
        *(Column(f"TPIR % at FPIR {fpir:g}") for fpir in found.tpir_by_fpir),
    ]
    figures = [100 * one for one in (*found.found_by_rank.values(), *found.tpir_by_fpir.values())]
    text = ["Detector score times embedding, the mean over a medium, the sum over media, as InsightFace pools them."]
    identified = Table("1:N", "galleries", columns, {"both": figures})
    return Panel(f"IJB: {meta.resolve().parent.name}", text, [_tar_table(verified), identified])
