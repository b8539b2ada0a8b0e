"""Shortest paths between predictions: great circles, one for each sample, walked at the same relative pace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.simplex import Array, Truth, as_tensor, like, unit_roots


def geodesic(
    start: Real[Array, "samples classes"],
    end: Real[Array, "_ _"],
    t: float | int | Sequence[float | int] | Real[Tensor | np.ndarray, "*points"],
) -> Float[Array, "*points samples classes"]:
    """Points on the geodesic of the product of spheres from ``start`` (t = 0) to ``end`` (t = 1).

    For each sample, with a and b the square roots and θ = arccos⟨a, b⟩, the point is the square of
    [sin((1 - t)θ) a + sin(tθ) b] / sin θ (Ramesh et al., ICML 2023, section 2), renormalised; where θ is 0, a itself.
    Orthogonal ends (θ = π/2) are as good as any others.

    Args:
        start: probabilities of one model.
        end: probabilities of another on the same samples.
        t: a number in [0, 1], or several.

    Returns:
        (points, samples, classes) probabilities; without the first axis where ``t`` is a single number.

    Raises:
        BadInput: a row is no probability, the ends differ in shape, or a ``t`` lies outside [0, 1].

    Example:
        >>> geodesic(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), [0.0, 0.5, 1.0]).round(3)
        array([[[1. , 0. ]],
               [[0.5, 0.5]],
               [[0. , 1. ]]])
    """
    if start.ndim != 2 or start.shape != end.shape:
        raise BadInput(
            f"the ends of a geodesic have the shape (samples, classes), not {tuple(start.shape)} and "
            f"{tuple(end.shape)}."
        )
    place = torch.as_tensor(np.asarray(t, dtype=np.float64) if not isinstance(t, Tensor) else t.detach()).double()
    if not bool(((place >= 0) & (place <= 1)).all()):
        raise BadInput("a place t on a geodesic lies between 0 (its start) and 1 (its end).")
    a, b = (unit_roots(as_tensor(end_point).double()) for end_point in (start, end))
    toward_start, toward_end = slerp_weights(angles(a, b), place.to(a.device)[..., None])
    probs = (toward_start[..., None] * a + toward_end[..., None] * b).square()
    return like(probs / probs.sum(-1, keepdim=True), start)


@dataclass(frozen=True, eq=False)
class TowardTruth:
    """Points on the geodesic from ignorance (1/C for each class) to the truth, made a block of samples at a time.

    Attributes:
        truth: labels, or (samples, classes) probabilities.
        classes: how many.
        places: (points,) values of t, which is also the points' progress.
    """

    truth: Truth
    classes: int
    places: Float[np.ndarray, " points"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of points, samples and classes."""
        return len(self.places), len(self.truth), self.classes

    def probabilities(self, samples: slice) -> Float[np.ndarray, "points some classes"]:
        """The points' probabilities, for some of the samples."""
        truth = np.asarray(self.truth)[samples]
        end = np.eye(self.classes)[truth] if truth.ndim == 1 else truth.astype(np.float64)
        return geodesic(np.full_like(end, 1 / self.classes), end, self.places)


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles between unit vectors (..., C) -> (...), exact for small ones, where arccos⟨a, b⟩ loses half its digits."""
    return 2 * torch.asin((torch.linalg.vector_norm(a - b, dim=-1) / 2).clamp(max=1))


def slerp_weights(theta: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """sin((1 - t)θ) / sin θ and sin(tθ) / sin θ, for θ in [0, π/2]; 1 - t and t where θ is 0."""
    whole = theta.sin()
    still = whole == 0
    whole = torch.where(still, 1.0, whole)
    start, end = ((1 - t) * theta).sin() / whole, (t * theta).sin() / whole
    if bool(still.any()):
        start, end = torch.where(still, 1 - t, start), torch.where(still, t, end)
    return start, end
