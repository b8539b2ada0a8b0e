"""The divergences against three nested loops in float64, in every form: whole, cross, chunked, grown, weighted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.paths.make import models
from tests.references import paths as reference

from taskatlas.errors import BadInput
from taskatlas.paths import bhattacharyya, extend, hellinger, saturated_share, symmetric_kl
from taskatlas.paths.bhattacharyya import _products_before_a_log

PAIRS = [
    (bhattacharyya, reference.bhattacharyya),
    (hellinger, reference.hellinger),
    (symmetric_kl, reference.symmetric_kl),
]
each = pytest.mark.parametrize(("function", "expected"), PAIRS, ids=lambda f: f.__name__)
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 15), st.integers(1, 6))


@each
@given(size=SIZES, seed=st.integers(0, 999), sharpness=st.floats(0, 30))
@settings(max_examples=15, deadline=None)
def test_matches_the_definition(function, expected, size, seed, sharpness):
    P, Q = models(seed, *size, sharpness), models(seed + 1, 3, *size[1:], sharpness)
    assert np.allclose(function(P), expected(P, P), rtol=1e-11, atol=1e-13)
    assert np.allclose(function(P, Q), expected(P, Q), rtol=1e-11, atol=1e-13)


@each
def test_float32_is_close_and_stays_float32(function, expected):
    P = models(count=6, samples=50, classes=10, sharpness=3).astype(np.float32)
    found = function(P)
    assert found.dtype == np.float32
    assert np.allclose(found, expected(P.astype(float), P.astype(float)), rtol=1e-5, atol=1e-6)


@each
def test_tensors_give_tensors_and_integers_float64(function, expected):
    P = np.eye(3, dtype=int)[:, None]
    assert isinstance(function(torch.from_numpy(P)), torch.Tensor)
    assert function(P).dtype == np.float64
    assert np.allclose(function(torch.from_numpy(P)).numpy(), expected(P.astype(float), P.astype(float)))


@pytest.mark.parametrize("chunk", [1, 3000, 2**30])
@each
def test_chunks_change_nothing_but_rounding(function, expected, chunk):
    P = models(count=7, samples=31, sharpness=4)
    assert np.allclose(function(P, chunk=chunk), expected(P, P), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("count", [127, 129, 150])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_more_models_than_a_tile(count, dtype):
    P = models(count=count, samples=13, classes=3, sharpness=5).astype(dtype)
    roots = np.sqrt(P.astype(float))
    expected = -np.log(np.maximum(np.einsum("mnc,knc->nmk", roots, roots), 1e-6)).mean(0)
    found = bhattacharyya(P)
    assert np.allclose(found, expected, rtol=2e-6, atol=2e-7)
    assert (found == found.T).all()
    assert np.allclose(bhattacharyya(P, P[:5]), expected[:, :5], rtol=2e-6, atol=2e-7)


def test_more_models_than_the_columns_of_a_tile():
    P = models(count=530, samples=3, classes=2)
    roots = np.sqrt(P)
    expected = -np.log(np.einsum("mnc,knc->nmk", roots, roots)).mean(0)
    assert np.allclose(bhattacharyya(P), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("floor", [1e-30, 1e-9, 1e-6, 0.01])
def test_products_never_underflow(dtype, floor):
    P = np.eye(3, dtype=dtype)[:, None].repeat(40, 1)  # all coefficients between models are at the floor
    assert np.allclose(bhattacharyya(P, floor=floor), -np.log(floor) * (1 - np.eye(3)), rtol=1e-5)
    together = _products_before_a_log(floor, torch.float32 if dtype == np.float32 else torch.float64)
    assert floor**together >= np.finfo(dtype).tiny or together == 1


def test_saturated_share_counts_pairs_of_different_models():
    P = np.zeros((3, 4, 3))
    P[0, :, 0] = P[1, :, 1] = 1
    P[2, :2, 0] = P[2, 2:, 2] = 1
    # Pairs: 0-1 apart on 4 of 4, 0-2 on 2, 1-2 on 4.
    assert saturated_share(P) == pytest.approx(10 / 12)
    assert saturated_share(P[:1], P) == pytest.approx(6 / 12)
    assert saturated_share(P[:1]) == 0.0
    assert saturated_share(models(count=150)) == 0.0
    many = np.eye(150)[:, None]
    assert saturated_share(many) == 1.0


@pytest.mark.parametrize("floor", [0.0, 1.0, -1e-6, float("nan")])
def test_a_floor_that_is_none(floor):
    for function in (bhattacharyya, saturated_share):
        with pytest.raises(BadInput, match="floor"):
            function(models(), floor=floor)
    with pytest.raises(BadInput, match="smallest"):
        symmetric_kl(models(), smallest=floor)


def test_a_floor_that_its_precision_cannot_hold():
    P = np.eye(2, dtype=np.float32)[:, None]
    for function in (bhattacharyya, saturated_share):
        with pytest.raises(BadInput, match=r"in torch\.float32 it lies from 1\.2e-38"):
            function(P, floor=1e-50)
        assert np.isfinite(function(P.astype(np.float64), floor=1e-50)).all()


@each
def test_other_samples_are_refused(function, expected):
    with pytest.raises(BadInput, match="same probe"):
        function(models(samples=5), models(samples=6))
    with pytest.raises(BadInput, match="same probe"):
        function(models(classes=5), models(classes=6))
    with pytest.raises(BadInput, match="shape"):
        function(np.zeros((0, 3, 4)))


@each
@given(seed=st.integers(0, 99), new=st.integers(1, 3))
@settings(max_examples=5, deadline=None)
def test_growing_is_the_same_as_starting_anew(function, expected, seed, new):
    P = models(seed, 6)
    grown = extend(function(P[:-new]), P[:-new], P[-new:], function)
    assert np.allclose(grown, function(P), atol=1e-13)
    assert (grown == grown.T).all()


def test_growing_a_matrix_of_other_models_is_refused():
    P = models(count=6)
    with pytest.raises(BadInput, match="do not belong"):
        extend(bhattacharyya(P[:3]), P[:4], P[4:])


def test_input_is_not_changed():
    P = models()
    P.flags.writeable = False
    before = P.copy()
    for function, _ in PAIRS:
        function(P)
    assert (before == P).all()


@pytest.mark.parametrize("function", [bhattacharyya, saturated_share])
def test_the_number_of_threads_changes_nothing_and_is_left_alone(function):
    P = models(count=150, samples=40, sharpness=5)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(function(P))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)
