"""The references themselves, on cases that can be checked by hand."""

import numpy as np
import pytest
from tests.references import tasks as reference


def test_similarity_renames_classes():
    assert reference.similarity(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])) == 1
    assert reference.similarity(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == 0.5
    assert reference.similarity(np.array([0, 1, 2]), np.array([2, 0, 1])) == 1


def test_uniformity_is_eight_for_one_point_and_zero_for_poles():
    assert reference.uniformity(np.ones((3, 1))) == pytest.approx(8)
    assert reference.uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(0)


def test_information_of_a_task_with_itself_is_its_entropy():
    hard = np.eye(2)[[0, 1]]
    assert reference.pairwise_information(np.stack([hard, hard])) == pytest.approx(np.log(2))
