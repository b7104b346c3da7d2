"""What cannot be had is one line, not a traceback."""

from pathlib import Path

import pytest

from benchmarks import environments
from benchmarks.environments import NoPython, Unbuildable, environment_python


@pytest.fixture(autouse=True)
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    return tmp_path


def test_nothing_is_built_when_that_is_not_allowed(nothing_built: Path) -> None:
    with pytest.raises(Unbuildable, match="the environment mxnet is not built yet"):
        environment_python("mxnet", build=False)
    assert not list(nothing_built.iterdir())


def test_without_its_python_it_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_PYTHON", "2.0")
    with pytest.raises(NoPython, match=r"no Python 2\.0 to build the environment mds with"):
        environment_python("mds")


def test_a_failed_build_leaves_nothing_that_looks_ready(nothing_built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_find_python", lambda: "ls")  # which knows no venv
    with pytest.raises(Unbuildable, match="could not be built") as refused:
        environment_python("mds")
    assert "\n" not in str(refused.value)
    with pytest.raises(Unbuildable, match="not built yet"):
        environment_python("mds", build=False)


def test_what_is_ready_is_used(nothing_built: Path) -> None:
    (nothing_built / "mds").mkdir()
    (nothing_built / "mds" / ".ready").write_text("\n".join(environments._PACKAGES["mds"]))
    assert environment_python("mds") == nothing_built / "mds" / "bin" / "python"


def test_what_is_ready_with_other_versions_is_not(nothing_built: Path) -> None:
    (nothing_built / "mds").mkdir()
    (nothing_built / "mds" / ".ready").write_text("mosaicml-streaming==0.1")
    with pytest.raises(Unbuildable, match="not built yet"):
        environment_python("mds", build=False)
