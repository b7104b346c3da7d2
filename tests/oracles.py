"""Programs that nobody here wrote, to compare with, in environments of their own; see benchmarks/environments.py."""

from pathlib import Path

import pytest

from benchmarks.environments import NoPython, environment_python


def mxnet_python() -> Path:
    """Return the Python of an environment with MXNet 1.9.1, which needs CPython 3.11 and numpy < 1.24."""
    try:
        return environment_python("mxnet")
    except NoPython as error:
        pytest.skip(str(error))
