"""The signed eigendecomposition of a matrix of distances: every axis, space-like or time-like."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float


class Decomposition(NamedTuple):
    """All axes of a map: M signed eigenvalues by magnitude, and (M, M) coordinates, a column for each."""

    eigenvalues: Float[np.ndarray, " models"]
    coordinates: Float[np.ndarray, "models models"]


def decompose(distances: Float[np.ndarray, "models models"], weights: Float[np.ndarray, " models"]) -> Decomposition:
    """The signed eigendecomposition of centred distances; weights sum to one.

    Example:
        >>> decompose(np.array([[0.0, 4.0], [4.0, 0.0]]), np.array([0.5, 0.5])).coordinates[:, 0]
        array([ 1., -1.])
    """
    means = distances @ weights
    scale = np.sqrt(len(weights) * weights)
    inner = -0.5 * (distances - means[:, None] - means + means @ weights) * scale[:, None] * scale
    values, vectors = scipy.linalg.eigh((inner + inner.T) / 2)
    order = np.argsort(-np.abs(values), kind="stable")
    coordinates = vectors[:, order] * np.sqrt(np.abs(values[order])) / scale[:, None]
    return Decomposition(values[order], coordinates * _fixed_signs(coordinates))


def _fixed_signs(coordinates: Float[np.ndarray, "models axes"]) -> Float[np.ndarray, " axes"]:
    """Signs that make each axis's largest coordinate positive; ties to nine digits go to the first."""
    magnitudes = np.abs(coordinates)
    first = np.argmax(magnitudes >= (1 - 1e-9) * magnitudes.max(0), axis=0)
    return np.where(coordinates[first, np.arange(coordinates.shape[1])] < 0, -1.0, 1.0)
