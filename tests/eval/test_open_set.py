"""Open-set rates against their definition and bob.measure."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.gallery import enrol
from eval.identification import closed_set
from eval.open_set import OpenSet, open_set
from eval.search import SearchOptions, SearchResult, search
from shardgen.errors import DataError
from tests.eval.faces_support import unit_rows
from tests.oracles import oracle

THRESHOLDS = [-0.2, 0.0, 0.3, 0.45, 0.6, 0.75, 0.9]
SCRIPT = """
from bob.measure import cmc, detection_identification_rate, false_alarm_rate
searches = [(np.array(neg), np.array(pos) if pos else None) for neg, pos in searches]
mated = [one for one in searches if one[1] is not None]
answer = {
    "cmc": cmc(mated)[:depth],
    "tpir": [[detection_identification_rate(searches, t, rank) for t in thresholds] for rank in (1, 3)],
    "fpir": [false_alarm_rate(searches, t) for t in thresholds],
}
"""


def made_result(mated: list[tuple[int, float]], strangers: list[float]) -> SearchResult:
    nothing: Any = np.zeros((len(mated) + len(strangers), 0))
    ranks, mates = zip(*mated, strict=True) if mated else ((), ())
    return SearchResult(
        candidates=nothing,
        scores=nothing,
        mate_scores=np.array([*mates, *[np.nan] * len(strangers)], np.float32),
        mate_ranks=np.array([*ranks, *[0] * len(strangers)], np.int64),
        best_impostor=np.array([*[0.0] * len(mated), *strangers], np.float32),
    )


def test_rates_and_curve_are_those_of_bob_measure() -> None:
    rng = np.random.default_rng(0)
    people = unit_rows(rng, 80)
    noisy = people[rng.integers(0, 80, 400)] + rng.normal(scale=0.18, size=(400, 16)).astype(np.float32)
    faces = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    identities = np.argmax(noisy @ people.T, 1)
    gallery = enrol(faces[:100], np.minimum(identities[:100], 60))
    found = search(gallery, faces[100:], identities[100:])
    scores = faces[100:].astype(np.float64) @ gallery.templates.T
    is_mate = gallery.identities == identities[100:, None]
    searches = [(row[~own].tolist(), row[own].tolist()) for row, own in zip(scores, is_mate, strict=True)]
    bob = oracle(SCRIPT, searches=searches, thresholds=THRESHOLDS, depth=10)
    np.testing.assert_allclose(closed_set(found, 10).cmc, bob["cmc"])
    for rank, tpir in zip((1, 3), bob["tpir"], strict=True):
        np.testing.assert_allclose(1 - open_set(found, rank).fnir(THRESHOLDS), tpir, atol=1e-12)
    np.testing.assert_allclose(open_set(found).fpir(THRESHOLDS), bob["fpir"], atol=1e-12)


few_scores = st.sampled_from([np.float32(value).item() for value in (-1, -0.5, 0, 0.1, 0.25, 0.5, 1)])
many_mated = st.lists(st.tuples(st.integers(1, 4), few_scores), min_size=1, max_size=12)


@settings(deadline=None)
@given(many_mated, st.lists(few_scores, min_size=1, max_size=12), few_scores, st.integers(1, 4))
def test_rates_are_what_their_definitions_count(
    mated: list[tuple[int, float]], strangers: list[float], threshold: float, max_rank: int
) -> None:
    rates = open_set(made_result(mated, strangers), max_rank)
    missed = [rank > max_rank or score < threshold for rank, score in mated]
    assert rates.fnir(threshold) == pytest.approx(np.mean(missed))
    assert rates.fpir(threshold) == pytest.approx(np.mean([score >= threshold for score in strangers]))


@settings(deadline=None)
@given(many_mated, st.lists(few_scores, min_size=1, max_size=12), st.floats(0.001, 1))
def test_no_lower_threshold_keeps_to_the_target(
    mated: list[tuple[int, float]], strangers: list[float], target: float
) -> None:
    rates = open_set(made_result(mated, strangers))
    if round(target * len(strangers), 9) < 1:
        with pytest.raises(DataError, match="non-mated probes; it needs at least"):
            rates.tpir_at(target)
        return
    found = rates.tpir_at(target)
    assert found.fpir <= target + 1e-9
    assert found.tpir == pytest.approx(1 - rates.fnir(found.threshold))
    lower = [one for one in strangers if np.float32(one) < np.float32(found.threshold)]
    if lower:
        assert rates.fpir(max(lower)) > target
    assert found.fpir == pytest.approx(rates.fpir(found.threshold))


def test_a_target_with_too_few_strangers_behind_it_says_how_many_it_needs() -> None:
    rates = open_set(made_result([(1, 0.5)], [0.1] * 300))
    with pytest.raises(DataError, match=r"FPIR 0\.003 .* 300 non-mated probes; it needs at least 334"):
        rates.tpir_at(0.003)
    assert [one.target_fpir for one in rates.measurable_tpirs((0.003, 0.01, 0.1))] == [0.01, 0.1]


def test_the_curve_passes_through_every_measured_point() -> None:
    rates = OpenSet(np.array([-np.inf, 0.2, 0.4, 0.8], np.float32), np.array([0.1, 0.4, 0.6], np.float32))
    thresholds, fpir, fnir = rates.det()
    np.testing.assert_allclose(thresholds, [0.1, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(fpir, [1, 2 / 3, 2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(fnir, [0.25, 0.25, 0.5, 0.75, 0.75])


@pytest.mark.parametrize(("mated", "strangers", "count"), [([], [0.1, 0.2], "0 of 2"), ([(1, 0.5)], [], "1 of 1")])
def test_a_set_that_is_not_open_is_refused(mated: list[tuple[int, float]], strangers: list[float], count: str) -> None:
    with pytest.raises(DataError, match=f"{count} probes have their identity in the gallery"):
        open_set(made_result(mated, strangers))


def test_groups_and_galleries_of_one_group_are_parts() -> None:
    rng = np.random.default_rng(0)
    gallery, identities = enrol(unit_rows(rng, 60), np.arange(60)), rng.integers(0, 90, 200)
    probes, women = unit_rows(rng, 200), identities % 2 == 0
    own = gallery.part(np.flatnonzero(gallery.enrolled % 2 == 0))
    options = SearchOptions(candidates=1)
    mixed = search(gallery, probes, identities, options).part(women)
    same = search(own, probes[women], identities[women], options)
    np.testing.assert_array_equal(mixed.mated, same.mated)
    assert (same.mate_ranks <= mixed.mate_ranks).all()
    assert (open_set(same).fpir(THRESHOLDS) <= open_set(mixed).fpir(THRESHOLDS)).all()
