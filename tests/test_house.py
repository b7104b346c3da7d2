"""What holds for the project as a whole."""

from importlib.metadata import packages_distributions

import pytest

TOP_LEVEL = ("shardgen", "pipeline", "train", "eval", "benchmarks", "recipes", "cli")


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_no_other_distribution_owns_our_top_level_names(name: str) -> None:
    assert set(packages_distributions().get(name, ["facemix"])) == {"facemix"}
