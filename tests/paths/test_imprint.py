"""Imprinting: held out by default, sharp where the temperature is low, and no class without a sample."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import paths as reference

from taskatlas.errors import BadInput
from taskatlas.paths import imprint, prototypes


def features(seed=0, samples=12, width=3, classes=3):
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    return random.normal(size=(samples, width)) + 2 * np.eye(classes, width)[labels], labels


@given(seed=st.integers(0, 999), temperature=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_matches_leaving_each_sample_out_in_turn(seed, temperature):
    x, y = features(seed)
    found = np.exp(imprint(x, y, temperature=temperature))
    assert np.allclose(found, reference.imprint(x, y, 3, temperature), atol=1e-10)
    assert np.allclose(found.sum(-1), 1)


def test_prototypes_are_means():
    x, y = features()
    assert np.allclose(prototypes(x, y, 3), [x[y == k].mean(0) for k in range(3)])


def test_seeing_oneself_flatters():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 100)), random.integers(0, 2, 40)
    seen = (imprint(x, y, held_out=False).argmax(-1) == y).mean()
    held_out = (imprint(x, y).argmax(-1) == y).mean()
    assert seen > 0.9
    assert held_out < 0.7


def test_cosine_ignores_the_length_of_features():
    x, y = features()
    scale = np.random.default_rng(1).uniform(0.5, 2, (5, 1))
    query = features(1, 5)[0]
    settings = {"similarity": "cosine", "temperature": 0.1}
    assert np.allclose(imprint(x, y, query, **settings), imprint(x, y, query * scale, **settings))
    means = np.array([x[y == k].mean(0) for k in range(3)])
    cosine = query @ means.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    expected = np.exp(cosine / 0.1) / np.exp(cosine / 0.1).sum(-1, keepdims=True)
    assert np.allclose(np.exp(imprint(x, y, query, **settings)), expected)
    own = np.array([x[(y == y[0]) & (np.arange(12) != 0)].mean(0), means[1], means[2]])
    cosine = x[0] @ own.T / np.linalg.norm(x[0]) / np.linalg.norm(own, axis=1)
    assert np.allclose(imprint(x, y, **settings)[0], np.log(np.exp(cosine / 0.1) / np.exp(cosine / 0.1).sum()))


def test_temperature_sharpens():
    x, y = features()
    sharp, soft = (np.exp(imprint(x, y, temperature=t)).max(-1).mean() for t in (0.01, 100))
    assert sharp > 0.95
    assert soft < 0.4


def test_kinds():
    x, y = features()
    found = imprint(torch.from_numpy(x).float(), torch.from_numpy(y))
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), imprint(x, y), atol=1e-4)


def test_bad_input():
    x, y = features()
    with pytest.raises(BadInput, match="class 3 has no sample"):
        imprint(x, y, classes=4)
    with pytest.raises(BadInput, match="class 1 has no sample"):
        prototypes(x, y * 2, 5)
    with pytest.raises(BadInput, match="class 2 has a single sample"):
        imprint(x[:5], np.array([0, 0, 1, 1, 2]))
    assert imprint(x[:5], np.array([0, 0, 1, 1, 2]), held_out=False).shape == (5, 3)
    with pytest.raises(BadInput, match="out of range"):
        imprint(x, y, classes=2)
    for temperature in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(BadInput, match="temperature"):
            imprint(x, y, temperature=temperature)
    with pytest.raises(BadInput, match="imprinting set is empty"):
        imprint(x[:0], y[:0])
    with pytest.raises(BadInput, match="width 2"):
        imprint(x, y, x[:, :2])
    x[4, 1] = np.inf
    with pytest.raises(BadInput, match="sample 4"):
        imprint(x, y)
