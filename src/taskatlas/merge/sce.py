"""SCE: select the elements that vary most between models, weigh whole tensors by what remains, erase minority signs."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskatlas.merge.composition import how_many, task_vectors
from taskatlas.merge.elect import elected_sum
from taskatlas.merge.operands import Operands, each_piece
from taskatlas.merge.quantile import kth_largest


@dataclass(frozen=True)
class Selected:
    """What SCE measures of a tensor: the least variance that is kept, and a weight for each model."""

    variance: float
    weights: list[float]


def select_and_weigh(operands: Operands, threads: int | None = None) -> Selected:
    """The ``select_topk`` share of elements with the largest variance, and each model's share of the squares there.

    Of n elements ⌊select_topk · n⌋ are kept, one at least, and any that vary as much as the last of them (Wan et al.,
    "FuseChat", 2024, section 3.2).
    """
    share, total = operands.settings["select_topk"], operands.shape.numel()
    flat, least = operands.flat(), 0.0
    if share < 1:
        [[least]] = kth_largest([flat], lambda piece: [_variance(piece).numpy()], [[how_many(share, total)]], threads)

    def squares(piece: Operands) -> list[float]:
        return [float(np.square(vector.numpy(), dtype=np.float64).sum()) for vector in _selected(piece, least)]

    sums = np.sum(each_piece(squares, flat, threads), axis=0)
    return Selected(least, [float(weight) for weight in sums / (sums.sum() or 1.0)])


def select_calculate_erase(piece: Operands, selected: Selected) -> Tensor:
    """The base and the weighted mean of the selected task vectors that agree with the sign of their plain sum."""
    vectors = list(_selected(piece, selected.variance))
    assert piece.base is not None
    merged = elected_sum(vectors, selected.weights, normalize=True, weighted_votes=False)
    return merged.add_(piece.base)


def _selected(piece: Operands, least: float) -> list[Tensor]:
    vectors = list(task_vectors(piece))
    if least > 0:
        kept = (_variance(piece) >= least).to(piece.dtype)
        for vector in vectors:
            vector.mul_(kept)
    return vectors


def _variance(piece: Operands) -> Tensor:
    """Of each element between models, times the square of their number; exactly zero where all agree."""
    sums, squares = torch.zeros(piece.shape, dtype=piece.dtype), torch.zeros(piece.shape, dtype=piece.dtype)
    first = piece.tensors[0].to(piece.dtype)
    for tensor in piece.tensors[1:]:
        difference = torch.sub(tensor, first)
        sums.add_(difference)
        squares.addcmul_(difference, difference, value=len(piece.tensors))
    return squares.addcmul_(sums, sums, value=-1)
