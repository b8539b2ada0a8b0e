"""Squared Hellinger distance between models: its square root is a metric, and it is one matrix product."""

import torch
from jaxtyping import Float, Real

from taskatlas.paths.pairwise import CHUNK, check_pair, finished, floating, slabs
from taskatlas.paths.simplex import Array, Weights, check_weights, like, unit_roots


def hellinger(
    probs: Real[Array, "models samples classes"],
    others: Real[Array, "others _ _"] | None = None,
    *,
    weights: Weights | None = None,
    chunk: int = CHUNK,
) -> Float[Array, "models second"]:
    """Pairwise squared Hellinger distance, averaged over samples.

    h(P, Q) = 1 - mean_n sum_c sqrt(p_nc q_nc): 0 for equal models, 1 for models that never overlap. It needs no floor;
    close models have h = d, the Bhattacharyya distance, to first order (Quinn et al., PNAS 2019).

    Args:
        probs: probabilities, rows on the simplex to 1e-4.
        others: a second set of models, for cross distances.
        weights: of the samples, scaled to sum to one; all alike where there are none.
        chunk: bytes of predictions taken up at a time (at least one sample of all models).

    Raises:
        BadInput: a row is no probability (the message names the model and the sample), or the two sets have other
            samples or classes.

    Example:
        >>> hellinger(torch.eye(2).reshape(2, 1, 2))
        tensor([[0., 1.],
                [1., 0.]])
    """
    rows, columns, count, _ = check_pair(probs, others)
    _, device = floating(probs)
    scale = check_weights(weights, count, "samples").to(device)
    total = torch.zeros(rows, columns, dtype=torch.float64, device=device)
    for samples, first, second in slabs(probs, others, chunk):
        left = unit_roots(first, first_sample=samples.start)
        right = left if others is None else unit_roots(second, first_sample=samples.start)
        weighted = left * scale[samples, None].to(left.dtype)
        total += weighted.flatten(1) @ right.flatten(1).T
    return like(finished(1 - total, symmetric=others is None), probs)
