"""Resampled seeds against the same runs written out as often as they were drawn; and resampled probes likewise."""

import numpy as np
import pytest
from tests.paths.make import run
from tests.references import paths as reference

from taskatlas.errors import BadInput
from taskatlas.paths import (
    Trajectory,
    bootstrap_measures,
    bootstrap_seeds,
    explained_stress,
    path_length,
    progress,
    trajectory_distance,
)

RUNS = [
    run("a", 0, steps=5, samples=14),
    run("a", 1, steps=4, samples=14),
    run("b", 2, steps=5, samples=14),
    run("b", 3, steps=6, samples=14),
    run("b", 4, steps=5, samples=14),
    run("c", 5, steps=4, samples=14),
]


@pytest.fixture(scope="module")
def found():
    return bootstrap_seeds(RUNS, resamples=6, seed=3)


def test_as_many_seeds_are_drawn_as_a_task_has(found):
    assert found.tasks == ("a", "b", "c")
    assert (found.draws[:, :2].sum(1) == 2).all()
    assert (found.draws[:, 2:5].sum(1) == 3).all()
    assert (found.draws[:, 5] == 1).all()
    assert len({tuple(draw) for draw in found.draws}) > 1
    assert "6 resamples of the seeds of 3 tasks" in repr(found)


def test_maps_are_those_of_the_drawn_runs(found):
    P = [one.probabilities().astype(np.float64) for one in RUNS]
    for position, times in enumerate(found.draws):
        expected = reference.resampled_map(P, times)
        np.testing.assert_allclose(found.eigenvalues[position], expected[:3], atol=1e-7)
        np.testing.assert_allclose(found.explained_stress[position], explained_stress(expected)[:3], atol=1e-6)


def test_means_are_those_of_the_drawn_runs(found):
    rows = {"a": slice(0, 2), "b": slice(2, 5), "c": slice(5, 6)}
    measures = {
        "length": [one.length() for one in RUNS],
        "progress": [one.progress()[-1] for one in RUNS],
        "accuracy": [one.accuracy()[-1] for one in RUNS],
    }
    for what, values in measures.items():
        for position, times in enumerate(found.draws):
            expected = [reference.mean_of_drawn(values[part], times[part]) for part in rows.values()]
            np.testing.assert_allclose(getattr(found, what)[position], expected, atol=1e-12)


def test_distances_are_those_of_the_drawn_runs(found):
    for times, distances in zip(found.draws[:2], found.distances[:2], strict=True):
        drawn = [one for one, count in zip(RUNS, times, strict=True) for _ in range(count)]
        for i, first in enumerate("abc"):
            for j, second in enumerate("abc"):
                sides = ([one for one in drawn if one.name == name] for name in (first, second))
                expected = 0.0 if i == j else trajectory_distance(*sides)
                assert distances[i, j] == pytest.approx(expected, abs=1e-12)


def test_a_seed_fixes_the_draws_and_tasks_may_be_said(found):
    again = bootstrap_seeds(RUNS, resamples=6, seed=3)
    assert (again.eigenvalues == found.eigenvalues).all()
    assert (again.distances == found.distances).all()
    assert (bootstrap_seeds(RUNS, resamples=6, seed=4).draws != found.draws).any()
    said = bootstrap_seeds(RUNS, tasks=list("xxyyyz"), resamples=6, seed=3)
    assert said.tasks == ("x", "y", "z")
    assert (said.length == found.length).all()


def test_without_labels_there_are_maps_and_lengths():
    bare = [Trajectory(one.name, one.log_probs, one.steps, one.ids) for one in RUNS]
    found = bootstrap_seeds(bare, resamples=3)
    assert np.isnan(found.progress).all()
    assert np.isnan(found.accuracy).all()
    assert found.distances is None
    assert np.isfinite(found.length).all()
    labelled = bootstrap_seeds(bare, truth=RUNS[0].labels, resamples=3)
    assert (labelled.progress == bootstrap_seeds(RUNS, resamples=3).progress).all()


def test_draws_that_cannot_be():
    with pytest.raises(BadInput, match="no task has two seeds"):
        bootstrap_seeds([RUNS[0], RUNS[2]])
    with pytest.raises(BadInput, match="fewer axes"):
        bootstrap_seeds(RUNS[:2], n_components=9, resamples=40)
    with pytest.raises(BadInput, match="metric"):
        bootstrap_seeds(RUNS, metric="euclidean")
    with pytest.raises(BadInput, match="other samples"):
        bootstrap_seeds([RUNS[0], run("a", 1, samples=13)])


# Resampled probes


def test_measures_of_a_resampled_probe_are_those_of_its_samples():
    some, seed = RUNS[:2], 5
    found = bootstrap_measures(some, resamples=4, seed=seed)
    draws = np.random.default_rng(seed).multinomial(14, np.full(14, 1 / 14), size=4)
    for draw, times in enumerate(draws):
        rows = np.repeat(np.arange(14), times)
        for position, one in enumerate(some):
            P, labels = one.probabilities().astype(np.float64)[:, rows], one.labels[rows]
            assert found.length[draw, position] == pytest.approx(path_length(P), rel=1e-6)
            assert found.progress[draw, position] == pytest.approx(float(progress(P[-1], labels)), abs=1e-7)
            assert found.accuracy[draw, position] == pytest.approx((P[-1].argmax(-1) == labels).mean())


def test_measures_with_a_soft_truth_or_none():
    soft = np.full((14, 5), 0.1)
    soft[np.arange(14), RUNS[0].labels] = 0.6
    found = bootstrap_measures(RUNS[:1], truth=soft, resamples=2)
    assert np.isfinite(found.progress).all()
    assert np.isnan(found.accuracy).all()
    bare = Trajectory("a", RUNS[0].log_probs, RUNS[0].steps, RUNS[0].ids)
    assert np.isnan(bootstrap_measures([bare], resamples=2).progress).all()
