"""Items made ahead, in a thread of their own, while the ones before are used."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


class Ahead(Iterator[Item]):
    """A generator's items in their order; from the first that is asked for on, `depth` more are made ahead.

    What the generator raises is raised where its next item would have come.
    """

    def __init__(self, items: Generator[Item, None, None], depth: int) -> None:
        self._items = items
        self._depth = depth
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._coming: deque[Future[Item]] = deque()
        self._is_closed = False

    def __next__(self) -> Item:
        if self._is_closed:
            raise StopIteration
        while len(self._coming) <= self._depth:
            self._coming.append(self._thread.submit(next, self._items))
        return self._coming.popleft().result()

    def close(self) -> None:
        """Wait for the item that is being made, and end the generator."""
        self._is_closed = True
        self._thread.shutdown(cancel_futures=True)
        self._items.close()
