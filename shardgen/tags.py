"""Demographic tags: axes, their values, reading them out of paths, and combining several sources.

A tag is stored as a small code into its axis' values; code 0 is always "unknown", which is a value
of its own and never guessed. Where sources disagree, the one named first is believed and the
disagreement is counted.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.errors import UsageError
from shardgen.manifest import TagSource
from shardgen.sample import sample_key

UNKNOWN = "unknown"
RESERVED_COLUMNS = frozenset(
    {"key", "path", "offset", "size", "identity", "dataset", "origin", "width", "height", "content_hash", "source"}
)
UTKFACE = "utkface"
NUM_EXAMPLES = 5
_UTKFACE_PATTERN = r"(?:^|/)(?P<age>[0-9]{1,3})_(?P<gender>[01])_(?P<ethnicity>[0-4])_[0-9]+[^/]*$"
_UTKFACE_MEANINGS = {
    "gender": {"0": "Male", "1": "Female"},
    "ethnicity": {"0": "White", "1": "Black", "2": "Asian", "3": "Indian", "4": "Other"},
}
_MAX_VALUES = np.iinfo(np.int16).max
_CHUNK_NAMES = 1 << 16

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

    def column(self, axis: str) -> Codes:
        """Return every record's code of one axis."""
        return self.codes[:, list(self.axes).index(axis)]

    def part(self, records: npt.NDArray[np.int64]) -> "Tags":
        """Return the tags of some records, in the order given."""
        return Tags(self.axes, self.codes[records])

    def fingerprint(self) -> str:
        """Return a hash that changes with any axis, value or code."""
        digest = hashlib.sha256(json.dumps(list(self.axes.items())).encode())
        digest.update(self.codes.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Records:
    """What tags are joined on: the records of a source or of a finished set.

    Names and keys are made when a join or an example needs them: as Python texts, those of 42 M
    records would fill the memory.
    """

    names: Callable[[], Iterable[str]]
    """Returns each record's path, or key in its RecordIO file."""
    identities: Sequence[str]
    labels: npt.NDArray[np.int32]
    """Each record's position in `identities`, -1 for none."""
    sample_keys: Callable[[], Iterable[str]] | None = None
    """Returns each record's key in the shards; None: those that a conversion gives."""

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self) -> Iterable[str]:
        """Return each record's key in the shards."""
        return map(sample_key, range(len(self))) if self.sample_keys is None else self.sample_keys()


def no_tags(num_records: int) -> Tags:
    """Return tags without any axis."""
    return Tags({}, np.zeros((num_records, 0), np.int16))


def join_pattern(pattern: str, names: Iterable[str]) -> Tags:
    """Take every record's tags from the named groups of a regular expression searched in its path.

    The word `utkface` stands for UTKFace's `age_gender_race_date`. A path that does not match is
    unknown on every axis.
    """
    meanings = _UTKFACE_MEANINGS if pattern == UTKFACE else {}
    try:
        compiled = re.compile(_UTKFACE_PATTERN if pattern == UTKFACE else pattern)
    except re.error as error:
        raise UsageError(f"tag pattern {pattern!r} is no regular expression: {error}") from None
    if not compiled.groupindex:
        raise UsageError(
            f"tag pattern {pattern!r} has no named group; write one per axis, (?P<gender>[01]), or {UTKFACE}"
        )
    check_axes(list(compiled.groupindex), "tag pattern")
    return _join_groups(compiled, compiled.groupindex, names, meanings)


def join_folder(axis_and_level: str, names: Iterable[str]) -> Tags:
    """Take every record's tag from a folder of its path: `ethnicity` or `ethnicity=1` names the topmost.

    A path with fewer folders is unknown.
    """
    axis, _, level = axis_and_level.partition("=")
    check_axes([axis], "tag folder")
    if not re.fullmatch("[1-9][0-9]?", level or "1"):
        raise UsageError(f"tag folder {axis_and_level!r}: {level!r} is no level; count folders from the top, from 1")
    compiled = re.compile(rf"^(?:[^/]+/){{{int(level or 1) - 1}}}([^/]+)/")
    return _join_groups(compiled, {axis: 1}, names, {})


def _join_groups(
    compiled: re.Pattern[str],
    groups: Mapping[str, int],
    names: Iterable[str],
    meanings: Mapping[str, Mapping[str, str]],
) -> Tags:
    encoders = [AxisEncoder(axis, meanings.get(axis, {})) for axis in groups]
    for chunk in chunks(names):
        matches = [compiled.search(name) for name in chunk]
        for encoder, group in zip(encoders, groups.values(), strict=True):
            encoder.add(pa.array([match and match[group] for match in matches], pa.string()))
    return tags_of(encoders)


def chunks(names: Iterable[str]) -> Iterator[list[str]]:
    """Cut an iterable into lists that are small beside the whole."""
    rest = iter(names)
    while chunk := list(islice(rest, _CHUNK_NAMES)):
        yield chunk


def check_axes(axes: Sequence[str], where: str) -> None:
    """Raise `UsageError` unless each can be a column of the shards' tables, once."""
    for axis in axes:
        if axis in RESERVED_COLUMNS or not re.fullmatch("[A-Za-z0-9_]+", axis):
            raise UsageError(
                f"{where}: {axis!r} cannot name a tag axis; use letters, digits and _, "
                f"and none of {', '.join(sorted(RESERVED_COLUMNS))}"
            )
    if len(set(axes)) != len(axes):
        raise UsageError(f"{where}: a column name repeats among {', '.join(axes)}")


class AxisEncoder:
    """Turns one axis' values into codes, column piece by column piece."""

    def __init__(self, axis: str, meanings: Mapping[str, str]) -> None:
        """`meanings` says what a source's own values stand for; others stand for themselves."""
        self.axis = axis
        self._meanings = meanings
        self._codes = {UNKNOWN: 0}
        self._pieces: list[Codes] = [np.zeros(0, np.int16)]

    def add(self, values: pa.Array) -> None:
        """Append the values of more records; null and empty are unknown."""
        encoded = values.dictionary_encode()
        codes = [self._code(value) for value in encoded.dictionary.to_pylist()]
        _refuse_too_many(self.axis, len(self._codes))
        null_last = np.array([*codes, 0], np.int16)
        self._pieces.append(null_last[encoded.indices.fill_null(-1).to_numpy()])

    def _code(self, value: object) -> int:
        text = _text(value)
        meaning = self._meanings.get(text, text)
        known = meaning and meaning.lower() != UNKNOWN
        return self._codes.setdefault(meaning, len(self._codes)) if known else 0

    def finish(self) -> tuple[list[str], Codes]:
        """Return the axis' values and all records' codes."""
        return _compact(list(self._codes), np.concatenate(self._pieces))


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a null anywhere in a column turns its whole numbers into floats
    return str(value).strip()


def _side_by_side(columns: Mapping[str, tuple[list[str], Codes]]) -> Tags:
    codes = np.stack([codes for _, codes in columns.values()], axis=1)
    return Tags({axis: values for axis, (values, _) in columns.items()}, codes)


def tags_of(encoders: Sequence[AxisEncoder]) -> Tags:
    """Put the encoded axes side by side."""
    return _side_by_side({encoder.axis: encoder.finish() for encoder in encoders})


def compacted(tags: Tags) -> Tags:
    """Drop the values that no record has."""
    return _side_by_side({axis: _compact(values, tags.column(axis)) for axis, values in tags.axes.items()})


def _compact(values: Sequence[str], codes: Codes) -> tuple[list[str], Codes]:
    """Keep the values that some record has, in their own order, and number them anew."""
    used = np.bincount(codes, minlength=len(values))
    kept = _sorted_values(value for value, count in zip(values, used, strict=True) if count)
    position = {value: code for code, value in enumerate(kept)}
    return kept, np.array([position.get(value, 0) for value in values], np.int16)[codes]


def _refuse_too_many(axis: str, num_values: int) -> None:
    if num_values > _MAX_VALUES:
        raise UsageError(f"{axis} has more than {_MAX_VALUES} values, too many for a tag axis; leave it out")


def _sorted_values(values: Iterable[str]) -> list[str]:
    """Sort by number where all are numbers (ages), else by text; unknown first."""
    rest = sorted(value for value in values if value != UNKNOWN)
    try:
        numbers = [float(value) for value in rest]
    except ValueError:
        return [UNKNOWN, *rest]
    if all(map(math.isfinite, numbers)):
        rest.sort(key=float)
    return [UNKNOWN, *rest]


def combine(sources: Sequence[tuple[str, Tags]], records: Records) -> tuple[Tags, list[TagSource]]:
    """Join named sources of tags, the first named to be believed; also return what each of them knew.

    An axis may come from several: what one does not know, the next may. No source at all gives no axis.
    """
    axes = dict.fromkeys(axis for _, tags in sources for axis in tags.axes)
    disputes: list[_Dispute] = []
    columns = {axis: _combine_axis(axis, sources, disputes) for axis in axes}
    tags = _side_by_side(columns) if columns else no_tags(len(records))
    return tags, _reports(sources, records, disputes)


@dataclass(frozen=True)
class _Dispute:
    """Where a source was not believed on an axis."""

    source: int
    axis: str
    num_records: int
    examples: Sequence[tuple[int, str]]
    """Records, and who says what of them."""


def _combine_axis(axis: str, sources: Sequence[tuple[str, Tags]], disputes: list[_Dispute]) -> tuple[list[str], Codes]:
    saying = [(number, tags) for number, (_, tags) in enumerate(sources) if axis in tags.axes]
    values = list(dict.fromkeys(value for _, tags in saying for value in tags.axes[axis]))
    _refuse_too_many(axis, len(values))
    position = {value: code for code, value in enumerate(values)}
    joined = np.zeros(len(saying[0][1].codes), np.int16)
    said: dict[int, Codes] = {}
    for number, tags in saying:
        codes = np.array([position[value] for value in tags.axes[axis]], np.int16)[tags.column(axis)]
        disputed = np.flatnonzero((joined > 0) & (codes > 0) & (joined != codes))
        examples: list[tuple[int, str]] = []
        for record in disputed[:NUM_EXAMPLES].tolist():
            believed = sources[next(earlier for earlier in said if said[earlier][record])][0]
            says = f"{values[joined[record]]} by {believed}, {values[codes[record]]} by {sources[number][0]}"
            examples.append((record, f"{axis} is {says}"))
        if examples:
            disputes.append(_Dispute(number, axis, len(disputed), examples))
        said[number] = codes
        joined = np.where(joined > 0, joined, codes)
    return _compact(values, joined)


def _reports(sources: Sequence[tuple[str, Tags]], records: Records, disputes: Sequence[_Dispute]) -> list[TagSource]:
    unknown = [np.flatnonzero(~tags.codes.any(axis=1)) for _, tags in sources]
    disputed = [[one for one in disputes if one.source == number] for number in range(len(sources))]
    shown = {record for found in unknown for record in found[:NUM_EXAMPLES].tolist()}
    shown |= {record for one in disputes for record, _ in one.examples}
    names = islice(records.names(), max(shown, default=-1) + 1)
    name_of = {record: name for record, name in enumerate(names) if record in shown}
    return [
        TagSource(
            name=name,
            axes=list(tags.axes),
            num_tagged=len(records) - len(unknown[number]),
            num_unknown=len(unknown[number]),
            unknown_examples=[name_of[record] for record in unknown[number][:NUM_EXAMPLES].tolist()],
            conflicts={one.axis: one.num_records for one in disputed[number]},
            conflict_examples=[
                f"{name_of[record]}: {text}" for one in disputed[number] for record, text in one.examples
            ][:NUM_EXAMPLES],
        )
        for number, (name, tags) in enumerate(sources)
    ]


def lines_of_sources(sources: Sequence[TagSource]) -> list[str]:
    """Return what a person reads: what each source knew, did not know, and where it was not believed."""
    lines: list[str] = []
    for one in sources:
        lines.append(f"  tags by {one.name}: {', '.join(one.axes)}; {one.num_tagged} tagged, {one.num_unknown} unknown")
        if one.num_unknown:
            lines.append(f"    unknown: {_listed(one.unknown_examples, one.num_unknown)}")
        if one.conflicts:
            counts = ", ".join(f"{axis} {count}" for axis, count in one.conflicts.items())
            lines.append(f"    not believed, as a source before it says otherwise: {counts}")
            lines += [f"      {example}" for example in one.conflict_examples]
    return lines


def _listed(examples: Sequence[str], total: int) -> str:
    return ", ".join(examples) + (f" and {total - len(examples)} more" if total > len(examples) else "")
