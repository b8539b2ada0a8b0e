"""Distances that grow: a new snapshot costs one row, not a new matrix."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Real

from taskatlas.errors import BadInput
from taskatlas.paths.bhattacharyya import bhattacharyya
from taskatlas.paths.simplex import Array, as_tensor, like

Divergence = Callable[..., Any]
"""Distances among models, ``function(probs)``, or from models to others, ``function(probs, others)``."""


def extend(
    distances: Float[Array, "old old"],
    probs: Real[Array, "models samples classes"],
    new: Real[Array, "new _ _"],
    divergence: Divergence = bhattacharyya,
) -> Float[Array, "grown grown"]:
    """The distances among all models, old ones first, from those among the old and the new models' predictions.

    Args:
        distances: among the old models, by the same divergence.
        probs: the old models' predictions.
        new: the new models' predictions on the same samples.
        divergence: for example ``bhattacharyya`` or ``hellinger``.

    Returns:
        (models + new, models + new), in O(new · models · samples · classes).

    Raises:
        BadInput: the distances belong to another number of models, or the new models to another probe.

    Example:
        >>> import numpy as np
        >>> P = np.random.default_rng(0).dirichlet(np.ones(3), size=(5, 8))
        >>> bool(np.allclose(extend(bhattacharyya(P[:4]), P[:4], P[4:]), bhattacharyya(P)))
        True
    """
    if tuple(distances.shape) != (len(probs), len(probs)):
        raise BadInput(
            f"distances of the shape {tuple(distances.shape)} do not belong to {len(probs)} models. Give the matrix "
            "that was computed from these predictions."
        )
    cross = as_tensor(divergence(probs, new))
    grown = torch.cat(
        [torch.cat([as_tensor(distances), cross], 1), torch.cat([cross.T, as_tensor(divergence(new))], 1)]
    )
    return like(grown, distances)
