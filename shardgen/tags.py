"""Demographic tags: axes, their values, and joining them from a table or a pattern over the path.

A tag is stored as a small code into its axis' values; code 0 is always "unknown", which is a value
of its own and never guessed.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shardgen.errors import DataError, UsageError

UNKNOWN = "unknown"
RESERVED_COLUMNS = frozenset(
    {"key", "offset", "size", "identity", "dataset", "origin", "width", "height", "content_hash", "source"}
)
_MAX_VALUES = np.iinfo(np.int16).max

Codes = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Tags:
    """What is known about each record of a source."""

    axes: Mapping[str, Sequence[str]]
    """Axis name -> its values; position 0 is "unknown"."""
    codes: Codes
    """`[records, axes]`: positions in the values."""

    def values_of(self, record: int) -> dict[str, str]:
        """Return axis -> value of one record."""
        return {axis: values[code] for (axis, values), code in zip(self.axes.items(), self.codes[record], strict=True)}

    def part(self, records: npt.NDArray[np.int64]) -> "Tags":
        """Return the tags of some records, in the order given."""
        return Tags(self.axes, self.codes[records])


@dataclass(frozen=True)
class TagTable:
    """A CSV of tags, keyed by identity or by image path."""

    path: Path
    key: Literal["identity", "path"]
    axes: Sequence[str]
    rows: Mapping[str, Sequence[str]]


def no_tags(num_records: int) -> Tags:
    """Return tags without any axis."""
    return Tags({}, np.zeros((num_records, 0), np.int16))


def read_table(path: Path) -> TagTable:
    """Read a CSV whose first row names its columns, one of them `identity` or `path`.

    Every other column is a tag axis. Raises `DataError` when a key repeats with other values or a
    row has another number of fields, `UsageError` when no column is a key.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; --tags takes a CSV with a column named identity or path")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return _parse_table(path, csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}") from None


def _parse_table(path: Path, lines: Any) -> TagTable:
    header = [name.strip() for name in next(lines, [])]
    keys = [name for name in ("identity", "path") if name in header]
    if len(keys) != 1:
        raise UsageError(f"{path}: columns {', '.join(header) or '(none)'} need exactly one named identity or path")
    axes = [name for name in header if name != keys[0]]
    _check_axes(axes, path.name)
    key_column = header.index(keys[0])
    rows: dict[str, Sequence[str]] = {}
    for fields in filter(None, lines):
        if len(fields) != len(header):
            raise DataError(f"{path} line {lines.line_num}: {len(fields)} fields, the header has {len(header)}")
        key = fields.pop(key_column).strip()
        values = tuple(value.strip() for value in fields)
        if rows.setdefault(key, values) != values:
            raise DataError(f"{path} line {lines.line_num}: {key} was listed before with other tags")
    return TagTable(path, "identity" if keys[0] == "identity" else "path", axes, rows)


def join_table(
    table: TagTable,
    names: Iterable[str],
    identities: Sequence[str],
    labels: npt.NDArray[np.int32],
    ignore_extra: bool = False,
) -> Tags:
    """Give every record its row of the table, unknown where there is none.

    `names` are the records' paths, `labels` their positions in `identities` (-1: none). Raises
    `DataError` when the table speaks of identities or paths that the source does not have, unless
    `ignore_extra`.
    """
    known = identities if table.key == "identity" else list(names)
    absent = table.rows.keys() - set(known)
    if absent and not ignore_extra:
        raise DataError(
            f"{table.path}: {len(absent)} of {len(table.rows)} rows name a {table.key} that the source does "
            f"not have, such as {min(absent)} (it has, for one, {known[0] if len(known) else 'none'}); "
            "correct the names, or pass --ignore-extra-tags"
        )
    blank = (UNKNOWN,) * len(table.axes)
    tags = _encode(table.axes, (table.rows.get(name, blank) for name in known))
    if table.key == "path":
        return tags
    unlabelled = np.zeros((1, len(table.axes)), np.int16)  # label -1 picks the last row: all unknown
    return Tags(tags.axes, np.concatenate([tags.codes, unlabelled])[labels])


def join_pattern(pattern: str, names: Iterable[str]) -> Tags:
    """Take every record's tags from the named groups of a regular expression searched in its path.

    For UTKFace's names: `(?P<age>[0-9]+)_(?P<gender>[01])_(?P<race>[0-4])_[0-9]+[.]`. A path that
    does not match is unknown on every axis.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"tag pattern {pattern!r} is no regular expression: {error}") from None
    axes = list(compiled.groupindex)
    if not axes:
        raise UsageError(f"tag pattern {pattern!r} has no named group; write one per axis: (?P<gender>[01])")
    _check_axes(axes, "tag pattern")
    blank = (UNKNOWN,) * len(axes)
    matches = (compiled.search(name) for name in names)
    return _encode(axes, (match.group(*axes, axes[0])[:-1] if match else blank for match in matches))


def merge(first: Tags, second: Tags) -> Tags:
    """Put the axes of both side by side; an axis may come from one of them only."""
    twice = first.axes.keys() & second.axes.keys()
    if twice:
        raise UsageError(f"tag axis {min(twice)} comes from the table and from the pattern; drop it from one")
    return Tags({**first.axes, **second.axes}, np.concatenate([first.codes, second.codes], axis=1))


def _check_axes(axes: Sequence[str], where: str) -> None:
    for axis in axes:
        if axis in RESERVED_COLUMNS or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", axis):
            raise UsageError(
                f"{where}: {axis!r} cannot name a tag axis; use letters, digits and _, "
                f"and none of {', '.join(sorted(RESERVED_COLUMNS))}"
            )
    if len(set(axes)) != len(axes):
        raise UsageError(f"{where}: a column name repeats among {', '.join(axes)}")


def _encode(axes: Sequence[str], rows: Iterable[Sequence[str | None]]) -> Tags:
    """Turn rows of values into sorted axis values and codes, in one pass over the rows."""
    seen: list[dict[str, int]] = [{UNKNOWN: 0} for _ in axes]
    flat = np.fromiter(
        (seen[a].setdefault(value or UNKNOWN, len(seen[a])) for row in rows for a, value in enumerate(row)),
        np.int32,
    )
    if not axes:
        raise UsageError("the table has no column beside its key; add one for each tag axis")
    codes = flat.reshape(-1, len(axes)).astype(np.int16)
    values_of: dict[str, Sequence[str]] = {}
    for a, (axis, first_seen) in enumerate(zip(axes, seen, strict=True)):
        if len(first_seen) > _MAX_VALUES:
            raise UsageError(f"{axis} has {len(first_seen)} values, too many for a tag axis; leave it out")
        values = _sorted_values(first_seen)
        recode = np.empty(len(values), np.int16)
        recode[[first_seen[value] for value in values]] = np.arange(len(values))
        codes[:, a] = recode[flat.reshape(-1, len(axes))[:, a]]
        values_of[axis] = values
    return Tags(values_of, codes)


def _sorted_values(values: Iterable[str]) -> list[str]:
    """Sort by number where all are numbers (ages), else by text; unknown first."""
    rest = [value for value in values if value != UNKNOWN]
    try:
        return [UNKNOWN, *sorted(rest, key=float)]
    except ValueError:
        return [UNKNOWN, *sorted(rest)]
