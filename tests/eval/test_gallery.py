"""Enrolment."""

import numpy as np
import pytest

from eval.gallery import Gallery, enrol
from shardgen.errors import DataError
from tests.eval.faces_support import unit_rows

IDENTITIES = np.array([9, 2, 9, 5, 2, 9, 5])


def test_templates_are_normalised_means_in_the_order_of_identities() -> None:
    embeddings = unit_rows(np.random.default_rng(0), 7)
    gallery = enrol(embeddings, IDENTITIES)
    assert gallery.identities.tolist() == [2, 5, 9]
    for identity, template in zip(gallery.identities, gallery.templates, strict=True):
        mean = embeddings[identity == IDENTITIES].mean(0)
        np.testing.assert_allclose(template, mean / np.linalg.norm(mean), rtol=1e-5)


def test_each_image_can_be_a_template_beside_the_others_of_its_identity() -> None:
    embeddings = unit_rows(np.random.default_rng(0), 7)
    gallery = enrol(embeddings, IDENTITIES, "each")
    assert gallery.identities.tolist() == [2, 2, 5, 5, 9, 9, 9]
    assert gallery.enrolled.tolist() == [2, 5, 9]
    assert gallery.starts.tolist() == [0, 2, 4, 7]
    np.testing.assert_array_equal(gallery.templates, embeddings[[1, 4, 3, 6, 0, 2, 5]])


def test_identities_enrolled_twice_are_refused_where_one_image_each_is_promised() -> None:
    embeddings = unit_rows(np.random.default_rng(0), 7)
    with pytest.raises(DataError, match=r"3 of 3 .* identity number 9, 3 times; leave one"):
        enrol(embeddings, IDENTITIES, "single")
    assert enrol(embeddings[:2], IDENTITIES[:2], "single").identities.tolist() == [2, 9]


def test_a_part_has_the_templates_of_its_identities_in_the_order_given() -> None:
    embeddings = unit_rows(np.random.default_rng(0), 7)
    part = enrol(embeddings, IDENTITIES, "each").part(np.array([2, 0]))
    assert part.identities.tolist() == [9, 9, 9, 2, 2]
    np.testing.assert_array_equal(part.templates, embeddings[[0, 2, 5, 1, 4]])


def test_positions_are_found_in_any_order_and_strangers_have_none() -> None:
    gallery = Gallery(unit_rows(np.random.default_rng(0), 4), np.array([7, 7, 3, 5]))
    assert gallery.positions(np.array([5, 7, 4, 9, 3])).tolist() == [2, 0, -1, -1, 1]
