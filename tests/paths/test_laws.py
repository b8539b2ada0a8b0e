"""Every divergence holds to the laws; and the laws catch what does not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskatlas.paths import bhattacharyya
from taskatlas.paths.predictions import METRICS
from taskatlas.testing.paths import DIVERGENCE_LAWS, DivergenceLaws, check_divergence


@pytest.mark.parametrize("laws", DIVERGENCE_LAWS, ids=lambda laws: laws.name)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_divergences_hold_to_their_laws(laws, seed):
    check_divergence(laws, seed)


def test_every_divergence_has_a_row():
    assert {laws.name: laws.function for laws in DIVERGENCE_LAWS} == dict(METRICS)


def test_bhattacharyya_is_rightly_declared_no_metric():
    p, q, between = np.array([[[1.0, 0.0]]]), np.array([[[0.0, 1.0]]]), np.array([[[0.5, 0.5]]])
    ends, detour = bhattacharyya(p, q), bhattacharyya(p, between) + bhattacharyya(between, q)
    assert np.sqrt(ends) > 2 * np.sqrt(detour / 2)


def changed(change):
    """Bhattacharyya's distance whose whole matrix is changed, with the models at hand."""
    return lambda probs, others=None, weights=None: change(bhattacharyya(probs, others, weights=weights), probs)


def unweighted(probs, others=None, weights=None):
    return bhattacharyya(probs, others)


def first_sample(probs, others=None, weights=None):
    return bhattacharyya(probs[:, :1], None if others is None else others[:, :1])


def first_class(probs, others=None, weights=None):
    def two(P):
        return None if P is None else np.stack([P[..., 0], 1 - P[..., 0]], -1)

    return bhattacharyya(two(probs), two(others), weights=weights)


def cross_halved(probs, others=None, weights=None):
    return bhattacharyya(probs, others, weights=weights) * (1 if others is None else 0.5)


@pytest.mark.parametrize(
    ("law", "function"),
    [
        ("symmetric", changed(lambda D, P: D + 1e-3 * np.tril(D) * (D.shape == (7, 7)))),
        ("zero_on_itself", changed(lambda D, P: D + 1e-9)),
        ("never_negative", changed(lambda D, P: -D)),
        ("finite_when_disjoint", changed(lambda D, P: np.where(D > 13, np.inf, D))),
        ("sample_order", first_sample),
        ("class_order", first_class),
        ("mean_over_samples", unweighted),
        ("cross", cross_halved),
        ("root_is_metric", changed(lambda D, P: D**3)),
    ],
)
def test_the_laws_catch_what_breaks_them(law, function):
    laws = DivergenceLaws("broken", function, root_is_metric=True)
    with pytest.raises(AssertionError, match=f"broken breaks the law '{law}'"):
        check_divergence(laws)
    if law != "root_is_metric":
        check_divergence(replace(laws, **{law: False}, root_is_metric=False))
