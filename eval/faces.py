"""Embedded faces and what is known of them: those of a shard set, and those that somebody else has embedded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.embed import NUM_EXAMPLES, Embeddings, has_direction
from pipeline.catalog import ORIGIN, Catalog, Codes
from pipeline.tables import KEY
from shardgen.errors import DataError, UsageError
from shardgen.sample import sample_key
from shardgen.tags import RESERVED_COLUMNS, UNKNOWN

Groups = Mapping[str, tuple[tuple[str, ...], Codes]]
"""Axis -> (its values, `[faces]` position of each face's in them); position 0 is unknown."""
Texts = npt.NDArray[np.str_]

EMBEDDINGS, IDENTITY = "embeddings", "identity"
_NOT_AXES = (RESERVED_COLUMNS - {ORIGIN}) | {EMBEDDINGS, "embedding"}
_MAX_VALUES = np.iinfo(np.int16).max


@dataclass(frozen=True)
class Faces:
    """Embedded faces; arrays have a row per face."""

    embeddings: Embeddings
    """`[faces, embedding] float32`, rows of length 1."""
    identities: npt.NDArray[np.int64]
    """Positions in `names`: the same number is the same person."""
    names: tuple[str, ...]
    """Identity names, sorted; some may be of no face here."""
    keys: tuple[str, ...]
    """What to call each face."""
    groups: Groups

    def __len__(self) -> int:
        return len(self.identities)

    def select(self, rows: npt.NDArray[np.int64]) -> "Faces":
        """Return some of the faces, in the order given, with the same numbers for the same identities."""
        return Faces(
            embeddings=self.embeddings[rows],
            identities=self.identities[rows],
            names=self.names,
            keys=tuple(self.keys[row] for row in rows.tolist()),
            groups={axis: (values, codes[rows]) for axis, (values, codes) in self.groups.items()},
        )


def faces_of(catalog: Catalog, set_name: str, embeddings: Embeddings) -> Faces:
    """Return the faces of one set of a catalog, given the embeddings of its samples.

    Identity numbers and groups are the whole catalog's: sets of one catalog can be searched in each other, in which
    identities are matched by name.
    """
    ids = catalog.ids_of(set_name)
    assert len(embeddings) == len(ids)
    names, number_of_label = np.unique([name for _, name in catalog.identities], return_inverse=True)
    return Faces(
        embeddings=embeddings,
        identities=number_of_label[catalog.label[ids.start : ids.stop]].astype(np.int64),
        names=tuple(names.tolist()),
        keys=tuple(map(sample_key, catalog.columns(set_name, [KEY])[KEY].tolist())),
        groups={axis: (tuple(values), catalog.codes(axis, ids)) for axis, values in catalog.axes.items()},
    )


def in_common(many: Sequence[Faces]) -> list[Faces]:
    """Return faces from several places with one numbering of identities, matched by name, and of groups.

    An axis that some lack is unknown there.
    """
    names = sorted({name for faces in many for name in faces.names})
    number = {name: position for position, name in enumerate(names)}
    axes: dict[str, dict[str, None]] = {}
    for faces in many:
        for axis, (values, _) in faces.groups.items():
            axes.setdefault(axis, {UNKNOWN: None}).update(dict.fromkeys(values))
    return [
        replace(
            faces,
            identities=np.array([number[name] for name in faces.names], np.int64)[faces.identities],
            names=tuple(names),
            groups={axis: (tuple(values), _recoded(faces, axis, tuple(values))) for axis, values in axes.items()},
        )
        for faces in many
    ]


def _recoded(faces: Faces, axis: str, values: Sequence[str]) -> Codes:
    if axis not in faces.groups:
        return np.zeros(len(faces), np.int16)
    own, codes = faces.groups[axis]
    position = {value: place for place, value in enumerate(values)}
    return np.array([position[value] for value in own], np.int16)[codes]


def load_embeddings(path: Path) -> Faces:
    """Read embeddings that something else has made, from `.npz` or `.parquet`; they are brought to length 1.

    An `.npz` has `embeddings [faces, embedding]` of floats and `identity [faces]` of texts or whole numbers, and may
    have `key [faces]` and further arrays `[faces]`, each of them a tag axis. A table has the same as columns, only that
    `embedding` holds a list of floats of one length in each row. What is empty, missing or "unknown" in a tag is
    unknown; names of columns that shard sets use for other things, such as `path`, are no tags.

    Raises `UsageError` when there is no such file, `DataError` when it is something else, or holds embeddings which
    are not finite or of length zero.
    """
    read = {".npz": _read_npz, ".parquet": _read_parquet}.get(path.suffix)
    if read is None:
        raise UsageError(f"{path}: embeddings are read from .npz or .parquet; give one of these")
    try:
        embeddings, columns = read(path)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give a file of embeddings") from None
    except _Unreadable as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can raise anything
        raise DataError(f"{path} is no {path.suffix} file, or damaged: {' '.join(str(error).split())}") from None
    return _faces(path, embeddings, columns)


class _Unreadable(Exception):
    """What is wrong in a file, as the end of a line for a person."""


def _read_npz(path: Path) -> tuple[npt.NDArray[Any], dict[str, Texts]]:
    # Of a damaged file that it has opened itself, NumPy closes nothing.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        _require([EMBEDDINGS, IDENTITY], file.files)
        texts = {name: _texts(name, file[name]) for name in file.files if _is_read(name)}
        return file[EMBEDDINGS], texts


def _read_parquet(path: Path) -> tuple[npt.NDArray[Any], dict[str, Texts]]:
    names = pq.read_schema(path).names
    _require(["embedding", IDENTITY], names)
    wanted = list(filter(_is_read, names))
    table = pq.read_table(path, columns=["embedding", *wanted])
    return _rows_of_lists(table["embedding"]), {name: _column_of_texts(name, table[name]) for name in wanted}


def _column_of_texts(name: str, column: pa.ChunkedArray) -> Texts:
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise _Unreadable(f"column {name!r} is {column.type}; give texts or whole numbers, or leave it out")
    if column.null_count and name in (IDENTITY, KEY):
        raise _Unreadable(f"{column.null_count} rows have no {name}; give every face one")
    return np.array(column.cast(pa.string()).fill_null("").to_pylist(), np.str_)


def _is_read(name: str) -> bool:
    return name in (IDENTITY, KEY) or name not in _NOT_AXES


def _rows_of_lists(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return lists of numbers as rows, without a Python object for each number."""
    lengths = np.unique([] if column.null_count else pc.list_value_length(column).to_numpy())
    if len(lengths) != 1:
        raise _Unreadable("embeddings are missing or differ in length; give every face as many numbers")
    values: npt.NDArray[Any] = pc.list_flatten(column).to_numpy()
    return values.reshape(-1, lengths[0])


def _require(names: Sequence[str], found: Sequence[str]) -> None:
    if missing := [name for name in names if name not in found]:
        raise _Unreadable(f"has no {missing[0]!r}, only {', '.join(found) or 'nothing'}; see `load_embeddings`")


def _texts(name: str, array: npt.NDArray[Any]) -> Texts:
    if array.ndim != 1 or array.dtype.kind not in "Uiub":
        raise _Unreadable(f"{name!r} is {array.dtype} {list(array.shape)}; give texts or whole numbers [faces]")
    return array.astype(np.str_)


def _faces(path: Path, embeddings: npt.NDArray[Any], columns: dict[str, Texts]) -> Faces:
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or not embeddings.size:
        raise DataError(
            f"{path}: embeddings are {embeddings.dtype} {list(embeddings.shape)}; give floats [faces, embedding]"
        )
    for name, column in columns.items():
        if len(column) != len(embeddings):
            raise DataError(f"{path}: {len(embeddings)} embeddings, but {name!r} of {len(column)}; give one a face")
    if embeddings.dtype == np.float16:  # too coarse for sums of squares
        embeddings = embeddings.astype(np.float32)
    names, identities = np.unique(columns.pop(IDENTITY), return_inverse=True)
    keys = columns.pop(KEY, np.arange(len(embeddings)).astype(np.str_)).tolist()
    return Faces(
        embeddings=_unit(path, embeddings, keys),
        identities=identities.astype(np.int64),
        names=tuple(names.tolist()),
        keys=tuple(keys),
        groups={axis: _coded(path, axis, column) for axis, column in columns.items()},
    )


def _unit(path: Path, embeddings: npt.NDArray[Any], keys: Sequence[str]) -> Embeddings:
    if len(useless := np.flatnonzero(~has_direction(embeddings))):
        num_zero = int((embeddings[useless] == 0).all(1).sum())
        raise DataError(
            f"{path}: {len(useless)} of {len(embeddings)} embeddings cannot be compared, {len(useless) - num_zero} are "
            f"not finite and {num_zero} of length zero ({', '.join(keys[row] for row in useless[:NUM_EXAMPLES])}); "
            "leave these faces out, or embed them again"
        )
    unit: Embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _coded(path: Path, axis: str, column: Texts) -> tuple[tuple[str, ...], Codes]:
    found, positions = np.unique(column, return_inverse=True)
    is_known = ~np.isin(found, ["", UNKNOWN])
    values = (UNKNOWN, *found[is_known].tolist())
    if len(values) > _MAX_VALUES:
        raise DataError(f"{path}: {axis!r} has {len(values)} values; a tag has at most {_MAX_VALUES}, leave it out")
    return values, np.where(is_known, np.cumsum(is_known), 0).astype(np.int16)[positions]
