"""The references of paths against values worked out by hand."""

import math

import numpy as np
import pytest

from . import paths

HALF, SURE = np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])


def test_divergences_by_hand():
    # One coefficient, sqrt(1/2).
    assert paths.bhattacharyya(HALF[None], SURE[None])[0, 0] == pytest.approx(math.log(2) / 2, abs=1e-15)
    assert paths.bhattacharyya(SURE[None], SURE[None, :, ::-1], floor=1e-3)[0, 0] == pytest.approx(math.log(1e3))
    assert paths.hellinger(HALF[None], SURE[None])[0, 0] == pytest.approx(1 - math.sqrt(0.5), abs=1e-15)
    # (3/4 - 1/4) ln 3, twice, halved.
    skew = np.array([[[0.75, 0.25]]])
    assert paths.symmetric_kl(skew, skew[..., ::-1])[0, 0] == pytest.approx(math.log(3) / 2, abs=1e-15)


def test_inpca_by_hand():
    # Two points at squared distance 4 lie at -1 and 1: eigenvalue 2. Negated, the axis is time-like.
    values, coordinates = paths.inpca(np.array([[0.0, 4], [4, 0]]))
    assert values == pytest.approx([2, 0], abs=1e-15)
    assert sorted(coordinates[:, 0]) == pytest.approx([-1, 1])
    assert paths.inpca(np.array([[0.0, -4], [-4, 0]]))[0] == pytest.approx([-2, 0], abs=1e-15)


def test_geodesics_progress_and_length_by_hand():
    # From (1/2, 1/2) to (1, 0) is an eighth of a turn: half of it is π/8 from the end.
    middle = paths.geodesic(HALF, SURE, 0.5)
    assert middle[0] == pytest.approx([math.cos(math.pi / 8), math.sin(math.pi / 8)], abs=1e-15)
    assert paths.progress(middle**2, [0]) == pytest.approx(0.5, abs=1e-7)
    assert paths.progress(HALF, [0]) == 0
    assert paths.progress(SURE, [0]) == 1
    assert paths.path_length(np.stack([HALF, middle**2, SURE])) == pytest.approx(math.pi / 2, abs=1e-12)
    assert paths.published_length(np.stack([HALF, SURE])) == pytest.approx(2 * math.sqrt(math.log(2)), abs=1e-14)


def test_imprinting_by_hand():
    # Held out, 0 is judged by its class's other sample 2 (squared distance 4) and by 6 (36).
    found = paths.imprint(np.array([[0.0], [2], [6], [6]]), np.array([0, 0, 1, 1]), 2, 8.0)
    assert found[0, 1] == pytest.approx(1 / (1 + math.exp(4)))


def test_resampling_by_hand():
    # The one run that was drawn twice stands twice at each of its two places, half a distance apart.
    P = [np.array([[[0.5, 0.5]], [[1.0, 0.0]]]), np.array([[[0.1, 0.9]]])]
    assert paths.resampled_map(P, [2, 0])[0] == pytest.approx(math.log(2) / 2, abs=1e-12)
    assert paths.mean_of_drawn([1.0, 4.0, 9.0], [2, 0, 1]) == pytest.approx(11 / 3)
