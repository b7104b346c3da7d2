"""Further protocols, each against a plain restatement."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.faces import Faces
from eval.pairs import read_pairs
from eval.report import Panel
from eval.sections import all_pairs, among_distractors, growing_gallery, janus, listed_pairs
from shardgen.errors import DataError

CPU = torch.device("cpu")


def faces(people: range, images: int, seed: int = 1) -> Faces:
    centres = np.random.default_rng(0).normal(size=(200, 16))
    identities = np.repeat(np.array(people), images)
    rows = centres[identities] + 0.9 * np.random.default_rng(seed).normal(size=(len(identities), 16))
    return Faces(
        embeddings=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        identities=identities.astype(np.int64),
        names=tuple(f"{person:03}" for person in range(200)),
        keys=tuple(f"{row:x}" for row in range(len(identities))),
        groups={},
    )


def figures(panel: Panel, table: int = 0) -> dict[str, list[float | None]]:
    return {row: list(values) for row, values in panel.tables[table].rows.items()}


def test_all_pairs_of_a_set_are_those_of_its_full_matrix() -> None:
    some = faces(range(60), 4)
    scores = (some.embeddings @ some.embeddings.T)[np.triu_indices(240, 1)]
    same = (some.identities[:, None] == some.identities)[np.triu_indices(240, 1)]
    found = figures(all_pairs("some", some, CPU))
    assert list(found) == ["FAR 0.01", "FAR 0.001", "FAR 0.0001"], "28,320 impostors suffice for no more"
    for tar, far, threshold in found.values():
        assert tar is not None
        assert threshold is not None
        assert tar == pytest.approx(100 * (scores[same] >= threshold).mean(), abs=1e-3)
        assert far == pytest.approx((scores[~same] >= threshold).mean())


def test_pairs_of_a_list_are_verified_over_folds_that_share_nobody(tmp_path: Path) -> None:
    some = faces(range(40), 2)
    lines = [f"{2 * person:x},{2 * person + 1:x}" for person in range(40)]
    lines += [f"{2 * person:x},{2 * (person ^ 1):x}" for person in range(40)]
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second", *lines, ""]))
    panel = listed_pairs("some", some, read_pairs(tmp_path / "pairs.csv", some))
    (row,) = figures(panel).values()
    assert row[0] == 80
    assert row[1] is not None
    assert 50 < row[1] < 100
    assert "0 pairs are left out" in panel.text[0]


def test_more_distractors_and_larger_galleries_make_it_harder() -> None:
    probes, others = faces(range(20), 3), faces(range(20, 200), 3, seed=2)
    found = [row[0] for row in figures(among_distractors("others", probes, others, CPU)).values()]
    assert len(found) == 3  # 10, 100, 540
    assert all(one is not None for one in found)
    assert found == sorted(found, key=lambda one: -(one or 0))
    with pytest.raises(DataError, match="20 people of others are among the probes, such as 000"):
        among_distractors("others", probes, probes, CPU)
    curve = figures(growing_gallery(faces(range(200), 1, seed=3), probes))
    assert list(curve) == ["10", "100", "200"]
    assert (curve["10"][0] or 0) > (curve["200"][0] or 0)


def test_ijb_is_measured_by_its_files(tmp_path: Path) -> None:
    meta = tmp_path / "IJBX" / "meta"
    meta.mkdir(parents=True)
    some = faces(range(30), 4)
    names = [f"{row}.jpg" for row in range(120)]
    template = [2 * (row // 4) + row % 2 for row in range(120)]  # two templates a person, two images each
    tids = [f"{name} {tid} {row}" for row, (name, tid) in enumerate(zip(names, template, strict=True))]
    (meta / "ijbx_face_tid_mid.txt").write_text("\n".join([*tids, ""]))
    points = " ".join(["1"] * 10)
    (meta / "ijbx_name_5pts_score.txt").write_text("\n".join([*(f"{name} {points} 0.9" for name in names), ""]))
    pairs = [f"{2 * person} {2 * person + 1} 1" for person in range(30)]
    pairs += [f"{2 * person} {2 * other} 0" for person in range(30) for other in range(person)]
    (meta / "ijbx_template_pair_label.txt").write_text("\n".join([*pairs, ""]))

    def subjects(tids: list[int]) -> str:
        return "\n".join(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *(f"{tid},{tid // 2},x.jpg" for tid in tids), ""])

    (meta / "ijbx_1N_gallery_G1.csv").write_text(subjects([2 * person for person in range(15)]))
    (meta / "ijbx_1N_gallery_G2.csv").write_text(subjects([2 * person for person in range(15, 30)]))
    (meta / "ijbx_1N_probe_mixed.csv").write_text(subjects([2 * person + 1 for person in range(30)]))
    panel = janus(meta, some.embeddings, [f"img/{name}" for name in names])
    assert panel.title == "IJB: IJBX"
    assert list(figures(panel)) == ["FAR 0.1", "FAR 0.01"]
    (row,) = figures(panel, 1).values()
    assert all(one is not None and 0 <= one <= 100 for one in row)
    assert (row[0] or 0) > 50
