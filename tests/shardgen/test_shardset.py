"""A finished set read back: whatever else was read before, and whatever happened to its files."""

import os
import shutil
from pathlib import Path

import pytest

from shardgen.errors import DataError
from shardgen.sample import content_hash
from shardgen.shardset import ShardSet
from tests.support import make_set


def test_a_set_made_anew_in_the_place_of_another_is_itself(tmp_path: Path) -> None:
    for seed in (0, 1):
        shards = ShardSet(make_set(tmp_path / "set", range(3), 2, seed=seed))
        hashes = shards.table(["content_hash"])["content_hash"].to_pylist()
        assert [content_hash(shards.image(row)) for row in range(6)] == hashes
        shutil.rmtree(tmp_path / "set")
        shutil.rmtree(tmp_path / "set.raw")


def test_a_tar_that_is_cut_while_it_is_read_is_an_error_and_one_that_is_gone_too(tmp_path: Path) -> None:
    shards = ShardSet(make_set(tmp_path / "set", range(3), 2))
    first = shards.image(0)
    os.truncate(tmp_path / "set" / "000000.tar", 1000)
    with pytest.raises(DataError, match=r"000000.tar ends inside an image; see `facemix verify"):
        shards.image(5)
    (tmp_path / "set" / "000000.tar").unlink()
    with pytest.raises(DataError, match=r"000000.tar cannot be read: No such file"):
        ShardSet(tmp_path / "set").image(0)
    assert first
