"""Every kernel against its definition written out in float64, in both forms, and with what it must refuse."""

from sys import modules

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import space as reference
from tests.space.make import related

from taskatlas.errors import BadInput
from taskatlas.space import cka, cka_matrix, minibatch_cka, mutual_knn_matrix, procrustes_matrix, rbf_cka_matrix
from taskatlas.space.cka import _product_sums, _tiles_are_cheaper, minibatch_cka_matrix
from taskatlas.space.kernels import KERNELS, find_kernel
from taskatlas.space.samples import centre_all

# Samples and widths that force each form of the arithmetic; more than one tile of 256, and a remainder.
TILES = (280, (290, 40))
PRODUCTS = (280, (6, 1, 9))
SMALL = (40, (5, 70, 1))

REFERENCES = {
    "cka": reference.linear_cka,
    "debiased_cka": reference.debiased_cka,
    "rbf_cka": reference.rbf_cka,
    "procrustes": reference.procrustes_similarity,
    "mutual_knn": lambda X, Y: reference.mutual_knn(X, Y, 10),
}


def table(function, rows, columns):
    return np.array([[function(X, Y) for Y in columns] for X in rows])


def used_form(features, against=None):
    return "tiles" if _tiles_are_cheaper(*centre_all(features, against)) else "products"


def test_the_shapes_here_force_both_forms():
    assert used_form(related(0, *TILES)) == "tiles"
    assert used_form(related(0, *PRODUCTS)) == "products"


@pytest.mark.parametrize("shape", [TILES, PRODUCTS, SMALL])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-10)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_linear_cka_is_the_reference(shape, dtype, tolerance, offset):
    features = related(1, *shape, dtype, offset)
    expected = table(reference.linear_cka, features, features)
    assert cka_matrix(features) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("shape", [TILES, PRODUCTS, SMALL])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-10)])
def test_debiased_cka_is_the_reference(shape, dtype, tolerance):
    features = related(2, *shape, dtype)
    expected = table(reference.debiased_cka, features, features)
    assert cka_matrix(features, debiased=True) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("debiased", [False, True])
def test_both_forms_agree(debiased, monkeypatch):
    features = related(3, 600, (30, 4, 80))
    monkeypatch.setattr(modules["taskatlas.space.cka"], "_tiles_are_cheaper", lambda *_: True)
    tiles = cka_matrix(features, debiased=debiased)
    monkeypatch.setattr(modules["taskatlas.space.cka"], "_tiles_are_cheaper", lambda *_: False)
    assert cka_matrix(features, debiased=debiased) == pytest.approx(tiles, abs=1e-12)


def test_products_are_summed_over_blocks(monkeypatch):
    features = related(4, 1000, (3, 5))
    expected = cka_matrix(features)
    monkeypatch.setattr(modules["taskatlas.space.cka"], "BLOCK", 64)
    monkeypatch.setattr("taskatlas.space.samples.BLOCK", 64)
    assert used_form(features) == "products"
    assert cka_matrix(features) == pytest.approx(expected, abs=1e-12)
    assert _product_sums(*centre_all(features, None)).diagonals.shape == (2, 1000)
    assert procrustes_matrix(features) == pytest.approx(table(reference.procrustes_similarity, features, features))


@pytest.mark.parametrize("name", list(REFERENCES))
@pytest.mark.parametrize("shape", [SMALL, (60, (3, 2))])
def test_every_kernel_is_its_reference(name, shape):
    features = related(5, *shape)
    expected = table(REFERENCES[name], features, features)
    assert KERNELS[name](features, None) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("name", list(REFERENCES))
@pytest.mark.parametrize("shape", [SMALL, (600, (3, 4, 5, 5))])
def test_against_others_is_a_block_of_all_pairs(name, shape):
    features = related(6, *shape)
    rows, columns = features[:1], features[1:]
    found = KERNELS[name](rows, columns)
    assert found.shape == (1, len(columns))
    if shape[0] == SMALL[0]:
        assert found == pytest.approx(table(REFERENCES[name], rows, columns), abs=1e-10)
    assert found == pytest.approx(KERNELS[name](features, None)[:1, 1:], abs=1e-10)


@pytest.mark.parametrize("name", list(KERNELS))
def test_float32_features_are_nearly_as_good(name):
    features = related(7, 80, (30, 6, 90))
    half = [x.astype(np.float32) for x in features]
    assert KERNELS[name](half, None) == pytest.approx(KERNELS[name](features, None), abs=1e-5)


def test_cka_of_a_pair_is_float64_whatever_comes_in():
    X, Y = related(8, 50, (20, 30), np.float32)
    assert cka(X, Y) == pytest.approx(reference.linear_cka(X, Y), abs=1e-12)
    assert cka(X, Y, debiased=True) == pytest.approx(reference.debiased_cka(X, Y), abs=1e-12)
    whole = np.arange(20).reshape(10, 2) ** 2 % 7
    assert cka(whole, X[:10]) == pytest.approx(reference.linear_cka(whole, X[:10]), abs=1e-12)


def test_debiasing_takes_the_inflation_of_few_samples_away():
    X, Y = np.random.default_rng(9).standard_normal((2, 32, 768))
    assert cka(X, Y) == pytest.approx(0.96, abs=0.01)
    assert abs(cka(X, Y, debiased=True)) < 0.05


@pytest.mark.parametrize("offset", [1e3, 1e4, 1e5])
@pytest.mark.parametrize("shape", [(60, (200, 90)), (500, (6, 8))])
def test_a_large_mean_costs_no_accuracy(offset, shape):
    X, Y = related(10, *shape, np.float32, offset)
    assert cka_matrix([X, Y])[0, 1] == pytest.approx(reference.linear_cka(X, Y), abs=1e-6)
    assert procrustes_matrix([X, Y])[0, 1] == pytest.approx(reference.procrustes_similarity(X, Y), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_outlier_dimension_drowns_nothing_by_being_constant(dtype):
    X, Y = related(11, 60, (12, 9), dtype)
    loud = np.hstack([X, np.full((60, 1), 1e8, dtype)])
    assert cka_matrix([loud, Y])[0, 1] == pytest.approx(reference.linear_cka(X, Y), abs=1e-6)


def test_an_outlier_dimension_that_varies_is_what_cka_sees():
    X, Y = related(12, 60, (12, 9), np.float32)
    X[:, 0] *= 1e4
    expected = reference.linear_cka(X, Y)
    assert expected == pytest.approx(reference.linear_cka(X[:, :1], Y), abs=1e-3)
    assert cka_matrix([X, Y])[0, 1] == pytest.approx(expected, abs=1e-6)


# Minibatches


@pytest.mark.parametrize(("n", "batch_size"), [(40, 10), (43, 10), (42, 10), (41, 8), (30, 100), (7, 4)])
def test_minibatches_are_the_reference_with_any_remainder(n, batch_size):
    X, Y = related(13, n, (5, 8))
    stops = [*range(batch_size, n, batch_size), n]
    if len(stops) > 1 and stops[-1] - stops[-2] < 4:  # fewer than four cannot be a batch: they join the last one
        del stops[-2]
    batches = [(X[a:b], Y[a:b]) for a, b in zip([0, *stops[:-1]], stops, strict=True)]
    expected = reference.minibatch_debiased_cka(batches)
    assert minibatch_cka_matrix([X, Y], batch_size=batch_size)[0, 1] == pytest.approx(expected, abs=1e-10)
    assert minibatch_cka(batches)[0, 1] == pytest.approx(expected, abs=1e-10)


def test_a_batch_counts_by_its_own_scale():
    X, Y = related(14, 12, (5, 8))
    batches = [(X[:6], Y[:6]), (100 * X[6:], 3 * Y[6:])]
    assert minibatch_cka(batches)[0, 1] == pytest.approx(reference.minibatch_debiased_cka(batches), abs=1e-10)
    assert minibatch_cka(iter(batches)).shape == (2, 2)


def test_one_batch_is_debiased_cka():
    features = related(15, 30, (5, 8, 2))
    assert minibatch_cka([features]) == pytest.approx(cka_matrix(features, debiased=True), abs=1e-10)
    assert minibatch_cka_matrix(features[:1], features[1:]) == pytest.approx(
        cka_matrix(features, debiased=True)[:1, 1:], abs=1e-10
    )


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "no batch"),
        ([[]], r"batch 0 holds shapes \[\]"),
        ([[np.eye(3), np.eye(3)]], "3 samples"),
        ([[np.eye(5), np.eye(6)]], "same samples"),
        ([[np.eye(6), np.eye(5)]], "same samples"),
        ([[np.arange(6.0), np.arange(6.0)]], "same samples"),
        ([[np.eye(5)], [np.eye(5), np.eye(5)]], "batch 1 holds 2 matrices"),
        ([[np.eye(5)], [np.full((5, 2), np.nan)]], "matrix 0 of batch 1"),
        ([[np.eye(8)[:, :2] + np.arange(8.0)[:, None], np.ones((8, 2))]], "matrix 1 has no structure"),
    ],
)
def test_bad_batches_are_refused(batches, words):
    with pytest.raises(BadInput, match=words):
        minibatch_cka(batches)


# Neighbours


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([np.float64, np.float32, np.int64]))
@settings(max_examples=40, deadline=None)
def test_tied_neighbours_go_to_the_sample_that_comes_first(seed, k, dtype):
    rng = np.random.default_rng(seed)
    X, Y = rng.integers(0, 3, (25, 2)), rng.integers(0, 4, (25, 1))
    X[0], Y[0] = (0, 0), 0
    X[1], Y[1] = (2, 2), 3
    found = mutual_knn_matrix([X.astype(dtype), Y.astype(dtype)], k=k)
    assert found[0, 1] == pytest.approx(reference.mutual_knn(X, Y, k), abs=1e-12)
    assert np.diagonal(found) == pytest.approx([1, 1])


def test_more_samples_than_a_block_of_distances(monkeypatch):
    X, Y = related(16, 90, (3, 5))
    monkeypatch.setattr("taskatlas.space.mutual_knn._BLOCK", 32)
    assert mutual_knn_matrix([X, Y], k=4)[0, 1] == pytest.approx(reference.mutual_knn(X, Y, 4), abs=1e-12)


def test_neighbours_of_unrelated_networks_agree_by_chance():
    X, Y = np.random.default_rng(17).standard_normal((2, 400, 10))
    assert mutual_knn_matrix([X, Y], k=40)[0, 1] == pytest.approx(40 / 399, abs=0.02)


@pytest.mark.parametrize("k", [8, 9])
def test_neighbours_need_samples(k):
    with pytest.raises(BadInput, match=f"more than {k} samples; the probe has 8"):
        mutual_knn_matrix(related(18, 8, (3, 3)), k=k)


# Width of the Gaussian


def test_copies_do_not_narrow_the_gaussian_kernel():
    X, Y = related(19, 20, (3, 4))
    X[10:] = X[:10]
    assert rbf_cka_matrix([X, Y])[0, 1] == pytest.approx(reference.rbf_cka(X, Y), abs=1e-10)


# What no kernel can use


@pytest.mark.parametrize("kernel", list(KERNELS.values()), ids=list(KERNELS))
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.full((20, 3), 7.0), "matrix 1 are the same for every sample"),
        (np.zeros((20, 3), np.float32), "matrix 1 are the same for every sample"),
        (np.zeros((20, 0)), "matrix 1 are the same for every sample"),
        (np.where(np.arange(60).reshape(20, 3) == 31, np.nan, 1.0), "matrix 1 hold NaN or infinite"),
        (np.where(np.arange(60).reshape(20, 3) == 31, np.inf, 1.0), "matrix 1 hold NaN or infinite"),
        (np.array([[np.inf], [-np.inf]] * 10), "matrix 1 hold NaN or infinite"),
        (1e300 * np.eye(20), "matrix 1 hold NaN or infinite"),
        (np.arange(20.0), "give a matrix"),
        (np.ones((2, 10, 2)), "give a matrix"),
        (np.float64(3) * np.ones(()), "give a matrix"),
        (np.eye(19), "matrix 1 has 19 samples and matrix 0 has 20"),
    ],
)
def test_what_no_kernel_can_use_is_refused(kernel, bad, words):
    with pytest.raises(BadInput, match=words):
        kernel([*related(20, 20, (4,)), bad], None)


@pytest.mark.parametrize("kernel", list(KERNELS.values()), ids=list(KERNELS))
def test_one_sample_or_nothing_is_refused(kernel):
    with pytest.raises(BadInput, match=r"1 sample\(s\)"):
        kernel([np.ones((1, 3))], None)
    with pytest.raises(BadInput, match="no features to compare"):
        kernel([], None)


@pytest.mark.parametrize("n", [2, 3])
def test_debiasing_needs_four_samples(n):
    with pytest.raises(BadInput, match=f"at least four samples; the probe has {n}"):
        cka_matrix(related(21, n, (3, 4)), debiased=True)


def test_values_of_any_finite_size_are_fine():
    X, Y = related(22, 30, (5, 6))
    expected = cka(X, Y)
    for factor in (1e-100, 1e100):
        assert cka(factor * X, Y) == pytest.approx(expected, abs=1e-12)
    single = [X.astype(np.float32) * np.float32(1e-30), Y.astype(np.float32) * np.float32(1e30)]
    assert cka_matrix(single)[0, 1] == pytest.approx(expected, abs=1e-6)


def test_kernels_by_name():
    assert find_kernel("rbf_cka") == (rbf_cka_matrix, "rbf_cka")
    assert find_kernel(rbf_cka_matrix)[1] == "taskatlas.space.cka.rbf_cka_matrix"
    with pytest.raises(BadInput, match=r"no kernel 'kca'.*debiased_cka"):
        find_kernel("kca")


def test_features_are_left_as_they_were():
    features = related(23, 40, (3, 5))
    before = [x.copy() for x in features]
    for x in features:
        x.setflags(write=False)
    for kernel in KERNELS.values():
        kernel(features, None)
    assert all((x == y).all() for x, y in zip(features, before, strict=True))
