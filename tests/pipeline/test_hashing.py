"""The hashes that all randomness is made of."""

import os
import subprocess
import sys

import numpy as np

from pipeline.hashing import derive_key, mix64
from tests.support import ROOT


def test_mix64_is_splitmix64() -> None:
    states = np.arange(4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # of a generator seeded with 0
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert mix64(states).tolist() == published


def test_mix64_leaves_its_input_alone() -> None:
    words = np.arange(5, dtype=np.uint64)
    mix64(words)
    assert words.tolist() == [0, 1, 2, 3, 4]


def test_one_bit_of_input_changes_half_of_the_output() -> None:
    words = np.arange(2000, dtype=np.uint64)
    for bit in range(64):
        changed = mix64(words) ^ mix64(words ^ (np.uint64(1) << np.uint64(bit)))
        share = np.unpackbits(changed.view(np.uint8)).mean()
        assert abs(share - 0.5) < 0.01, f"bit {bit}"


def test_a_key_depends_on_every_part_their_order_and_where_they_are_cut() -> None:
    keys = [
        derive_key(1, "ab", 2),
        derive_key(2, "ab", 2),
        derive_key(1, "ba", 2),
        derive_key(1, "ab", 3),
        derive_key(2, "ab", 1),
        derive_key(1, "a", "b2"),
        derive_key(1, "ab2"),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_a_key_is_the_same_in_every_process() -> None:
    code = "from pipeline.hashing import derive_key; print(derive_key(7, 'order', 'real/north'))"
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert [int(run.stdout) for run in runs] == [derive_key(7, "order", "real/north")] * 2
