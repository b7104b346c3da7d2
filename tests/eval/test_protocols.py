"""Verification sets from pickles that may be hostile, and pairs within groups."""

import os
import pickle
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.protocols import VerificationSet, pairs_within_group, read_bin
from shardgen.errors import DataError, UsageError
from shardgen.images import decode

IMAGES = [b"one", b"two\xff\x00", b"three", b"four"]
ANSWERS = [True, False]


class Call:
    """Pickles into a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def read(path: Path, content: bytes) -> VerificationSet:
    path.write_bytes(content)
    return read_bin("some", path)


def refusal(path: Path, content: bytes) -> str:
    with pytest.raises(DataError) as refused:
        read(path, content)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.bin"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "some.bin"


def test_a_set_of_real_faces_is_read(real_faces: Path) -> None:
    path = real_faces / "orl" / "orl_val.bin"
    found = read_bin("orl", path)
    assert (len(found.images), len(found.same), int(found.same.sum())) == (1200, 600, 300)
    assert found.sha256 == sha256(path.read_bytes()).hexdigest()
    assert {decode(image).shape for image in found.images[::100]} == {(112, 112, 3)}
    bins, same = pickle.loads(path.read_bytes())
    assert found.images == [bytes(one) for one in bins]
    assert found.same.tolist() == list(same)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("outer", [list, tuple])
@pytest.mark.parametrize("images", ["bytes", "uint8", "both"])
def test_every_way_in_which_these_sets_circulate_is_read(
    images: str, outer: Callable[[list[Any]], Any], protocol: int, path: Path
) -> None:
    arrays = [np.frombuffer(image, np.uint8) for image in IMAGES]
    forms: dict[str, list[Any]] = {"bytes": IMAGES, "uint8": arrays, "both": [*IMAGES[:2], *arrays[2:]]}
    bins = outer(forms[images])
    for same in (ANSWERS, tuple(ANSWERS), np.array(ANSWERS), [np.bool_(one) for one in ANSWERS], [1, 0]):
        found = read(path, pickle.dumps(outer([bins, same]), protocol))
        assert found.images == IMAGES
        assert found.same.tolist() == ANSWERS


def test_a_pickle_of_python_2_is_read(path: Path) -> None:
    images = b"](" + b"".join(b"U" + bytes([len(image)]) + image for image in IMAGES) + b"e"
    found = read(path, b"\x80\x02" + images + b"](\x88\x89e\x86.")
    assert found.images == IMAGES


def test_a_file_that_is_not_there_is_wrong_use(path: Path) -> None:
    with pytest.raises(UsageError, match="give a verification set"):
        read_bin("some", path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", ["system", "eval", "open", "load"])
@pytest.mark.parametrize("where", ["whole", "image", "answer"])
def test_a_file_that_would_run_code_is_refused_before_it_does(
    where: str, function: str, protocol: int, path: Path, tmp_path: Path
) -> None:
    sentinel = tmp_path / "ran"
    np.save(tmp_path / "evil.npy", np.array([Call(open, str(sentinel), "w")], object), allow_pickle=True)
    call = {
        "system": Call(os.system, f"touch {sentinel}"),
        "eval": Call(eval, f"open({str(sentinel)!r}, 'w')"),
        "open": Call(open, str(sentinel), "w"),
        "load": Call(np.load, str(tmp_path / "evil.npy"), None, True),
    }[function]
    content = {"whole": call, "image": ([call, *IMAGES[1:]], ANSWERS), "answer": (IMAGES, [call, False])}[where]
    message = refusal(path, pickle.dumps(content, protocol))
    assert re.search(rf"wants to call \w+\.{function} ", message)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [(b"numpy", b"ndarray.tofile"), (b"numpy.core.multiarray", b"fromfile"), (b"_codecs", b"decode"), (b"numpy", b"")],
)
def test_no_other_part_of_an_allowed_module_can_be_named(module: bytes, name: bytes, path: Path) -> None:
    named = b"".join(b"\x8c" + bytes([len(part)]) + part for part in (module, name))
    assert "wants to call" in refusal(path, b"\x80\x04" + named + b"\x93.")


@pytest.mark.parametrize(
    "content",
    [
        (IMAGES, [True]),
        (IMAGES[:3], ANSWERS),
        (IMAGES, [True, True]),
        (IMAGES, [False, False]),
        ([], []),
        (IMAGES,),
        (IMAGES, ANSWERS, 1),
        (["text", *IMAGES[1:]], ANSWERS),
        ([np.zeros(3), *IMAGES[1:]], ANSWERS),
        ([np.zeros((2, 2), np.uint8), *IMAGES[1:]], ANSWERS),
        (3, ANSWERS),
        {"bins": IMAGES},
        None,
    ],
    ids=lambda content: repr(content)[:30],
)
def test_a_pickle_of_something_else_is_refused(content: object, path: Path) -> None:
    refusal(path, pickle.dumps(content))


@settings(deadline=None, max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True), protocol=st.integers(0, 5))
def test_a_truncated_file_is_refused(share: float, protocol: int, scratch: Path) -> None:
    whole = pickle.dumps(([IMAGES[0], *(np.frombuffer(one, np.uint8) for one in IMAGES[1:])], ANSWERS), protocol)
    refusal(scratch, whole[: int(share * len(whole))])


# Without "r", the opcode that makes the unpickler itself reserve memory for a memo of any size, here for random ones.
harmless = st.sampled_from([byte for byte in range(256) if byte != ord("r")])


@settings(deadline=None, max_examples=150)
@given(noise=st.lists(harmless, max_size=80), head=st.sampled_from([b"", b"\x80\x02", b"\x80\x04"]))
def test_noise_is_refused(noise: list[int], head: bytes, scratch: Path) -> None:
    refusal(scratch, head + bytes(noise))


@settings(deadline=None, max_examples=150)
@given(place=st.integers(0, 10**6), byte=harmless)
def test_a_changed_byte_gives_a_set_or_a_refusal_and_nothing_else(place: int, byte: int, scratch: Path) -> None:
    damaged = bytearray(pickle.dumps(([b"one", b"two", b"image", b"four"], ANSWERS), 4))
    damaged[place % len(damaged)] = byte
    try:
        found = read(scratch, bytes(damaged))
    except DataError:
        refusal(scratch, bytes(damaged))
    else:
        assert len(found.images) == 2 * len(found.same)


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    per_identity=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    group=st.integers(0, 3),
)
def test_impostors_are_of_the_group_and_never_the_mate(
    groups: list[int], per_identity: int, seed: int, group: int
) -> None:
    template_groups = np.array(groups, np.int16)
    members = [template for template, of in enumerate(groups) if of == group]
    mates = np.repeat(np.array(members, np.int64), per_identity)
    probes = np.arange(100, 100 + len(mates))
    pairs = pairs_within_group(probes, mates, template_groups, group, seed)
    if len(members) < 2 or not len(probes):
        assert pairs is None
        return
    assert pairs is not None
    assert pairs.probes.tolist() == np.repeat(probes, 2).tolist()
    assert pairs.same.tolist() == [True, False] * len(probes)
    assert pairs.templates[pairs.same].tolist() == mates.tolist()
    impostors = pairs.templates[~pairs.same]
    assert (template_groups[impostors] == group).all()
    assert (impostors != mates).all()


def test_every_other_identity_of_the_group_can_be_the_impostor() -> None:
    mates = np.full(200, 4, np.int64)
    pairs = pairs_within_group(np.arange(200), mates, np.array([1, 1, 0, 1, 1, 1], np.int16), 1)
    assert pairs is not None
    assert set(pairs.templates[~pairs.same].tolist()) == {0, 1, 3, 5}


def test_a_mate_whose_template_is_of_another_group_still_meets_impostors_of_the_probes_group() -> None:
    mates = np.full(50, 2, np.int64)
    pairs = pairs_within_group(np.arange(50), mates, np.array([1, 1, 0, 1], np.int16), 1)
    assert pairs is not None
    assert set(pairs.templates[~pairs.same].tolist()) <= {0, 1, 3}


def test_the_same_seed_draws_the_same_impostors() -> None:
    mates, groups = np.arange(30, dtype=np.int64), np.zeros(30, np.int16)
    drawn = [pairs_within_group(np.arange(30), mates, groups, 0, seed) for seed in (1, 1, 2)]
    first, again, other = (one.templates.tolist() for one in drawn if one is not None)
    assert first == again
    assert first != other
