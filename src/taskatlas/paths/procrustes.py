"""Alignment of one map with another: the rotation and reflection that bring the same models closest together."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from taskatlas.errors import BadInput


@dataclass(frozen=True, eq=False)
class Procrustes:
    """A rigid motion of a map and what it leaves unexplained.

    Attributes:
        rotation: (k, k) orthogonal; space-like and time-like axes are never mixed.
        shift: (k,).
        disparity: share of the target's variance that remains, from 0.
    """

    rotation: Float[np.ndarray, "axes axes"]
    shift: Float[np.ndarray, " axes"]
    disparity: float

    def apply(self, points: Float[np.ndarray, "points axes"]) -> Float[np.ndarray, "points axes"]:
        """Other points of the map that was aligned, moved alike."""
        moved: np.ndarray = points @ self.rotation + self.shift
        return moved


def procrustes(
    points: Float[np.ndarray, "points axes"],
    target: Float[np.ndarray, "_ _"],
    signs: Real[np.ndarray, " _"] | None = None,
) -> Procrustes:
    """The motion of ``points`` that brings them closest to ``target``, row by row (orthogonal Procrustes).

    Eigenvectors have no sign and, where eigenvalues are close, no direction of their own; so two fits are compared only
    after this. Scale is kept: it means something here.

    Args:
        points: coordinates of the models in one fit.
        target: coordinates of the same models in the other.
        signs: +1 for space-like and -1 for time-like axes; only axes of one kind are turned into each other.

    Raises:
        BadInput: the two differ in shape.

    Example:
        >>> square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
        >>> turned = square @ np.array([[0.0, 1], [-1, 0]]) + 5
        >>> procrustes(turned, square).apply(turned).round(6) + 0.0
        array([[0., 0.],
               [1., 0.],
               [1., 1.],
               [0., 1.]])
    """
    if points.ndim != 2 or points.shape != target.shape:
        raise BadInput(
            f"two maps of the same models on the same axes are aligned, not {points.shape} and {target.shape}."
        )
    kinds = np.ones(points.shape[1]) if signs is None else np.asarray(signs, dtype=np.float64)
    if kinds.shape != (points.shape[1],):
        raise BadInput(f"{kinds.shape} signs do not fit {points.shape[1]} axes. Give one for each.")
    centre, aim = points.mean(0), target.mean(0)
    rotation = np.zeros((points.shape[1], points.shape[1]))
    for kind in np.unique(kinds):
        axes = np.flatnonzero(kinds == kind)
        left, _, right = np.linalg.svd((points - centre)[:, axes].T @ (target - aim)[:, axes])
        rotation[np.ix_(axes, axes)] = left @ right
    shift = aim - centre @ rotation
    spread = float(np.square(target - aim).sum())
    rest = float(np.square(points @ rotation + shift - target).sum())
    return Procrustes(rotation, shift, rest / spread if spread > 0 else 0.0)
