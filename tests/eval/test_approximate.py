"""Approximate search says how much it finds."""

import numpy as np
import pytest

from eval.approximate import approximate_search
from eval.gallery import Gallery
from shardgen.errors import UsageError
from tests.eval.faces_support import unit_rows


def test_recall_is_the_share_of_best_identities_among_the_candidates_and_scores_are_exact() -> None:
    rng = np.random.default_rng(0)
    gallery = Gallery(unit_rows(rng, 12_000), np.arange(12_000) + 7)
    probes = unit_rows(rng, 300)
    exact = probes @ gallery.templates.T
    recalls = []
    for visited in (0.01, 1.0):
        found = approximate_search(gallery, probes, candidates=5, visited=visited)
        best = exact.argmax(1) + 7
        recalls.append(found.recall)
        assert found.recall == pytest.approx((found.candidates == best[:, None]).any(1).mean())
        held = found.candidates >= 0
        np.testing.assert_allclose(
            found.scores[held], exact[np.nonzero(held)[0], found.candidates[held] - 7], atol=1e-6
        )
        assert (np.diff(np.nan_to_num(found.scores, nan=-2), axis=1) <= 0).all()
    assert recalls[0] < recalls[1]


@pytest.mark.parametrize(("number", "size"), [(12_000, 12), (100, 16)])
def test_what_cannot_be_coded_is_refused(number: int, size: int) -> None:
    faces = unit_rows(np.random.default_rng(0), number, size)
    with pytest.raises(UsageError, match=f"{number} templates of {size} are not for approximate search"):
        approximate_search(Gallery(faces, np.arange(number)), faces[:3])
