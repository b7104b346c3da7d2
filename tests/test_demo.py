"""The demo from end to end, and its report in a real browser."""

import json
from pathlib import Path

import pytest

from tests.browser import seen_in_a_browser
from tests.support import facemix


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = facemix("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_the_demo_recognises_people_it_has_never_seen(demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    (verified,) = results["verification"]
    found = results["identification"]
    assert verified["accuracy"]["mean"] > 0.85
    assert found["rank_1"] > 0.5  # by chance it would be 1 of 32
    assert {one["group"] for one in found["groups"]["group"]} == {"north", "east", "south", "west"}


def test_the_demo_leaves_a_whole_run_folder(demo: Path) -> None:
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "results.json", "report.html"):
        assert (demo / name).stat().st_size
    assert list(demo.glob("events.out.tfevents.*"))
    assert list((demo / "checkpoints").glob("step-*.pt"))


def test_the_demo_refuses_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = facemix("demo", "--out", tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_opens_in_a_browser_without_an_error(demo: Path, tmp_path: Path, width: int) -> None:
    seen = seen_in_a_browser((demo / "report.html").read_text(), width, tmp_path)
    assert (seen["broken"], seen["empty"], seen["cut"]) == (0, 0, 0)
    assert seen["plots"] >= 3
    assert seen["overflow"] <= 0
