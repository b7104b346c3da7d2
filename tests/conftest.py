"""Fixtures for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import ROOT, make_set

SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny batches, here and in processes started: threads would wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


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
