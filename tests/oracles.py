"""Environments of programs that nobody here wrote, to compare with; built on first use under `.oracles/`.

They need older Pythons or packages than ours, so each lives in an environment of its own.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

ORACLES = ROOT / ".oracles"


def mxnet_python() -> Path:
    """Return the Python of an environment with MXNet 1.9.1, which needs CPython 3.11 and numpy < 1.24."""
    return _environment("mxnet", "3.11", ["mxnet==1.9.1", "numpy==1.23.5"])


def _environment(name: str, python_version: str, packages: list[str]) -> Path:
    folder = ORACLES / name
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if ready.exists():
        return python
    base = _find_python(python_version)
    if base is None:
        pytest.skip(f"no Python {python_version} to build the {name} oracle with")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([base, "-m", "venv", folder], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"the {name} oracle could not be installed: {done.stderr[-2000:]}")
    ready.touch()
    return python


def _find_python(version: str) -> str | None:
    candidates = [sys.executable, shutil.which(f"python{version}")]
    for candidate in filter(None, candidates):
        shown = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
        if shown.startswith(f"Python {version}."):
            return candidate
    return None
