"""IJB's protocols on lists of the true format, against plain restatements of InsightFace's scripts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_curve

from eval import ijb
from eval.ijb import Templates, identify, pool, template_distances, verify
from eval.ijb_files import (
    Images,
    SearchProtocol,
    Subjects,
    TemplatePairs,
    read_images,
    read_search_protocol,
    read_template_pairs,
)
from shardgen.errors import DataError, UsageError

Array = npt.NDArray[Any]
_GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}


@dataclass
class Package:
    """A small IJB: 30 subjects in each of two galleries, one template each, and 4 probes of each subject."""

    meta: Path
    names: list[str]
    embeddings: Array
    """In the order of the names, of all lengths."""


def draw_package(meta: Path, prefix: str = "ijbc", seed: int = 0) -> Package:
    """Write the six lists; template numbers are neither sorted nor without gaps, media occur in several templates."""
    rng = np.random.default_rng(seed)
    meta.mkdir()
    faces = rng.normal(size=(60, 16))
    subjects = np.concatenate([np.arange(60), np.repeat(np.arange(60), 4)]) + 100
    numbers = 3 + 2 * rng.permutation(len(subjects))
    template_of_image = np.repeat(np.arange(len(subjects)), rng.integers(1, 8, len(subjects)))
    rng.shuffle(template_of_image)
    media = rng.integers(0, 3, len(template_of_image))
    names = [f"{number}.jpg" for number in range(1, len(media) + 1)]
    scores = rng.uniform(0.3, 1, len(media))
    points = rng.uniform(0, 120, (len(media), 10))
    lines = {
        "face_tid_mid.txt": [
            f"{name} {numbers[template]} {medium}"
            for name, template, medium in zip(names, template_of_image, media, strict=True)
        ],
        "name_5pts_score.txt": [
            f"{name} {' '.join(f'{one:.3f}' for one in points[row])} {scores[row]:.3f}"
            for row, name in enumerate(names)
        ],
        "template_pair_label.txt": [
            f"{numbers[first]} {numbers[second]} {int(subjects[first] == subjects[second])}"
            for first in range(60)
            for second in rng.permutation(np.arange(60, 300))[:150]
        ],
    }
    first, second = _GALLERIES[prefix]
    parts = {f"1N_gallery_{first}": range(30), f"1N_gallery_{second}": range(30, 60), "1N_probe_mixed": range(60, 300)}
    header = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID,FACE_X,FACE_Y"
    for part, templates in parts.items():
        rows = [row for row in range(len(names)) if template_of_image[row] in templates]
        lines[f"{part}.csv"] = [
            header,
            *(
                f"{numbers[template_of_image[row]]},{subjects[template_of_image[row]]},img/{row}.png,{row},1,"
                for row in rows
            ),
        ]
    for name, content in lines.items():
        (meta / f"{prefix}_{name}").write_text("\n".join([*content, ""]))
    lengths = rng.uniform(0.5, 20, (len(media), 1))
    people = subjects[template_of_image] - 100
    embeddings = (faces[people] + rng.normal(0, 1.6, (len(media), 16))) * lengths
    return Package(meta, names, embeddings.astype(np.float32))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return draw_package(tmp_path_factory.mktemp("ijb") / "meta")


@pytest.fixture(scope="module")
def templates(package: Package) -> Templates:
    return pool(read_images(package.meta), package.embeddings, package.names)


def restated_templates(package: Package, prefix: str = "ijbc") -> dict[int, Array]:
    """`image2template_feature`, template by template, with the scores of the detector and of the norm."""
    tid_mid = [line.split() for line in (package.meta / f"{prefix}_face_tid_mid.txt").read_text().splitlines()]
    points = [line.split() for line in (package.meta / f"{prefix}_name_5pts_score.txt").read_text().splitlines()]
    features = package.embeddings * np.array([float(line[-1]) for line in points], np.float32)[:, None]
    templates = np.array([int(line[1]) for line in tid_mid])
    media = np.array([int(line[2]) for line in tid_mid])
    pooled = {}
    for template in np.unique(templates):
        total = np.zeros(features.shape[1])
        for medium in np.unique(media[templates == template]):
            total += features[(templates == template) & (media == medium)].mean(0)
        pooled[int(template)] = total / np.sqrt((total**2).sum())
    return pooled


def restated_search(
    probes: Array, gallery: Array, probe_ids: Array, gallery_ids: Array, targets: tuple[float, ...]
) -> tuple[list[int], list[float], list[float], int]:
    """`evaluation_1N`: counts at ranks 1, 5 and 10, thresholds and recalls, number of mated searches."""
    similarity = probes @ gallery.T
    mate_scores, other_scores, non_mated = [], [], []
    counts = [0, 0, 0]
    for row, probe in zip(similarity, probe_ids, strict=True):
        if probe not in gallery_ids:
            non_mated.append(row.max())
            continue
        mate = int(np.flatnonzero(gallery_ids == probe)[0])
        found = np.argsort(row)[::-1]
        counts = [count + (mate in found[:rank]) for count, rank in zip(counts, (1, 5, 10), strict=True)]
        mate_scores.append(row[mate])
        other_scores.append(np.delete(row, mate).max())
    highest = np.sort(non_mated)[::-1]
    thresholds = [float(highest[max(int(len(highest) * target) - 1, 0)]) for target in targets]
    mates = np.array(mate_scores)
    recalls = [float(np.mean((mates > np.array(other_scores)) & (mates > threshold))) for threshold in thresholds]
    return counts, thresholds, recalls, len(mates)


def test_templates_are_those_of_the_plain_pooling(package: Package, templates: Templates) -> None:
    expected = restated_templates(package)
    assert templates.numbers.tolist() == sorted(expected)
    assert templates.embeddings.dtype == np.float32
    np.testing.assert_allclose(templates.embeddings, [expected[one] for one in sorted(expected)], atol=1e-6)


def test_images_are_pooled_block_by_block_and_by_name(
    package: Package, templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ijb, "_IMAGES", 37)
    order = np.random.default_rng(1).permutation(len(package.names))
    extra = np.full((1, 16), np.nan, np.float32)
    embeddings = np.concatenate([package.embeddings[order], extra])
    names = [*(package.names[row] for row in order), "of nobody.jpg"]
    found = pool(read_images(package.meta), embeddings, names)
    np.testing.assert_allclose(found.embeddings, templates.embeddings, atol=1e-6)


def test_rows_of_length_one_give_other_templates(package: Package, templates: Templates) -> None:
    unit = package.embeddings / np.linalg.norm(package.embeddings, axis=1, keepdims=True)
    found = pool(read_images(package.meta), unit, package.names)
    assert np.einsum("ij,ij->i", found.embeddings, templates.embeddings).min() < 0.99


@pytest.mark.parametrize("tile", [1, 7, 512])
def test_each_pair_of_templates_has_its_distance(
    tile: int, package: Package, templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ijb, "_TEMPLATES", tile)
    expected = restated_templates(package)
    lines = [line.split() for line in (package.meta / "ijbc_template_pair_label.txt").read_text().splitlines()]
    pairs = read_template_pairs(package.meta)
    scores = [float(expected[int(first)] @ expected[int(second)]) for first, second, _ in lines]
    np.testing.assert_allclose(template_distances(templates, pairs), 2 - 2 * np.array(scores), atol=2e-6)
    assert pairs.same.tolist() == [label == "1" for *_, label in lines]


def test_verification_is_on_scikit_learns_curve_at_the_rates_that_suffice(
    package: Package, templates: Templates
) -> None:
    pairs = read_template_pairs(package.meta)
    distances = template_distances(templates, pairs)
    found = verify(distances, pairs)
    assert [one.target_far for one in found] == [1e-1, 1e-2, 1e-3]  # of 8,850 impostors
    fars, tars, _ = roc_curve(pairs.same, -distances, drop_intermediate=False)
    for one in found:
        at = np.flatnonzero(fars <= one.target_far)[-1]
        assert (one.far, one.tar) == pytest.approx((fars[at], tars[at]))
    assert 0 < found[-1].tar < found[0].tar < 1


@pytest.mark.parametrize("prefix", ["ijbb", "ijbc"])
def test_identification_is_that_of_the_plain_search(prefix: str, tmp_path: Path) -> None:
    package = draw_package(tmp_path / "meta", prefix, seed=3)
    found = identify(
        pool(read_images(package.meta), package.embeddings, package.names), read_search_protocol(package.meta)
    )
    pooled = restated_templates(package, prefix)

    def side(name: str) -> tuple[Array, Array]:
        rows = [line.split(",") for line in (package.meta / f"{prefix}_{name}.csv").read_text().splitlines()[1:]]
        subject = {int(row[0]): int(row[1]) for row in rows}
        return np.stack([pooled[one] for one in sorted(subject)]), np.array([subject[one] for one in sorted(subject)])

    probes, probe_ids = side("1N_probe_mixed")
    total: Array = np.zeros(3)
    recalls: list[list[float]] = []
    for one, name in zip(found.galleries, _GALLERIES[prefix], strict=True):
        gallery, gallery_ids = side(f"1N_gallery_{name}")
        counts, thresholds, recall, num_mated = restated_search(probes, gallery, probe_ids, gallery_ids, (0.1, 0.01))
        assert (one.num_enrolled, one.num_mated, one.num_non_mated) == (30, num_mated, len(probes) - num_mated)
        assert [round(share * num_mated) for share in one.found_by_rank.values()] == counts
        assert [tpir.tpir for tpir in one.tpirs] == pytest.approx(recall)
        assert [tpir.threshold for tpir in one.tpirs] == pytest.approx(thresholds, abs=1e-6)
        assert all(tpir.fpir <= tpir.target_fpir for tpir in one.tpirs)
        total, recalls = total + counts, [*recalls, recall]
    assert list(found.found_by_rank) == [1, 5, 10]
    assert list(found.found_by_rank.values()) == pytest.approx(total / len(probes))
    assert found.tpir_by_fpir == pytest.approx(dict(zip((0.1, 0.01), np.mean(recalls, axis=0), strict=True)))
    assert 0 < found.tpir_by_fpir[0.01] < found.tpir_by_fpir[0.1] < found.found_by_rank[1] < 1


def test_a_tie_with_another_subject_is_no_hit() -> None:
    axis = np.eye(4, dtype=np.float32)
    templates = Templates(np.arange(6), axis[[0, 0, 0, 1, 2, 3]])
    protocol = [Subjects(np.array([0, 1]), np.array([10, 11])), Subjects(np.array([3, 4]), np.array([12, 13]))]
    probes = Subjects(np.array([2, 3, 4]), np.array([10, 12, 13]))
    first, second = identify(templates, SearchProtocol(protocol, probes)).galleries
    assert first.found_by_rank == {1: 0, 5: 1, 10: 1}
    assert second.found_by_rank[1] == 1


def test_a_hit_comes_first_and_scores_above_the_threshold() -> None:
    axis = np.eye(5, dtype=np.float32)
    half = np.array([0.5, 0, 0.5, 0.5, 0.5], np.float32)
    not_first = np.array([0.6, 0.8, 0, 0, 0], np.float32)
    rows = [*axis[:3], half, not_first, axis[0], half, *axis[[2] * 9]]
    templates = Templates(np.arange(16), np.stack(rows))
    galleries = [Subjects(np.array([0, 1]), np.array([10, 11])), Subjects(np.array([2]), np.array([12]))]
    probes = Subjects(np.arange(3, 16), np.array([10] * 3 + [12] * 10))
    found = identify(templates, SearchProtocol(galleries, probes)).galleries[0].tpirs
    assert [(one.threshold, one.fpir, one.tpir) for one in found] == [(0.5, 0, 1 / 3)]


def test_targets_that_the_non_mated_searches_do_not_suffice_for_are_left_out() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(24, 8)).astype(np.float32)
    templates = Templates(np.arange(24), rows / np.linalg.norm(rows, axis=1, keepdims=True))
    galleries = [Subjects(np.array([0]), np.array([0])), Subjects(np.array([1]), np.array([1]))]
    probes = Subjects(np.arange(2, 24), np.arange(22) % 2)
    found = identify(templates, SearchProtocol(galleries, probes))
    assert list(found.tpir_by_fpir) == [0.1]


def test_all_is_read_as_it_is_written(package: Package) -> None:
    images = read_images(package.meta)
    line = (package.meta / "ijbc_name_5pts_score.txt").read_text().splitlines()[4].split()
    assert (images.names[4], images.landmarks.shape[1:]) == (line[0], (5, 2))
    assert images.landmarks[4].ravel().tolist() == pytest.approx([float(word) for word in line[1:-1]])
    assert images.scores[4] == pytest.approx(float(line[-1]))
    protocol = read_search_protocol(package.meta)
    assert [len(part.templates) for part in (*protocol.galleries, protocol.probes)] == [30, 30, 240]


def edit(file: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def apply(meta: Path) -> None:
        path = meta / f"ijbc_{file}"
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return apply


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("face_tid_mid.txt", lambda lines: lines[1:], "line 1 is 2.jpg in .* and 1.jpg in .*use files of one package"),
        ("face_tid_mid.txt", lambda lines: lines[:-1], "images, .* has .*use files of one package"),
        ("face_tid_mid.txt", lambda lines: [*lines, "9.jpg x 1"], "not as InsightFace distributes it: .*'x'"),
        ("name_5pts_score.txt", lambda lines: [*lines, "9.jpg 1 2"], "name_5pts_score.txt is not as .*12 columns"),
        ("template_pair_label.txt", lambda lines: [*lines, "2 5 0"], "template 2 has no image"),
        ("template_pair_label.txt", lambda lines: [one[:-1] + "1" for one in lines], "9000 genuine of 9000 pairs"),
        (
            "1N_gallery_G1.csv",
            lambda lines: [*lines, "5,100,x,1,1,1", "7,100,x,1,1,1"],
            "enrols subject 100 [23] times",
        ),
        ("1N_probe_mixed.csv", lambda lines: [*lines, lines[1].split(",")[0] + ",7,x,1,1,1"], "of two subjects"),
        ("1N_probe_mixed.csv", lambda lines: [*lines, "2,100,x,1,1,1"], "template 2 has no image"),
    ],
)
def test_damaged_lists_are_named(
    file: str, change: Callable[[list[str]], list[str]], message: str, tmp_path: Path
) -> None:
    package = draw_package(tmp_path / "meta")
    edit(file, change)(package.meta)
    with pytest.raises(DataError, match=message):
        measure(package)


def measure(package: Package) -> None:
    pooled = pool(read_images(package.meta), package.embeddings, package.names)
    template_distances(pooled, read_template_pairs(package.meta))
    identify(pooled, read_search_protocol(package.meta))


def test_a_folder_without_the_lists_is_wrong_use(package: Package, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0 files \*_face_tid_mid.txt; give the folder meta"):
        read_images(tmp_path)
    (tmp_path / "ijbb_1N_gallery_S1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"0 files \*_1N_gallery_\?2.csv"):
        read_search_protocol(tmp_path)


def test_images_without_embedding_are_counted_and_named(package: Package) -> None:
    with pytest.raises(DataError, match=rf"2 of {len(package.names)} images have no embedding \(1.jpg, "):
        pool(read_images(package.meta), package.embeddings[2:], package.names[2:])


def test_a_template_without_weight_is_refused() -> None:
    images = Images(
        ["a", "b"], np.zeros((2, 5, 2), np.float32), np.eye(2, dtype=np.float32)[0], np.array([4, 6]), np.zeros(2, int)
    )
    with pytest.raises(DataError, match="template 6 has length zero"):
        pool(images, np.ones((2, 3), np.float32), ["a", "b"])


def test_probes_that_all_have_a_mate_are_refused() -> None:
    templates = Templates(np.arange(3), np.eye(3, dtype=np.float32))
    everyone = Subjects(np.arange(3), np.arange(3))
    with pytest.raises(DataError, match="3 of 3 probes have a mate"):
        identify(templates, SearchProtocol([everyone, everyone], everyone))


def test_pairs_of_unknown_templates_are_refused(templates: Templates) -> None:
    pairs = TemplatePairs(np.array([3, 1000000], np.int32), np.array([5, 3], np.int32), np.array([True, False]))
    with pytest.raises(DataError, match="template 1000000 has no image"):
        template_distances(templates, pairs)
