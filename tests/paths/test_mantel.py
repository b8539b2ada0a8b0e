"""Mantel tests: Spearman's correlation, its permutations, a confounder, and distances in a hierarchy."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from taskatlas.errors import BadInput
from taskatlas.paths import difference_matrix, hierarchy_distances, mantel


def distances(seed, count=9):
    points = np.random.default_rng(seed).normal(size=(count, 2))
    return np.linalg.norm(points[:, None] - points, axis=-1)


def test_it_is_spearmans_correlation_of_the_pairs():
    A, B = distances(0), distances(1)
    above = np.triu_indices(9, 1)
    assert mantel(A, B).correlation == pytest.approx(spearmanr(A[above], B[above]).statistic, abs=1e-12)
    assert mantel(A, np.exp(A)).correlation == pytest.approx(1)


def test_a_confounder_is_taken_out():
    A, B, C = (distances(seed, 12) for seed in range(3))
    above = np.triu_indices(12, 1)
    a, b, c = (rankdata(matrix[above]) for matrix in (A, B, C))

    def residual(x):
        design = np.stack([np.ones_like(c), c], 1)
        return x - design @ np.linalg.lstsq(design, x, rcond=None)[0]

    expected = np.corrcoef(residual(a), residual(b))[0, 1]
    assert mantel(A, B, C).correlation == pytest.approx(expected, abs=1e-12)


def test_the_confounder_explains_what_is_nothing_else():
    counts = np.arange(1, 16) ** 1.5
    C = difference_matrix(counts)
    A, B = C + 2 * distances(0, 15), C + 2 * distances(1, 15)
    assert mantel(A, B).p_value < 0.01
    assert mantel(A, B, C).p_value > 0.05
    assert mantel(C, 2 * C, C).correlation == 0.0


def test_p_values_are_even_where_there_is_nothing():
    found = [mantel(distances(seed, 6), distances(seed + 500, 6), permutations=19).p_value for seed in range(200)]
    assert 0.4 < np.mean(found) < 0.65
    assert np.mean(np.array(found) <= 0.05) < 0.12


def test_it_is_fixed_by_its_seed_and_reads():
    A, B = distances(0), distances(1)
    assert (mantel(A, B, seed=3).null == mantel(A, B, seed=3).null).all()
    assert (mantel(A, B, seed=3).null != mantel(A, B, seed=4).null).any()
    assert "999 permutations" in repr(mantel(A, B))


@pytest.mark.parametrize(
    ("A", "B", "words"),
    [
        (distances(0), distances(1, 8), "same tasks"),
        (distances(0, 3), distances(1, 3), "four"),
        (np.triu(distances(0)), distances(1), "symmetric"),
        (distances(0), np.full((9, 9), np.nan), "finite"),
        (distances(0), 1 - np.eye(9), "alike"),
    ],
)
def test_matrices_that_are_none(A, B, words):
    with pytest.raises(BadInput, match=words):
        mantel(A, B)


@pytest.mark.parametrize("permutations", [0, -1])
def test_a_test_without_permutations(permutations):
    with pytest.raises(BadInput, match="at least 1 permutation"):
        mantel(distances(0), distances(1), permutations=permutations)


PARENTS = {"cat": "animal", "dog": "animal", "animal": "thing", "truck": "thing", "lost": "elsewhere"}


def test_hierarchies():
    found = hierarchy_distances(["dog", "truck", "animal", "cat"], PARENTS)
    assert found.tolist() == [[0, 3, 1, 2], [3, 0, 2, 3], [1, 2, 0, 1], [2, 3, 1, 0]]


def test_hierarchies_that_are_none():
    with pytest.raises(BadInput, match="'cow'"):
        hierarchy_distances(["cat", "cow"], PARENTS)
    with pytest.raises(BadInput, match="common ancestor"):
        hierarchy_distances(["cat", "lost"], PARENTS)
    with pytest.raises(BadInput, match="circle"):
        hierarchy_distances(["a", "b"], {"a": "b", "b": "a"})
