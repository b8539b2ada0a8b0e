"""Sparsify, elect, combine: the family of methods that add task vectors to a base."""

import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.operands import Operands


def linear(piece: Operands, _measured: None = None) -> Tensor:
    """The weighted sum of models, or their weighted mean where ``normalize`` is set."""
    merged = torch.zeros(piece.shape, dtype=piece.dtype)
    for tensor, weight in zip(piece.tensors, shares(piece), strict=True):
        merged.add_(tensor, alpha=weight)
    return merged


def task_arithmetic(piece: Operands, _measured: None = None) -> Tensor:
    """The base plus lambda times the weighted sum (mean, where ``normalize`` is set) of differences from it."""
    assert piece.base is not None
    base = piece.base.to(piece.dtype)
    merged = torch.zeros(piece.shape, dtype=piece.dtype)
    for tensor, weight in zip(piece.tensors, shares(piece), strict=True):
        merged.add_(tensor.to(piece.dtype).sub_(base), alpha=weight)
    return merged.mul_(piece.settings["lambda"]).add_(base)


def shares(operands: Operands) -> list[float]:
    """The models' weights, divided by their sum where ``normalize`` is set.

    Raises:
        BadInput: they sum to zero.
    """
    weights = operands.weights()
    if not operands.settings["normalize"]:
        return weights
    total = sum(weights)
    if total == 0:
        raise BadInput(
            f"the weights of {operands.name!r} sum to zero, so they cannot be normalised. "
            "Change them, or set normalize to false."
        )
    return [weight / total for weight in weights]
