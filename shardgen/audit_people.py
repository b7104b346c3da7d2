"""Is one person there under two names? The centres of identities are compared, each with each.

An identity's centre is the mean of its images' embeddings, scaled to length 1. Two identities pass for one person when
the cosine of their centres is above that of a typical identity with itself: cut an identity's images in two halves,
compare the halves' centres, take the median over the identities. So encoder and data set the limit themselves, and a
person who is there twice is found more often than not, since centres of all images vary less than those of halves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from shardgen.audit_samples import Numbers, Pair, Samples, table
from shardgen.errors import UsageError

Embeddings = npt.NDArray[np.float32]
LISTED = 10_000
CLOSEST = 10
_QUERIES = 1_024


@dataclass(frozen=True)
class Overlap:
    """How much alike identities are, within sets and across."""

    num_identities: int
    threshold: float
    """Cosine above which two identities pass for one person."""
    own_similarity: float | None
    """Median over the identities of the cosine of their halves; None when none has two images."""
    nearest_similarity: float
    """Median over the identities of the cosine with the nearest other one."""
    num_pairs: int
    """Pairs of identities above the threshold."""
    num_across_sets: int
    """Those of them from two sets."""
    pairs: Sequence[Pair]
    """The first image of each, most alike first: at most 10,000 above the threshold, or the 10 closest of all."""

    def lines(self) -> list[str]:
        """Return what a person reads."""
        own = "no identity has two images" if self.own_similarity is None else f"{self.own_similarity:.3f} with itself"
        return [
            f"people under two names: {self.num_pairs} pairs of {self.num_identities} identities above similarity "
            f"{self.threshold:.3f}, {self.num_across_sets} across sets "
            f"(a typical identity: {own}, {self.nearest_similarity:.3f} with the nearest other)",
            *table(self.pairs, self.num_pairs),
        ]


@dataclass(frozen=True)
class _Alike:
    """Pairs of identities, and their cosine."""

    first: Numbers
    second: Numbers
    cosine: Embeddings

    def best(self, number: int) -> "_Alike":
        """Return the pairs that are most alike, each once."""
        _, once = np.unique(np.stack([self.first, self.second]), axis=1, return_index=True)
        kept = once[np.argsort(-self.cosine[once], kind="stable")[:number]]
        return _Alike(self.first[kept], self.second[kept], self.cosine[kept])


def overlapping_identities(
    samples: Samples, embeddings: Sequence[Embeddings], threshold: float | None = None
) -> Overlap:
    """Compare all identities, given for each set `[samples, dim]` embeddings of length 1 in the set's order."""
    people, rows = np.unique(samples.identities, return_index=True)
    if len(people) < 2:
        raise UsageError("there is one identity alone; give sets with at least two to compare")
    halves = np.concatenate(list(_half_sums(samples, embeddings)))
    own = (_unit(halves[:, 0]) * _unit(halves[:, 1])).sum(1)[halves[:, 1].any(1)]
    own_similarity = float(np.median(own)) if len(own) else None
    limit = own_similarity if threshold is None else threshold
    if limit is None:
        raise UsageError(
            "no identity has two images, so the data set no limit; give the similarity above which to report"
        )
    sets = samples.set_numbers[rows]
    kept: list[_Alike] = []
    nearest: list[Embeddings] = []
    num_pairs = num_across_sets = 0
    for above, closest in _search(_unit(halves.sum(1)), limit):
        num_pairs += len(above.first)
        num_across_sets += int((sets[above.first] != sets[above.second]).sum())
        nearest.append(closest.cosine)
        kept = [_joined([*kept, above, closest]).best(LISTED)]
    best = kept[0].best(max(num_pairs, CLOSEST))
    return Overlap(
        num_identities=len(people),
        threshold=limit,
        own_similarity=own_similarity,
        nearest_similarity=float(np.median(np.concatenate(nearest))),
        num_pairs=num_pairs,
        num_across_sets=num_across_sets,
        pairs=samples.pairs("alike", rows[best.first], rows[best.second], best.cosine),
    )


def _half_sums(samples: Samples, embeddings: Sequence[Embeddings]) -> Iterator[Embeddings]:
    """Yield for each set `[identities, 2, dim]`: sums over every other image of an identity."""
    for name, start, end, given in zip(samples.names, samples.starts[:-1], samples.starts[1:], embeddings, strict=True):
        if len(given) != end - start:
            raise UsageError(f"{name}: {len(given)} embeddings for {end - start} samples; embed the set as it is now")
        _, labels, counts = np.unique(samples.identities[start:end], return_inverse=True, return_counts=True)
        order = np.argsort(labels, kind="stable")
        half = np.empty_like(order)
        half[order] = (np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)) % 2
        cells = 2 * labels + half, np.arange(len(order))
        sums = csr_array((np.ones(len(order), np.float32), cells), shape=(2 * len(counts), len(order))) @ given
        yield sums.reshape(len(counts), 2, -1)


def _unit(vectors: Embeddings) -> Embeddings:
    """Scale to length 1; what is zero stays it."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Embeddings = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def _search(centres: Embeddings, threshold: float) -> Iterator[tuple[_Alike, _Alike]]:
    """Yield, block by block, all pairs above the threshold, each once, and each identity with its nearest other one."""
    index = faiss.IndexFlatIP(centres.shape[1])
    index.add(centres)
    for start in range(0, len(centres), _QUERIES):
        block = centres[start : start + _QUERIES]
        asked = np.arange(start, start + len(block))
        ends, cosines, found = index.range_search(block, threshold)
        asking = np.repeat(asked, (ends[1:] - ends[:-1]).astype(np.int64))
        once = asking < found
        two, near = index.search(block, 2)
        other = np.arange(len(block)), (near[:, 0] == asked).astype(np.int64)
        closest = _Alike(np.minimum(asked, near[other]), np.maximum(asked, near[other]), two[other])
        yield _Alike(asking[once], found[once], cosines[once]), closest


def _joined(parts: Sequence[_Alike]) -> _Alike:
    columns = zip(*((one.first, one.second, one.cosine) for one in parts), strict=True)
    return _Alike(*map(np.concatenate, columns))
