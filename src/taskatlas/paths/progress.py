"""Progress of a model: how far along the geodesic from ignorance to the truth it has come.

Ignorance gives 1/C to each class, the truth is one-hot; both are points on a product of N spheres, and progress of P is
argmin_t d(γ_t, P) over t in [0, 1] with Bhattacharyya's distance (Ramesh et al., ICML 2023, section 2).

On a sample, with A and B the cosines of the angles from P to the two ends and θ the angle between the ends, the
coefficient of γ_t and P is [A sin((1 - t)θ) + B sin(tθ)] / sin θ = R cos(tθ - φ): two numbers a sample say all. Where a
cosine is positive, -ln cos is convex; so the distance is convex in t, has one minimum, and the minimum is found by the
sign of its derivative, θ Σ tan(tθ - φ), to the last digit: at 0 or 1 exactly where the derivative does not change sign.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.geodesic import angles
from taskatlas.paths.pairwise import BLOCK, pieces
from taskatlas.paths.simplex import Array, Truth, as_tensor, check_labels, like, unit_roots

_ROUNDING = 1e-14  # a slope at an end or a step of the search this small is zero


def progress(
    probs: Real[Array, "*models samples classes"],
    truth: Truth,
) -> Float[Array, "*models"]:
    """Progress of each model from ignorance (0) to the truth (1), exact to float64.

    Args:
        probs: probabilities of one model or of many.
        truth: labels, or probabilities for a truth that is not certain.

    Returns:
        One number in [0, 1] a model, in the precision of ``probs``.

    Raises:
        BadInput: a row is no probability, a label is out of range, or the truth is of other samples.

    Example:
        >>> import numpy as np
        >>> ignorance, truth = np.full((2, 3), 1 / 3), np.eye(3)[[0, 2]]
        >>> progress(np.stack([ignorance, truth]), np.array([0, 2]))
        array([0., 1.])
    """
    if probs.ndim < 2 or 0 in probs.shape:
        raise BadInput(f"predictions have the shape (models, samples, classes), not {tuple(probs.shape)}.")
    *models, samples, classes = (int(size) for size in probs.shape)
    check_truth(truth, samples, classes)
    flat = probs.reshape(-1, samples, classes)
    found = [torch.zeros(0, dtype=torch.float64)]
    step = max(1, BLOCK // (samples * classes))
    for first in range(0, len(flat), step):
        roots = unit_roots(as_tensor(flat[first : first + step]).double())
        found.append(nearest(*cosines(roots, truth)).to(found[0].device))
    return like(torch.cat(found).reshape(models), probs)


def check_truth(truth: Truth, samples: int, classes: int) -> None:
    """Refuses a truth that does not fit the predictions, or that is no other than ignorance.

    Raises:
        BadInput: as ``progress``.
    """
    if truth.ndim == 1:
        if classes == 1:
            raise BadInput("with a single class ignorance is the truth, and there is no progress to measure.")
        check_labels(truth, samples, classes)
        return
    if tuple(truth.shape) != (samples, classes):
        raise BadInput(
            f"a truth of the shape {tuple(truth.shape)} does not fit {samples} samples and {classes} classes."
        )
    if bool(((as_tensor(truth) - 1 / classes).abs() <= 1e-7).all()):
        raise BadInput("this truth gives every class the same probability: there is no progress toward it.")


def cosines(roots: Tensor, truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines (models, samples) of the angles from ignorance and from the truth, and the angle between these two.

    The angle is one number where the truth is labels, and one a sample otherwise.
    """
    samples, classes = (int(size) for size in roots.shape[-2:])
    from_ignorance = roots.sum(-1) / math.sqrt(classes)
    if truth.ndim == 1:
        labels = check_labels(truth, samples, classes).to(roots.device)
        from_truth = roots.gather(-1, labels[:, None].expand(*roots.shape[:-1], 1))[..., 0]
        return from_ignorance, from_truth, roots.new_tensor([math.acos(1 / math.sqrt(classes))])
    end = unit_roots(as_tensor(truth).to(roots.device, roots.dtype))
    theta = angles(torch.full_like(end, 1 / math.sqrt(classes)), end)
    return from_ignorance, (roots * end).sum(-1), theta


def cosines_of_path(
    log_probs: Float[np.ndarray, "steps samples classes"], truth: Truth
) -> tuple[Tensor, Tensor, Tensor]:
    """``cosines`` of a path that may lie on disk; beyond the result, memory is bounded by some blocks."""
    snapshots, samples, _ = log_probs.shape
    from_ignorance, from_truth = torch.empty(2, snapshots, samples, dtype=torch.float64)
    theta = torch.empty(samples if truth.ndim == 2 else 1, dtype=torch.float64)
    for steps, some in pieces(log_probs.shape):
        roots = unit_roots(torch.from_numpy(np.exp(log_probs[steps, some].astype(np.float64, order="C"))))
        from_ignorance[steps, some], from_truth[steps, some], between = cosines(roots, truth[some])
        theta[some if truth.ndim == 2 else slice(None)] = between
    return from_ignorance, from_truth, theta


def nearest(from_start: Tensor, from_end: Tensor, theta: Tensor) -> Tensor:
    """Place t in [0, 1] of the point on a geodesic that is nearest to each model: (models, samples) -> (models,).

    Args:
        from_start: (models, samples) cosines of the angles to the geodesic's start.
        from_end: (models, samples) cosines of the angles to its end.
        theta: (samples,) angles between start and end, or one where all are alike.
    """
    lowest, highest = theta.new_zeros(len(from_start)), theta.new_ones(len(from_start))
    place = highest / 2
    for _ in range(60):  # Newton's step, kept inside a bracket that shrinks: bisection's worst case reaches float64
        slope, bend = _derivatives(from_start, from_end, theta, place)
        lowest, highest = torch.where(slope < 0, place, lowest), torch.where(slope > 0, place, highest)
        step = place - slope / bend
        inside = (step > lowest) & (step < highest)
        new = torch.where(slope == 0, place, torch.where(inside, step, (lowest + highest) / 2))
        if bool(((new - place).abs() <= _ROUNDING).all()):
            break
        place = new
    at_start = slope_at(from_start, from_end, theta, torch.zeros_like(place)) >= -_ROUNDING
    at_end = slope_at(from_start, from_end, theta, torch.ones_like(place)) <= _ROUNDING
    return torch.where(at_start, 0.0, torch.where(at_end, 1.0, place)).clamp(0, 1)


def slope_at(from_start: Tensor, from_end: Tensor, theta: Tensor, place: Tensor) -> Tensor:
    """Derivative of the mean distance at each model's ``place``: negative where the nearest point lies further on."""
    return (theta * _tangents(from_start, from_end, theta, place)).mean(-1)


def _derivatives(from_start: Tensor, from_end: Tensor, theta: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative by t of -mean ln[A sin((1 - t)θ) + B sin(tθ)]."""
    tangent = _tangents(from_start, from_end, theta, place)
    return (theta * tangent).mean(-1), (theta.square() * (1 + tangent.square())).mean(-1)


def _tangents(from_start: Tensor, from_end: Tensor, theta: Tensor, place: Tensor) -> Tensor:
    to_start, to_end = (1 - place[:, None]) * theta, place[:, None] * theta
    height = from_start * to_start.sin() + from_end * to_end.sin()
    change = from_start * to_start.cos() - from_end * to_end.cos()
    return change / torch.where(theta > 0, height, 1.0)  # where the truth knows nothing, θ is 0 and nothing is added
