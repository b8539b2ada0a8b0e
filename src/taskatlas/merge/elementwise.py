"""Methods that look at one element at a time: nearswap and passthrough."""

import torch
from torch import Tensor

from taskatlas.merge.operands import Operands


def nearswap(piece: Operands, _measured: None = None) -> Tensor:
    """The base moves towards the model by at most ``t`` in each element.

    The model's share is min(1, t / |model - base|), so that elements near to each other are swapped and distant ones
    hardly move.
    """
    assert piece.base is not None
    base, t = piece.base.to(piece.dtype), piece.settings["t"]
    difference = torch.sub(piece.tensors[0], base)
    return difference.clamp(-t, t).add_(base).add_(difference, alpha=0.0)  # of infinity this makes NaN, which is told


def passthrough(piece: Operands, _measured: None = None) -> Tensor:
    """The model, times its ``scale``."""
    return piece.tensors[0].to(piece.dtype) * piece.parameters[0]["scale"]
