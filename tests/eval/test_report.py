"""The report: the same figures as `results.json`, one file, nothing from elsewhere, nothing executable."""

import base64
import json
import re
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from eval.evaluate import Evaluation, GroupResult, IdentificationResult, Scores, VerificationResult
from eval.fairness import spread
from eval.report import write_report
from eval.verification import Accuracy, tar_at_far

SAME = np.arange(40) % 2 == 0
DISTANCES = np.where(SAME, 0.8, 1.9) + np.linspace(-0.6, 0.6, 40)
HOSTILE = "<script>alert('group')</script>"


def make_evaluation(group: str = "north", name: str = "lfw", encoder: str = "runs/x at step 3") -> Evaluation:
    verified = VerificationResult(
        name=name,
        sha256="0123abcd" * 8,
        accuracy=Accuracy(mean=0.98765, std=0.01234, threshold=1.4321, num_pairs=40),
        equal_error_rate=0.0311,
        tar_at_far=[tar_at_far(DISTANCES, SAME, 0.1)],
    )
    groups = [GroupResult(group, 30, 0.9125, 0.8275, 0.9575), GroupResult("rare", 2, None, 0.5, 1.0)]
    identification = IdentificationResult(
        num_templates=16,
        num_probes=32,
        num_probes_without_mate=5,
        rank_1=0.7342,
        rank_5=0.8431,
        groups={"region": groups, "origin": []},
        spreads={"region": spread([0.9125, 0.8])},
    )
    return Evaluation(encoder, [verified], identification, [Scores(name, DISTANCES, SAME)])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(make_evaluation(), tmp_path_factory.mktemp("report")).read_text()


def test_results_are_written_as_they_are(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    path = write_report(evaluation, tmp_path / "new" / "folder")
    results = json.loads(path.with_name("results.json").read_text())
    assert results == {"facemix": version("facemix"), **json.loads(json.dumps(evaluation.to_json()))}
    assert sorted(one.name for one in path.parent.iterdir()) == ["report.html", "results.json"]


def test_the_page_shows_every_figure(page: str) -> None:
    figures = ["98.77 ± 1.23 %", "1.43", "3.11 %", "91.25 %", "82.75 %", "95.75 %", "73.42 %", "84.31 %", "too few"]
    texts = [
        "runs/x at step 3",
        "region: north",
        "0123abcd" * 8,
        f"facemix {version('facemix')}",
        "32 probes",
        "16 enrolled",
    ]
    assert [one for one in figures + texts if one not in page] == []


def test_the_page_needs_no_other_file(page: str) -> None:
    references = re.findall(r"""(?:src|href|srcset|action|poster|url)\s*[=(]\s*["']?([^"'\s)>]*)""", page)
    assert len(references) >= 4
    assert {reference.partition(":")[0] for reference in references} == {"data"}
    assert "@import" not in page


def test_every_plot_is_a_drawing(page: str) -> None:
    plots = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(plots) == 3, "ROC, histogram, groups of the one axis that has some"
    assert all(b"<svg" in base64.b64decode(plot) for plot in plots)


def test_whatever_names_are_given_they_are_text(tmp_path: Path) -> None:
    evaluation = make_evaluation(group=HOSTILE, name=f'"><img src=x>{HOSTILE}', encoder=f"</title>{HOSTILE}")
    page = write_report(evaluation, tmp_path).read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("</title>") == 1
    escaped = "&lt;script&gt;alert(&#39;group&#39;)&lt;/script&gt;"
    assert all(before + escaped in page for before in ("region: ", "&lt;img src=x&gt;", "&lt;/title&gt;"))


@pytest.mark.parametrize("group", ["<$20k to $50k>", r"a$\x$", "{{ 1 / 0 }}", "_"])
def test_no_name_of_a_group_breaks_the_plots(group: str, tmp_path: Path) -> None:
    assert f"region: {escape(group)}<" in write_report(make_evaluation(group=group), tmp_path).read_text()


def test_a_report_of_verification_alone_or_identification_alone_is_written(tmp_path: Path) -> None:
    whole = make_evaluation()
    verification = write_report(Evaluation("x", whole.verification, None, whole.scores), tmp_path / "a").read_text()
    identification = write_report(Evaluation("x", [], whole.identification, []), tmp_path / "b").read_text()
    assert ("Verification</h2>" in verification, "Identification</h2>" in verification) == (True, False)
    assert ("Verification</h2>" in identification, "Identification</h2>" in identification) == (False, True)


def test_an_axis_with_many_groups_is_shown_whole_in_the_table(tmp_path: Path) -> None:
    ages = [GroupResult(f"age {age}", 100 - age, 0.9, 0.8, 0.9) for age in range(60)]
    identification = IdentificationResult(60, 60, 0, 0.8, 0.9, {"age": ages}, {})
    page = write_report(Evaluation("x", [], identification, []), tmp_path).read_text()
    assert all(f"age: age {age}<" in page for age in range(60))
