"""Length of a path in prediction space, in Fisher's metric, and how far it strays from the shortest way.

A model is a point on a product of N spheres of square roots, one a sample, and Fisher's metric, averaged over samples,
is ds² = mean_n Σ_c dp²/p = 4 mean_n |d√p|². Its exact distance between two models is therefore

    2 sqrt(mean_n θ_n²),    θ_n the angle between their square roots on sample n,

and a path's length is the sum over its steps. On a geodesic θ_n grows in proportion to t on every sample at once, so
the sum does not depend on how finely the geodesic is sampled: it is 2θ with θ = sqrt(mean_n θ_n²), and from ignorance
to the truth, where all θ_n are alike, 2 arccos(1/√C). The triangle inequality makes tortuosity at least 1.

The published step √8 √d, with d Bhattacharyya's distance, agrees to first order (d = mean_n θ_n²/2 + O(θ⁴)), but
-ln cos θ > θ²/2: it overstates long steps, by sqrt(-2 ln cos θ)/θ each (1.21 from ignorance to the truth of ten
classes), so a path is the longer the fewer snapshots it has. It is here as ``step="bhattacharyya"``, to compare with.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Real
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.bhattacharyya import FLOOR
from taskatlas.paths.geodesic import angles
from taskatlas.paths.simplex import Array, as_tensor, like, unit_roots

Step = Literal["angle", "bhattacharyya"]


def path_length(probs: Real[Array, "steps samples classes"], *, step: Step = "angle") -> float:
    """Fisher length of a path: the sum of ``step_lengths``; 0 for a constant run, 2θ for a geodesic.

    Noise between snapshots adds to the length: compare runs with snapshots alike in number and spacing, or re-index
    them by progress first.

    Raises:
        BadInput: a row is no probability; the message names the snapshot and the sample.

    Example:
        >>> from taskatlas.paths.geodesic import geodesic
        >>> ignorance, truth = torch.full((1, 10), 0.1), torch.eye(10)[:1]
        >>> round(path_length(geodesic(ignorance.double(), truth.double(), [0, 0.3, 1])), 6)
        2.498092
        >>> round(2 * math.acos(1 / math.sqrt(10)), 6)
        2.498092
    """
    return float(as_tensor(step_lengths(probs, step=step)).double().sum())


def step_lengths(probs: Real[Array, "steps samples classes"], *, step: Step = "angle") -> Float[Array, " transitions"]:
    """Fisher length of each step of a path, (T, N, C) -> (T - 1).

    Args:
        probs: the snapshots' probabilities, in order.
        step: ``"angle"``, 2 sqrt(mean_n θ_n²), exact for any step; or ``"bhattacharyya"``, √8 √d, the published form.

    Raises:
        BadInput: a row is no probability, or there is no such kind of step.
    """
    if step not in ("angle", "bhattacharyya"):
        raise BadInput(f"there is no step {step!r}. Choose angle or bhattacharyya.")
    if probs.ndim != 3 or 0 in probs.shape:
        raise BadInput(f"a path has the shape (steps, samples, classes), not {tuple(probs.shape)}.")
    names = [str(position) for position in range(len(probs))]
    lengths = []
    before = _snapshot(probs, 0, names)
    for position in range(1, len(probs)):
        after = _snapshot(probs, position, names)
        lengths.append(_distance(before, after, step))
        before = after
    found = torch.stack(lengths) if lengths else torch.zeros(0, dtype=torch.float64)
    return like(found, probs)


def tortuosity(probs: Real[Array, "steps samples classes"]) -> float:
    """Length of a path over the length of the geodesic between its ends: 1 for a geodesic, never less.

    A constant path has tortuosity 1, and a path that comes back to where it began has infinity.

    Raises:
        BadInput: a row is no probability.

    Example:
        >>> P = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]], [[0.5, 0.5]]])
        >>> round(tortuosity(P), 2)
        3.0
    """
    return length_ratio(path_length(probs), path_length(probs[:: max(1, len(probs) - 1)]))


def length_ratio(length: float, ends: float) -> float:
    """Tortuosity of a path by its length and the distance of its ends."""
    if length == 0:
        return 1.0
    return length / ends if ends > 0 else math.inf


def _snapshot(probs: Array, position: int, names: list[str]) -> Tensor:
    return unit_roots(as_tensor(probs[position : position + 1]).double(), names[position : position + 1])[0]


def _distance(before: Tensor, after: Tensor, step: Step) -> Tensor:
    theta = angles(before, after)
    if step == "angle":
        return 2 * theta.square().mean().sqrt()
    return math.sqrt(8) * (-theta.cos().clamp(min=FLOOR).log()).mean().clamp(min=0).sqrt()
