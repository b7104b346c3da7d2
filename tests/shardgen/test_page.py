"""The page: all of it in one file, hostile names as text, and a real browser that has nothing to complain of."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shardgen.images import decode
from shardgen.page import WIDTH, write_page
from shardgen.sheet import CELL, COLUMNS
from shardgen.summary import summarise
from tests.shardgen.test_summary import jpeg, set_of
from tests.support import make_set

HOSTILE = "</title><script>alert('$x$ 顔')</script>"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A set of drawn faces in four groups, and one with a hostile name and fewer of them; never change them."""
    root = tmp_path_factory.mktemp("page")
    drawn = make_set(root / "drawn", range(8), 3)
    hostile = make_set(root / "hostile", range(4), 2, name=HOSTILE, origin="synthetic")
    return [drawn, hostile]


def page_of(out: Path, sets: list[Path]) -> str:
    write_page(out, [summarise(one) for one in sets])
    return out.read_text()


def outlines_in(page: str) -> list[list[tuple[float, float]]]:
    """Return the heights (0-1) and right ends of every histogram's bins."""
    return [
        [(round(1 - float(y) / 120, 3), float(x)) for y, x in re.findall(r"V([0-9.]+)H([0-9.]+)", path)]
        for path in re.findall(r' d="M0 120([^"]+)Z"', page)
    ]


def test_the_page_asks_for_nothing_but_itself(sets: list[Path], tmp_path: Path) -> None:
    page = page_of(tmp_path / "new" / "page.html", sets)
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s]+)', page)
    assert len(sources) == 1 + (1 + 4) * 2  # the icon, and of each set the whole and its four groups
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)


def test_the_same_sets_give_the_same_page(sets: list[Path], tmp_path: Path) -> None:
    assert page_of(tmp_path / "a.html", sets) == page_of(tmp_path / "b.html", sets)


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    sets = []
    for number in range(2):
        out = set_of(
            tmp_path / f"{number}&<i>" / "set", [1, 1], r"p(?P<axis>[01])", lambda *_: jpeg(80), name=f"{HOSTILE}"
        )
        sets.append(out)
    page = page_of(tmp_path / "page.html", sets)
    assert "<script" not in page
    assert "<i>" not in page
    assert "顔" in page
    assert page.count("</title>") == 1 + 2 * (2 + 2)  # the page's, and one in each histogram's outline


def test_faces_are_shown_for_a_set_and_each_of_its_groups(sets: list[Path], tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", sets[:1])
    strips = [decode(base64.b64decode(data)) for data in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]
    assert [strip.shape for strip in strips] == [(CELL, COLUMNS * CELL, 3)] * 5
    assert re.findall(r"<figcaption>(drawn .*?)</figcaption>", page) == [
        "drawn (authentic)",
        *(f"drawn group: {group}" for group in ("east", "north", "south", "west")),
    ]


def test_a_histogram_has_a_bin_for_each_number_of_images(tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", [set_of(tmp_path / "set", [1, 3, 3])])
    (images,) = outlines_in(page)  # PNGs: no plot of JPEG quality
    assert images == [(0.5, WIDTH / 3), (0, round(2 * WIDTH / 3, 1)), (1, WIDTH)]
    assert "66.7 %" in page  # at full height


def test_bins_double_where_identities_have_many_images(tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", [set_of(tmp_path / "set", [1, 30])])
    (images,) = outlines_in(page)
    assert [height for height, _ in images] == [1, 0, 0, 0, 1]  # 1, 2+, 4+, 8+, 16+


def test_several_sets_lie_over_one_another_on_one_scale(tmp_path: Path) -> None:
    few = set_of(tmp_path / "few" / "set", [1, 1], name="few")
    many = set_of(tmp_path / "many" / "set", [1, 2, 2, 2], draw=lambda *_: jpeg(80), name="many")
    page = page_of(tmp_path / "page.html", [few, many])
    images_few, images_many, quality_few, quality_many, *_ = outlines_in(page)
    assert [height for height, _ in images_few] == [1, 0]
    assert [height for height, _ in images_many] == [0.25, 0.75]
    assert max(quality_few) == (0, WIDTH)  # has no JPEG
    assert (1, 80 * WIDTH / 100) in quality_many


def test_shares_stand_side_by_side_for_the_axes_that_sets_share(tmp_path: Path) -> None:
    first = set_of(tmp_path / "a" / "set", [1, 3], r"p(?P<who>[0-9])", name="a")
    second = set_of(tmp_path / "b" / "set", [1], r"(?P<who>p)(?P<own>[0-9])", name="b")
    page = page_of(tmp_path / "page.html", [first, second])
    assert re.findall(r"<h3>(\w+): share of samples", page) == ["who"]
    table = page.split("share of samples")[1].split("</table>")[0]
    rows = [re.findall(r"<td>([^<]*?) ?(?:<svg|</td>)", row) for row in table.split("<tr>")[2:]]
    assert rows == [["0", "25 %", "0 %"], ["1", "75 %", "0 %"], ["p", "0 %", "100 %"]]
    assert "share of samples" not in page_of(tmp_path / "one.html", [first])


def test_sets_and_groups_that_differ_in_jpeg_quality_are_pointed_out(tmp_path: Path) -> None:
    pattern = r"p(?P<half>[01])"
    low = set_of(tmp_path / "low" / "set", [100], draw=lambda *_: jpeg(70), name="low")
    mixed = set_of(tmp_path / "mixed" / "set", [100, 101], pattern, lambda half, _: jpeg(70 + 20 * half), name="mixed")
    page = page_of(tmp_path / "page.html", [low, mixed])
    by_set, by_half = re.findall(r'class="warning">JPEG quality differs by (.*?);', page)
    assert by_set == "set: median 70 for low, 90 for mixed"
    assert by_half == "half: median 70 for 0, 90 for 1"


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_the_page_opens_in_a_browser_without_an_error(sets: list[Path], tmp_path: Path, width: int, theme: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page in")
    # The page reports on itself: pictures that did not load, whether it scrolls sideways, what stands in its way.
    probe = (
        "<script>addEventListener('load', () => { const images = [...document.images];"
        " document.title = JSON.stringify({images: images.length, broken: images.filter(i => !i.naturalWidth).length,"
        " overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,"
        " scripts: document.scripts.length, heading: document.querySelector('h1').textContent,"
        " paper: getComputedStyle(document.body).backgroundColor}); });</script></body>"
    )
    page = tmp_path / "page.html"
    page.write_text(page_of(page, sets).replace("</body>", probe))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--window-size={width},900", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={['dark', 'light'].index(theme)}"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    seen = json.loads(title.group(1).replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">"))
    assert (seen["images"], seen["broken"], seen["scripts"]) == (10, 0, 1)
    assert seen["heading"] == f"Shard sets: drawn, {HOSTILE}"
    assert seen["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 24)"}[theme]
    assert seen["overflow"] <= 0
    assert "CONSOLE" not in done.stderr
