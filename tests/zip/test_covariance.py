"""Covariances against two passes in float64: batches, large means, dead units, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import matching as reference
from tests.zip.make import features

from taskatlas.errors import BadInput
from taskatlas.merge.covariance import Covariance, as_samples, correlation_of, covariance_of

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 4), st.integers(1, 7), st.integers(1, 40), st.data())
@settings(max_examples=40, deadline=None)
def test_batches_pool_to_the_covariance_of_all(seed, models, width, samples, data):
    parts = features(seed, models, samples, width)
    cuts = sorted(data.draw(st.lists(st.integers(1, samples), max_size=4)))
    pooled = Covariance()
    for start, stop in zip([0, *cuts], [*cuts, samples], strict=True):
        if stop > start:
            pooled.update(*(torch.from_numpy(x[start:stop]) for x in parts))
    expected = reference.covariance(parts)
    if samples == 1:
        expected[:] = 0
    assert pooled.covariance == pytest.approx(expected, abs=1e-12)
    assert pooled.mean.numpy() == pytest.approx(np.concatenate(parts, axis=1).mean(axis=0), abs=1e-12)
    assert covariance_of(*parts) == pytest.approx(expected, abs=1e-12)


def test_a_large_mean_does_not_drown_the_variance():
    """Sums of raw squares in float32 would be off by more than the variance itself, and could be negative."""
    (x,) = features(0, 1, samples=50_000, width=3)
    far = (x + 3000).astype(np.float32)
    naive = (far**2).mean(axis=0) - far.mean(axis=0) ** 2
    assert np.abs(naive - x.var(axis=0)).max() > 0.1
    pooled = Covariance()
    pooled.update(torch.from_numpy(far))
    assert np.diagonal(pooled.covariance) == pytest.approx(far.astype(np.float64).var(axis=0), rel=1e-5)
    assert pooled.mean.numpy() == pytest.approx(far.astype(np.float64).mean(axis=0), rel=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_constant_features_have_no_variance_at_all(dtype):
    x = np.arange(30).reshape(10, 3).astype(dtype)
    x[:, 1] = 7
    found = covariance_of(x, x)
    assert (found[[1, 4]] == 0).all()
    assert (found[:, [1, 4]] == 0).all()
    assert (correlation_of(found)[1] == 0).all()
    thirds = np.full((1000, 1), 1 / 3) * np.ones(2)
    assert (covariance_of(thirds) == 0).all()


def test_features_that_vary_no_more_than_rounding_have_no_variance():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3e-6, 3e-8])
    pooled = Covariance()
    pooled.update(x)
    assert pooled.sizes == pytest.approx(x.double().square().mean(0).sqrt().numpy(), rel=1e-5)
    assert (np.diagonal(pooled.covariance) > 0).all()
    found = pooled.above_rounding(np.ones(3))
    assert (found[2] == 0).all()
    assert (found[:, 2] == 0).all()
    assert (found[:2, :2] == pooled.covariance[:2, :2]).all()


def test_pixels_and_tokens_are_samples():
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert as_samples(x, 1).tolist() == x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    assert as_samples(x, -1).tolist() == x.reshape(-1, 2).tolist()
    assert as_samples(torch.arange(3.0), 0).tolist() == [[0, 1, 2]]


@given(SEEDS, st.integers(1, 3), st.integers(1, 5), st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_correlation_is_the_reference(seed, models, width, constants):
    parts = np.concatenate(features(seed, models, width=width), axis=1)
    parts[:, np.random.default_rng(seed).integers(0, models * width, constants)] = 5
    matrix = covariance_of(parts)
    found = correlation_of(matrix)
    assert found == pytest.approx(reference.correlation(matrix), abs=1e-12)
    assert (found == found.T).all()
    assert set(np.diagonal(found)) <= {0.0, 1.0}


def test_correlations_of_many_features_are_made_in_tiles():
    (x,) = features(0, 1, samples=40, width=600)
    matrix = covariance_of(x.astype(np.float32)).astype(np.float32)
    found = correlation_of(matrix)
    assert found.dtype == np.float32
    assert (found == found.T).all()
    deviations = np.sqrt(np.diagonal(matrix.astype(np.float64)))
    assert found == pytest.approx(matrix / np.outer(deviations, deviations), abs=1e-6)


def test_bad_input_is_told(as_installed):
    x = np.ones((4, 2))
    with pytest.raises(BadInput, match=r"have \[3, 4\] samples"):
        covariance_of(x, x[:3])
    with pytest.raises(BadInput, match="no samples"):
        covariance_of(x[:0])
    with pytest.raises(BadInput, match="feature 1 is NaN"):
        covariance_of(np.array([[0.0, 1], [1, np.nan]]))
    pooled = Covariance()
    pooled.update(torch.ones(2, 3))
    with pytest.raises(BadInput, match="4 features where there were 3"):
        pooled.update(torch.ones(2, 4))
    with pytest.raises(BadInput, match="square"):
        correlation_of(np.ones((2, 3)))


def test_features_are_left_as_they_are():
    x = torch.arange(6.0).reshape(3, 2)
    covariance_of(x)
    assert x.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_multiplied_in_single(dtype):
    x = (torch.from_numpy(features(0, 1, samples=2000, width=3)[0]) + 4).to(dtype)
    assert covariance_of(x) == pytest.approx(covariance_of(x.double()), rel=1e-5)
