"""The real-only twin of a mix: what the authentic sets alone do with the same budget of identities and samples."""

from fractions import Fraction

from pipeline.config import Cap, MixConfig, SetConfig
from pipeline.plan import Plan
from shardgen.errors import UsageError


def real_only(mix: MixConfig, plan: Plan) -> MixConfig:
    """Return a mix's authentic sets with as many identities, and samples an epoch, as the whole mix takes.

    Their shares, of which those that change over epochs count with their mean over the phases, are scaled to 1. The
    identities that others gave are shared out as each set's own are; so there may be fewer than a cap says, of
    which the twin's own plan warns. Raises `UsageError` when no set is authentic.
    """
    authentic = [name for name in mix.sets if plan.catalog.origins[name] == "authentic"]
    if not authentic:
        raise UsageError(f"none of the sets {', '.join(mix.sets)} is authentic: a real-only twin needs one")
    shares = _constant_shares(mix, authentic)
    most = _apportioned(sum(plan.num_classes), {name: plan.num_identities[name] for name in authentic})
    sets = {name: _changed(mix.sets[name], shares[name], most[name]) for name in authentic}
    return mix.model_copy(update={"sets": sets, "epoch": plan.batches_per_epoch * plan.batch_size})


def _changed(config: SetConfig, share: Fraction | None, most: int) -> SetConfig:
    most = max(1, most)
    cap = config.identities or Cap(most=most)
    identities = cap.model_copy(update={"most": most})
    return config.model_copy(update={"share": None if share is None else {0: share}, "identities": identities})


def _constant_shares(mix: MixConfig, names: list[str]) -> dict[str, Fraction | None]:
    phases = [shares for _, shares in mix.phases() if shares is not None]
    sums = {name: sum((shares[name] for shares in phases), Fraction(0)) for name in names}
    total = sum(sums.values())
    return {name: one / total if phases else None for name, one in sums.items()}


def _apportioned(total: int, numbers: dict[str, int]) -> dict[str, int]:
    """Return numbers in proportion to these that add up to a total, by largest remainders."""
    exact = {name: Fraction(total * number, sum(numbers.values())) for name, number in numbers.items()}
    whole = {name: int(one) for name, one in exact.items()}
    by_remainder = sorted(numbers, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole
