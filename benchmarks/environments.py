"""Environments of programs that need other Pythons or packages than ours; built on first use under `.oracles/`.

Tests ask them for a second opinion, benchmarks run against them. Versions are pinned and nothing but the
named packages is installed, so that an environment is the same next year.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ENVIRONMENTS = Path(__file__).parents[1] / ".oracles"
_PYTHON = "3.11"
_MXNET = [
    *("mxnet==1.9.1", "numpy==1.23.5", "graphviz==0.8.4", "requests==2.34.2", "urllib3==2.8.0", "idna==3.20"),
    *("certifi==2026.10.19.post1", "charset-normalizer==3.5.3"),
]
_PACKAGES = {
    "mxnet": _MXNET,
    "insightface": [
        *(*_MXNET, "torch==2.13.0", "typing_extensions==4.16.0", "filelock==4.2.11", "sympy==1.14.0", "mpmath==1.3.0"),
        *("networkx==3.6.1", "Jinja2==3.1.6", "MarkupSafe==3.0.4", "fsspec==2026.9.0"),
    ],
    "spdl": ["spdl==0.8.0", "spdl_core==0.8.0", "spdl_io==0.8.0", "simplejpeg==1.9.0", "numpy==2.1.3"],
    "mds": [
        "mosaicml-streaming==0.13.0",
        *("numpy==2.1.3", "xxhash==3.6.0", "Brotli==1.2.1", "zstd==1.5.7.2", "python-snappy==0.7.3"),
        *("cramjam==2.14.0", "pillow==13.0.0", "tqdm==4.70.1", "filelock==4.3.1", "typing_extensions==4.16.0"),
    ],
    "measures": [
        *("bob.measure==6.1.1", "cimat==0.1.2", "fairlearn==0.15.0", "pyeer==0.5.6", "scikit-learn==1.9.1"),
        *("numpy==1.26.4", "scipy==1.17.1", "pandas==3.0.6", "numba==0.68.1", "llvmlite==0.50.0", "joblib==1.6.0"),
        *("cloudpickle==3.1.3", "narwhals==2.29.0", "python-dateutil==4.0.0", "threadpoolctl==3.8.0", "tqdm==4.70.1"),
    ],
}


class Unbuildable(RuntimeError):
    """An environment cannot be had; the text is one line with the reason."""


class NoPython(Unbuildable):
    """This machine lacks the Python to build it with."""


def environment_python(name: str, build: bool = True) -> Path:
    """Return the Python of an environment; build it if need be and allowed."""
    folder = ENVIRONMENTS / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    wanted = "\n".join(_PACKAGES[name])
    if ready.is_file() and ready.read_text() == wanted:
        return python
    if not build:
        raise Unbuildable(f"the environment {name} is not built yet")
    base = _find_python()
    if base is None:
        raise NoPython(f"no Python {_PYTHON} to build the environment {name} with")
    shutil.rmtree(folder, ignore_errors=True)
    _run(name, base, "-m", "venv", str(folder))
    _run(name, str(python), "-m", "pip", "install", "--quiet", "--no-deps", *_PACKAGES[name])
    ready.write_text(wanted)
    return python


def runnable(peers: Mapping[str, tuple[str, str]], build: bool) -> Iterator[tuple[str, str, str]]:
    """Yield (row of a table, peer, its Python) for row -> (peer, environment or "" for ours); say who is left out."""
    for row, (peer, environment) in peers.items():
        try:
            yield row, peer, str(environment_python(environment, build)) if environment else sys.executable
        except Unbuildable as error:
            print(f"\n{row} is left out: {error}")


def _run(name: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unbuildable(f"the environment {name} could not be built: {' '.join(done.stderr.split())[-500:]}")


def _find_python() -> str | None:
    for candidate in filter(None, [sys.executable, shutil.which(f"python{_PYTHON}")]):
        shown = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
        if shown.startswith(f"Python {_PYTHON}."):
            return candidate
    return None
