"""What is in a shard set, at a glance: counts, and a contact sheet with a row a group."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from shardgen.images import Rgb, decode
from shardgen.manifest import REJECTED, Manifest, read_manifest
from shardgen.tags import UNKNOWN

CELL = 112
_LABEL_WIDTH = 220
_COLUMNS = 8
_MAX_VALUES = 12


@dataclass(frozen=True)
class Summary:
    """The figures of one set."""

    folder: str
    name: str
    origin: str
    num_samples: int
    num_identities: int
    num_rejected: int
    images_per_identity: tuple[int, float, int]
    """Smallest, mean, largest."""
    image_sizes: Mapping[str, int]
    """"width x height" in pixels -> samples, most frequent first."""
    counts: Mapping[str, Mapping[str, int]]
    """Tag axis -> value -> samples, values without a sample left out."""

    def lines(self) -> list[str]:
        """Return what a person reads."""
        least, mean, most = self.images_per_identity
        rows = [("size", self.image_sizes), *self.counts.items()]
        return [
            f"{self.folder} ({self.origin}): {self.num_samples} samples, {self.num_identities} identities",
            f"  images per identity: {least} to {most}, {mean:.1f} on average; {self.num_rejected} rejected",
            *(f"  {title}: {_shortened(counts)}" for title, counts in rows),
        ]


def _shortened(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{value} {count}" for value, count in list(counts.items())[:_MAX_VALUES])
    return shown + (f", and {len(counts) - _MAX_VALUES} more" if len(counts) > _MAX_VALUES else "")


def lines_of_conversion(manifest: Manifest, out: Path) -> list[str]:
    """Return what a person reads when a conversion is done: nothing is lost, and what is not known."""
    return [
        f"{out} ({manifest.origin}): read {manifest.num_read} = written {manifest.num_samples} "
        f"+ rejected {manifest.num_rejected}; {manifest.num_identities} identities, {len(manifest.shards)} shards",
        *(
            f"  rejected {count}: {reason} (see {out / REJECTED})"
            for reason, count in manifest.rejected_reasons.items()
        ),
        *(
            f"  {axis}: {len([value for value in values if value != UNKNOWN])} values, "
            f"{manifest.counts[axis][UNKNOWN]} samples unknown"
            for axis, values in manifest.axes.items()
        ),
    ]


def summarise(folder: Path) -> Summary:
    """Count a finished set from its manifest and tables."""
    manifest = read_manifest(folder)
    per_identity = np.zeros(len(manifest.identities), np.int64)
    sizes: Counter[str] = Counter()
    for shard in manifest.shards:
        table = pq.read_table(folder / f"{shard.name}.parquet", columns=["identity", "width", "height"])
        per_identity += np.bincount(table["identity"].to_numpy(), minlength=len(per_identity))
        pairs = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)
        distinct, times = np.unique(pairs, axis=0, return_counts=True)
        sizes.update({f"{w}x{h}": n for (w, h), n in zip(distinct.tolist(), times.tolist(), strict=True)})
    per_identity = per_identity[per_identity > 0]
    return Summary(
        folder=str(folder),
        name=manifest.name,
        origin=manifest.origin,
        num_samples=manifest.num_samples,
        num_identities=manifest.num_identities,
        num_rejected=manifest.num_rejected,
        images_per_identity=(int(per_identity.min()), float(per_identity.mean()), int(per_identity.max())),
        image_sizes=dict(sizes.most_common()),
        counts={
            axis: {value: count for value in values if (count := manifest.counts[axis][value])}
            for axis, values in manifest.axes.items()
        },
    )


def contact_sheet(folders: Sequence[Path]) -> Rgb:
    """Return a picture with a labelled row of faces for each set and each group in it.

    Axes with more than 12 values (ages) are left out: their rows would be no overview.
    """
    return np.concatenate([row for folder in folders for row in _rows(folder)])


def write_png(path: Path, picture: Rgb) -> None:
    """Write a picture as PNG, whatever the file is called."""
    done, data = cv2.imencode(".png", picture[..., ::-1])
    assert done
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(data))


def _rows(folder: Path) -> list[Rgb]:
    manifest = read_manifest(folder)
    rows = [_row(folder, manifest, None, 0, f"{manifest.name} ({manifest.origin})")]
    for axis, values in manifest.axes.items():
        shown = [value for value in values if manifest.counts[axis][value]]
        if len(shown) <= _MAX_VALUES:
            rows += [
                _row(folder, manifest, axis, values.index(value), f"{manifest.name} {axis}: {value}") for value in shown
            ]
    return rows


def _row(folder: Path, manifest: Manifest, axis: str | None, code: int, label: str) -> Rgb:
    """Draw the first faces, of different identities where possible, that have a tag."""
    row = np.full((CELL, _LABEL_WIDTH + _COLUMNS * CELL, 3), 255, np.uint8)
    for line, text in enumerate(label.split(" ")):
        cv2.putText(row, text, (6, 24 + 20 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for cell, face in enumerate(_faces(folder, manifest, axis, code)):
        left = _LABEL_WIDTH + cell * CELL
        row[:, left : left + CELL] = cv2.resize(face, (CELL, CELL), interpolation=cv2.INTER_AREA)
    return row


def _faces(folder: Path, manifest: Manifest, axis: str | None, code: int) -> list[Rgb]:
    faces: list[Rgb] = []
    shown: set[int] = set()
    columns = ["offset", "size", "identity", *([axis] if axis else [])]
    for shard in manifest.shards:
        table = pq.read_table(folder / f"{shard.name}.parquet", columns=columns)
        wanted = np.flatnonzero(table[axis].to_numpy() == code) if axis else np.arange(len(table))
        identities, first = np.unique(table["identity"].to_numpy()[wanted], return_index=True)
        first = first[[identity not in shown for identity in identities.tolist()]]
        shown |= set(identities.tolist())
        with (folder / f"{shard.name}.tar").open("rb") as tar:
            for place in wanted[np.sort(first)][: _COLUMNS - len(faces)].tolist():
                tar.seek(table["offset"][place].as_py())
                faces.append(decode(tar.read(table["size"][place].as_py())))
        if len(faces) == _COLUMNS:
            break
    return faces
