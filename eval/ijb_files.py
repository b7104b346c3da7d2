"""IJB-B's and IJB-C's lists, as InsightFace distributes them in a folder `meta`: what is in them, and reading it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from eval.protocols import Labels
from eval.verification import Same
from shardgen.errors import DataError, UsageError


@dataclass(frozen=True)
class Images:
    """The faces that were found, in the order of the files."""

    names: Sequence[str]
    landmarks: npt.NDArray[np.float32]
    """`[images, 5, 2]`: x and y in pixels of the loosely cropped image."""
    scores: npt.NDArray[np.float32]
    """`[images]`: the detector's."""
    templates: Labels
    """`[images]`: number of the template that the image belongs to."""
    media: Labels
    """`[images]`: number of the photograph or video that it comes from."""


@dataclass(frozen=True)
class TemplatePairs:
    """Comparisons of templates, given by their numbers."""

    first: npt.NDArray[np.int32]
    second: npt.NDArray[np.int32]
    same: Same


@dataclass(frozen=True)
class Subjects:
    """Templates to enrol or to search, given by their numbers, and whose they are."""

    templates: Labels
    subjects: Labels


@dataclass(frozen=True)
class SearchProtocol:
    """1:N: every probe is searched in each gallery; those whose subject is in the other one are non-mated."""

    galleries: Sequence[Subjects]
    probes: Subjects


def read_images(meta: Path) -> Images:
    """Read `*_face_tid_mid.txt` and `*_name_5pts_score.txt` of a `meta` folder; they list the same images in a row.

    Raises `UsageError` when a file is not there, `DataError` when one is damaged or they do not belong together.
    """
    points = [f"{axis}{point}" for point in range(5) for axis in "xy"]
    path, of_template = _read(meta, "*_face_tid_mid.txt", {"name": pa.string(), "tid": pa.int64(), "mid": pa.int64()})
    types = {"name": pa.string(), **dict.fromkeys([*points, "score"], pa.float32())}
    other, detected = _read(meta, "*_name_5pts_score.txt", types)
    names = of_template["name"].to_pylist()
    for line, pair in enumerate(zip(names, detected["name"].to_pylist(), strict=False), 1):
        if pair[0] != pair[1]:
            raise DataError(f"line {line} is {pair[0]} in {path} and {pair[1]} in {other}; use files of one package")
    if len(of_template) != len(detected):
        raise DataError(f"{path} has {len(of_template)} images, {other} has {len(detected)}; use files of one package")
    landmarks = np.stack([detected[one].to_numpy() for one in points], axis=1).reshape(-1, 5, 2)
    return Images(
        names=names,
        landmarks=landmarks,
        scores=detected["score"].to_numpy(),
        templates=of_template["tid"].to_numpy(),
        media=of_template["mid"].to_numpy(),
    )


def read_template_pairs(meta: Path) -> TemplatePairs:
    """Read `*_template_pair_label.txt`, the 1:1 protocol; raise as `read_images` does."""
    types = {"first": pa.int32(), "second": pa.int32(), "same": pa.int8()}
    path, table = _read(meta, "*_template_pair_label.txt", types)
    first, second, same = (table[name].to_numpy() for name in types)
    if same.all() or not same.any():
        raise DataError(f"{path} lists {same.sum()} genuine of {len(same)} pairs; it has to have both kinds")
    return TemplatePairs(first, second, same.astype(np.bool_))


def read_search_protocol(meta: Path) -> SearchProtocol:
    """Read the 1:N protocol: `*_1N_gallery_G1.csv` (in IJB-B `S1`), the second one, and `*_1N_probe_mixed.csv`.

    Raises as `read_images` does, also when a template is of two subjects, or a subject is twice in a gallery.
    """
    galleries = [_read_subjects(meta, f"*_1N_gallery_?{number}.csv") for number in (1, 2)]
    for path, gallery in galleries:
        subjects, times = np.unique(gallery.subjects, return_counts=True)
        if times.max() > 1:
            raise DataError(f"{path} enrols subject {subjects[times.argmax()]} {times.max()} times; leave one template")
    return SearchProtocol([gallery for _, gallery in galleries], _read_subjects(meta, "*_1N_probe_mixed.csv")[1])


def _read_subjects(meta: Path, pattern: str) -> tuple[Path, Subjects]:
    """Read the first two columns, template and subject, of a table with a line for each image."""
    path = _find(meta, pattern)
    columns = pyarrow.csv.ConvertOptions(
        include_columns=["f0", "f1"], column_types={"f0": pa.int64(), "f1": pa.int64()}
    )
    table = _parse(path, pyarrow.csv.ReadOptions(skip_rows=1, autogenerate_column_names=True), columns, ",")
    rows = np.unique(np.stack([table["f0"].to_numpy(), table["f1"].to_numpy()], axis=1), axis=0)
    templates, subjects = rows.T
    if len(twice := np.flatnonzero(np.diff(templates) == 0)):
        raise DataError(f"{path}: template {templates[twice[0]]} is of two subjects; restore the file")
    return path, Subjects(templates, subjects)


def _read(meta: Path, pattern: str, types: Mapping[str, pa.DataType]) -> tuple[Path, pa.Table]:
    path = _find(meta, pattern)
    names = pyarrow.csv.ReadOptions(column_names=list(types))
    return path, _parse(path, names, pyarrow.csv.ConvertOptions(column_types=types), " ")


def _find(meta: Path, pattern: str) -> Path:
    found = sorted(meta.glob(pattern))
    if len(found) != 1:
        raise UsageError(f"{meta} has {len(found)} files {pattern}; give the folder meta of IJB-B or of IJB-C")
    return found[0]


def _parse(
    path: Path, reading: pyarrow.csv.ReadOptions, columns: pyarrow.csv.ConvertOptions, delimiter: str
) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(path, reading, pyarrow.csv.ParseOptions(delimiter=delimiter), columns)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not as InsightFace distributes it: {' '.join(str(error).split())}") from None
