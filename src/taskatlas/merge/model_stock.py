"""Model Stock: how far to go from the base to the average of models, from the angle between them."""

import numpy as np

from taskatlas.merge.operands import Operands
from taskatlas.merge.span import Along, Coefficients, cosines, inner_products, onto_base, ratio

_SPREAD_OUT = 1e-9  # 1 + (n - 1) cos θ where task vectors cancel and no direction is left


def model_stock(operands: Operands, threads: int | None = None) -> Coefficients:
    """Between the base (t = 0) and the average of models (t = 1), at t = n cos θ / (1 + (n - 1) cos θ).

    cos θ is the mean cosine between pairs of the n task vectors, of the whole tensor or, with ``filter_wise``, of each
    line along the last axis (Jang et al., ECCV 2024, section 4). The base alone where task vectors
    cancel, or are zero.
    """
    along: Along = "last" if operands.settings["filter_wise"] else "everything"
    _, angles = cosines(inner_products(operands, along, threads=threads))
    n = angles.shape[-1]
    first, second = np.triu_indices(n, 1)
    mean = angles[:, first, second].mean(axis=1)
    left = 1 + (n - 1) * mean
    t = ratio(n * mean, np.where(left > _SPREAD_OUT, left, 0.0))
    return onto_base(operands, np.repeat(t[:, None] / n, n, axis=1), along)
