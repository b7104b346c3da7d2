"""Alignment: a face is warped so that its eyes, nose and mouth lie where ArcFace's template has them.

The warp is the least-squares similarity transform of S. Umeyama, "Least-squares estimation of
transformation parameters between two point patterns", TPAMI 13(4), 1991: rotation, one scale, translation.
"""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from shardgen.errors import DataError, UsageError

Landmarks = npt.NDArray[np.float64]
"""`[5, 2]`: x and y in pixels of both eyes, the nose and both corners of the mouth, those on the image's left first."""

TEMPLATE: Landmarks = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""ArcFace's, for 112x112 pixels (InsightFace, `face_align.py`)."""
_TEMPLATE_SIZE = 112
_KEYS = ("path", "key", "file", "filename", "image", "name", "image_id")


def similarity(source: Landmarks, target: Landmarks) -> npt.NDArray[np.float64]:
    """Return the `[2, 3]` matrix of the similarity that takes `[points, 2]` nearest to their targets."""
    from_mean, to_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - from_mean
    left, scales, right = np.linalg.svd((target - to_mean).T @ centred / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])  # a mirror image is no rotation
    rotation = left * signs @ right
    scaled = (scales @ signs) / centred.var(axis=0).sum() * rotation
    return np.column_stack([scaled, to_mean - scaled @ from_mean])


def align(bgr: npt.NDArray[np.uint8], landmarks: Landmarks, size: int) -> npt.NDArray[np.uint8]:
    """Return the face as `[size, size, 3]`, bilinear, black outside the image, as InsightFace's `norm_crop` does."""
    matrix = similarity(landmarks, TEMPLATE * (size / _TEMPLATE_SIZE))
    return np.asarray(cv2.warpAffine(bgr, matrix, (size, size), borderValue=0.0), np.uint8)


class LandmarkTable:
    """Landmarks of images, by path or key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table = _read(path)
        names = {name.strip().lower(): name for name in table.column_names}
        keys = [name for name in _KEYS if name in names]
        if len(keys) != 1 or len(names) != 11:
            raise UsageError(
                f"{path}: --align wants one column named path or key and ten of coordinates, x and y of left eye, "
                f"right eye, nose, left and right corner of the mouth; it has {', '.join(table.column_names)}"
            )
        if not len(table):
            raise DataError(f"{path} has no row below its header; give a table with landmarks")
        self.by_key = keys[0] == "key"
        key_column = names[keys[0]]
        try:
            values = [table[name].cast(pa.float64()).to_numpy() for name in table.column_names if name != key_column]
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} has a coordinate that is no number: {error}") from None
        self._points = np.stack(values, axis=1).reshape(-1, 5, 2)
        self._rows = {str(key).strip(): row for row, key in enumerate(table[key_column].to_pylist())}
        if len(self._rows) != len(self._points):
            raise DataError(
                f"{path} lists {len(self._points) - len(self._rows)} images more than once; keep one row each"
            )

    def of(self, names: list[str]) -> npt.NDArray[np.float64]:
        """Return `[names, 5, 2]`, NaN where the table has no row or lacks a coordinate."""
        rows = np.array([self._rows.get(name, -1) for name in names], np.int64)
        found = self._points[rows]
        found[rows < 0] = np.nan
        return found


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise UsageError(f"{path} is no file; --align takes a CSV or parquet table of landmarks")
    try:
        return pq.read_table(path) if path.suffix == ".parquet" else _read_csv(path)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no table: {' '.join(str(error).split())}") from None


def _read_csv(path: Path) -> pa.Table:
    """Read all columns as text: a key such as 00000000 is no number."""
    with pa.csv.open_csv(path) as stream:
        names = stream.schema.names
    texts = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
    return pa.csv.read_csv(path, convert_options=texts)
