"""Matrices read in blocks: parts of them, standardised, centred."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.space.make import related

from taskatlas.errors import BadInput
from taskatlas.space import cka_matrix
from taskatlas.space.samples import Samples, SampleSubset, centre, standardise


class Recorder:
    """A matrix that remembers the largest block that was read."""

    def __init__(self, values):
        self.values, self.largest = values, 0

    @property
    def shape(self):
        return self.values.shape

    def __getitem__(self, rows):
        block = self.values[rows]
        self.largest = max(self.largest, len(block))
        return block


def test_a_subset_reads_as_its_rows():
    (x,) = related(0, 20, (3,))
    rows = np.array([3, 4, 9, 17])
    subset = SampleSubset(x, rows)
    assert subset.shape == (4, 3)
    assert (subset[1:3] == x[[4, 9]]).all()
    assert (SampleSubset(standardise(x), rows)[:] == standardise(x)[:][rows]).all()
    others = SampleSubset(related(1, 20, (5,))[0], rows)
    assert cka_matrix([subset, others]) == pytest.approx(cka_matrix([x[rows], others[:]]), abs=1e-14)


def test_a_subset_of_a_memory_map(tmp_path):
    (x,) = related(2, 20, (3,))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(mapped, Samples)
    assert (SampleSubset(mapped, np.array([19, 0]))[:] == x[[19, 0]]).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8])
def test_standardised_features_have_unit_variance(dtype):
    x = (20 + 10 * related(3, 50, (4,))[0]).clip(0, 255).astype(dtype)
    scaled = standardise(x)[:]
    assert scaled.dtype == np.result_type(dtype, np.float32)
    assert scaled.std(axis=0) == pytest.approx(np.ones(4), rel=1e-3)


def test_standardising_leaves_constant_columns_alone():
    x = np.hstack([related(4, 50, (2,))[0], np.full((50, 1), 0.1), np.zeros((50, 1))])
    scaled = standardise(x)[:]
    assert (scaled[:, 2:] == x[:, 2:]).all()
    assert scaled[:, :2].std(axis=0) == pytest.approx([1, 1])


def test_standardising_quietens_an_outlier_dimension():
    x, y = related(5, 60, (8, 6))
    loud = x * np.array([1e4] + [1] * 7)
    assert cka_matrix([standardise(loud), y])[0, 1] == pytest.approx(cka_matrix([standardise(x), y])[0, 1], abs=1e-10)
    assert cka_matrix([loud, y])[0, 1] != pytest.approx(cka_matrix([x, y])[0, 1], abs=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 6), st.floats(-1e4, 1e4), st.floats(0.1, 1e3))
@settings(max_examples=40, deadline=None)
def test_centred_features_have_no_mean_and_unit_norm(seed, n, d, offset, scale):
    x = offset + scale * np.random.default_rng(seed).standard_normal((n, d))
    centred = centre(x)[:]
    tolerance = 1e-15 * n * (1 + abs(offset) / scale)
    assert centred.sum(axis=0) == pytest.approx(np.zeros(d), abs=10 * tolerance)
    assert np.square(centred).sum() == pytest.approx(1, abs=1e-12 + tolerance)


def test_a_float32_mean_is_subtracted_exactly():
    x = (1e5 + related(6, 400, (5,))[0]).astype(np.float32)
    exact = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    found = centre(x)[:].astype(np.float64)
    assert found == pytest.approx(exact / np.linalg.norm(exact), abs=1e-8)
    assert centre(x).dtype == np.float32


@pytest.mark.parametrize("kind", [np.float16, np.int32, np.uint8, bool])
def test_other_numbers_are_centred_too(kind):
    x = np.array([[1, 0], [0, 1], [1, 1]]).astype(kind)
    exact = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    assert centre(x)[:] == pytest.approx(exact / np.linalg.norm(exact), abs=1e-7)


def test_blocks_stay_blocks():
    x = Recorder(np.random.default_rng(7).standard_normal((9000, 2)))
    centred = centre(x)
    assert x.largest <= 4096
    cka_matrix([x, x])
    assert x.largest <= 4096
    standardise(x)
    assert x.largest <= 4096
    assert len(centred[10:20]) == 10


def test_a_tiny_signal_on_a_large_mean_is_still_a_signal():
    x = np.full((40, 3), 1e5)
    x[:, 1] += np.arange(40) * 1e-3
    assert np.ptp(centre(x)[:], axis=0)[1] > 0.1
    with pytest.raises(BadInput, match="features of here are the same for every sample"):
        centre(np.full((40, 3), 1e5) + 1e-9 * np.arange(40)[:, None], "here")
