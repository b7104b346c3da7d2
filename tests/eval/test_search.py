"""Tiled search against a NumPy brute force over the whole score matrix."""

from dataclasses import astuple, dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.gallery import Gallery, enrol
from eval.protocols import Labels
from eval.search import TIE, SearchOptions, SearchResult, checked, search, search_growing
from eval.tiles import Workers
from shardgen.errors import UsageError
from tests.eval.faces_support import Rows, unit_rows

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    gallery: Gallery
    probes: Rows
    identities: Labels


def some_case(seed: int, enrolled: int = 30, images: int = 3, probes: int = 25, twins: bool = False) -> Case:
    """Up to some images an identity, some probes of identities that are not enrolled; twins look alike to the bit."""
    rng = np.random.default_rng(seed)
    names = rng.choice(4000, enrolled, replace=False)
    identities = np.repeat(names, rng.integers(1, images + 1, enrolled))
    embeddings = unit_rows(rng, len(identities))
    if twins:
        embeddings = embeddings[rng.integers(0, len(embeddings), len(embeddings))]
    gallery = enrol(embeddings, identities, "each" if images > 1 else "single")
    strangers = rng.random(probes) < 0.3
    return Case(gallery, unit_rows(rng, probes), np.where(strangers, 5000, rng.choice(names, probes)))


def near_their_mates(case: Case) -> Case:
    """Make ranks small: each probe that has a mate looks somewhat like it."""
    mates = case.gallery.starts[:-1][case.gallery.positions(case.identities)]
    probes = case.probes + 0.8 * case.gallery.templates[mates]
    return replace(case, probes=probes / np.linalg.norm(probes, axis=1, keepdims=True))


def all_scores(case: Case) -> npt.NDArray[np.float64]:
    scores = case.probes.astype(np.float64) @ case.gallery.templates.T.astype(np.float64)
    return np.maximum.reduceat(scores, case.gallery.starts[:-1], axis=1)


def brute_force(case: Case, candidates: int) -> SearchResult:
    enrolled = case.gallery.enrolled
    lists, scores, mates, ranks, best = [], [], [], [], []
    for row, identity in zip(all_scores(case), case.identities, strict=True):
        is_mate = enrolled == identity
        mate = row[is_mate].max() if is_mate.any() else np.nan
        order = np.argsort(np.where(is_mate, -row + TIE, -row), kind="stable")
        padding = [np.nan] * max(candidates - len(enrolled), 0)
        lists.append([*enrolled[order][:candidates], *([-1] * len(padding))])
        scores.append([*row[order][:candidates], *padding])
        mates.append(mate)
        ranks.append(1 + (row[~is_mate] >= mate - TIE).sum() if is_mate.any() else 0)
        best.append(row[~is_mate].max() if (~is_mate).any() else np.nan)
    floats = (np.array(one, np.float32) for one in (scores, mates, best))
    score_lists, mate_scores, best_impostor = floats
    return SearchResult(np.array(lists), score_lists, mate_scores, np.array(ranks), best_impostor)


def assert_same(one: SearchResult, other: SearchResult, lists: bool = True) -> None:
    for name in ("scores", "mate_scores", "best_impostor"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=TIE, err_msg=name)
    np.testing.assert_array_equal(one.mate_ranks, other.mate_ranks)
    if lists:
        np.testing.assert_array_equal(one.candidates, other.candidates)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    enrolled=st.integers(1, 40),
    images=st.integers(1, 4),
    probes=st.integers(1, 30),
    candidates=st.integers(1, 12),
    probe_tile=st.integers(1, 32),
    gallery_tile=st.integers(1, 64),
)
def test_a_search_in_any_tiles_finds_what_a_brute_force_finds(
    seed: int, enrolled: int, images: int, probes: int, candidates: int, probe_tile: int, gallery_tile: int
) -> None:
    case = some_case(seed, enrolled, images, probes)
    options = SearchOptions(candidates=candidates, probe_tile=probe_tile, gallery_tile=gallery_tile)
    found = search(case.gallery, case.probes, case.identities, options)
    assert_same(found, brute_force(case, candidates))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 3), gallery_tile=st.integers(1, 64))
def test_identities_that_score_alike_count_against_the_probe(seed: int, images: int, gallery_tile: int) -> None:
    case = some_case(seed, images=images, twins=True)
    options = SearchOptions(candidates=5, gallery_tile=gallery_tile)
    found = search(case.gallery, case.probes, case.identities, options)
    assert_same(found, brute_force(case, 5), lists=False)


def test_a_probe_equal_to_its_template_and_to_an_impostors_has_rank_2() -> None:
    face = unit_rows(np.random.default_rng(0), 1, 512)
    gallery = Gallery(np.repeat(face, 2, axis=0), np.array([4, 8]))
    found = search(gallery, face, np.array([4]))
    assert found.mate_ranks.tolist() == [2]
    assert found.candidates[0, :3].tolist() == [8, 4, -1]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), sizes=st.sets(st.integers(1, 30), min_size=1), images=st.integers(1, 3))
def test_a_growing_gallery_is_each_of_its_sizes_and_the_mates(seed: int, sizes: set[int], images: int) -> None:
    case = some_case(seed, images=images)
    options = SearchOptions(candidates=4, gallery_tile=8)
    grown = search_growing(case.gallery, case.probes, case.identities, sorted(sizes), options)
    for size, found in zip(sorted(sizes), grown, strict=True):
        mates = case.gallery.positions(case.identities)
        for number, mate in enumerate(mates):
            members = np.union1d(np.arange(size), mate[mate >= 0])
            one = Case(case.gallery.part(members), case.probes[[number]], case.identities[[number]])
            assert_same(found.part(np.array([number])), brute_force(one, 4))


@pytest.mark.parametrize("sizes", [[], [0, 5], [5, 5], [7, 5], [31]])
def test_sizes_that_there_cannot_be_are_refused(sizes: list[int]) -> None:
    case = some_case(0)
    with pytest.raises(UsageError, match="must rise, from 1 or more to at most 30"):
        search_growing(case.gallery, case.probes, case.identities, sizes)


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_devices_and_processes_together_find_what_one_finds(devices: int, world_size: int) -> None:
    case = some_case(3, probes=100)
    options = SearchOptions(probe_tile=7)
    parts = [
        search(case.gallery, case.probes, case.identities, options, Workers((CPU,) * devices, rank, world_size))
        for rank in range(world_size)
    ]
    summed = SearchResult(*(np.sum(arrays, axis=0) for arrays in zip(*map(astuple, parts), strict=True)))
    assert_same(summed, search(case.gallery, case.probes, case.identities, options))


def test_results_go_through_the_sum_over_processes() -> None:
    case = some_case(3)
    double = Workers(add=lambda array: array * 2)
    found = search(case.gallery, case.probes, case.identities, workers=double)
    assert found.mate_ranks.sum() == 2 * search(case.gallery, case.probes, case.identities).mate_ranks.sum()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("images", [1, 3])
def test_a_rounded_search_gives_the_answers_of_float32(precision: str, images: int) -> None:
    case = near_their_mates(some_case(1, enrolled=2000, images=images, probes=200))
    options = SearchOptions.model_validate({"precision": precision, "gallery_tile": 512})
    found = search(case.gallery, case.probes, case.identities, options)
    exact = search(case.gallery, case.probes, case.identities)
    np.testing.assert_array_equal(found.candidates, exact.candidates)
    np.testing.assert_allclose(found.best_impostor, exact.best_impostor, atol=TIE)
    shallow = exact.mate_ranks <= 10
    assert (exact.mate_ranks[shallow] > 1).sum() > 20
    np.testing.assert_array_equal(found.mate_ranks[shallow], exact.mate_ranks[shallow])
    assert (found.mate_ranks[~shallow] > 10).all()
    np.testing.assert_allclose(found.mate_ranks, exact.mate_ranks, rtol=0.2)
    assert checked(options, case.gallery, case.probes, case.identities, CPU) == options


def test_rounding_that_changes_answers_is_found_out() -> None:
    rng = np.random.default_rng(0)
    faces = unit_rows(rng, 1) + rng.normal(scale=3e-3, size=(500, 16)).astype(np.float32)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    gallery, options = Gallery(faces, np.arange(500)), SearchOptions(precision="bfloat16")
    assert checked(options, gallery, faces, np.arange(500), CPU).precision == "float32"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("images", [1, 3])
def test_a_gpu_gives_the_numbers_of_the_cpu(images: int) -> None:
    case = some_case(5, enrolled=3000, images=images, probes=300)
    devices = tuple(torch.device("cuda", number) for number in range(torch.cuda.device_count()))
    found = search(case.gallery, case.probes, case.identities, workers=Workers(devices))
    assert_same(found, search(case.gallery, case.probes, case.identities))
