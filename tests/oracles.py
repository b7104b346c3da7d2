"""Programs that nobody here wrote, to compare with, in environments of their own; see benchmarks/environments.py."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.environments import Unbuildable, environment_python

_FRAME = """
import json, sys
import numpy as np
globals().update(json.load(sys.stdin))
{script}
print()
print(json.dumps(answer, default=lambda value: value.tolist()))
"""


def mxnet_python() -> Path:
    """Return the Python of an environment with MXNet 1.9.1, which needs CPython 3.11 and numpy < 1.24."""
    return _python("mxnet")


def oracle(script: str, **values: Any) -> Any:
    """Run a script beside bob.measure, cimat, fairlearn, pyeer and scikit-learn; return what it leaves in `answer`.

    The values are variables to the script, arrays as lists; `np` is NumPy. One run takes seconds: ask much at once.
    """
    command = [str(_python("measures")), "-W", "ignore", "-c", _FRAME.format(script=script)]
    payload = json.dumps(values, default=np.ndarray.tolist)
    done = subprocess.run(command, input=payload, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _python(environment: str) -> Path:
    try:
        return environment_python(environment)
    except Unbuildable as error:
        pytest.skip(str(error))
