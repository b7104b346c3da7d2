"""What a batch looks like: colour order, augmentations, identities and tags are seen at a glance."""

import numpy as np

from pipeline.loader import Batch
from pipeline.order import Ids
from pipeline.plan import Plan
from shardgen.images import Rgb
from shardgen.labels import label

_FACES = 16
_COLUMNS = 8
_FONT_PIXELS = 12
_LINE_HEIGHT = 18  # of a label
_MARGIN = 6


def preview(batch: Batch, plan: Plan) -> dict[str, Rgb]:
    """Return a picture of some faces of each set in the batch, `[height, width, 3] uint8`, in the order of the mix.

    Up to 16 faces, in the batch's order, as the encoder gets them; below each its identity's name and its tags as far
    as they are known.
    """
    rows = {name: np.flatnonzero(batch.sets == number)[:_FACES] for number, name in enumerate(plan.set_names)}
    return {name: _picture(batch, plan, some) for name, some in rows.items() if len(some)}


def _picture(batch: Batch, plan: Plan, rows: Ids) -> Rgb:
    faces = batch.images[rows].permute(0, 2, 3, 1).cpu().numpy()
    captions = [_caption(batch, plan, row) for row in rows.tolist()]
    size = faces.shape[1]
    height = max(map(len, captions)) * _LINE_HEIGHT + _MARGIN
    cells = [
        np.concatenate([face, label(caption, size, height, _FONT_PIXELS)])
        for face, caption in zip(faces, captions, strict=True)
    ]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % _COLUMNS)
    return np.concatenate([np.concatenate(cells[i : i + _COLUMNS], 1) for i in range(0, len(cells), _COLUMNS)])


def _caption(batch: Batch, plan: Plan, row: int) -> list[str]:
    """Return lines: the identity, then a line a known tag."""
    _, identity = plan.catalog.identities[plan.catalog.label[int(batch.sample_ids[row])]]
    codes = {axis: int(column[row]) for axis, column in batch.tags.items()}
    return [identity, *(plan.catalog.axes[axis][code] for axis, code in codes.items() if code)]
