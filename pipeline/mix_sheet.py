"""What a recipe does to the images of each of its sets, as a picture: `facemix plan --sheet`."""

import numpy as np
import numpy.typing as npt
import torch

from pipeline.augment_config import AugmentConfig
from pipeline.config import LoaderConfig
from pipeline.loader import load_in_order
from pipeline.order import Ids
from pipeline.plan import Plan
from pipeline.step_sheet import augmented_rows, compose

_FACES = 4
_PASSES = 8


def mix_sheet(plan: Plan, augmentation: AugmentConfig, config: LoaderConfig) -> npt.NDArray[np.uint8]:
    """Return `[height, width, 3] uint8`, RGB: for each set some faces, and their looks in the first passes of the run.

    `augmentation` is that of the sets without one of their own. Raises `DataError` when a face does not decode.
    """
    rows = {}
    for name in plan.set_names:
        sample_ids = _some_of(plan, name)
        changed = plan.mix.sets[name].augment or augmentation
        (batch,) = load_in_order(
            plan.catalog, sample_ids, config.model_copy(update={"batch_size": _FACES}), torch.device("cpu")
        )
        faces = batch.images.permute(0, 2, 3, 1).numpy()
        rows[name] = augmented_rows(faces, sample_ids, changed, plan.seed, _PASSES)
    return compose(rows)


def _some_of(plan: Plan, set_name: str) -> Ids:
    """Return a few of a set's samples, evenly over its strata and the samples in them."""
    strata = [stratum.members.ids for stratum in plan.strata if stratum.set_name == set_name]
    picked = [(strata[face * len(strata) // _FACES], face) for face in range(_FACES)]
    return np.unique([int(ids[len(ids) * face // _FACES]) for ids, face in picked])
