"""Image files below a folder; the folder that an image lies in is its identity."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from operator import not_
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.images import EXTENSIONS, Unreadable
from shardgen.sources import Source, each, folder_identity, is_image, number_identities, text


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderSource(Source):
    """Image files below a folder."""

    columns = ("paths", "sizes")

    root: Path
    paths: pa.Array
    """Relative POSIX paths."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each, -1 for a link to nowhere: whoever adds, renames or mends a file changes the input."""

    def names(self) -> Iterator[str]:
        """Yield the relative paths."""
        return each(self.paths)

    def image(self, record: int) -> bytes:
        """Return the file's bytes."""
        try:
            return Path(self.root, self.paths[record].as_py()).read_bytes()
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror}") from None

    def files(self) -> Iterator[Path]:
        """Yield every image."""
        return (self.root / name for name in self.names())


def open_folder(root: Path) -> FolderSource:
    """List the images below `root` in sorted order; files that are no images are noted as ignored.

    The identity of an image is the folder it lies in, relative to `root`. An image directly in `root`
    has no such folder and counts as an identity of its own. Raises `UsageError` when there is no such
    folder, `DataError` when it holds no image.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; give the one that holds a folder of images per identity")
    ignored: list[str] = []
    chunks: list[pa.Array] = []
    sizes: list[int] = []
    for folder, names in _image_folders(root, ignored):
        sizes += [_size(Path(root, folder, name)) for name in names]
        chunks.append(text((f"{folder}/{name}" if folder else name for name in names), root))
    if not chunks:
        raise DataError(no_images(root, len(ignored)))
    paths = pa.concat_arrays(chunks)
    identities, labels = number_identities(map(folder_identity, each(paths)))
    return FolderSource(
        identities=identities,
        labels=labels,
        ignored=ignored,
        root=root,
        paths=paths,
        sizes=np.array(sizes, np.int64),
    )


def no_images(root: Path, num_others: int) -> str:
    """Return what to say about an input without any."""
    return f"{root} holds no image ({num_others} other files); images end in {', '.join(sorted(EXTENSIONS))}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _image_folders(root: Path, ignored: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (relative folder, sorted image names) of every folder with images; note other files."""
    for folder, subfolders, files in os.walk(root, onerror=_raise, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        _refuse_loops(Path(folder), subfolders)
        relative = "" if folder == str(root) else Path(folder).relative_to(root).as_posix()
        visible = sorted(name for name in files if not name.startswith("."))
        is_images = list(map(is_image, visible))
        ignored += [f"{relative}/{name}".lstrip("/") for name in compress(visible, map(not_, is_images))]
        if any(is_images):
            yield relative, list(compress(visible, is_images))


def _refuse_loops(folder: Path, subfolders: list[str]) -> None:
    for path in (folder / name for name in subfolders):
        if path.is_symlink() and path.resolve() in path.absolute().parents:
            raise DataError(f"{path} links to a folder that it lies in, so its faces would count twice; remove it")


def _raise(error: OSError) -> None:
    raise error  # a folder that cannot be listed must not be skipped in silence
