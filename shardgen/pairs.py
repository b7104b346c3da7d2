"""Which images of a set a verification compares: listed in a table, or drawn as the field's protocols have them.

Ten folds in a row, each with as many genuine as impostor pairs. A threshold is chosen on nine folds and
tried on the tenth, so wherever there are enough identities, no two folds share one.
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardgen.errors import DataError, UsageError
from shardgen.shardset import ShardSet

NUM_FOLDS = 10
_ANSWERS = {"1": True, "true": True, "0": False, "false": False, "": None}

Rows = npt.NDArray[np.int64]
Groups = npt.NDArray[np.int16]
_Drawn = list[tuple[int, int]]


@dataclass(frozen=True)
class Pairs:
    """Comparisons of a set's images."""

    rows: Rows
    """`[pairs, 2]`: positions in the set."""
    same: npt.NDArray[np.bool_]
    """`[pairs]`: whether both are of one identity."""
    note: str
    """Where they come from, for a person."""


def read_pairs(shards: ShardSet, path: Path) -> Pairs:
    """Read a CSV with columns `first`, `second` and, if you like, `same` (0, 1, true, false or nothing).

    All names are keys of samples, or all are their sources. Raises `UsageError` when it is no such table,
    `DataError` for a name the set does not have or an answer that its identities contradict.
    """
    listed = _read_list(path)
    names = [name for _, *pair, _ in listed for name in pair]
    column, row_of = _find(shards, names)
    identities = shards.table(["identity"])["identity"].to_numpy()
    for line, first, second, answer in listed:
        where = f"{path} line {line}"
        for name in (first, second):
            if name not in row_of:
                raise DataError(f"{where}: {name!r} is no {column} of a sample in {shards.folder}; correct the name")
        if first == second:
            raise DataError(f"{where}: {first} is compared with itself; remove the line")
        same = identities[row_of[first]] == identities[row_of[second]]
        if answer not in (None, same):
            raise DataError(
                f"{where}: {first} and {second} are {'' if same else 'not '}of one identity, "
                f"same says {int(answer)}; correct it, or leave the column out"
            )
    rows = np.array([row_of[name] for name in names], np.int64).reshape(-1, 2)
    return Pairs(rows, identities[rows[:, 0]] == identities[rows[:, 1]], f"listed in {path}")


def _read_list(path: Path) -> list[tuple[int, str, str, bool | None]]:
    """Return line number, first, second and answer of every row."""
    if not path.is_file():
        raise UsageError(f"{path} is no file; give a CSV with the columns first, second and, if you like, same")
    listed: list[tuple[int, str, str, bool | None]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.DictReader(stream, restval="")
            if not {"first", "second"} <= set(lines.fieldnames or ()):
                columns = ", ".join(lines.fieldnames or ["(none)"])
                raise UsageError(f"{path}: columns {columns} lack first or second; name them in its first line")
            for row in lines:
                answer = row.get("same", "").strip()
                if answer.lower() not in _ANSWERS:
                    raise DataError(
                        f"{path} line {lines.line_num}: same is {answer!r}; write 0, 1, true, false or nothing"
                    )
                pair = row["first"].strip(), row["second"].strip()
                listed.append((lines.line_num, *pair, _ANSWERS[answer.lower()]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}") from None
    if not listed:
        raise DataError(f"{path} lists no pair; write one a line below first,second")
    return listed


def _find(shards: ShardSet, names: Sequence[str]) -> tuple[str, dict[str, int]]:
    """Return which column holds the names, keys first, and the position of each that is there."""
    wanted = set(names)
    for column in ("key", "source"):
        row_of: dict[str, int] = {}
        found = chain.from_iterable(table[column].to_pylist() for table in shards.tables([column]))
        for row, name in enumerate(found):
            if name in wanted and row_of.setdefault(name, row) != row:
                raise DataError(f"{shards.folder} has two samples with {column} {name}; list pairs by key")
        if names[0] in row_of:
            break
    return column, row_of


def draw_pairs(shards: ShardSet, num_pairs: int, seed: int = 0, within: str | None = None) -> Pairs:
    """Draw distinct pairs for ten folds, the genuine of each fold before its impostors.

    Every identity is as likely as any other. `within` names a tag axis: both images of an impostor pair
    then have the same value, known, as RFW's have. Folds share no identity unless there are too few.
    Raises `UsageError` for a number that ten folds cannot halve or an unknown axis, `DataError` when the
    set does not hold that many pairs.
    """
    per_fold, rest = divmod(num_pairs, 2 * NUM_FOLDS)
    if per_fold < 1 or rest:
        raise UsageError(
            f"{num_pairs} pairs cannot be {NUM_FOLDS} folds with as many genuine as impostor pairs; "
            f"ask for a multiple of {2 * NUM_FOLDS}, such as {2 * NUM_FOLDS * max(per_fold, 1)}"
        )
    if within is not None and within not in shards.manifest.axes:
        axes = ", ".join(shards.manifest.axes) or "none"
        raise UsageError(f"{shards.folder} has no tag axis {within!r} to draw impostors within; it has {axes}")
    groups = None if within is None else shards.table([within])[within].to_numpy()
    rng = np.random.default_rng(seed)
    people = _people(shards, rng)
    folds = [people[fold::NUM_FOLDS] for fold in range(NUM_FOLDS)]
    if min(_capacity(fold, groups) for fold in folds) >= per_fold:
        drawn = np.stack([_draw(rng, fold, groups, per_fold) for fold in folds])
        note = "folds share no identity"
    else:
        _refuse_too_many(shards, num_pairs, _capacity(people, groups))
        together = _draw(rng, people, groups, NUM_FOLDS * per_fold)
        drawn = together.reshape(2, NUM_FOLDS, per_fold, 2).swapaxes(0, 1)
        note = f"folds share identities, {len(people)} are too few to keep them apart"
    same = np.tile(np.repeat([True, False], per_fold), NUM_FOLDS)
    within_note = "" if within is None else f", impostors within {within}"
    return Pairs(drawn.reshape(-1, 2), same, f"drawn with seed {seed}{within_note}; {note}")


def _people(shards: ShardSet, rng: np.random.Generator) -> list[Rows]:
    """Return each identity's rows, most images first and else in random order, so that every tenth is a fair share."""
    identities = shards.table(["identity"])["identity"].to_numpy()
    order = np.argsort(identities, kind="stable")
    people = np.split(order, np.flatnonzero(np.diff(identities[order])) + 1)
    ranks = np.lexsort((rng.random(len(people)), np.array([-len(rows) for rows in people])))
    return [people[rank] for rank in ranks.tolist()]


def _by_group(people: Sequence[Rows], groups: Groups | None) -> list[list[Rows]]:
    """Return the rows of each identity, group by group; what is unknown is no group."""
    if groups is None:
        return [list(people)]
    members: dict[int, list[Rows]] = defaultdict(list)
    for rows in people:
        for group in set(groups[rows].tolist()) - {0}:
            members[group].append(rows[groups[rows] == group])
    return [members[group] for group in sorted(members)]


def _capacity(people: Sequence[Rows], groups: Groups | None) -> int:
    """Return how many distinct pairs there are of the rarer kind, genuine or impostor."""
    genuine = sum(len(rows) * (len(rows) - 1) for rows in people)
    counts = [np.array([len(rows) for rows in members]) for members in _by_group(people, groups)]
    impostors = sum(int(count.sum() ** 2 - (count**2).sum()) for count in counts)
    return min(genuine, impostors) // 2


def _refuse_too_many(shards: ShardSet, num_pairs: int, capacity: int) -> None:
    possible = capacity // NUM_FOLDS * NUM_FOLDS * 2
    if num_pairs > possible:
        raise DataError(
            f"{shards.folder} has too few images for {num_pairs} distinct pairs; ask for at most {possible}"
        )


def _draw(rng: np.random.Generator, people: Sequence[Rows], groups: Groups | None, count: int) -> Rows:
    """Return `[2, count, 2]`: distinct genuine pairs, distinct impostor pairs."""
    return np.array([_genuine(rng, people, count), _impostors(rng, _by_group(people, groups), count)], np.int64)


def _genuine(rng: np.random.Generator, people: Sequence[Rows], count: int) -> _Drawn:
    """Draw in rounds: each identity that has another pair gives one."""
    drawn: dict[tuple[int, int], None] = {}
    left = {person: len(rows) * (len(rows) - 1) // 2 for person, rows in enumerate(people) if len(rows) > 1}
    while len(drawn) < count:
        for person in rng.permutation(list(left))[: count - len(drawn)].tolist():
            pair = _two_of(rng, people[person])
            while pair in drawn:
                pair = _two_of(rng, people[person])
            drawn[pair] = None
            left[person] -= 1
        left = {person: number for person, number in left.items() if number}
    return list(drawn)


def _two_of(rng: np.random.Generator, rows: Rows) -> tuple[int, int]:
    first, second = sorted(rng.choice(rows, 2, replace=False).tolist())
    return first, second


def _impostors(rng: np.random.Generator, members_of_group: Sequence[Sequence[Rows]], count: int) -> _Drawn:
    """Draw an identity, then another one of its group, then an image of each."""
    drawn: dict[tuple[int, int], None] = {}
    first_of = [(members, one) for members in members_of_group if len(members) > 1 for one in range(len(members))]
    while len(drawn) < count:
        members, one = first_of[int(rng.integers(len(first_of)))]
        other = (one + int(rng.integers(1, len(members)))) % len(members)
        first, second = sorted((int(rng.choice(members[one])), int(rng.choice(members[other]))))
        drawn[first, second] = None
    return list(drawn)
