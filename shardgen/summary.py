"""What is in a shard set, at a glance: counts from its tables, and what the heads of its images tell.

Memory holds a shard's table and a count per identity and group, however many samples there are;
image bytes are looked at in at most `LOOKED_AT` samples, evenly spaced.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shardgen.images import Unreadable, sniff
from shardgen.manifest import REJECTED, Manifest, OrderStatistics, TagSource
from shardgen.quality import jpeg_quality
from shardgen.shardset import ShardSet
from shardgen.tags import UNKNOWN, lines_of_sources

LOOKED_AT = 20_000
MAX_VALUES = 12  # of an axis such as age there are too many to read
_HEAD_BYTES = 1 << 17  # Exif and a colour profile stand before the tables
_ENOUGH = 100  # images, for a median that is not chance
_FAR_APART = 5  # of 100 levels of JPEG quality


@dataclass(frozen=True)
class Spread:
    """How many numbers there are, and where they lie."""

    count: int
    least: float
    median: float
    mean: float
    most: float

    def brief(self) -> str:
        """Return the median and, in brackets, the least and the most."""
        return f"{self.median:g} ({self.least:g}-{self.most:g})"


@dataclass(frozen=True)
class Group:
    """The figures of a set's samples with one tag value."""

    samples: int
    identities: int
    images_per_identity: Spread
    size: str
    """Median width x median height of the images looked at, or "unknown"."""
    jpeg_quality: Spread | None
    """IJG quality of the JPEGs among the images looked at."""


@dataclass(frozen=True)
class Summary:
    """The figures of one set."""

    folder: str
    """Its folder, or the manifest of one of its revisions: what was asked for."""
    name: str
    origin: str
    revision: int
    num_samples: int
    num_identities: int
    num_rejected: int
    rejected_reasons: Mapping[str, int]
    images_per_identity: Spread
    identities_by_images: Mapping[int, int]
    """Number of images -> identities that have as many, ascending."""
    image_sizes: Mapping[str, int]
    """"width x height" in pixels, or "unknown" -> samples, most frequent first."""
    num_looked_at: int
    """Samples behind what follows, evenly spaced over the set."""
    file_bytes: Spread
    formats: Mapping[str, int]
    """Extension that fits the first bytes -> samples, most frequent first."""
    jpeg_quality: Spread | None
    samples_by_quality: Mapping[int, int]
    """IJG quality -> JPEGs, ascending."""
    edited: Mapping[str, int]
    """Why image bytes are not the source's -> samples."""
    order: Mapping[str, float] | None
    """The fields of `manifest.OrderStatistics`."""
    tag_sources: Sequence[Mapping[str, Any]]
    """The fields of `manifest.TagSource` for each source."""
    groups: Mapping[str, Mapping[str, Group]]
    """Tag axis -> value -> its figures, values without a sample left out."""

    def lines(self) -> list[str]:
        """Return what a person reads."""
        return [
            f"{self.folder} ({self.origin}): {self.num_samples} samples, {self.num_identities} identities, "
            f"{self.num_rejected} rejected",
            *(f"  {title}: {text}" for title, text in self.facts()),
            *self.lines_of_tags(),
            *(f"  {line}" for line in _table(self.groups)),
            *(
                f"  {axis}: {shortened({value: group.samples for value, group in groups.items()})}"
                for axis, groups in self.groups.items()
                if len(groups) > MAX_VALUES
            ),
            *(f"  note: {note}" for note in self.notes()),
        ]

    def facts(self) -> list[tuple[str, str]]:
        """Return titles and texts of what is known of the set as a whole."""
        images, size = self.images_per_identity, self.file_bytes
        facts = [
            ("images per identity", f"{images.least:g} to {images.most:g}, {median_and_mean(images)}"),
            ("sizes", shortened(self.image_sizes)),
            ("files", f"{_kb(size.least)} to {_kb(size.most)} kB, median {_kb(size.median)} kB; {self._formats()}"),
        ]
        if (quality := self.jpeg_quality) is not None:
            facts.append(
                ("JPEG quality", f"{quality.least:g} to {quality.most:g}, {median_and_mean(quality)}"),
            )
        facts += [("rejected", f"{count}: {reason}") for reason, count in self.rejected_reasons.items()]
        facts += [("edited", shortened(self.edited))] if self.edited else []
        return facts + ([("order", _order(OrderStatistics(**self.order)))] if self.order else [])

    def lines_of_tags(self) -> list[str]:
        """Return where the tags came from."""
        return lines_of_sources([TagSource(**one) for one in self.tag_sources])

    def notes(self) -> list[str]:
        """Return a sentence for each axis whose values differ in JPEG quality: an encoder can learn that instead."""
        return [
            note
            for axis, groups in self.groups.items()
            if (note := far_apart(axis, {value: group.jpeg_quality for value, group in groups.items()}))
        ]

    def _formats(self) -> str:
        looked_at = "all" if self.num_looked_at == self.num_samples else f"{self.num_looked_at} evenly spaced ones"
        return f"{shortened(self.formats)} ({looked_at} looked at)"


def far_apart(what: str, qualities: Mapping[str, Spread | None]) -> str | None:
    """Say so if the median JPEG quality of some of these is far from that of others."""
    medians = {name: one.median for name, one in qualities.items() if one is not None and one.count >= _ENOUGH}
    low, high = (pick(medians, key=medians.__getitem__, default="") for pick in (min, max))
    if not medians or medians[high] - medians[low] < _FAR_APART:
        return None
    return (
        f"JPEG quality differs by {what}: median {medians[low]:g} for {low}, {medians[high]:g} for {high}; "
        "an encoder can tell them apart by compression"
    )


def median_and_mean(spread: Spread) -> str:
    """Return both in words."""
    return f"median {spread.median:g}, mean {spread.mean:.1f}"


def shortened(counts: Mapping[str, int]) -> str:
    """Return the first counts in words, and how many more there are."""
    shown = ", ".join(f"{value} {count}" for value, count in list(counts.items())[:MAX_VALUES])
    return shown + (f", and {len(counts) - MAX_VALUES} more" if len(counts) > MAX_VALUES else "")


def lines_of_conversion(manifest: Manifest, out: Path) -> list[str]:
    """Return what a person reads when a conversion is done: nothing is lost, and what is not known."""
    return [
        f"{out} ({manifest.origin}): read {manifest.num_read} = written {manifest.num_samples} "
        f"+ rejected {manifest.num_rejected}; {manifest.num_identities} identities, {len(manifest.shards)} shards",
        *(
            f"  rejected {count}: {reason} (see {out / REJECTED})"
            for reason, count in manifest.rejected_reasons.items()
        ),
        *([f"  edited: {shortened(manifest.edited)}"] if manifest.edited else []),
        *([f"  order: {_order(manifest.order)}"] if manifest.order else []),
        *(
            f"  {axis}: {len([value for value in values if value != UNKNOWN])} values, "
            f"{manifest.counts[axis][UNKNOWN]} samples unknown"
            for axis, values in manifest.axes.items()
        ),
    ]


def _order(order: OrderStatistics) -> str:
    return (
        f"{100 * order.adjacent_same_identity:.2f} % of neighbours are of one identity "
        f"({100 * order.expected_if_random:.2f} % if random); {order.identities_per_shard:.1f} identities a shard"
    )


def _kb(num_bytes: float) -> str:
    return f"{num_bytes / 1000:.1f}"


def _table(groups: Mapping[str, Mapping[str, Group]]) -> list[str]:
    """Return an aligned row for each value of the axes that can be read at a glance."""
    rows = [
        (f"{axis} {value}", *_cells(group))
        for axis, values in groups.items()
        if len(values) <= MAX_VALUES
        for value, group in values.items()
    ]
    if not rows:
        return []
    rows.insert(0, ("group", "samples", "identities", "images each", "size", "JPEG quality"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])  # names to the left, figures right
        for row in rows
    ]


def _cells(group: Group) -> tuple[str, ...]:
    images, quality = group.images_per_identity, group.jpeg_quality
    return (
        str(group.samples),
        str(group.identities),
        images.brief(),
        group.size,
        quality.brief() if quality else "-",
    )


def summarise(path: Path) -> Summary:
    """Summarise a finished set, of its newest revision unless `path` is the manifest of another."""
    shards = ShardSet(path)
    manifest = shards.manifest
    counted = _Counts(manifest)
    looked = pa.concat_tables(_pass_over(shards, counted))
    qualities = looked["quality"].drop_null().to_numpy()
    return Summary(
        folder=str(path),
        name=manifest.name,
        origin=manifest.origin,
        revision=manifest.revision,
        num_samples=manifest.num_samples,
        num_identities=manifest.num_identities,
        num_rejected=manifest.num_rejected,
        rejected_reasons=manifest.rejected_reasons,
        images_per_identity=_spread(counted.images[counted.images > 0]),
        identities_by_images=_histogram(counted.images[counted.images > 0]),
        image_sizes=counted.sizes(),
        num_looked_at=len(looked),
        file_bytes=_spread(looked["size"].to_numpy()),
        formats=dict(Counter(looked["format"].to_pylist()).most_common()),
        jpeg_quality=_spread(qualities) if len(qualities) else None,
        samples_by_quality=_histogram(qualities),
        edited=manifest.edited,
        order=manifest.order.model_dump() if manifest.order else None,
        tag_sources=[source.model_dump() for source in manifest.tag_sources],
        groups={axis: dict(_groups(manifest, axis, counted, looked)) for axis in manifest.axes},
    )


class _Counts:
    """What the tables of the shards seen so far add up to."""

    def __init__(self, manifest: Manifest) -> None:
        num_identities = len(manifest.identities)
        self.images = np.zeros(num_identities, np.int32)
        self.images_of = {axis: np.zeros((len(v), num_identities), np.int32) for axis, v in manifest.axes.items()}
        self._sizes: Counter[int] = Counter()

    def add(self, table: pa.Table) -> None:
        identities = table["identity"].to_numpy().astype(np.int64)
        _add(self.images, identities)
        for axis, counts in self.images_of.items():
            _add(counts.reshape(-1), table[axis].to_numpy().astype(np.int64) * len(self.images) + identities)
        widths, heights = (table[side].to_numpy().astype(np.int64) for side in ("width", "height"))
        self._sizes.update(_histogram(widths << 32 | heights))

    def sizes(self) -> dict[str, int]:
        """Return size -> samples, most frequent first."""
        return {_size(size >> 32, size & 0xFFFFFFFF): count for size, count in self._sizes.most_common()}


def _add(counts: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]) -> None:
    distinct, times = np.unique(positions, return_counts=True)
    counts[distinct] += times.astype(np.int32)


def _size(width: float, height: float) -> str:
    return f"{width:g}x{height:g}" if width and height else UNKNOWN  # 0: converted without looking


def _pass_over(shards: ShardSet, counted: _Counts) -> Iterator[pa.Table]:
    """Count every shard's table; yield the rows of its samples that are to be looked at, with what is seen."""
    total = len(shards)
    chosen = np.linspace(0, total - 1, min(total, LOOKED_AT)).astype(np.int64)
    columns = ["identity", "width", "height", "offset", "size", *shards.manifest.axes]
    start = 0
    for shard, table in zip(shards.manifest.shards, shards.tables(columns), strict=True):
        counted.add(table)
        first, end = np.searchsorted(chosen, [start, start + len(table)])
        yield _look(shards.folder / f"{shard.name}.tar", table.take(chosen[first:end] - start))
        start += len(table)


def _look(tar: Path, rows: pa.Table) -> pa.Table:
    """Add what the heads of these images tell."""
    places = zip(rows["offset"].to_pylist(), rows["size"].to_pylist(), strict=True)
    formats, qualities = [], []
    with tar.open("rb") as stream:
        for offset, size in places:
            stream.seek(offset)
            head = stream.read(min(size, _HEAD_BYTES))
            formats.append(_format(head))
            qualities.append(jpeg_quality(head))
    return rows.append_column("format", pa.array(formats, pa.string())).append_column(
        "quality", pa.array(qualities, pa.int64())
    )


def _format(head: bytes) -> str:
    try:
        return sniff(head)
    except Unreadable:
        return UNKNOWN


def _groups(manifest: Manifest, axis: str, counted: _Counts, looked: pa.Table) -> Iterator[tuple[str, Group]]:
    codes = looked[axis].to_numpy()
    for code, value in enumerate(manifest.axes[axis]):
        images = counted.images_of[axis][code]
        images = images[images > 0]
        if not len(images):
            continue
        seen = looked.filter(codes == code)
        qualities = seen["quality"].drop_null().to_numpy()
        yield (
            value,
            Group(
                samples=int(images.sum()),
                identities=len(images),
                images_per_identity=_spread(images),
                size=_median_size(seen),
                jpeg_quality=_spread(qualities) if len(qualities) else None,
            ),
        )


def _median_size(seen: pa.Table) -> str:
    if not len(seen):
        return UNKNOWN
    return _size(np.median(seen["width"].to_numpy()), np.median(seen["height"].to_numpy()))


def _spread(values: npt.NDArray[Any]) -> Spread:
    least, median, mean, most = (float(of(values)) for of in (np.min, np.median, np.mean, np.max))
    return Spread(len(values), least, median, mean, most)


def _histogram(values: npt.NDArray[Any]) -> dict[int, int]:
    distinct, times = np.unique(values, return_counts=True)
    return dict(zip(distinct.tolist(), times.tolist(), strict=True))
