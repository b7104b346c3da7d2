"""What a plan amounts to, for a person and for programs: who gives how much, what stays out, what cannot be had."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.members import Identities
from pipeline.plan import Plan, identities_of


def to_json(plan: Plan) -> dict[str, Any]:
    """Return what every stratum gives to a batch and an epoch, for each epoch in which the shares change."""
    per_epoch = [_per_epoch(plan, epoch) for epoch, _ in plan.shares]
    identities = [int(np.count_nonzero(identities_of(plan.catalog, one))) for one in plan.strata]
    return {
        "batch_size": plan.batch_size,
        "batches_per_epoch": plan.batches_per_epoch,
        "classes": list(plan.num_classes),
        "identities": plan.num_identities,
        "phases": [
            {"first_epoch": epoch, "strata": _rows(plan, shares, counts, identities)}
            for (epoch, shares), counts in zip(plan.shares, per_epoch, strict=True)
        ],
        "left_out": [
            {"set": name, "reason": reason, "samples": samples}
            for name, selection in plan.selections.items()
            for reason, samples in selection.left_out.items()
        ],
        "warnings": list(_warnings(plan, per_epoch)),
    }


def _rows(plan: Plan, shares: list[Fraction], per_epoch: list[int], identities: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "stratum": one.name,
            "samples": len(one.members.ids),
            "identities": identities[i],
            "share": float(shares[i]),
            "per_batch": float(shares[i] * plan.batch_size),
            "per_epoch": per_epoch[i],
            "seen_per_epoch": per_epoch[i] / len(one.members.ids),
        }
        for i, one in enumerate(plan.strata)
    ]


def _per_epoch(plan: Plan, epoch: int) -> list[int]:
    """Return how many samples each stratum gives to an epoch."""
    before, after = (plan.counts_before(one * plan.batches_per_epoch) for one in (epoch, epoch + 1))
    return [end - start for start, end in zip(before, after, strict=True)]


def lines(plan: Plan) -> list[str]:
    """Return the same for a person."""
    report = to_json(plan)
    return [
        *(line for phase in report["phases"] for line in _table(phase, len(report["phases"]) > 1)),
        f"an epoch is {plan.batches_per_epoch} batches of {plan.batch_size}; {_classes(plan)}",
        *(f"{one['samples']} samples of {one['set']} stay out: {one['reason']}" for one in report["left_out"]),
        *(f"warning: {one}" for one in report["warnings"]),
    ]


def _table(phase: dict[str, Any], one_of_many: bool) -> Iterator[str]:
    if one_of_many:
        yield f"from epoch {phase['first_epoch']} on"
    width = max(24, *(len(row["stratum"]) for row in phase["strata"]))
    yield (
        f"{'stratum':{width}} {'samples':>9} {'identities':>10} {'share':>7} "
        f"{'a batch':>8} {'an epoch':>9} {'each sample':>11}"
    )
    for row in phase["strata"]:
        yield (
            f"{row['stratum']:{width}} {row['samples']:9} {row['identities']:10} {row['share']:7.2%} "
            f"{row['per_batch']:8.2f} {row['per_epoch']:9} {row['seen_per_epoch']:10.2f}x"
        )


def _classes(plan: Plan) -> str:
    if plan.mix.labels == "separate":
        heads = zip(plan.set_names, plan.num_classes, strict=True)
        return f"a head each: {', '.join(f'{number} classes of {name}' for name, number in heads)}"
    return f"{plan.num_classes[0]} classes"


def _warnings(plan: Plan, per_epoch: list[list[int]]) -> Iterator[str]:
    for selection in plan.selections.values():
        yield from selection.warnings
    for i, one in enumerate(plan.strata):
        seen = max(counts[i] for counts in per_epoch) / len(one.members.ids)
        if seen > 1:
            yield f"{one.name} has {len(one.members.ids)} samples, its share shows each {seen:.2f} times an epoch"
        least = min(shares[i] * plan.batch_size for _, shares in plan.shares if shares[i])
        if least < plan.unit:
            yield f"{one.name} gives {float(least):.2g} samples to a batch: not every batch holds any of it"
        if isinstance(one.members, Identities) and (few := int((one.members.counts < plan.unit).sum())):
            yield f"{few} identities of {one.name} have fewer than {plan.unit} images, so a visit repeats some"
