"""Alignment against scikit-image, which published face code uses for it, and tables of landmarks."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage.transform import SimilarityTransform

from shardgen.align import TEMPLATE, Landmarks, LandmarkTable, align, similarity
from shardgen.errors import DataError, UsageError
from shardgen.procedural import draw_face

COORDINATES = st.lists(st.floats(-500, 500, width=32), min_size=10, max_size=10)
HEADER = "path,lx,ly,rx,ry,nx,ny,mlx,mly,mrx,mry"


@settings(deadline=None)
@given(COORDINATES)
def test_the_transform_is_the_published_one(values: list[float]) -> None:
    points = np.array(values).reshape(5, 2)
    assume(np.linalg.svd(points - points.mean(axis=0))[1][1] > 1)  # not all on one line
    published = SimilarityTransform.from_estimate(points, TEMPLATE)
    np.testing.assert_allclose(similarity(points, TEMPLATE), published.params[:2], rtol=1e-6, atol=1e-6)


def test_a_face_is_warped_as_the_published_code_does() -> None:
    face = draw_face(0, 0, 0)
    landmarks = TEMPLATE * 0.9 + [3, 7]
    for size in (112, 224):
        published = SimilarityTransform.from_estimate(landmarks, TEMPLATE * size / 112).params[:2]
        expected = cv2.warpAffine(face, published, (size, size), borderValue=0.0)
        assert np.abs(align(face, landmarks, size).astype(int) - expected).max() <= 1


def row(name: str, points: Landmarks = TEMPLATE) -> str:
    return ",".join([name, *map(str, points.ravel().tolist())])


def test_a_table_gives_the_rows_asked_for_and_nan_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("\n".join([HEADER, row("b.jpg", TEMPLATE + 1), row("a.jpg"), "c.jpg,1,2,3,4,5,6,7,8,9,"]))
    table = LandmarkTable(path)
    found = table.of(["a.jpg", "nobody.jpg", "b.jpg", "c.jpg"])
    np.testing.assert_allclose(found[[0, 2]], [TEMPLATE, TEMPLATE + 1])
    assert np.isnan(found[1]).all()
    assert np.isnan(found[3]).any()
    assert not table.by_key


def test_a_parquet_table_by_key_reads_alike(tmp_path: Path) -> None:
    columns = dict(zip(HEADER.split(",")[1:], TEMPLATE.ravel().tolist(), strict=True))
    pq.write_table(
        pa.table({"key": ["0000002a"], **{name: [value] for name, value in columns.items()}}), tmp_path / "t.parquet"
    )
    table = LandmarkTable(tmp_path / "t.parquet")
    assert table.by_key
    np.testing.assert_allclose(table.of(["0000002a"])[0], TEMPLATE)


@pytest.mark.parametrize("key", ["00000000", "000001e2"])
def test_a_key_that_looks_like_a_number_stays_a_key(key: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("\n".join([HEADER.replace("path", "key"), row(key)]))
    np.testing.assert_allclose(LandmarkTable(tmp_path / "points.csv").of([key])[0], TEMPLATE)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (HEADER.replace("path", "who") + "\n" + row("a"), UsageError, "one column named path or key"),
        ("path,x,y\na,1,2", UsageError, "one column named path or key"),
        (HEADER + "\n" + row("a") + "\n" + row("a"), DataError, "more than once"),
        (HEADER + "\n" + row("a").replace("38.2946", "left"), DataError, "no number"),
        (HEADER + "\na,1", DataError, "no table"),
        (HEADER + "\n", DataError, "no row below its header"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(error, match=says):
        LandmarkTable(tmp_path / "points.csv")


def test_a_missing_table_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        LandmarkTable(tmp_path / "nowhere.csv")
