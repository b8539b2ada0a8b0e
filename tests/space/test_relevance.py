"""Scores for a labelled target against their references, and the ranking that weighs them with redundancy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import space as reference
from tests.space.make import covariance, space_of

from taskatlas.errors import BadInput
from taskatlas.space import TaskSpace, h_score, leep, log_me, rank_for_target, select

SEEDS = st.integers(0, 2**32 - 1)
SCORES = [log_me, h_score, leep]


def labelled(seed, n, d, classes, signal=1.0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    features = rng.standard_normal((n, d)) + signal * rng.standard_normal((classes, d))[labels]
    return features, labels


def probabilities(seed, n, source):
    logits = 2 * np.random.default_rng(seed).standard_normal((n, source))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@given(SEEDS, st.integers(8, 30), st.integers(1, 40), st.integers(2, 4), st.sampled_from([0.0, 1.0, 5.0]))
@settings(max_examples=8, deadline=None)
def test_log_me_is_the_reference(seed, n, d, classes, signal):
    features, labels = labelled(seed, n, d, classes, signal)
    assert log_me(features, labels) == pytest.approx(reference.log_me(features, labels), abs=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_log_me_of_features_of_any_scale(factor, shift):
    features, labels = labelled(1, 24, 5, 3)
    features = factor * (features + shift)
    assert log_me(features, labels) == pytest.approx(reference.log_me(features, labels), abs=1e-6)


def test_log_me_of_redundant_features_is_that_of_the_direction_they_span():
    features, labels = labelled(2, 24, 3, 2)
    redundant = np.hstack([features, features])
    assert log_me(redundant, labels) == pytest.approx(log_me(features, labels), abs=1e-9)


def test_log_me_where_features_say_everything_or_nothing():
    labels = np.array([0, 1, 2] * 4)
    assert log_me(np.eye(3)[labels], labels) == np.inf
    assert log_me(3 * np.eye(3)[labels] @ np.random.default_rng(0).standard_normal((3, 5)), labels) == np.inf
    nothing = log_me(np.zeros((12, 2)), labels)
    assert nothing == pytest.approx(-0.5 * (np.log(2 * np.pi / 3) + 1))  # a third of each target is one: variance 1/3
    assert nothing < log_me(labelled(3, 12, 2, 3, signal=3.0)[0], labels) < np.inf


@given(SEEDS, st.integers(6, 30), st.integers(1, 12), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_h_score_is_the_reference(seed, n, d, classes):
    features, labels = labelled(seed, n, d, classes)
    assert h_score(features, labels) == pytest.approx(reference.h_score(features, labels), abs=1e-6)
    rotated = features @ np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0] * 3 + 1
    assert h_score(rotated, labels) == pytest.approx(h_score(features, labels), abs=1e-6)


def test_h_score_of_redundant_or_constant_features():
    features, labels = labelled(4, 30, 4, 3)
    redundant = np.hstack([features, features[:, :2], np.ones((30, 1))])
    assert h_score(redundant, labels) == pytest.approx(h_score(features, labels), abs=1e-8)
    assert h_score(np.ones((30, 2)), labels) == 0


@given(SEEDS, st.integers(4, 25), st.integers(1, 6), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_leep_is_the_reference(seed, n, source, classes):
    predictions = probabilities(seed, n, source)
    labels = labelled(seed, n, 1, classes)[1]
    assert leep(predictions, labels) == pytest.approx(reference.leep(predictions, labels), abs=1e-10)
    assert leep(predictions, labels) <= 0


def test_leep_with_a_source_class_that_nothing_is_in():
    predictions = np.hstack([probabilities(5, 10, 3), np.zeros((10, 1))])
    labels = np.arange(10) % 2
    assert leep(predictions, labels) == pytest.approx(reference.leep(predictions, labels), abs=1e-12)


@given(SEEDS, st.integers(8, 25))
@settings(max_examples=10, deadline=None)
def test_scores_know_neither_the_order_of_samples_nor_the_names_of_classes(seed, n):
    features, labels = labelled(seed, n, 3, 3)
    order = np.random.default_rng(seed).permutation(n)
    renamed = np.array([7, -2, 100])[labels]
    for score, x in ((log_me, features), (h_score, features), (leep, probabilities(seed, n, 3))):
        assert score(x[order], renamed[order]) == pytest.approx(score(x, labels), abs=1e-7)


def test_more_signal_scores_higher():
    (weak, labels), (strong, _) = labelled(6, 60, 5, 3, signal=0.5), labelled(6, 60, 5, 3, signal=4.0)
    for score in (log_me, h_score):
        assert score(strong, labels) > score(weak, labels)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        (np.full((4, 2), 0.5), np.zeros(4, int), "all labels are the same"),
        (np.full((4, 2), 0.5), np.arange(5), r"features of shape \(4, 2\) and labels of shape \(5,\) do not fit"),
        (np.full((4, 2), 0.5), np.eye(4, dtype=int), r"labels of shape \(4, 4\) do not fit"),
        (np.full(4, 0.5), np.arange(4), r"features of shape \(4,\)"),
        (np.array([[0.5], [np.nan], [0.5]]), np.arange(3), "features of sample 1 are not finite"),
        (np.array([[0.5], [0.5], [np.inf]]), np.arange(3), "features of sample 2 are not finite"),
        (np.empty((0, 2)), np.empty(0, int), "all labels are the same"),
        (np.full((1, 2), 0.5), np.zeros(1, int), "all labels are the same"),
    ],
)
def test_what_cannot_be_scored_is_refused(as_installed, score, features, labels, words):
    with pytest.raises(BadInput, match=words):
        score(features, labels)


@pytest.mark.parametrize("bad", [np.array([[1.5, -0.5]] * 2), np.array([[0.5, 0.4]] * 2), np.array([[3.0, 1.0]] * 2)])
def test_leep_needs_probabilities(bad):
    with pytest.raises(BadInput, match="Apply softmax"):
        leep(bad, np.array([0, 1]))


# Relevant and not redundant


def brute_force(matrix, scores, k, balance):
    """Greedy maximum of ½ ln det of the kernel q_i Σ_ij q_j over the picks, and each step's gain."""
    z = (scores - scores.mean()) / scores.std()
    quality = np.exp(balance * z / 2)
    kernel = matrix * np.outer(quality, quality)
    picked, gains, worth = [], [], 0.0
    for _ in range(k):
        totals = {
            y: 0.5 * np.linalg.slogdet(kernel[np.ix_([*picked, y], [*picked, y])])[1]
            for y in range(len(matrix))
            if y not in picked
        }
        best = min(y for y in totals if totals[y] >= max(totals.values()) - reference.TIE)
        picked.append(best)
        gains.append(totals[best] - worth)
        worth = totals[best]
    return picked, gains


@given(SEEDS, st.integers(2, 9), st.sampled_from([0.0, 0.5, 1.0, 4.0]))
@settings(max_examples=40, deadline=None)
def test_ranking_is_greedy_in_the_log_determinant(seed, m, balance):
    space = space_of(covariance(seed, m))
    scores = np.random.default_rng(seed).standard_normal(m)
    ranked = rank_for_target(space, dict(zip(space.names, scores.tolist(), strict=True)), m, balance=balance)
    picked, gains = brute_force(space.covariance, scores, m, balance)
    assert [space.names.index(name) for name in ranked.names] == picked
    assert [step.gain for step in ranked.steps] == pytest.approx(gains, abs=1e-8)
    assert ranked.totals == pytest.approx(np.cumsum(gains), abs=1e-8)
    assert ranked.method == "relevance"
    assert ranked.space == space.digest


def test_without_relevance_the_ranking_is_diversity_alone():
    space = space_of(covariance(7, 8))
    scores = dict(zip(space.names, np.arange(8.0).tolist(), strict=True))
    by_entropy = select(space, 8, method="entropy").names
    assert rank_for_target(space, scores, 8, balance=0.0).names == by_entropy
    assert rank_for_target(space, dict.fromkeys(space.names, 0.3), 8).names == by_entropy
    assert rank_for_target(space, scores, 3, balance=1e3).names == ("task-07", "task-06", "task-05")


def test_a_duplicate_of_the_best_comes_last():
    matrix = covariance(8, 4)
    rows = [0, 1, 2, 3, 0]
    space = TaskSpace(("a", "b", "c", "d", "a again"), matrix[np.ix_(rows, rows)])
    scores = {"a": 3.0, "a again": 2.9, "b": 1.0, "c": 0.5, "d": 0.0}
    ranked = rank_for_target(space, scores, 5)
    assert ranked.names[0] == "a"
    assert ranked.names[-1] == "a again"
    assert np.isfinite(ranked.totals).all()


def test_the_ranking_does_not_know_the_order_of_names():
    space = space_of(covariance(9, 7))
    scores = dict(zip(space.names, np.random.default_rng(9).standard_normal(7).tolist(), strict=True))
    for seed in range(4):
        order = [str(name) for name in np.random.default_rng(seed).permutation(space.names)]
        assert rank_for_target(space.subset(order), scores, 7) == rank_for_target(space, scores, 7)


@pytest.mark.parametrize(
    ("change", "k", "words"),
    [
        ({"task-01": None}, 2, r"no score for 'task-01' \(1 missing\)"),
        ({"task-01": np.nan}, 2, "score of 'task-01' is not finite"),
        ({"task-02": np.inf}, 2, "score of 'task-02' is not finite"),
        ({}, 0, "k is 0.*from 1 to 3"),
        ({}, 4, "k is 4.*holds 3"),
    ],
)
def test_what_cannot_be_ranked_is_refused(change, k, words):
    space = space_of(covariance(10, 3))
    scores = {name: change.get(name, 1.0) for name in space.names}
    with pytest.raises(BadInput, match=words):
        rank_for_target(space, {name: x for name, x in scores.items() if x is not None}, k)
