"""Catalogs without files, for what only plans: set -> rows of (identity, tag, tag, ...)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.catalog import ORIGIN, Catalog, ShardFile
from pipeline.config import MixConfig
from pipeline.order import Ids, together
from shardgen.errors import UsageError

Rows = Sequence[tuple[Any, ...]]
"""Identity number, then a value for each axis; "unknown" is one."""


@dataclass(frozen=True)
class Simulated(Catalog):
    """A catalog whose further columns are given."""

    numbers: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """Set -> column -> a number for each sample."""

    def columns(self, set_name: str, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Return columns as the tables of a set would have them."""
        known = self.numbers.get(set_name, {"key": range(len(self.ids_of(set_name)))})
        if missing := [name for name in names if name not in known]:
            raise UsageError(f"set {set_name} has no column {missing[0]!r}")
        return {name: np.array(known[name], np.uint64 if name == "key" else np.float64) for name in names}


def catalog_of(
    sets: Mapping[str, Rows],
    axes: Sequence[str] = ("group",),
    *,
    per_shard: int = 10,
    synthetic: Sequence[str] = (),
    numbers: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Simulated:
    """Return a catalog of these sets; an identity's name is its number."""
    rows = [row for one in sets.values() for row in one]
    identities = [(name, str(number)) for name, one in sets.items() for number in sorted({row[0] for row in one})]
    label_of = {identity: label for label, identity in enumerate(identities)}
    labels = [label_of[name, str(row[0])] for name, one in sets.items() for row in one]
    values = {axis: ["unknown", *sorted({row[i] for row in rows} - {"unknown"})] for i, axis in enumerate(axes, 1)}
    starts = np.cumsum([0, *map(len, sets.values())]).tolist()
    return Simulated(
        set_starts=dict(zip(sets, starts, strict=False)),
        origins={name: "synthetic" if name in synthetic else "authentic" for name in sets},
        shards=[
            ShardFile(Path(f"{name}.tar"), 0, "", first)
            for name, start, stop in zip(sets, starts, starts[1:], strict=False)
            for first in range(start, stop, per_shard)
        ],
        identities=identities,
        axes={ORIGIN: ["unknown", "authentic", "synthetic"], **values},
        image_sizes=frozenset({(112, 112)}),
        digest="0" * 64,
        label=np.array(labels, np.int32),
        block=np.zeros(len(rows), np.uint32),
        size=np.zeros(len(rows), np.int32),
        tags={axis: np.array([values[axis].index(row[i]) for row in rows], np.uint8) for i, axis in enumerate(axes, 1)},
        numbers=numbers or {},
    )


def vast_catalog(num_samples: int, per_identity: int = 20) -> Simulated:
    """Return one set, `real`, of 4 groups that is as large as asked for."""
    label = (np.arange(num_samples) // per_identity).astype(np.int32)
    return Simulated(
        set_starts={"real": 0},
        origins={"real": "authentic"},
        shards=[ShardFile(Path("real.tar"), 0, "", first) for first in range(0, num_samples, 10_000)],
        identities=[("real", "somebody")] * (int(label[-1]) + 1),
        axes={ORIGIN: ["unknown", "authentic", "synthetic"], "group": ["unknown", "a", "b", "c", "d"]},
        image_sizes=frozenset({(112, 112)}),
        digest="0" * 64,
        label=label,
        block=np.zeros(0, np.uint32),
        size=np.zeros(0, np.int32),
        tags={"group": (label % 4 + 1).astype(np.uint8)},
    )


def mix_of(sets: Mapping[str, Mapping[str, Any]], **options: Any) -> MixConfig:
    """Return a mix as a recipe would state it."""
    parts = {name: {"path": f"data/{name}", **one} for name, one in sets.items()}
    return MixConfig.model_validate({"sets": parts, **options})


def met_at(members: Any, positions: Ids, key: int) -> tuple[Ids, Ids]:
    """Return the sample ids and passes at some positions of a stratum's members."""
    ((ids, passes),) = together([members.at(positions, key)])
    return ids, passes
