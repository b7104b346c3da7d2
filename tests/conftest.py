"""Fixtures for all tests."""

from pathlib import Path

import pytest
import torch

from tests.support import ROOT, make_set

SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_faces() -> Path:
    """The folder of real faces, which is no part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real faces at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 8 drawn identities with 4 images each, in shards of 10 records; never change it."""
    return make_set(tmp_path_factory.mktemp("small") / "small", shard_samples=10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
