"""Decoded images on a local disk: filled in the first pass over the samples, read in the later ones.

One sparse file holds a row of pixels for each sample of a catalog; beside it, each rank keeps a file that says which
rows are filled. A row counts only once its pixels were synced, so however a process ends, rows that count are whole.
They are written by calls and read through a map: a full disk is an error to be handled, not the end of the process.
"""

import errno
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.hashing import derive_key
from pipeline.order import Ids
from shardgen.errors import UsageError
from shardgen.files import write_durably

VERSION = 1
"""Of what is in a row: another decoder or resizing makes it another."""
SAVE_SECONDS = 30.0
"""From one sync to the next; a crash loses the rows since the last."""

Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]
"""`[images, size, size, 3]`, RGB."""

_log = logging.getLogger("facemix.loader")


class DecodedCache:
    """The decoded images of one catalog at one size, shared by the ranks of a host."""

    def __init__(self, folder: Path, catalog_digest: str, num_samples: int, image_size: int, rank: int = 0) -> None:
        """Open or begin it; raise `UsageError` when the folder is of no use."""
        self._folder = folder / f"{derive_key(VERSION, catalog_digest, image_size):016x}"
        self._own_rows = self._folder / f"rank{rank}.rows"
        self._row_bytes = 3 * image_size**2
        try:
            self._file = _open(self._folder, num_samples * self._row_bytes)
        except OSError as error:
            raise UsageError(f"cache {folder}: {error.strerror}; give a folder on a local disk, or none") from None
        _name_others(self._folder)
        self._pixels: Pixels = np.memmap(
            self._folder / _PIXELS, np.uint8, "r", shape=(num_samples, image_size, image_size, 3)
        )
        self._filled = self._counted()
        self._keeps = True
        self._saver = ThreadPoolExecutor(1, "cache")
        self._saving: Future[Mask] | None = None
        self._saved_at = time.monotonic()

    def holds(self, ids: Ids) -> Mask:
        """Return which of some samples are there."""
        return self._filled[ids]

    def take(self, ids: Ids, out: Pixels) -> None:
        """Copy the images of samples that are there."""
        np.take(self._pixels, ids, axis=0, out=out, mode="clip")  # the other modes copy twice

    def read_ahead(self, ids: Ids) -> None:
        """Ask the system to have the images of samples that are there in memory soon; return at once."""
        for row in ids.tolist():
            os.posix_fadvise(self._file, row * self._row_bytes, self._row_bytes, os.POSIX_FADV_WILLNEED)

    def put(self, ids: Ids, images: Pixels) -> None:
        """Keep the images of some samples, until the disk is full."""
        if not self._keeps:
            return
        try:
            for row, image in zip(ids.tolist(), images, strict=True):
                self._write(row, image)
            self._filled[ids] = True
            self._save_at_times()
        except OSError as error:
            self._end(error)

    def close(self) -> None:
        """Make what was put count."""
        try:
            if self._keeps:
                self._saver.submit(self._save).result()  # after one that may be under way
        except OSError as error:
            self._end(error)
        self._saver.shutdown()
        os.close(self._file)

    def _write(self, row: int, image: Pixels) -> None:
        if os.pwrite(self._file, image.data, row * self._row_bytes) < self._row_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _save_at_times(self) -> None:
        """Save in another thread, since a sync can take long, and learn from the last time what other ranks have."""
        if self._saving is not None and self._saving.done():
            self._filled |= self._saving.result()
            self._saving, self._saved_at = None, time.monotonic()
        if self._saving is None and time.monotonic() - self._saved_at > SAVE_SECONDS:
            self._saving = self._saver.submit(self._save)

    def _save(self) -> Mask:
        """Sync the pixels, then the rows that were filled before; return what counts now."""
        rows = np.packbits(self._filled).tobytes()
        os.fdatasync(self._file)
        write_durably(self._own_rows, rows)
        return self._counted()

    def _counted(self) -> Mask:
        filled = np.zeros(-(-len(self._pixels) // 8), np.uint8)
        for path in self._folder.glob(_ROWS):
            rows = np.frombuffer(path.read_bytes(), np.uint8)
            if len(rows) == len(filled):  # else somebody cut it short
                filled |= rows
        return np.unpackbits(filled, count=len(self._pixels)).view(np.bool_)

    def _end(self, error: OSError) -> None:
        _log.warning("cache %s keeps no more images: %s; training goes on without", self._folder, error.strerror)
        self._keeps = False
        self._filled = self._counted()  # what was not synced may be lost


_PIXELS = "pixels.rgb"
_ROWS = "rank*.rows"


def _open(folder: Path, num_bytes: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _PIXELS, os.O_RDWR | os.O_CREAT, 0o666)
    if os.fstat(descriptor).st_size != num_bytes:
        for rows in folder.glob(_ROWS):  # of pixels that somebody deleted or cut short
            rows.unlink(missing_ok=True)
    os.ftruncate(descriptor, num_bytes)  # to no other size, if another rank was faster
    return descriptor


def _name_others(ours: Path) -> None:
    for pixels in ours.parent.glob(f"*/{_PIXELS}"):
        if pixels.parent != ours:
            gigabytes = pixels.stat().st_blocks * 512 / 1e9
            _log.info("%s is of other sets or another size; without need of it, free %.1f GB", pixels.parent, gigabytes)
