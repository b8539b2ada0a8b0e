"""Symmetric Kullback-Leibler divergence between models: unbounded where one rules out what another expects."""

import torch
from jaxtyping import Float, Real
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.pairwise import CHUNK, check_pair, finished, floating, slabs
from taskatlas.paths.simplex import Array, Weights, check_weights, like, unit_roots

SMALLEST = 1e-12  # smallest probability: a certain and wrong sample counts about -ln(SMALLEST)/2 = 13.8 nats


def symmetric_kl(
    probs: Real[Array, "models samples classes"],
    others: Real[Array, "others _ _"] | None = None,
    *,
    smallest: float = SMALLEST,
    weights: Weights | None = None,
    chunk: int = CHUNK,
) -> Float[Array, "models second"]:
    """Pairwise (KL(P, Q) + KL(Q, P)) / 2 in nats, averaged over samples: mean_n sum_c (p - q)(ln p - ln q) / 2.

    Close models have four times their Bhattacharyya distance. Its embedding is that of Teoh et al., Physical Review
    Research 2020. Computed in float64, for it is a difference of sums.

    Args:
        probs: probabilities, rows on the simplex to 1e-4.
        others: a second set of models, for cross distances.
        smallest: probabilities below it are raised to it.
        weights: of the samples, scaled to sum to one; all alike where there are none.
        chunk: bytes of predictions taken up at a time (at least one sample of all models).

    Raises:
        BadInput: a row is no probability (the message names the model and the sample), the two sets have other
            samples or classes, or ``smallest`` is not between 0 and 1.

    Example:
        >>> symmetric_kl(torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]])).round(decimals=4)
        tensor([[0.0000, 0.4394],
                [0.4394, 0.0000]])
    """
    if not 0 < smallest < 1:
        raise BadInput(f"the smallest probability is {smallest}; it lies between 0 and 1, for example 1e-12.")
    rows, columns, count, _ = check_pair(probs, others)
    _, device = floating(probs)
    scale = check_weights(weights, count, "samples").to(device)
    total = torch.zeros(rows, columns, dtype=torch.float64, device=device)
    for samples, first, second in slabs(probs, others, chunk):
        p, log_p = _raised(first, smallest, samples.start)
        q, log_q = (p, log_p) if others is None else _raised(second, smallest, samples.start)
        share = scale[samples, None]
        p, q = p * share, q * share
        own, other = (p * log_p).sum((1, 2)), (q * log_q).sum((1, 2))
        cross = p.flatten(1) @ log_q.flatten(1).T + log_p.flatten(1) @ q.flatten(1).T
        total += (own[:, None] + other - cross) / 2
    return like(finished(total, symmetric=others is None), probs)


def _raised(probs: Tensor, smallest: float, first_sample: int) -> tuple[Tensor, Tensor]:
    raised = unit_roots(probs.double(), first_sample=first_sample).square().clamp(min=smallest)
    return raised, raised.log()
