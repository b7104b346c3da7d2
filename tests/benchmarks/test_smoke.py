"""Every benchmark runs; its figures are read by people, not by tests."""

import pytest

from tests.support import ROOT, facemix

HELPERS = ("__init__", "environments", "loader_peers", "peers", "pil_augment", "simulated", "timing", "train_peers")
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in HELPERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_prints_its_table(name: str) -> None:
    done = facemix("bench", name, "--smoke")
    assert done.returncode == 0, done.stderr
    assert "|--:|" in done.stdout
