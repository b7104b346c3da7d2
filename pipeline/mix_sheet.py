"""What a recipe does to the images of each of its sets, as a picture: `facemix plan --sheet`."""

import numpy as np
import numpy.typing as npt
import torch

from pipeline.augment import draw_steps
from pipeline.augment_config import AugmentConfig
from pipeline.config import LoaderConfig
from pipeline.fused import apply_steps
from pipeline.loader import load_in_order
from pipeline.order import Ids
from pipeline.plan import Plan
from shardgen.labels import side_label

_FACES = 4
_PASSES = 8

Pictures = npt.NDArray[np.uint8]
"""`[faces, 1 + passes, height, width, 3]`, RGB: the face itself comes first."""


def mix_sheet(plan: Plan, augmentation: AugmentConfig, config: LoaderConfig) -> npt.NDArray[np.uint8]:
    """Return `[height, width, 3] uint8`, RGB: for each set some faces, and their looks in the first passes of the run.

    `augmentation` is that of the sets without one of their own. Raises `DataError` when a face does not decode.
    """
    rows: list[npt.NDArray[np.uint8]] = []
    for name in plan.set_names:
        sample_ids = _some_of(plan, name)
        changed = plan.mix.sets[name].augment or augmentation
        (batch,) = load_in_order(
            plan.catalog, sample_ids, config.model_copy(update={"batch_size": _FACES}), torch.device("cpu")
        )
        faces = batch.images.permute(0, 2, 3, 1).numpy()
        rows.append(labelled(name, augmented_rows(faces, sample_ids, changed, plan.seed, _PASSES)))
    return np.concatenate(rows)


def augmented_rows(
    images: npt.NDArray[np.uint8], sample_ids: Ids, config: AugmentConfig, seed: int, num_passes: int
) -> Pictures:
    """Return square images `[faces, size, size, 3]` and their looks in passes 0, 1, ... of a run with this seed."""
    looks = [images]
    for number in range(num_passes):
        steps = draw_steps(config, seed, images.shape[1], sample_ids, np.full_like(sample_ids, number))
        looks.append(apply_steps(images, steps, np.empty_like(images)))
    return np.stack(looks, 1)


def labelled(text: str, pictures: Pictures) -> npt.NDArray[np.uint8]:
    """Return a row for each face, below each other, with their label to the left: `[height, width, 3]`."""
    faces, looks, height, width, _ = pictures.shape
    grid = pictures.swapaxes(1, 2).reshape(faces * height, looks * width, 3)
    return np.concatenate([side_label(text, len(grid)), grid], 1)


def _some_of(plan: Plan, set_name: str) -> Ids:
    """Return a few of a set's samples, evenly over its strata and the samples in them."""
    strata = [stratum.members.ids for stratum in plan.strata if stratum.set_name == set_name]
    picked = [(strata[face * len(strata) // _FACES], face) for face in range(_FACES)]
    return np.unique([int(ids[len(ids) * face // _FACES]) for ids, face in picked])
