"""Progress against a brute search, at its ends, and on the geodesic itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.paths.make import labels, learning, models
from tests.references import paths as reference

from taskatlas.errors import BadInput
from taskatlas.paths import bhattacharyya, geodesic, progress


@given(seed=st.integers(0, 999), sharpness=st.floats(0.05, 30), bias=st.floats(-3, 6))
@settings(max_examples=12, deadline=None)
def test_matches_a_brute_search(seed, sharpness, bias):
    truth = labels(seed, 8, 4)
    logits = np.log(models(seed, 1, 8, 4, sharpness)) + bias * np.eye(4)[truth]
    P = np.exp(logits - logits.max(-1, keepdims=True))
    P /= P.sum(-1, keepdims=True)
    assert progress(P, truth)[0] == pytest.approx(reference.progress(P[0], truth), abs=2e-8)


@given(seed=st.integers(0, 999), t=st.floats(0, 1), classes=st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_a_point_of_the_geodesic_has_its_own_place(seed, t, classes):
    truth = labels(seed, 6, classes)
    ignorance, end = np.full((6, classes), 1 / classes), np.eye(classes)[truth]
    assert progress(geodesic(ignorance, end, t), truth) == pytest.approx(t, abs=1e-9)


def test_ends_are_exact():
    truth = labels(0, 50, 10)
    ends = np.stack([np.full((50, 10), 0.1), np.eye(10)[truth]])
    assert progress(ends, truth).tolist() == [0.0, 1.0]


def test_sure_and_wrong_is_behind_ignorance():
    wrong = np.eye(4)[(labels() + 1) % 4]
    assert progress(wrong, labels()) == 0.0


def test_one_wrong_sample_among_sure_ones_keeps_a_model_from_the_end():
    truth = np.zeros(20, dtype=int)
    P = np.eye(3)[truth]
    P[7] = np.eye(3)[1]
    found = float(progress(P, truth))
    assert 0.5 < found < 1
    assert found == pytest.approx(reference.progress(P, truth), abs=1e-7)


def test_it_is_the_least_distance_on_the_way():
    truth = labels(0, 30, 5)
    P = learning(3)
    ignorance, end = np.full((30, 5), 0.2), np.eye(5)[truth]
    way = geodesic(ignorance, end, np.linspace(0, 1, 201))
    for model, place in zip(P, progress(P, truth), strict=True):
        here = bhattacharyya(model[None], geodesic(ignorance, end, [float(place)]))
        assert here[0, 0] <= bhattacharyya(model[None], way).min() + 1e-12


@given(seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_samples_and_models_have_no_order(seed):
    P, truth = learning(seed), labels(0, 30, 5)
    random = np.random.default_rng(seed)
    rows, order = random.permutation(30), random.permutation(9)
    assert np.allclose(progress(P[order][:, rows], truth[rows]), progress(P, truth)[order], atol=1e-13)


def test_soft_truths():
    P, truth = learning(1), labels(0, 30, 5)
    assert np.allclose(progress(P, np.eye(5)[truth]), progress(P, truth), atol=1e-12)
    half = np.eye(5)[truth].copy()
    half[::2] = 0.2  # the truth about every other sample is that nothing is known
    assert np.allclose(progress(P, half), progress(P[:, 1::2], truth[1::2]), atol=1e-12)
    with pytest.raises(BadInput, match="no progress"):
        progress(P, np.full((30, 5), 0.2))


def test_shapes_and_kinds():
    P, truth = learning(), labels(0, 30, 5)
    whole = progress(P, truth)
    assert progress(P[0], truth).shape == ()
    assert np.array_equal(progress(P.reshape(3, 3, 30, 5), truth), whole.reshape(3, 3))
    single = progress(torch.from_numpy(P).float(), torch.from_numpy(truth))
    assert single.dtype == torch.float32
    assert np.allclose(single.numpy(), whole, atol=1e-6)


def test_bad_input():
    P, truth = learning(), labels(0, 30, 5)
    with pytest.raises(BadInput, match="out of range"):
        progress(P, truth + 1)
    with pytest.raises(BadInput, match="does not fit"):
        progress(P, np.full((29, 5), 0.2))
    with pytest.raises(BadInput, match="single class"):
        progress(np.ones((3, 2, 1)), np.zeros(2, dtype=int))
    P[4, 2, 1] = np.nan
    with pytest.raises(BadInput, match=r"sample 2.*NaN"):
        progress(P, truth)
