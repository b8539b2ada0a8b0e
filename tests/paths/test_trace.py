"""Everything at once: a trace says what its parts say, and what cannot be done."""

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.paths.make import labels, learning, run

from taskatlas.errors import BadInput
from taskatlas.paths import (
    InPCA,
    Trajectory,
    bhattacharyya,
    bootstrap_measures,
    bootstrap_seeds,
    geodesic,
    mean_trajectory,
    saturated_share,
    shuffle_null,
    task_tree,
    trace_runs,
    trajectory_distance,
)
from taskatlas.paths.predictions import run_labels

SEEDS = [run("a", 0, steps=6), run("a", 1, steps=5), run("b", 2, steps=7)]


@pytest.fixture(scope="module")
def trace():
    return trace_runs(SEEDS)


def without_labels(one):
    return Trajectory(one.name, one.log_probs, one.steps, one.ids)


def test_it_is_what_its_parts_are(trace):
    fit = InPCA(3).fit(SEEDS)
    assert np.array_equal(trace.embedding.coordinates, fit.embedding_)
    assert np.array_equal(trace.embedding.eigenvalues, fit.eigenvalues_)
    assert [one.name for one in trace.runs] == ["a #1", "a #2", "b"]
    assert trace.tasks == {"a": [0, 1], "b": [2]}
    for summary, one in zip(trace.runs, SEEDS, strict=True):
        assert np.array_equal(summary.progress, one.progress())
        assert np.array_equal(summary.accuracy, one.accuracy())
        assert (summary.length, summary.tortuosity) == (one.length(), one.tortuosity())
        assert summary.regressions == one.regressions()
    assert np.allclose(trace.tree.distances, task_tree(SEEDS).distances, atol=1e-12)
    together = np.concatenate([one.probabilities() for one in SEEDS])
    assert trace.saturated == pytest.approx(saturated_share(together))
    assert (trace.samples, trace.classes, trace.notes) == (30, 5, ())
    assert "3 runs of 2 tasks" in repr(trace)


def test_what_is_laid_onto_the_map_lies_where_its_predictions_are(trace):
    truth, mean = trace.embedding.paths
    fit = InPCA(3).fit(SEEDS)
    ends = geodesic(np.full((30, 5), 0.2), np.eye(5)[SEEDS[0].labels], truth.places)
    coordinates, residuals = fit.project(ends)
    assert (truth.kind, truth.places[0], truth.places[-1]) == ("truth", 0.0, 1.0)
    np.testing.assert_allclose(truth.coordinates, coordinates, atol=1e-9)
    np.testing.assert_allclose(truth.residuals, residuals, atol=1e-9)
    assert (mean.kind, mean.name) == ("mean", "a")
    np.testing.assert_allclose(mean.coordinates, fit.transform(mean_trajectory(SEEDS[:2])), atol=1e-5)


def test_a_projected_point_and_its_residual_give_the_distance_back():
    fit = InPCA(None).fit(SEEDS)
    truth = fit.as_embedding().paths[0]
    ends = geodesic(np.full((30, 5), 0.2), np.eye(5)[SEEDS[0].labels], truth.places[[0, 5]])
    expected = bhattacharyya(ends, np.concatenate([one.probabilities() for one in SEEDS]).astype(np.float64))
    apart = (np.square(truth.coordinates[[0, 5], None] - fit.embedding_) * fit.signature_).sum(-1)
    np.testing.assert_allclose(apart + truth.residuals[[0, 5], None], expected, atol=1e-6)


def test_labels_may_be_given_or_be_those_of_any_run():
    bare = [without_labels(one) for one in SEEDS]
    given = trace_runs(bare, truth=SEEDS[0].labels)
    assert np.array_equal(given.runs[2].progress, SEEDS[2].progress())
    borrowed = trace_runs([*bare[:2], SEEDS[2]])
    assert np.array_equal(borrowed.runs[0].progress, SEEDS[0].progress())


def test_without_labels_runs_are_compared_as_paths():
    bare = [without_labels(one) for one in SEEDS]
    found = trace_runs(bare)
    assert found.runs[0].progress is None
    assert found.embedding.paths == ()
    assert found.tree.distance == "frechet"
    assert found.tree.names == ("a #1", "a #2", "b")
    assert np.array_equal(found.tree.distances, task_tree(bare, distance="frechet").distances)
    with pytest.raises(BadInput, match="no labels"):
        trace_runs(bare, distance="progress")


def test_soft_truths_have_progress_and_no_accuracy():
    soft = np.full((30, 5), 0.1)
    soft[np.arange(30), SEEDS[0].labels] = 0.6
    found = trace_runs(SEEDS[:1], truth=soft)
    assert found.runs[0].accuracy is None
    assert found.runs[0].progress[-1] > found.runs[0].progress[0]


def test_one_short_run_has_as_many_axes_as_models():
    found = trace_runs([run(steps=2)])
    assert found.embedding.coordinates.shape == (2, 2)
    assert found.tree is None
    with pytest.raises(BadInput, match="two axes"):
        trace_runs(SEEDS, n_components=1)
    with pytest.raises(BadInput, match="two models"):
        trace_runs([run(steps=1)])


def test_what_cannot_be_compared_is_noted_and_the_rest_is_there():
    early = run(steps=3, speed=0.2, noise=0.01)
    late = Trajectory("a", np.log(learning(noise=0.0)[6:]), range(3), early.ids, early.labels)
    other = Trajectory("b", late.log_probs, late.steps, late.ids, late.labels)
    apart = trace_runs([early, other], distance="progress")
    assert apart.tree is None
    assert "no distances at equal progress" in apart.notes[0]
    assert "no progress in common" in apart.notes[0]
    instead = trace_runs([early, other])
    assert instead.tree.distance == "frechet"
    assert "compared as paths" in instead.notes[0]
    assert trace_runs([early, other], distance="frechet").notes == ()
    seeds = trace_runs([early, late, run("c", steps=3)])
    assert "task 'a' has no mean path" in seeds.notes[0]
    assert [path.kind for path in seeds.embedding.paths] == ["truth"]


def test_a_run_that_comes_back_has_infinite_tortuosity():
    P = learning(noise=0.0)[[0, 4, 0]]
    found = trace_runs([Trajectory("round", np.log(P), range(3), range(30), labels(0, 30, 5))])
    assert found.runs[0].tortuosity == math.inf
    assert found.runs[0].regressions


def test_intervals_lie_around_the_estimates_and_follow_the_seed():
    found = trace_runs(SEEDS, bootstrap=30)
    samples, seeds = found.intervals["samples"], found.intervals["seeds"]
    assert (found.intervals["resamples"], found.intervals["level"]) == (30, 0.95)
    for one in found.runs:
        low, high = samples["length"][one.name]
        assert low < one.length < high
        low, high = samples["progress"][one.name]
        assert low < one.progress[-1] < high
    low, high = seeds["length"]["a"]
    assert low <= np.mean([one.length for one in found.runs[:2]]) <= high
    assert seeds["length"]["b"] == [found.runs[2].length] * 2
    assert seeds["distances"]["low"][0][1] <= found.tree.distances[0, 1] <= seeds["distances"]["high"][0][1]
    assert len(samples["explained_stress"]["low"]) == len(seeds["eigenvalues"]["high"]) == 3
    assert trace_runs(SEEDS, bootstrap=30).intervals == found.intervals
    assert trace_runs(SEEDS, bootstrap=30, seed=1).intervals != found.intervals
    assert "seeds" not in trace_runs(SEEDS[1:], bootstrap=2).intervals
    assert trace_runs(SEEDS, bootstrap=2, distance="frechet").intervals["seeds"]["distances"] is None


def test_landmarks_and_other_metrics():
    few = trace_runs(SEEDS, landmarks=9, seed=4)
    assert len(few.embedding.eigenvalues) == 9
    assert few.embedding.coordinates.shape == (18, 3)
    other = trace_runs(SEEDS, metric="hellinger", n_components=2)
    assert other.saturated is None
    assert other.embedding.metric == "hellinger"
    assert "nat" not in other.embedding.axis_label(0)
    with pytest.raises(BadInput, match="landmarks"):
        trace_runs(SEEDS, landmarks=9, bootstrap=5)


def test_labels_are_those_of_the_first_run_that_has_some():
    bare, labelled = without_labels(SEEDS[0]), SEEDS[2]
    truth = labelled.labels
    assert np.array_equal(trace_runs([bare, labelled]).runs[0].progress, bare.progress(truth))
    assert trajectory_distance(bare, labelled) == trajectory_distance(bare, labelled, truth=truth)
    assert np.array_equal(task_tree([bare, labelled]).distances, task_tree([bare, labelled], truth=truth).distances)
    assert mean_trajectory([bare, SEEDS[1]]).digest == mean_trajectory([bare, SEEDS[1]], truth=truth).digest
    assert shuffle_null(bare, labelled, shuffles=2).distance == shuffle_null(bare, labelled, truth, shuffles=2).distance
    other = Trajectory("c", SEEDS[1].log_probs, SEEDS[1].steps, SEEDS[1].ids, (truth + 1) % 5)
    with pytest.raises(BadInput, match="runs 'b' and 'c' carry other labels"):
        trace_runs([bare, labelled, other])


def test_runs_on_different_probes_are_not_compared():
    known = [replace(one, probe=probe) for one, probe in zip(SEEDS, (None, "first", "second"), strict=True)]
    with pytest.raises(BadInput, match="runs 'a' and 'b' were recorded on different probes"):
        trace_runs(known)
    with pytest.raises(BadInput, match="different probes"):
        trajectory_distance(known[1], known[2], method="frechet")
    trace_runs([one.take(one.ids) for one in known])
    trace_runs(known[:2])


def test_no_two_runs_have_one_label():
    log_probs = [one.log_probs[:4] for one in SEEDS]
    for names, labels_ in {
        ("a", "a", "a #1"): ["a #2", "a #3", "a #1"],
        ("a #1", "a", "a"): ["a #1", "a #2", "a #3"],
        ("a #1", "a #1", "a"): ["a #1 #1", "a #1 #2", "a"],
        ("a", "b", "a"): ["a #1", "b", "a #2"],
    }.items():
        pairs = zip(names, log_probs, strict=True)
        runs = [Trajectory(name, values, range(4), SEEDS[0].ids) for name, values in pairs]
        assert run_labels(runs) == labels_


def test_snapshots_that_weigh_too_much_are_said():
    assert trace_runs(SEEDS).notes == ()
    one = SEEDS[0]
    twice = Trajectory("a", one.log_probs[[0, 1, 1, 1, 2]], range(5), one.ids, one.labels)
    assert trace_runs([twice]).notes == ("run 'a' repeats a snapshot in 2 of its 4 steps, and each weighs in the map.",)
    short = Trajectory("b", one.log_probs[:2], range(2), one.ids, one.labels)
    assert [note[:30] for note in trace_runs([one, short]).notes] == ["runs have from 2 to 6 snapshot"]


def test_numbers_that_do_not_fit():
    with pytest.raises(BadInput, match="2 tasks do not fit 3 runs"):
        trace_runs(SEEDS, tasks=["a", "b"])
    for bootstrap in (InPCA(2).fit(SEEDS).bootstrap, lambda n: bootstrap_measures(SEEDS, resamples=n)):
        with pytest.raises(BadInput, match="at least 1 resample, not 0"):
            bootstrap(0)
    with pytest.raises(BadInput, match="at least 1 resample"):
        bootstrap_seeds(SEEDS, resamples=0)
    with pytest.raises(BadInput, match="at least 1 shuffle"):
        shuffle_null(*SEEDS[:2], shuffles=0)
    assert trace_runs(SEEDS, landmarks=2).embedding.coordinates.shape[1] == 2


def test_runs_that_do_not_belong_together():
    with pytest.raises(BadInput, match="other samples"):
        trace_runs([SEEDS[0], run("c", samples=29)])
    with pytest.raises(BadInput, match="5 and 4 classes"):
        trace_runs([SEEDS[0], run("c", classes=4)])
    with pytest.raises(BadInput, match="other labels"):
        trace_runs([SEEDS[0], Trajectory("c", SEEDS[0].log_probs, range(6), SEEDS[0].ids, (SEEDS[0].labels + 1) % 5)])
    with pytest.raises(BadInput, match="out of range"):
        trace_runs(SEEDS, truth=SEEDS[0].labels + 1)
