"""Tags that inputs bring along: from fields beside each image, and those of several inputs as one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from shardgen.errors import DataError, UsageError
from shardgen.tags import AxisEncoder, Tags, check_axes, tags_of

TagRow = tuple[tuple[str, str], ...]
"""Axis and value pairs of one record, sorted."""


def tags_of_rows(rows: Sequence[TagRow], where: Path) -> Tags | None:
    """Return what the rows say, unknown where one lacks an axis; None when none has any."""
    numbers: dict[TagRow, int] = {}
    of_record = np.fromiter((numbers.setdefault(row, len(numbers)) for row in rows), np.int64)
    distinct = [dict(row) for row in numbers]  # few, however many records
    encoders = [AxisEncoder(axis, {}) for axis in sorted({axis for row in distinct for axis in row})]
    try:
        check_axes([encoder.axis for encoder in encoders], str(where))
        for encoder in encoders:
            encoder.add(pa.array([row.get(encoder.axis) for row in distinct], pa.string()))
    except UsageError as error:
        raise DataError(str(error)) from None
    return tags_of(encoders).part(of_record) if encoders else None


def unite(parts: Sequence[tuple[Tags | None, int]]) -> Tags | None:
    """Return tags of inputs with these numbers of records, one after another; unknown where one lacks an axis."""
    axes = dict.fromkeys(axis for tags, _ in parts if tags for axis in tags.axes)
    encoders = [AxisEncoder(axis, {}) for axis in axes]
    for encoder in encoders:
        for tags, length in parts:
            encoder.add(_column(tags, encoder.axis, length))
    return tags_of(encoders) if encoders else None


def _column(tags: Tags | None, axis: str, length: int) -> pa.Array:
    if tags is None or axis not in tags.axes:
        return pa.nulls(length, pa.string())
    return pa.DictionaryArray.from_arrays(tags.column(axis), pa.array(tags.axes[axis], pa.string()))
