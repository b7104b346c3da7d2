"""Lists that name the records of a `.rec` file: im2rec's `.lst`, and DCFace's `list.txt`.

im2rec writes index, labels, path; DCFace index, path and maybe a label. A record's identity is the
folder of its path, or the label of a path without one.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.sources import Labels, number_identities, text

_log = logging.getLogger("facemix.shard")


@dataclass(frozen=True)
class ImageList:
    """What the records of a `.rec` file are called and whose they are, in the order of their keys."""

    paths: pa.Array | None
    identities: Sequence[str]
    labels: Labels


def find_list(rec: Path, keys: npt.NDArray[np.int64], given: Path | None) -> ImageList | None:
    """Return the list that is given, or `list.txt` or `<stem>.lst` beside the file.

    A `.lst` that is not of these records stays out, with a notice: InsightFace's `train.lst` numbers
    nothing. Any other list that lacks records or names others raises `DataError`.
    """
    if given is not None and not given.is_file():
        raise UsageError(f"{given} does not exist; give the list of {rec.name}'s records, or none")
    beside = rec.with_name("list.txt")
    explicit = given or (beside if beside.is_file() else None)
    if explicit is not None:
        return _read_list(explicit, keys)
    lst = rec.with_suffix(".lst")
    try:
        return _read_list(lst, keys) if lst.is_file() else None
    except DataError as error:
        _log.info("%s stays out: %s", lst.name, error)
        return None


def _read_list(path: Path, keys: npt.NDArray[np.int64]) -> ImageList:
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            rows = list(_rows(path, stream))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from None
    indexes = np.array([index for index, _, _ in rows], np.int64)
    order = np.argsort(indexes, kind="stable")
    _check_indexes(path, indexes[order], keys)
    paths = text((rows[row][1] for row in order), path)
    identities, labels = number_identities(_owner(*rows[row][1:]) for row in order)
    return ImageList(paths, identities, labels)


def _rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, str, str | None]]:
    """Yield index, image path and label of each line."""
    previous = None
    for number, line in enumerate(lines, 1):
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) < 2 or not fields[0].isdecimal() or len(fields[0]) > 18:
            raise DataError(f"{path} line {number}: {line.rstrip()[:80]!r} is not index<TAB>path; correct or remove it")
        if fields[0] == previous:
            raise DataError(f"{path} line {number} repeats index {previous}; a list numbers each record once")
        previous = fields[0]
        image_path, *labels = [fields[-1], *fields[1:-1]] if path.suffix == ".lst" else fields[1:]
        yield int(previous), image_path, labels[0] if labels else None


def _check_indexes(path: Path, indexes: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> None:
    repeated = indexes[1:][indexes[1:] == indexes[:-1]]
    if len(repeated):
        raise DataError(f"{path} lists index {repeated[0]} twice; a list numbers each record once")
    lacking, others = np.setdiff1d(keys, indexes), np.setdiff1d(indexes, keys)
    if len(lacking) or len(others):
        examples = [f"such as {found[0]}" if len(found) else "none" for found in (lacking, others)]
        raise DataError(
            f"{path} lacks {len(lacking)} of {len(keys)} records ({examples[0]}) and lists {len(others)} others "
            f"({examples[1]}); give the list that was made with this .rec, or take it away"
        )


def _owner(path: str, label: str | None) -> str | None:
    folder = path.rpartition("/")[0]
    if folder or not label:
        return folder or None
    try:
        number = float(label)
    except ValueError:
        return label
    return str(int(number)) if number.is_integer() else label  # im2rec writes 3.000000
