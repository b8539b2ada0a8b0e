"""Elect one sign for each element, and add only what agrees with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

_NO_MASS = 1e-6  # of all magnitudes: weights that agree and sum to no more, some of them negative, are no divisor


def elected_sum(
    vectors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    normalize: bool,
    weighted_votes: bool = True,
    by_count: bool = False,
) -> Tensor:
    """The weighted sum, or weighted mean, of those vectors that have the elected sign; element by element.

    The elected sign is that of the sum of the weighted vectors; where they cancel exactly, it is plus. Zeros take no
    part (TIES: Yadav et al., NeurIPS 2023, section 3, "elect" and "disjoint merge").

    Args:
        vectors: of one shape; changed.
        weights: one a vector.
        normalize: divide by the sum of the weights of those that took part.
        weighted_votes: the vectors vote with their weights, a negative weight for the opposite sign.
        by_count: each vector that is not zero has one vote, whatever its size.

    Example:
        >>> elected_sum([torch.tensor([1.0, -3.0]), torch.tensor([2.0, 1.0])], [1.0, 1.0], normalize=True)
        tensor([ 1.5000, -3.0000])
    """
    votes = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        vote = vector.mul_(weight) if weighted_votes else vector
        votes.add_(vote.sign() if by_count else vote)
    sign = torch.copysign(torch.ones_like(votes), votes)  # what cancels is a positive zero
    merged, mass = torch.zeros_like(votes), torch.zeros_like(votes)
    for vector, weight in zip(vectors, weights, strict=True):
        merged.add_(vector.mul_(sign).relu_(), alpha=1.0 if weighted_votes else weight)
        if normalize:
            mass.add_(vector.sign_(), alpha=weight)
    merged.mul_(sign)
    if not normalize:
        return merged
    if min(weights) > 0:
        return merged.div_(mass.clamp_(min=min(weights)))  # changes a mass of zero alone
    least = _NO_MASS * sum(map(abs, weights)) if min(weights) < 0 else 0.0
    return merged.div_(mass.masked_fill_(mass.abs() <= least, 1.0))
