"""Which faces are compared, as a file lists it, and folds for them that share no identity.

A threshold is chosen on all folds but one and tried on that one; an identity on both sides would flatter it.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from eval.faces import Faces
from eval.protocols import Labels
from eval.verification import Folds, Same
from shardgen.errors import DataError, UsageError

_ANSWERS = {"1": 1, "true": 1, "0": 0, "false": 0, "": -1}


@dataclass(frozen=True)
class FacePairs:
    """Comparisons of faces."""

    rows: Labels
    """`[pairs, 2]`: which faces."""
    same: Same
    """`[pairs]`: whether both are of one identity."""
    folds: Folds | None
    """The fold of each pair; None where the list has none."""
    num_dropped: int = 0
    """Listed pairs that are left out, so that folds share no identity."""


@dataclass(frozen=True)
class _Listed:
    line: int
    first: str
    second: str
    same: int
    """-1 where the list leaves it to the identities."""
    fold: str


def read_pairs(path: Path, faces: Faces, sources: Sequence[str] = ()) -> FacePairs:
    """Read a list of pairs of faces, named by their keys or, where a set tells them, by their `[faces]` sources.

    A CSV has the columns `first`, `second` and, if you like, `same` (0, 1, true, false or nothing) and `fold` (any
    text); all names in it are keys, or all are sources. A `.txt` is LFW's `pairs.txt`: its `NAME 1` is the face whose
    source ends in `NAME/NAME_0001`, whatever follows the dot.

    Raises `UsageError` when it is no such file, `DataError` for a name that is of no face or of two, an answer that
    the identities contradict, a face compared with itself, or when all pairs are of one kind.
    """
    if path.suffix == ".txt":
        listed = list(_read_lfw(path))
        rows = _find(path, listed, {"source": [_stem(source) for source in sources]})
    else:
        listed = list(_read_csv(path))
        rows = _find(path, listed, {"key": faces.keys, "source": sources})
    first, second = faces.identities[rows].T
    answers, same = np.array([one.same for one in listed]), first == second
    for wrong in np.flatnonzero(rows[:, 0] == rows[:, 1])[:1]:
        raise DataError(f"{_where(path, listed[wrong])}: {listed[wrong].first} is compared with itself; remove it")
    for wrong in np.flatnonzero((answers >= 0) & (answers != same))[:1]:
        one = listed[wrong]
        raise DataError(
            f"{_where(path, one)}: {one.first} and {one.second} are {'' if same[wrong] else 'not '}of one identity, "
            f"the list says {'they are' if one.same else 'they are not'}; correct the list"
        )
    if same.all() or not same.any():
        raise DataError(f"{path} lists {int(same.sum())} genuine of {len(same)} pairs; list pairs of both kinds")
    folds, fold_of = np.unique([one.fold for one in listed], return_inverse=True)
    return FacePairs(rows, same, fold_of.astype(np.int64) if len(folds) > 1 else None)


def _where(path: Path, one: _Listed) -> str:
    return f"{path} line {one.line}"


def _find(path: Path, listed: Sequence[_Listed], columns: Mapping[str, Sequence[str]]) -> Labels:
    """Return `[pairs, 2]` rows: in the first of the columns that has the first name."""
    wanted = {name for one in listed for name in (one.first, one.second)}
    for column, names in columns.items():
        row_of: dict[str, int] = {}
        for row, name in enumerate(names):
            if name in wanted and row_of.setdefault(name, row) != row:
                raise DataError(f"{path}: two faces have the {column} {name}; list the pairs by key")
        if listed[0].first in row_of:
            break
    for one in listed:
        for name in (one.first, one.second):
            if name not in row_of:
                raise DataError(f"{_where(path, one)}: {name!r} is no {column} of a face; correct the name")
    return np.array([(row_of[one.first], row_of[one.second]) for one in listed], np.int64)


def _read_csv(path: Path) -> Iterator[_Listed]:
    lines = csv.DictReader(_lines(path), restval="")
    if not {"first", "second"} <= set(lines.fieldnames or ()):
        columns = ", ".join(lines.fieldnames or ["(none)"])
        raise UsageError(f"{path}: columns {columns} lack first or second; name them in its first line")
    for row in lines:
        answer = row.get("same", "").strip()
        if answer.lower() not in _ANSWERS:
            raise DataError(f"{path} line {lines.line_num}: same is {answer!r}; write 0, 1, true, false or nothing")
        pair = row["first"].strip(), row["second"].strip()
        yield _Listed(lines.line_num, *pair, _ANSWERS[answer.lower()], row.get("fold", "").strip())


def _read_lfw(path: Path) -> Iterator[_Listed]:
    """Read `folds pairs`, then for each fold so many lines `name 1 2` and as many `name 1 other 2`."""
    header, *lines = [line.split() for line in _lines(path)]
    if not header or len(header) > 2 or not all(word.isdecimal() for word in header):
        raise DataError(f"{path}: its first line is {' '.join(header)!r}; LFW's is the number of folds and of pairs")
    per_fold = 2 * int(header[-1])
    for number, words in enumerate(lines):
        if len(words) not in (3, 4) or not (words[1] + words[-1]).isdecimal():
            raise DataError(f"{path} line {number + 2}: {' '.join(words)!r} is neither NAME 1 2 nor NAME 1 OTHER 2")
        names = _lfw_name(words[0], words[1]), _lfw_name(words[-2] if len(words) == 4 else words[0], words[-1])
        yield _Listed(number + 2, *names, int(len(words) == 3), f"{number // per_fold:06d}")


def _lfw_name(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}"


def _stem(source: str) -> str:
    """Return a file's folder and name without what follows the dot."""
    path = PurePosixPath(source)
    return f"{path.parent.name}/{path.stem}"


def _lines(path: Path) -> Iterable[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a CSV with the columns first and second") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from None
    if len(lines) < 2:
        raise DataError(f"{path} lists no pair; write one a line below its first line")
    return lines


def disjoint_folds(pairs: FacePairs, faces: Faces, num_folds: int = 10) -> FacePairs:
    """Return the pairs in folds of about equal size, no identity in two of them.

    Identities that are compared, directly or through others, stay together where no such cluster is larger than a
    fold, as in lists that were drawn fold by fold: no pair is lost. Else identities are dealt out to the folds, and
    impostor pairs between folds are dropped, of a random list all but one in `num_folds`.
    Raises `DataError` when a fold is left without pairs.
    """
    people, ends = np.unique(faces.identities[pairs.rows], return_inverse=True)
    first, second = ends.reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(people), len(people)))
    _, cluster = connected_components(graph, directed=False)
    if np.bincount(cluster[first]).max() > -(-len(first) // num_folds):
        cluster = np.arange(len(people))
    fold = _deal(np.bincount(cluster[np.append(first, second)]), num_folds)[cluster]
    kept = fold[first] == fold[second]
    if np.bincount(fold[first[kept]], minlength=num_folds).min() < 1:
        raise DataError(f"{len(people)} identities are too few for {num_folds} folds that share none; add pairs")
    dropped = int((~kept).sum())
    return replace(pairs, rows=pairs.rows[kept], same=pairs.same[kept], folds=fold[first[kept]], num_dropped=dropped)


def _deal(sizes: npt.NDArray[np.int64], num_folds: int) -> Folds:
    """Return a fold for each cluster: the largest first, each to the fold that holds least."""
    fold, held = np.empty(len(sizes), np.int64), np.zeros(num_folds, np.int64)
    for cluster in np.argsort(-sizes, kind="stable").tolist():
        fold[cluster] = held.argmin()
        held[fold[cluster]] += sizes[cluster]
    return fold
