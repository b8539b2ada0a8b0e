"""Matching of features against straight-line references and the published program; no feature is ever lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import matching as reference
from tests.zip.make import covariance, features

from taskatlas.errors import BadInput
from taskatlas.merge.greedy_zip import greedy_zip, within_model_budget
from taskatlas.merge.matching import Alignment, match_features

SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.sampled_from([0.0, 1e-4, 0.05, 0.125, 0.3, 0.5, 1.0])
METHODS = ("zip", "permute", "cycle_consistent", "identity")


def joined(places):
    """Which features are together, whatever the clusters are called."""
    flat = np.asarray(places).ravel()
    return {frozenset(np.flatnonzero(flat == place).tolist()) for place in flat}


# Against the references


@given(SEEDS, st.integers(2, 4), st.integers(1, 7), SHARES, SHARES, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=60, deadline=None)
def test_zip_is_the_straightforward_loop(seed, models, width, a, b, dtype):
    matrix = covariance(seed, models, width=width).astype(dtype)
    similarity = reference.correlation(matrix).astype(dtype)
    expected = reference.greedy_zip(similarity, (width,) * models, a, b)
    assert (match_features(matrix, models, a=a, b=b).places.ravel() == expected).all()


@given(SEEDS, st.integers(2, 4), st.integers(2, 6), SHARES, SHARES)
@settings(max_examples=40, deadline=None)
def test_zip_of_whole_numbers_breaks_ties_as_the_loop_does(seed, models, width, a, b):
    random = np.random.default_rng(seed)
    similarity = random.integers(-2, 3, (models * width, models * width)) / 2.5
    similarity = np.triu(similarity, 1) + np.triu(similarity, 1).T
    first_members = greedy_zip(similarity.copy(), (width,) * models, a, b)
    assert joined(first_members) == joined(reference.greedy_zip(similarity, (width,) * models, a, b))


@given(SEEDS, st.integers(2, 3), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_permutations_of_two_models_are_the_best_there_are(seed, models, width):
    matrix = covariance(seed, models, width=width)
    similarity = reference.correlation(matrix)
    best = reference.best_permutations(similarity, models)
    method = "permute" if models == 2 else "cycle_consistent"
    places = match_features(matrix, models, method).places
    orders = np.argsort(places, axis=1) + width * np.arange(models)[:, None]
    total = sum(similarity[orders[p], orders[q]].sum() for p in range(models) for q in range(p))
    assert total <= best + 1e-9
    if models == 2:
        assert total == pytest.approx(best, abs=1e-9)


def test_cycle_consistent_beats_assignment_to_the_first():
    gains = []
    for seed in range(20):
        matrix = covariance(seed, models=4, width=8, shared=0.3)
        blocks = reference.correlation(matrix).reshape(4, 8, 4, 8)
        totals = []
        for method in ("permute", "cycle_consistent"):
            orders = np.argsort(match_features(matrix, 4, method).places, axis=1)
            totals.append(sum(blocks[p, orders[p], q, orders[q]].sum() for p in range(4) for q in range(p)))
        gains.append(totals[1] - totals[0])
    assert min(gains) >= 0
    assert np.mean(gains) > 0.05


def test_published_matrices(real_input):
    """The published merge matrix divides by count + 1e-5."""
    golden = np.load(real_input / "golden" / "zip" / "matching.npz")
    cases = [key for key in golden if key.endswith("__unmerge")]
    assert len(cases) == 14
    for key in cases:
        case, method, _ = key.split("__")
        settings = {}
        if method.startswith("zipit"):
            method, a, b = method.split("_")
            method, settings = "zip", {"a": float(a[1:]), "b": float(b[1:])}
        found = match_features(golden[f"{case}__cov"], 2, method, **settings)
        assert np.array_equal(found.unmerge, golden[key]), key
        counts = found.unmerge.sum(axis=0)[:, None]
        assert found.merge * counts / (counts + 1e-5) == pytest.approx(golden[key.replace("un", "")], abs=1e-6), key


# Laws


@given(SEEDS, st.integers(1, 5), st.integers(1, 9), SHARES, SHARES, st.integers(0, 9), st.sampled_from(METHODS))
@settings(max_examples=80, deadline=None)
def test_no_feature_is_dropped(seed, models, width, a, b, constants, method):
    parts = np.concatenate(features(seed, models, width=width), axis=1)
    parts[:, np.random.default_rng(seed).integers(0, models * width, constants)] = 3.0
    found = match_features(np.cov(parts.T, bias=True).reshape(models * width, -1), models, method, a=a, b=b)
    assert found.unmerge.sum(axis=1) == pytest.approx(np.ones(models * width))
    assert (found.unmerge.sum(axis=0) >= 1).all()
    assert found.merge.sum(axis=1) == pytest.approx(np.ones(width), abs=1e-6)
    assert found.merge @ found.unmerge == pytest.approx(np.eye(width), abs=1e-6)


@given(SEEDS, st.integers(2, 4), st.integers(1, 8), SHARES, SHARES, st.sampled_from(METHODS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_model_zipped_with_itself_is_itself(seed, models, width, a, b, method, float32):
    """Also with dead features, and with two that are the same up to scale."""
    (x,) = features(seed, 1, width=width)
    x[:, 0] = 0
    x[:, -1] = 2 * x[:, width // 2]
    whole = np.concatenate([x] * models, axis=1)
    matrix = (whole.T @ whole).astype(np.float32 if float32 else np.float64)
    found = match_features(matrix, models, method, a=a, b=b)
    assert (found.places == np.arange(width)).all()


@given(SEEDS, st.integers(2, 4), st.integers(1, 8), st.sampled_from(["zip", "permute", "cycle_consistent"]))
@settings(max_examples=40, deadline=None)
def test_a_permuted_model_is_put_back(seed, models, width, method):
    random = np.random.default_rng(seed)
    (x,) = features(seed, 1, width=width)
    orders = [np.arange(width), *(random.permutation(width) for _ in range(models - 1))]
    whole = np.concatenate([x[:, order] for order in orders], axis=1)
    found = match_features(np.cov(whole.T, bias=True).reshape(models * width, -1), models, method)
    assert (found.places == np.stack(orders)).all()
    assert found.is_permutation


@given(SEEDS, st.integers(2, 4), st.integers(2, 7), SHARES.filter(bool), SHARES)  # a = 0 makes everything a tie
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_models_does_not_matter(seed, models, width, a, b):
    parts = features(seed, models, width=width)
    order = np.random.default_rng(seed).permutation(models)
    straight = match_features(reference.covariance(parts), models, a=a, b=b).places
    turned = match_features(reference.covariance([parts[i] for i in order]), models, a=a, b=b).places
    assert joined(straight[order]) == joined(turned)


def test_without_a_budget_no_model_is_joined_with_itself():
    for seed in range(10):
        found = match_features(covariance(seed, 2, width=12), 2, b=0)
        assert found.is_permutation
    assert not match_features(covariance(0, 2, width=24, shared=0.1), 2, b=1).is_permutation


def test_budgets_by_hand():
    assert [within_model_budget((d, d), 0.125) for d in (8, 16, 32, 2048)] == [1, 1, 2, 128]
    assert within_model_budget((10,) * 3, 0.3) == 2
    assert within_model_budget((50, 50), 0.28) == 7  # 0.28 * 25 is a little less than 7 in floating point
    assert within_model_budget((50, 50), 0) == 0


def test_negative_correlations_do_not_rise():
    """A join of anticorrelated features must not make them look alike: -0.9 times 1e-4 is nearly 0."""
    s = np.full((6, 6), -0.5)
    s[0, 3] = s[3, 0] = 0.9
    s[0, 1] = s[1, 0] = s[3, 1] = s[1, 3] = -0.9
    s[1, 4] = s[4, 1] = -0.4
    s[2, 5] = s[5, 2] = -0.45
    assert greedy_zip(s, (3, 3), a=1e-4, b=1.0).tolist() == [0, 1, 2, 0, 1, 2]


def test_three_models_can_use_up_what_is_allowed():
    """Pairs 0-1, 0-2 and 1-2 leave three features of which no two may be joined: the budget is lifted, none is lost."""
    s = np.full((6, 6), 0.1)
    for i, j in ((0, 2), (1, 4), (3, 5)):
        s[i, j] = s[j, i] = 0.9
    assert len(np.unique(greedy_zip(s, (2, 2, 2), a=0.3, b=0.0))) == 2


# Alignments


def test_agreement_is_the_mean_correlation_across_models():
    s = np.eye(6)
    s[0, 3], s[1, 3], s[2, 5], s[0, 1] = 0.9, 0.3, -0.2, 0.5
    s = s + s.T - np.eye(6)
    zipped = Alignment(np.array([[0, 0, 1], [0, 2, 1]]))
    assert zipped.agreement(s) == pytest.approx(((0.9 + 0.3) / 2 - 0.2 + 0) / 3)


def test_an_alignment_says_what_it_is():
    zipped = Alignment(np.array([[0, 0, 1], [1, 2, 2]]))
    assert repr(zipped) == "Alignment(2 models x 3 features, zipped)"
    assert zipped.counts.tolist() == [2, 2, 2]
    assert zipped.merge[0].tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert repr(Alignment(np.array([[0, 1], [1, 0]]))) == "Alignment(2 models x 2 features, a permutation of each)"


@pytest.mark.parametrize("places", [np.array([[0, 0], [0, 0]]), np.array([[0, 2]]), np.array([0, 1])])
def test_an_alignment_leaves_no_place_empty(places, as_installed):
    with pytest.raises(BadInput, match="no place empty"):
        Alignment(places)


# Bad input


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "zipper"}, "Choose one of: zip, permute"),
        ({"n_models": 5}, r"\(12, 12\) is not that of 5 models"),
        ({"n_models": 0}, "0 models"),
        ({"a": -0.1}, "numbers from 0 to 1"),
        ({"b": 1.5}, "numbers from 0 to 1"),
        ({"a": float("nan")}, "numbers from 0 to 1"),
        ({"method": "optimal", "n_models": 3}, "two models, not 3"),
        ({"covariance": np.ones((4, 6))}, r"\(4, 6\)"),
        ({"covariance": np.zeros((0, 0))}, "models"),
        ({"covariance": np.full((4, 4), np.nan)}, "NaN"),
        ({"covariance": np.triu(np.ones((4, 4)))}, "not symmetric"),
        ({"covariance": np.diag([1.0, -1, 1, 1])}, "feature 1 has the negative variance -1"),
    ],
)
def test_bad_input_is_told(change, said, as_installed):
    with pytest.raises(BadInput, match=said):
        match_features(**{"covariance": covariance(), "n_models": 2} | change)
