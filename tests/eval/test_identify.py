"""Identification by group against the full matrix of scores, and what it says of groups that are alike or not."""

import numpy as np
import numpy.typing as npt
import pytest

from eval.faces import Faces
from eval.identify import FPIR_TARGETS, Identified, identify
from shardgen.errors import DataError
from shardgen.tags import UNKNOWN

GROUPS = (UNKNOWN, "north", "south")
FMR = 0.02


def faces(people: range, images: int, noise: tuple[float, float], seed: int) -> Faces:
    """Images of people around a centre each; odd people are south, whose images differ by another noise."""
    centres = np.random.default_rng(0).normal(size=(60, 16))
    identities = np.repeat(np.array(people), images)
    spread = np.array(noise)[identities % 2, None]
    rows = centres[identities] + spread * np.random.default_rng(seed).normal(size=(len(identities), 16))
    return Faces(
        embeddings=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        identities=identities.astype(np.int64),
        names=tuple(f"{person:02}" for person in range(60)),
        keys=tuple(map(str, range(len(identities)))),
        groups={"region": (GROUPS, (1 + identities % 2).astype(np.int16))},
    )


@pytest.fixture(scope="module")
def sides() -> tuple[Faces, Faces]:
    """40 people enrolled; probes of 30 of them, and of 20 strangers."""
    return faces(range(40), 2, (0.8, 1.6), 1), faces(range(10, 60), 5, (0.8, 1.6), 2)


@pytest.fixture(scope="module")
def found(sides: tuple[Faces, Faces]) -> Identified:
    return identify(*sides, FMR)


def scores_of(sides: tuple[Faces, Faces]) -> npt.NDArray[np.float64]:
    """Probes by people, each person being the mean of his images."""
    gallery, probes = sides
    means = np.stack([gallery.embeddings[gallery.identities == person].mean(0) for person in range(40)])
    found: npt.NDArray[np.float64] = probes.embeddings @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    return found


def test_ranks_and_their_curve_are_those_of_the_full_matrix(found: Identified, sides: tuple[Faces, Faces]) -> None:
    scores, people = scores_of(sides), sides[1].identities
    mated = people < 40
    mates = scores[np.flatnonzero(mated), people[mated]]
    ranks = 1 + (scores[mated] > mates[:, None]).sum(1)
    result = found.result
    assert result.cmc == pytest.approx([(ranks <= rank).mean() for rank in range(1, 21)])
    assert (result.rank_1, result.rank_5) == pytest.approx((result.cmc[0], result.cmc[4]))
    assert (result.num_probes, result.num_probes_without_mate, result.num_templates) == (150, 100, 40)
    assert 0 < result.rank_1 < 1


def test_errors_by_group_are_counted_at_the_threshold_of_all_impostors(
    found: Identified, sides: tuple[Faces, Faces]
) -> None:
    scores, people = scores_of(sides), sides[1].identities
    same = people[:, None] == np.arange(40)
    one = found.result.fairness["region"]
    threshold = one.rates.thresholds[0]
    assert (scores[~same] >= threshold).mean() <= FMR
    assert (scores[~same] >= threshold - 2e-4).mean() > 0.9 * FMR
    assert one.rates.groups == ("north", "south")
    for place, parity in enumerate((0, 1)):
        probe, enrolled = people % 2 == parity, np.arange(40) % 2 == parity
        within = np.outer(probe, enrolled)
        assert one.rates.fnmr[place] == pytest.approx((scores[within & same] < threshold).mean())
        assert one.rates.fmr[place] == pytest.approx((scores[within & ~same] >= threshold).mean())
        interval = one.fnmr_intervals[place]
        assert interval.low <= one.rates.fnmr[place] <= interval.high
        across = np.outer(probe, ~enrolled) & ~same
        assert one.cells.fmr()[place, 1 - place] == pytest.approx((scores[across] >= threshold).mean())
    assert one.metrics is not None
    assert one.rates.fnmr[1] > one.rates.fnmr[0], "south is noisier"
    assert one.metrics.fdr < 1


def test_strangers_make_an_open_set(found: Identified, sides: tuple[Faces, Faces]) -> None:
    scores, people = scores_of(sides), sides[1].identities
    assert found.result.open_set is not None
    assert [one.target_fpir for one in found.result.tpir_at_fpir] == [
        target for target in FPIR_TARGETS if target > 0.005
    ]
    for one in found.result.tpir_at_fpir:
        assert (scores[people >= 40].max(1) >= one.threshold).mean() == pytest.approx(one.fpir)
        mated = scores[people < 40]
        own = mated[np.arange(150), people[people < 40]]
        hits = (own >= mated.max(1)) & (own >= one.threshold)
        assert hits.mean() == pytest.approx(one.tpir)


def test_intervals_are_wider_than_if_every_probe_were_another_person(found: Identified) -> None:
    result = found.result
    assert result.interval is not None
    assert result.interval.low < result.rank_1 < result.interval.high
    naive = 1.96 * np.sqrt(result.rank_1 * (1 - result.rank_1) / result.num_probes)
    assert result.interval.high - result.interval.low > 2 * naive
    assert all(one.interval is not None for one in result.groups["region"])


def test_a_target_that_too_few_impostors_stand_behind_is_named(sides: tuple[Faces, Faces]) -> None:
    result = identify(*sides, 1e-7).result
    assert not result.fairness
    (note,) = result.notes
    assert "errors by region are left out" in note
    assert "needs at least 10000000" in note


def test_without_strangers_there_is_no_open_set(sides: tuple[Faces, Faces]) -> None:
    gallery, probes = sides
    result = identify(gallery, probes.select(np.flatnonzero(probes.identities < 40)), FMR).result
    assert result.open_set is None
    assert not result.tpir_at_fpir


def test_probes_of_strangers_alone_are_refused(sides: tuple[Faces, Faces]) -> None:
    gallery, probes = sides
    with pytest.raises(DataError, match="no probe has its identity in the gallery"):
        identify(gallery, probes.select(np.flatnonzero(probes.identities >= 40)), FMR)
