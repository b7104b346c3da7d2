"""The demo from end to end, and its report in a real browser."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the report in")
    # The page reports on itself: errors, plots that did not load, and whether it scrolls sideways.
    probe = (
        "<script>addEventListener('load', () => { const images = [...document.images];"
        " document.title = JSON.stringify({plots: images.length, broken: images.filter(i => !i.naturalWidth).length,"
        " overflow: document.documentElement.scrollWidth - innerWidth}); });</script></body>"
    )
    page = tmp_path / "report.html"
    page.write_text((demo / "report.html").read_text().replace("</body>", probe))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--window-size={width},900", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    seen = json.loads(title.group(1).replace("&quot;", '"'))
    assert seen["broken"] == 0
    assert seen["plots"] == 3  # ROC, histogram, bars by group
    assert seen["overflow"] <= 0
    assert "CONSOLE" not in done.stderr


def test_every_plot_in_the_report_is_an_image_in_the_page(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    plots = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(plots) == page.count("<img ") == 3
    for plot in plots:
        assert base64.b64decode(plot).lstrip().startswith(b"<?xml")
