"""Fisher length: 0 where nothing moves, 2θ on a geodesic, and never shorter than it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.paths.make import labels, learning, models, shortest
from tests.references import paths as reference

from taskatlas.errors import BadInput
from taskatlas.paths import geodesic, path_length, step_lengths, tortuosity

SEEDS = st.integers(0, 999)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_matches_the_definitions(seed):
    P = learning(seed, samples=6)
    assert path_length(P) == pytest.approx(reference.path_length(P), rel=1e-7)
    assert path_length(P, step="bhattacharyya") == pytest.approx(reference.published_length(P), rel=1e-7)


@given(seed=SEEDS, points=st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_a_geodesic_has_the_length_of_its_angle_however_it_is_sampled(seed, points):
    p, q, way = shortest(seed, points)
    theta = np.arccos(np.minimum((np.sqrt(p) * np.sqrt(q)).sum(-1), 1))
    assert path_length(way) == pytest.approx(2 * math.sqrt((theta**2).mean()), rel=1e-9)
    assert tortuosity(way) == pytest.approx(1, abs=1e-9)


def test_from_ignorance_to_the_truth_it_is_twice_the_angle():
    truth = np.eye(10)[labels(0, 25, 10)]
    way = geodesic(np.full((25, 10), 0.1), truth, np.linspace(0, 1, 4))
    assert path_length(way) == pytest.approx(2 * math.acos(1 / math.sqrt(10)), rel=1e-12)


def test_the_published_step_agrees_on_short_steps_and_overstates_long_ones():
    truth = np.eye(10)[labels(0, 25, 10)]
    fine, coarse = (
        path_length(geodesic(np.full((25, 10), 0.1), truth, np.linspace(0, 1, n)), step="bhattacharyya")
        for n in (400, 2)
    )
    exact = 2 * math.acos(1 / math.sqrt(10))
    assert fine == pytest.approx(exact, rel=1e-4)
    assert coarse == pytest.approx(2 * math.sqrt(math.log(10)))
    assert coarse > 1.2 * exact


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", ["angle", "bhattacharyya"])
def test_a_constant_run_has_no_length(dtype, step):
    P = np.repeat(models(count=1, sharpness=5), 6, axis=0).astype(dtype)
    assert path_length(P, step=step) == 0.0
    assert tortuosity(P) == 1.0


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_detour_is_never_shorter(seed):
    P = learning(seed, noise=1.0)
    assert tortuosity(P) >= 1
    assert path_length(P[::2]) <= path_length(P) + 1e-12
    assert path_length(P[::-1].copy()) == pytest.approx(path_length(P))


def test_there_and_back():
    P = learning()
    assert tortuosity(np.concatenate([P, P[::-1]])) == math.inf


def test_disjoint_models_are_a_quarter_turn_apart():
    assert path_length(np.eye(3)[:, None]) == pytest.approx(2 * math.pi)


def test_steps_and_kinds():
    P = learning()
    assert step_lengths(P).shape == (8,)
    assert step_lengths(P).sum() == pytest.approx(path_length(P))
    assert step_lengths(torch.from_numpy(P).float()).dtype == torch.float32
    assert path_length(P[:1]) == 0.0


def test_bad_input():
    P = learning()
    P[3, 2] = 0.9
    with pytest.raises(BadInput, match="model '3', sample 2"):
        path_length(P)
