"""A whole evaluation of drawn faces against plain restatements."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from eval.embed import embed_images, embed_set
from eval.embedding_cache import Embedder
from eval.evaluate import FAR_TARGETS, Protocols, evaluate
from eval.fairness import spread
from eval.models import Model
from eval.protocols import VerificationSet, read_bin
from eval.results import Evaluation
from eval.verification import accuracy, equal_error_rate, pair_distances, roc, tar_at_far
from pipeline.catalog import Catalog, open_catalog
from pipeline.config import LoaderConfig
from shardgen.errors import DataError, UsageError
from shardgen.procedural import draw_bin
from tests.support import make_set

CPU = torch.device("cpu")
LOADER = LoaderConfig(batch_size=16, image_size=32, threads=1)
Templates = Mapping[str, npt.NDArray[np.float32]]


def embed(images: torch.Tensor) -> torch.Tensor:
    """Blurred faces: better than chance and worse than perfect."""
    return functional.adaptive_avg_pool2d(images, 2).flatten(1)


EMBEDDER = Embedder(Model(embed, 32, "0" * 64, "blur"), LOADER, CPU)


def measured(
    bins: Sequence[VerificationSet] = (), sets: tuple[Path, Path] | None = None, fmr: float = 0.01
) -> Evaluation:
    return evaluate("blur", EMBEDDER, Protocols(bins, sets, fmr=fmr), CPU)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("sets") / "gallery", range(16), 2)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the first four identities of the gallery none, and two whom it does not hold."""
    return make_set(tmp_path_factory.mktemp("sets") / "probes", range(4, 18), 6)


@pytest.fixture(scope="module")
def identified(gallery: Path, probes: Path) -> Evaluation:
    return measured(sets=(gallery, probes))


def embedded(folder: Path) -> tuple[Catalog, list[str], npt.NDArray[np.float32]]:
    """A set's catalog, the identity's name and the embedding of each of its samples."""
    catalog = open_catalog({"only": folder})
    return catalog, [catalog.identities[label][1] for label in catalog.label], embed_set(embed, catalog, LOADER, CPU)


def restated_templates(gallery: Path) -> Templates:
    _, names, rows = embedded(gallery)
    means = {name: np.mean([row for row, of in zip(rows, names, strict=True) if of == name], 0) for name in set(names)}
    return {name: mean / np.linalg.norm(mean) for name, mean in means.items()}


def restated_ranks(gallery: Path, probes: Path) -> list[tuple[str, int]]:
    """(Group, rank) of every probe that has a mate."""
    templates = restated_templates(gallery)
    catalog, names, rows = embedded(probes)
    groups = [catalog.axes["group"][code] for code in catalog.codes("group", np.arange(len(catalog)))]
    return [
        (group, 1 + sum(float(other @ row) > float(templates[name] @ row) for other in templates.values()))
        for group, name, row in zip(groups, names, rows, strict=True)
        if name in templates
    ]


def test_identification_is_that_of_a_brute_force(identified: Evaluation, gallery: Path, probes: Path) -> None:
    found = identified.identification
    ranks = restated_ranks(gallery, probes)
    assert found is not None
    assert (found.num_templates, found.num_probes, found.num_probes_without_mate) == (16, 12 * 6, 2 * 6)
    assert found.rank_1 == pytest.approx(np.mean([rank == 1 for _, rank in ranks]))
    assert found.rank_5 == pytest.approx(np.mean([rank <= 5 for _, rank in ranks]))
    assert 0 < found.rank_1 < found.rank_5 < 1, "an encoder for which this test can fail"
    assert set(found.groups) == {"group", "origin"}
    by_group = {one.group: one for one in found.groups["group"]}
    assert set(by_group) == {"north", "east", "south", "west"}
    for group, one in by_group.items():
        of_group = [rank for name, rank in ranks if name == group]
        assert one.num_probes == len(of_group)
        assert one.rank_1 == pytest.approx(np.mean([rank == 1 for rank in of_group]))
        assert one.rank_5 == pytest.approx(np.mean([rank <= 5 for rank in of_group]))


def test_groups_are_verified_and_their_spread_is_reported(identified: Evaluation) -> None:
    found = identified.identification
    assert found is not None
    accuracies = [one.verification_accuracy for one in found.groups["group"] if one.verification_accuracy is not None]
    assert len(accuracies) == 4
    assert all(0.5 < one <= 1 for one in accuracies)
    assert found.spreads["group"] == spread(accuracies)
    assert "origin" not in found.spreads, "one group has no spread"


def test_a_group_with_too_few_pairs_is_not_verified(tmp_path: Path) -> None:
    gallery = make_set(tmp_path / "gallery", range(5), 1)  # north has two identities, the others one each
    probes = make_set(tmp_path / "probes", range(5), 2)
    found = measured(sets=(gallery, probes)).identification
    assert found is not None
    assert {one.group: one.verification_accuracy for one in found.groups["group"]} == dict.fromkeys(
        ("north", "east", "south", "west")
    )
    assert "group" not in found.spreads


def test_verification_sets_are_scored_by_the_published_protocol(tmp_path: Path) -> None:
    draw_bin(tmp_path / "some.bin", 0, range(12), 4, 40)
    pairs = read_bin("some", tmp_path / "some.bin")
    result = measured([pairs])
    rows = embed_images(embed, pairs.images, LOADER, CPU)
    distances = pair_distances(rows[::2], rows[1::2])
    (found,) = result.verification
    assert (found.name, found.sha256) == ("some", pairs.sha256)
    assert found.accuracy == accuracy(distances, pairs.same)
    assert found.equal_error_rate == equal_error_rate(roc(distances, pairs.same))
    measurable = [target for target in FAR_TARGETS if target * 20 >= 1]
    assert list(found.tar_at_far) == [tar_at_far(distances, pairs.same, target) for target in measurable]
    assert 0.5 < found.accuracy.mean < 1
    assert result.identification is None
    np.testing.assert_array_equal(result.scores[0].distances, distances)


def test_a_set_of_real_faces_is_scored(real_faces: Path) -> None:
    pairs = read_bin("orl", real_faces / "orl" / "orl_val.bin")
    (found,) = measured([pairs]).verification
    assert found.accuracy.num_pairs == 600
    assert 0.55 < found.accuracy.mean < 0.95


def test_the_figures_are_plain_json(identified: Evaluation) -> None:
    document = json.loads(json.dumps(identified.to_json(), allow_nan=False))
    assert document["encoder"] == "blur"
    assert document["verification"] == []
    assert document["identification"]["num_probes"] == 72
    assert "scores" not in document


def test_nothing_to_measure_is_wrong_use() -> None:
    with pytest.raises(UsageError, match="nothing to evaluate"):
        measured()


def test_one_set_as_gallery_and_probes_is_wrong_use(gallery: Path) -> None:
    same = gallery.parent / "." / ".." / gallery.parent.name / gallery.name
    with pytest.raises(UsageError, match="every probe would find itself"):
        measured(sets=(gallery, same))


def test_probes_of_strangers_only_are_refused(gallery: Path, tmp_path: Path) -> None:
    strangers = make_set(tmp_path / "strangers", range(30, 32), 2)
    with pytest.raises(DataError, match="no probe has its identity in the gallery"):
        measured(sets=(gallery, strangers))
