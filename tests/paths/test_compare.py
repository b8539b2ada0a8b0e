"""Distances between runs, means of seeds, trees and the shuffle null."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.paths.make import labels, learning, models, run

from taskatlas.errors import BadInput
from taskatlas.paths import (
    TaskTree,
    Trajectory,
    bhattacharyya,
    mean_trajectory,
    shuffle_null,
    task_tree,
    trajectory_distance,
)
from taskatlas.paths.compare import GRID, frechet_distance

METHODS = pytest.mark.parametrize("method", ["progress", "frechet"])


@METHODS
def test_a_run_is_at_no_distance_from_itself(method):
    assert trajectory_distance(run(), run(), method=method) == pytest.approx(0, abs=1e-7)
    assert trajectory_distance(run(), run()) == 0.0


@METHODS
@given(seed=st.integers(0, 999))
@settings(max_examples=6, deadline=None)
def test_it_is_symmetric_and_positive(method, seed):
    a, b = run(seed=seed), run(seed=seed + 1, steps=6)
    there, back = (trajectory_distance(*pair, method=method) for pair in ((a, b), (b, a)))
    assert there == pytest.approx(back, rel=1e-5)
    assert there > 1e-3


def test_pace_does_not_matter():
    P = learning(noise=0.0, steps=17, speed=0.3)
    slow = Trajectory("a", np.log(P), range(17), run().ids, labels(0, 30, 5))
    fast = Trajectory("b", np.log(P[::2]), range(9), run().ids, labels(0, 30, 5))
    assert trajectory_distance(slow, fast) < 1e-3
    assert trajectory_distance(slow, fast) < 0.05 * trajectory_distance(slow, run(seed=1))


def test_it_is_the_mean_over_the_common_grid():
    a, b = run(), run(seed=1, steps=6)
    low = max(r.progress()[0] for r in (a, b))
    high = min(r.progress().max() for r in (a, b))
    grid = GRID[(low <= GRID) & (high >= GRID)]
    pairs = zip(a.resample(grid).probabilities(), b.resample(grid).probabilities(), strict=True)
    expected = np.mean([bhattacharyya(p[None], q[None])[0, 0] for p, q in pairs])
    assert trajectory_distance(a, b) == pytest.approx(expected, rel=1e-4)


def test_seeds_are_averaged():
    seeds, other = [run(seed=seed) for seed in range(4)], run(seed=9, name="b")
    together = trajectory_distance(seeds, other)
    assert together < min(trajectory_distance(seed, other) for seed in seeds)  # their noise is gone
    assert trajectory_distance(seeds[:1], [other]) == trajectory_distance(seeds[0], other)
    mean = mean_trajectory(seeds)
    assert mean.name == "a"
    assert "mean of 4 seeds" in mean.note
    assert (np.diff(mean.progress()) > 0).all()
    one = mean_trajectory([run()])
    assert np.allclose(
        one.progress(), GRID[(run().progress()[0] <= GRID) & (run().progress().max() >= GRID)], atol=1e-4
    )


def test_seeds_of_unequal_length_are_averaged_where_all_have_been():
    short, long = run(steps=4), run(seed=1)
    mean = mean_trajectory([short, long])
    assert mean.progress()[-1] < short.progress().max() + 0.02 < long.progress().max()


def test_runs_without_common_progress():
    early = run(steps=3, speed=0.2, noise=0.01)
    P = learning(noise=0.0)[6:]
    late = Trajectory("late", np.log(P), range(3), early.ids, early.labels)
    with pytest.raises(BadInput, match=r"no progress in common: 'a' goes from 0.* to .*'late' goes from"):
        trajectory_distance(early, late)
    with pytest.raises(BadInput, match="no progress in common"):
        mean_trajectory([early, late])
    assert trajectory_distance(early, late, method="frechet") > 0


def test_runs_that_share_little_progress_are_compared_at_finer_values():
    a, b = run(speed=0.02, noise=0.3), run(seed=1)
    low = max(r.progress()[0] for r in (a, b))
    high = min(r.progress().max() for r in (a, b))
    assert 0 < high - low < 0.1
    grid = np.linspace(low, high, 11)
    pairs = zip(a.resample(grid).probabilities(), b.resample(grid).probabilities(), strict=True)
    expected = np.mean([bhattacharyya(p[None], q[None])[0, 0] for p, q in pairs])
    assert trajectory_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert len(mean_trajectory([a, b])) == 11


def test_frechet_against_all_ways():
    def ways(i, j):
        if (i, j) == (0, 0):
            yield [(0, 0)]
        for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)):
            if a >= 0 and b >= 0:
                for way in ways(a, b):
                    yield [*way, (i, j)]

    random = np.random.default_rng(0)
    for _ in range(20):
        D = random.uniform(size=(4, 5))
        assert frechet_distance(D) == min(max(D[cell] for cell in way) for way in ways(3, 4))


def test_other_samples_classes_or_labels():
    a = run()
    with pytest.raises(BadInput, match=r"other samples \(30 and 29, with 29 in common\).*take"):
        trajectory_distance(a, run("b", samples=29))
    shuffled = a.take(a.ids[::-1])
    with pytest.raises(BadInput, match="in another order"):
        trajectory_distance(a, shuffled)
    assert trajectory_distance(a, shuffled.take(a.ids)) == 0.0
    with pytest.raises(BadInput, match="5 and 4 classes"):
        trajectory_distance(a, Trajectory("b", np.log(models(samples=30)), range(5), a.ids))
    with pytest.raises(BadInput, match="other labels"):
        trajectory_distance(a, Trajectory("b", a.log_probs, a.steps, a.ids, (a.labels + 1) % 5))
    with pytest.raises(BadInput, match="no run"):
        trajectory_distance(a, [])
    with pytest.raises(BadInput, match="one between two runs"):
        trajectory_distance([a, a], a, method="frechet")


# Trees


def family():
    """Two pairs of tasks, each pair with its own way to err; two seeds of each."""

    def one(name, seed, way):
        truth = labels(0, 60, 5)
        wrong = np.eye(5)[(truth + 1 + way) % 5]
        pace = np.linspace(0, 5, 10)[:, None, None]
        logits = pace * (np.eye(5)[truth] + 0.6 * wrong)
        noise = 0.05 * np.random.default_rng(seed).standard_normal(logits.shape)
        P = np.exp(logits + noise)
        P /= P.sum(-1, keepdims=True)
        return Trajectory(name, np.log(P), range(10), range(60), truth)

    return [one(name, 10 * seed + i, i % 2) for i, name in enumerate("abcd") for seed in range(2)]


def test_the_tree_joins_what_errs_alike():
    tree = task_tree(family())
    assert tree.names == tuple("abcd")
    pairs = {tuple(sorted(map(int, row[:2]))) for row in tree.linkage[:2]}
    assert pairs == {(0, 2), (1, 3)}
    assert (tree.distances == tree.distances.T).all()
    assert not tree.distances.diagonal().any()
    seeds = [[r for r in family() if r.name == name] for name in "ab"]
    assert tree.distances[0, 1] == pytest.approx(trajectory_distance(*seeds))


@pytest.mark.parametrize("method", ["average", "single", "complete", "weighted"])
def test_path_lengths_are_ultrametric(method):
    tree = task_tree(family(), method=method)
    length = tree.path_lengths()
    for i, j, k in itertools.permutations(range(4), 3):
        assert length[i, k] <= max(length[i, j], length[j, k]) + 1e-12
    assert length.max() == pytest.approx(2 * tree.linkage[-1, 2])


def test_a_tree_is_saved_and_drawn(tmp_path):
    tree = task_tree(family())
    tree.save(tmp_path / "tree.npz")
    assert TaskTree.load(tmp_path / "tree.npz").digest == tree.digest
    assert "4 tasks" in repr(tree)
    figure = tree.plot()
    heat = figure.axes[1]
    names = [label.get_text() for label in heat.get_yticklabels()]
    assert sorted(names) == list("abcd")
    drawn = heat.images[0].get_array()
    order = [tree.names.index(name) for name in names]
    assert np.array_equal(drawn, tree.distances[np.ix_(order, order)])
    (tmp_path / "tree.npz").write_bytes(b"PK nothing")
    with pytest.raises(BadInput, match="no task tree"):
        TaskTree.load(tmp_path / "tree.npz")


def test_trees_that_cannot_be():
    with pytest.raises(BadInput, match="two tasks"):
        task_tree([run(), run(seed=1)])
    with pytest.raises(BadInput, match="do not fit"):
        TaskTree(["a", "b"], np.zeros((3, 3)), np.zeros((1, 4)))


# The shuffle null


def test_what_errs_on_the_same_samples_is_closer_than_its_shuffles():
    P = learning(noise=0.0)
    a = Trajectory("a", np.log(P), range(9), run().ids, labels(0, 30, 5))
    found = shuffle_null(a, run("b"), shuffles=19)
    assert found.p_value == 0.05
    assert found.distance < found.null.min()
    assert found.distance == trajectory_distance(a, run("b"))


def test_classes_alone_are_the_null_itself():
    truth = labels(0, 60, 5)
    P = np.exp(np.linspace(0, 4, 8)[:, None, None] * np.eye(5)[truth])
    a = Trajectory("a", np.log(P / P.sum(-1, keepdims=True)), range(8), range(60), truth)
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal(P.shape))
    b = Trajectory("b", np.log(P * noise / (P * noise).sum(-1, keepdims=True)), range(8), range(60), truth)
    found = shuffle_null(a, b, shuffles=19)
    assert np.allclose(found.null, found.distance)
    assert found.p_value == 1.0
    assert (shuffle_null(a, b, shuffles=3, seed=4).null == shuffle_null(a, b, shuffles=3, seed=4).null).all()
    assert "±" in repr(found)


def test_nothing_to_shuffle():
    P = np.log(learning(samples=5))
    a = Trajectory("a", P, range(9), range(5), range(5))
    with pytest.raises(BadInput, match="no class has two"):
        shuffle_null(a, a)
