"""Two small sets, one of either origin, for all tests of the loader; never change them."""

from pathlib import Path

import pytest

from pipeline.catalog import Catalog, open_catalog
from tests.support import make_set


@pytest.fixture(scope="session")
def folders(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name in the mixes of `tests.pipeline.loading` -> set."""
    drawn = make_set(tmp_path_factory.mktemp("drawn") / "drawn", range(8, 13), 3, seed=1, origin="synthetic")
    return {"real": small_set, "drawn": drawn}


@pytest.fixture(scope="session")
def catalog(folders: dict[str, Path]) -> Catalog:
    """Of both."""
    return open_catalog(folders)
