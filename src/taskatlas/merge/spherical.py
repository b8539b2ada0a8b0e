"""Methods on the sphere: SLERP, NuSLERP, multi-SLERP and the Karcher mean, as coefficients of their inputs."""

import numpy as np
from jaxtyping import Float

from taskatlas.merge.operands import Operands
from taskatlas.merge.span import Along, Coefficients, cosines, inner_products, onto_base, ratio

_CANCELLED = 1e-8  # the length of a mean of directions that has no direction
_PARALLEL = 1e-6  # radians within which directions are the same, or opposite


def slerp(operands: Operands, threads: int | None = None) -> Coefficients:
    """From the base (t = 0) to the model (t = 1) at constant angular speed (Shoemake, SIGGRAPH 1985, section 3.3).

    The base times sin((1 - t) θ) / sin θ and the model times sin(t θ) / sin θ, with θ the angle between them; on the
    straight line where they are parallel or opposite, or one is zero. Other t go on beyond the two.
    """
    products = inner_products(operands, from_base=False, threads=threads)
    return Coefficients(_slerp(products, 1 - operands.settings["t"]).T)


def nuslerp(operands: Operands, threads: int | None = None) -> Coefficients:
    """SLERP from the first model to the second, t = w₂ / (w₁ + w₂), of their task vectors where there is a base.

    Without ``nuslerp_flatten``, each line along the last axis is a vector of its own; with ``nuslerp_row_wise`` too,
    each line along the first.
    """
    along: Along = "everything"
    if not operands.settings["nuslerp_flatten"]:
        along = "first" if operands.settings["nuslerp_row_wise"] else "last"
    _, t = _shares(operands)
    return onto_base(operands, _slerp(inner_products(operands, along, threads=threads), float(t)), along)


def multislerp(operands: Operands, threads: int | None = None) -> Coefficients:
    """The direction of the weighted mean of directions, as long as the weighted mean of lengths.

    It is the mean of the directions' projections onto the plane that touches the sphere at their weighted mean. Of
    task vectors, where there is a base; zero where directions cancel to less than ``eps``.
    """
    weights = np.array([parameters["weight"] for parameters in operands.parameters])
    if operands.settings["normalize_weights"]:
        weights = _shares(operands)
    [lengths], [angles] = cosines(inner_products(operands, threads=threads))
    mean = _length(weights, angles)
    if mean < operands.settings["eps"]:
        return onto_base(operands, np.zeros((1, len(weights))))
    return onto_base(operands, (weights @ lengths / mean * ratio(weights, lengths))[None])


def karcher(operands: Operands, threads: int | None = None) -> Coefficients:
    """The direction with the least sum of squared angles to all directions, as long as the mean of lengths.

    From the direction of the mean, along the mean of the logarithms there, until that is shorter than ``tol`` or
    after ``max_iter`` steps (Karcher, 1977). A zero tensor has a length but no direction; the result is zero where
    directions cancel.
    """
    [lengths], [angles] = cosines(inner_products(operands, threads=threads))
    shares = (lengths > 0) / max(1, np.count_nonzero(lengths))
    mean = _length(shares, angles)
    point = shares / mean if mean > _CANCELLED else np.zeros_like(shares)
    for _ in range(int(operands.settings["max_iter"])):
        towards = np.clip(angles @ point, -1, 1)
        arcs = np.arccos(towards)
        sines = np.where(np.sin(arcs) < _PARALLEL, 0.0, np.sin(arcs))
        pull = shares * ratio(arcs, sines, otherwise=1.0)  # what lies opposite pulls in no direction
        step = pull - pull @ towards * point
        length = _length(step, angles)
        if mean <= _CANCELLED or length < operands.settings["tol"]:
            break
        point = np.cos(length) * point + np.sin(length) / length * step
        point /= _length(point, angles)
    return onto_base(operands, (lengths.mean() * ratio(point, lengths))[None])


def _slerp(products: Float[np.ndarray, "vectors 2 2"], t: float) -> Float[np.ndarray, "vectors 2"]:
    """Coefficients of the first (t = 0) and of the second (t = 1)."""
    lengths, angles = cosines(products)
    arc = np.arccos(np.clip(angles[:, 0, 1], -1, 1))
    straight = (np.sin(arc) < _PARALLEL) | (lengths == 0).any(axis=1)
    arc[straight] = np.pi / 2  # any; not used
    curved = np.stack([np.sin((1 - t) * arc), np.sin(t * arc)], axis=1) / np.sin(arc)[:, None]
    return np.where(straight[:, None], [1 - t, t], curved)


def _shares(operands: Operands) -> np.ndarray:
    weights = np.array([parameters["weight"] for parameters in operands.parameters])
    return np.asarray(weights / weights.sum())


def _length(coefficients: np.ndarray, angles: np.ndarray) -> float:
    """Of a sum of directions."""
    return float(np.sqrt(max(0.0, coefficients @ angles @ coefficients)))
