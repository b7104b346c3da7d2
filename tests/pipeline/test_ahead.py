"""Items made ahead in another thread: the same items in the same order, and the same errors."""

import gc
import threading
import time
import weakref
from collections.abc import Generator

import pytest

from pipeline.ahead import Ahead
from tests.support import wait_until


def numbers(end: int, made: list[int]) -> Generator[int, None, None]:
    for number in range(end):
        made.append(number)
        yield number


@pytest.mark.parametrize("depth", [0, 1, 5, 100])
def test_every_item_comes_once_and_in_order(depth: int) -> None:
    ahead = Ahead(numbers(30, []), depth)
    assert list(ahead) == list(range(30))
    assert next(ahead, None) is None


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_are_made_that_far_ahead_and_no_further(depth: int) -> None:
    made: list[int] = []
    ahead = Ahead(numbers(100, made), depth)
    assert made == []
    for taken in range(1, 10):
        next(ahead)
        wait_until(lambda taken=taken: len(made) == taken + depth)  # type: ignore[misc]
        time.sleep(0.002)
        assert len(made) == taken + depth
    ahead.close()


def test_they_are_made_in_one_other_thread() -> None:
    def threads() -> Generator[int, None, None]:
        for _ in range(10):
            yield threading.get_ident()

    assert len({*Ahead(threads(), 2)} | {threading.get_ident()}) == 2


def test_an_error_comes_where_the_item_would_have_come_and_then_there_are_no_more() -> None:
    def failing() -> Generator[int, None, None]:
        yield 0
        yield 1
        raise ValueError("broken")

    ahead = Ahead(failing(), 5)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    assert list(ahead) == []


def test_closing_ends_the_generator_and_the_thread() -> None:
    ended: list[bool] = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(100)
        finally:
            ended.append(True)

    before = set(threading.enumerate())
    ahead = Ahead(items(), 3)
    next(ahead)
    ahead.close()
    ahead.close()
    assert ended == [True]
    assert set(threading.enumerate()) <= before
    assert list(ahead) == []


def test_closing_before_the_first_item_makes_none() -> None:
    made: list[int] = []
    ahead = Ahead(numbers(3, made), 2)
    ahead.close()
    assert list(ahead) == made == []


def test_one_that_is_dropped_unclosed_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    ahead = Ahead(numbers(100, []), 3)
    next(ahead)
    gone = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert gone() is None
    wait_until(lambda: set(threading.enumerate()) <= before)
