"""The references of merging against values worked out by hand."""

import math

import numpy as np
import pytest

from . import merge_methods as reference

A = np.array


def test_trimming_by_hand():
    # Of five, 40 % are two: 4 and 3; the other 3 is as large as the last.
    assert reference.trimmed(A([1.0, -3, 3, 4, 0]), 0.4).tolist() == [0, -3, 3, 4, 0]
    assert reference.trimmed(A([1.0, -3, 2]), 0.1).tolist() == [0, -3, 0]
    assert reference.trimmed(A([1.0, -3, 2]), 0).tolist() == [0, 0, 0]
    assert [x.tolist() for x in reference.trimmed_together([A([1.0, 5]), A([4.0, 2])], 0.5)] == [[0, 5], [4, 0]]
    # Of ten, the largest one goes, then five stay.
    assert np.flatnonzero(reference.middle(np.arange(1.0, 11), 0.5, 0.1)).tolist() == [4, 5, 6, 7, 8]


def test_election_by_hand():
    taus = [A([1.0, -1, 2, 0]), A([3.0, 1, -5, 0]), A([-1.0, 0, 1, 0])]
    # Signs +, + (for nothing), -, +; means over those that agree.
    assert reference.elected(taus, [1, 1, 1], True).tolist() == [2, 1, -5, 0]
    assert reference.elected(taus, [1, 1, 1], False).tolist() == [4, 1, -5, 0]
    assert reference.elected(taus[:2], [1, -0.5], False)[0] == -1.5


def test_drops_by_hand():
    assert reference.dropped(A([2.0, 2]), 0.5, A([0.4, 0.6]), True).tolist() == [4, 0]
    # Ranks 2, 0, 1 of three: .5 -+ .2.
    assert reference.rank_probabilities(A([[-3.0, 0, 1]]), 0.5, 0.2)[0] == pytest.approx([0.7, 0.3, 0.5])


def test_sce_by_hand():
    # Variance at the first position alone; squares 1 and 9; both agree: (1 * 1 + 9 * 3) / 10.
    models = [A([1.0, 2]), A([3.0, 2])]
    assert reference.sce(models, np.zeros(2), 0.5).tolist() == pytest.approx([2.8, 0])


def test_sphere_by_hand():
    x, y = A([2.0, 0]), A([0.0, 2])
    assert reference.slerp(x, y, 0.5) == pytest.approx([math.sqrt(2)] * 2)
    assert reference.slerp(x, 3 * x, 0.25) == pytest.approx([3, 0])
    assert reference.nuslerp(x + 1, y + 1, [1, 1], np.ones(2)) == pytest.approx([1 + math.sqrt(2)] * 2)
    assert reference.multislerp([x, 2 * y], [1, 1]) == pytest.approx([3 / math.sqrt(2)] * 2)
    assert reference.multislerp([x, -x], [1, 1]).tolist() == [0, 0]
    # On a great circle the mean angle: of 0, 0 and 90 degrees it is 30.
    assert reference.karcher([x, x, y], 100, 1e-12) == pytest.approx([2 * math.cos(math.pi / 6), 1], abs=1e-9)


def test_model_stock_and_nearswap_by_hand():
    # At 60 degrees t = 2 * .5 / 1.5.
    pair = [A([1.0, 0]), A([0.5, math.sqrt(0.75)])]
    assert reference.model_stock(pair, np.zeros(2)) == pytest.approx([0.5, math.sqrt(0.75) / 3])
    assert reference.nearswap(A([1.0, 5]), A([0.9, 1]), 0.5).tolist() == pytest.approx([1, 1.5])
