"""Pages in a real browser, which says what there is to see."""

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest

PROBE = """<script>addEventListener('load', () => {
  const plots = [...document.querySelectorAll('[role=img] svg')], images = [...document.images];
  const words = [...document.querySelectorAll('svg text')];
  const scale = (one, matrix = one.getScreenCTM()) => Math.hypot(matrix.a, matrix.b);
  const size = one => parseFloat(getComputedStyle(one).fontSize) * scale(one);
  const out = (box, of) => box.left < of.left - 1 || box.right > of.right + 1 || box.bottom > of.bottom + 1;
  const cut = one => out(one.getBoundingClientRect(), one.closest('svg').getBoundingClientRect());
  parent.document.title = JSON.stringify({
    plots: plots.length, empty: plots.filter(one => one.getBoundingClientRect().height < 50).length,
    pictures: images.length, broken: images.filter(one => !one.naturalWidth).length,
    cut: words.filter(cut).length, smallest: Math.min(...words.map(size)),
    width: innerWidth, overflow: document.documentElement.scrollWidth - innerWidth});
});</script></body>"""


def seen_in_a_browser(page: str, width: int, folder: Path) -> dict[str, float]:
    """What a page of this width says of itself in headless Chromium, whose own windows are no narrower than 500."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page in")
    framed = folder / "framed.html"
    inner = escape(page.replace("</body>", PROBE))
    head = '<meta charset="utf-8"><title></title><link rel="icon" href="data:,">'
    framed.write_text(f'{head}<iframe width="{width}" height="900" srcdoc="{inner}">')
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--dump-dom", framed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    seen: dict[str, float] = json.loads(title.group(1).replace("&quot;", '"'))
    return seen
