"""Geodesics: the published points, the textbook formula, and the cases where it divides by nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.paths.make import models
from tests.references import paths as reference

from taskatlas.errors import BadInput
from taskatlas.paths import geodesic

TIMES = st.lists(st.floats(0, 1), min_size=1, max_size=4)


@given(seed=st.integers(0, 999), times=TIMES, sharpness=st.floats(0, 20))
@settings(max_examples=25, deadline=None)
def test_matches_the_textbook(seed, times, sharpness):
    p, q = models(seed, 2, 5, 4, sharpness)
    found = geodesic(p, q, times)
    expected = np.stack([reference.geodesic(p, q, t) ** 2 for t in times])
    assert np.allclose(found, expected, atol=1e-9)
    assert np.allclose(found.sum(-1), 1, atol=1e-14)


def test_published_points(real_input):
    with np.load(real_input / "golden/paths/prediction.npz") as golden:
        labels, expected = golden["labels"], golden["geodesic_sqrt"]
        ignorance, truth = np.full((200, 7), 1 / 7), np.eye(7)[labels]
        found = np.sqrt(geodesic(ignorance, truth, golden["geodesic_t"]))
    assert np.abs(found - expected).max() < 1e-9


def test_ends_are_met():
    p, q = models(count=2, sharpness=3)
    assert np.allclose(geodesic(p, q, [0.0, 1.0]), [p, q], atol=1e-15)


def test_equal_ends_stay_where_they_are():
    p = models(count=1)[0]
    assert np.allclose(geodesic(p, p, [0.0, 0.3, 1.0]), p, atol=1e-15)
    almost = p + 1e-12 * np.array([1, -1, 0, 0])
    assert np.isfinite(geodesic(p, almost, 0.5)).all()


def test_orthogonal_ends_meet_in_the_middle():
    assert np.allclose(geodesic(np.eye(2)[:1], np.eye(2)[1:], 0.5), 0.5, atol=1e-15)


def test_shape_and_kind_follow_the_input():
    p, q = (torch.from_numpy(x).float() for x in models(count=2, samples=3, classes=4))
    assert geodesic(p, q, 0.5).shape == (3, 4)
    assert geodesic(p, q, [0.5]).shape == (1, 3, 4)
    found = geodesic(p, q, torch.linspace(0, 1, 5))
    assert found.shape == (5, 3, 4)
    assert found.dtype == torch.float32
    assert geodesic(p, q, 0).shape == (3, 4)


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan"), [0.5, 2.0]])
def test_places_off_the_way_are_refused(t):
    with pytest.raises(BadInput, match="between 0"):
        geodesic(*models(count=2), t)


def test_ends_of_other_samples_are_refused():
    with pytest.raises(BadInput, match="shape"):
        geodesic(models(samples=3)[0], models(samples=4)[0], 0.5)
