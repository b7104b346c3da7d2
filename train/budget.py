"""What a challenge allows to train on, held against what a mix takes."""

from collections.abc import Mapping

from pipeline.plan import Plan
from shardgen.errors import UsageError
from train.config import Budget, Origin

TOTAL = "total"


def taken(plan: Plan) -> dict[str, Budget]:
    """Return what takes part, by origin and in total."""
    origins = plan.catalog.origins
    sums: dict[str, Budget] = {}
    for origin in (*sorted(set(origins.values())), TOTAL):
        names = [name for name in plan.set_names if origin in (origins[name], TOTAL)]
        images = sum(len(one.members.ids) for one in plan.strata if one.set_name in names)
        sums[origin] = Budget(images=images, identities=sum(plan.num_identities[name] for name in names))
    return sums


def check_budget(budget: Mapping[Origin, Budget], plan: Plan) -> None:
    """Raise `UsageError` when a mix takes more than its budget."""
    found = taken(plan)
    for origin, most in budget.items():
        for what in ("images", "identities"):
            limit, given = getattr(most, what), getattr(found.get(origin, Budget()), what) or 0
            if limit is not None and given > limit:
                raise UsageError(
                    f"the mix takes {given} {what} ({origin}), budget.{origin}.{what} is {limit}; cap them with "
                    "mix.sets.NAME.identities or images_per_identity"
                )
