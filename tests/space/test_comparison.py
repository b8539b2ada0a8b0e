"""Divergences of covariances, and how they shrink as the probe grows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import space as reference
from tests.space.make import covariance, features

from taskatlas.errors import BadInput
from taskatlas.space import cka_matrix, gaussian_kl, matrix_cosine, probe_growth

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 10))
@settings(max_examples=40, deadline=None)
def test_divergence_is_the_reference(seed, m):
    one, other = covariance(seed, m), 2 * covariance(seed + 1, m)
    assert gaussian_kl(one, other) == pytest.approx(reference.gaussian_kl(one, other), abs=1e-9)
    assert gaussian_kl(one, one) == pytest.approx(0, abs=1e-10)
    assert gaussian_kl(one, other) >= 0
    assert matrix_cosine(one, other) == pytest.approx(reference.matrix_cosine(one, other), abs=1e-12)
    assert matrix_cosine(one, 3 * one) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "bad", [np.ones((2, 2)), np.diag([1.0, -1.0]), np.diag([-1.0, -1.0]), np.zeros((2, 2)), np.diag([1.0, 0.0])]
)
def test_a_covariance_that_is_not_positive_definite_has_no_divergence(bad):
    for pair in ((bad, np.eye(2)), (np.eye(2), bad)):
        with pytest.raises(BadInput, match="divergence is infinite"):
            gaussian_kl(*pair)


def test_growth_is_measured_against_the_whole_probe():
    made = features(0, 160, (6, 7, 8, 9))
    growth = probe_growth(made, repeats=3, seed=4)
    assert growth.sizes == (10, 20, 40, 80)
    assert growth.divergence.shape == growth.cosine.shape == (4, 3)
    full = cka_matrix([one.values for one in made])
    rows = np.sort(np.random.default_rng([4, 2, 1]).choice(160, size=40, replace=False))
    part = cka_matrix([one.values[rows] for one in made])
    assert growth.divergence[2, 1] == pytest.approx(reference.gaussian_kl(full, part), rel=1e-5)
    assert growth.cosine[2, 1] == pytest.approx(reference.matrix_cosine(full, part), rel=1e-6)
    assert growth.identity_divergence == pytest.approx(reference.gaussian_kl(full, np.eye(4)), rel=1e-6)
    assert growth.identity_cosine == pytest.approx(reference.matrix_cosine(full, np.eye(4)), rel=1e-6)
    medians = np.median(growth.divergence, axis=1)
    assert medians[0] > medians[1] > medians[2] > medians[3] > 0
    assert repr(growth).startswith(f"ProbeGrowth(10: {medians[0]:.3g} nats, 20: ")


def test_the_whole_probe_does_not_differ_from_itself():
    growth = probe_growth(features(1, 50, (5, 6)), sizes=[50], repeats=2)
    assert growth.divergence == pytest.approx(np.zeros((1, 2)), abs=1e-12)
    assert growth.cosine == pytest.approx(np.ones((1, 2)))


def test_the_order_of_the_features_changes_no_bit():
    made = features(2, 90, (6, 7, 8, 9))
    one, other = probe_growth(made, sizes=[30], repeats=2), probe_growth(made[::-1], sizes=[30], repeats=2)
    assert (one.divergence == other.divergence).all()
    assert (one.cosine == other.cosine).all()
    assert (probe_growth(made, sizes=[30], repeats=2, seed=1).divergence != one.divergence).all()


def test_other_kernels_grow_too():
    growth = probe_growth(features(3, 64, (6, 7)), sizes=[32], kernel="mutual_knn", repeats=2)
    assert (growth.divergence > 0).all()


@pytest.mark.parametrize("sizes", [[], [3], [10, 51], [0]])
def test_sizes_lie_within_the_probe(sizes):
    with pytest.raises(BadInput, match=r"between 4 and the probe's 50 samples; got \["):
        probe_growth(features(4, 50, (5, 6)), sizes=sizes)


def test_too_small_a_probe_has_nothing_to_grow_from():
    with pytest.raises(BadInput, match="the probe's 15 samples"):
        probe_growth(features(5, 15, (5, 6)))


def test_the_same_network_twice_has_no_divergence():
    made = features(6, 50, (5,))
    with pytest.raises(BadInput, match="drop duplicates"):
        probe_growth(made * 2, sizes=[20])


def test_what_map_refuses_is_refused(as_installed):
    with pytest.raises(BadInput, match="no kernel 'cosine'"):
        probe_growth(features(7, 50, (5, 6)), sizes=[20], kernel="cosine")
    with pytest.raises(BadInput, match="give at least one"):
        probe_growth([], sizes=[20])
    other = features(8, 40, (5,))
    with pytest.raises(BadInput, match="same samples"):
        probe_growth(features(7, 50, (5, 6)) + other, sizes=[20])
