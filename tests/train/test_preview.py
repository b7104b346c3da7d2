"""The preview of a batch: the faces as they are in it, and under each who it is."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.loader import Batch
from pipeline.plan import Plan
from shardgen.images import Rgb
from shardgen.labels import label
from tests.pipeline.simulated import catalog_of, mix_of
from train.preview import preview

SIZE = 112
LINE_HEIGHT = 18


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Sample ids 0 to 39 are of photos, 40 to 49 of renders, none of them is of nobody."""
    photos = [(number // 2, ["east", "west"][number % 2], "unknown") for number in range(40)]
    renders = [(number, "unknown", "Zoë") for number in range(10)]
    catalog = catalog_of(
        {"photos": photos, "renders": renders, "nobody": [(0, "east", "x")]},
        ("region", "style"),
        synthetic=["renders"],
    )
    return Plan(catalog, mix_of({"renders": {"share": 0.5}, "photos": {"share": 0.3}, "nobody": {"share": 0.2}}), 0, 20)


def batch_of(plan: Plan, sample_ids: list[int]) -> Batch:
    """A batch of noise, as the loader would make it, with a gap in the sets."""
    ids = np.array(sample_ids)
    starts = list(plan.catalog.set_starts.values())
    names = [list(plan.catalog.set_starts)[place] for place in np.searchsorted(starts, ids, "right") - 1]
    pixels = torch.randint(0, 256, (len(ids), SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    return Batch(
        images=pixels.permute(0, 3, 1, 2),
        labels=torch.from_numpy(plan.labels(ids)),
        sample_ids=torch.from_numpy(ids),
        sets=np.array([plan.set_names.index(name) for name in names]),
        tags={axis: torch.from_numpy(plan.catalog.codes(axis, ids)).long() for axis in plan.catalog.axes},
    )


def cells(picture: Rgb, num_lines: int) -> Iterator[tuple[Rgb, Rgb]]:
    """Face and caption of each place, row by row."""
    height = SIZE + num_lines * LINE_HEIGHT + 6
    rows = picture.reshape(-1, height, 8, SIZE, 3).swapaxes(1, 2)
    yield from ((place[:SIZE], place[SIZE:]) for row in rows for place in row)


def caption(*lines: str, num_lines: int) -> Rgb:
    return label(lines, SIZE, num_lines * LINE_HEIGHT + 6, font_pixels=12)


def test_the_faces_of_each_set_are_shown_exactly_and_in_their_order(plan: Plan) -> None:
    batch = batch_of(plan, [3, 41, 0, 40, 7, 49, 11, 12, 13, 14, 15, 16, 17])
    pictures = preview(batch, plan)
    pixels = batch.images.permute(0, 2, 3, 1).numpy()
    for name, rows in {"renders": [1, 3, 5], "photos": [0, 2, 4, 6, 7, 8, 9, 10, 11, 12]}.items():
        faces = [face for face, _ in cells(pictures[name], 3)]
        assert len(faces) == -(-len(rows) // 8) * 8
        np.testing.assert_array_equal(faces[: len(rows)], pixels[rows])
        assert all((face == 255).all() for face in faces[len(rows) :])


def test_red_is_first(plan: Plan) -> None:
    batch = batch_of(plan, [0])
    batch.images[:] = torch.tensor([200, 10, 10]).view(3, 1, 1)
    assert preview(batch, plan)["photos"][0, 0].tolist() == [200, 10, 10]


def test_sets_come_in_the_order_of_the_mix_and_one_without_a_face_is_left_out(plan: Plan) -> None:
    assert list(preview(batch_of(plan, [0, 1, 2, 45]), plan)) == ["renders", "photos"]
    assert list(preview(batch_of(plan, [50]), plan)) == ["nobody"]


def test_under_a_face_are_its_identity_and_its_known_tags(plan: Plan) -> None:
    pictures = preview(batch_of(plan, [7, 45]), plan)
    (_, photo), *_ = cells(pictures["photos"], 3)
    (_, render), (_, nothing), *_ = cells(pictures["renders"], 3)
    np.testing.assert_array_equal(photo, caption("3", "authentic", "west", num_lines=3))
    np.testing.assert_array_equal(render, caption("5", "synthetic", "Zoë", num_lines=3))
    assert (nothing == 255).all()


def test_no_line_of_a_caption_is_cut_off(plan: Plan) -> None:
    batch = batch_of(plan, [45])
    bare = dataclasses.replace(batch, tags={})
    for one, lines in ((batch, ["5", "synthetic", "Zoë"]), (bare, ["5"])):
        (_, drawn), *_ = cells(preview(one, plan)["renders"], len(lines))
        roomy = label(lines, SIZE, 500, font_pixels=12)
        assert (roomy[: len(drawn)] == drawn).all()
        assert (roomy[len(drawn) :] == 255).all()


def test_captions_are_as_high_as_the_longest_of_the_picture(plan: Plan) -> None:
    batch = batch_of(plan, [0, 1])
    batch.tags["style"][1] = 1
    (_, first), (_, second), *_ = cells(preview(batch, plan)["photos"], 4)
    style = plan.catalog.axes["style"][1]
    np.testing.assert_array_equal(first, caption("0", "authentic", "east", num_lines=4))
    np.testing.assert_array_equal(second, caption("0", "authentic", "west", style, num_lines=4))


def test_at_most_sixteen_faces_of_a_set_are_shown(plan: Plan) -> None:
    batch = batch_of(plan, list(range(40)))
    faces = [face for face, _ in cells(preview(batch, plan)["photos"], 3)]
    np.testing.assert_array_equal(faces, batch.images[:16].permute(0, 2, 3, 1).numpy())
