"""Make a task vector sparse: by magnitude, at random, or at random by the rank of magnitudes.

Each takes the vector, which it may change, a piece of the operands, the model's position and what was measured of it.
"""

import numpy as np
import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.operands import Operands
from taskatlas.store import digest

_WHOLE = 2**32  # random numbers are drawn below it


def keep_largest(vector: Tensor, _piece: Operands, _model: int, least: float) -> Tensor:
    """Keeps the elements whose magnitude is at least ``least`` (TIES, "trim")."""
    if np.isinf(least):
        return vector.mul_(0.0)  # and NaN stays NaN
    return torch.hardshrink(vector, _just_below(least, vector)) if least > 0 else vector


def keep_middle(vector: Tensor, _piece: Operands, _model: int, bounds: tuple[float, float]) -> Tensor:
    """Keeps the elements whose magnitude lies between two bounds, both included (Model Breadcrumbs)."""
    low, high = bounds
    vector = keep_largest(vector, _piece, _model, low)
    return vector if np.isinf(high) else vector.sub_(torch.hardshrink(vector, high))


def keep_at_random(vector: Tensor, piece: Operands, model: int, _measured: None) -> Tensor:
    """Keeps each element with the probability ``density``, and divides it by that where ``rescale`` is set (DARE)."""
    density = piece.parameters[model]["density"]
    limit = round(density * _WHOLE)
    if limit >= _WHOLE:
        return vector
    kept = random_numbers(piece, model) < np.uint32(limit)
    _drop_others(vector, kept)
    return vector.div_(density) if piece.settings["rescale"] and density else vector


def keep_at_random_by_rank(vector: Tensor, piece: Operands, model: int, _measured: None) -> Tensor:
    """Keeps the larger of a row with greater probability, and divides each by its own where ``rescale`` is set.

    Probabilities rise evenly with the rank of the magnitude in its row, from ``density - epsilon`` for the smallest to
    ``density + epsilon`` for the largest; equal magnitudes rank in the order in which they stand. A single element has
    ``density``, and a density of 1 keeps all (DELLA's MagPrune: Deep et al., 2024, section 3.1).
    """
    density, epsilon = piece.parameters[model]["density"], piece.parameters[model]["epsilon"]
    if density == 1:
        return vector
    width = vector.shape[-1]
    by_rank = torch.linspace(density - epsilon, density + epsilon, width, dtype=torch.float64)
    if width == 1:
        by_rank.fill_(density)
    order = torch.from_numpy(_ascending(vector.abs().numpy()))
    keep = torch.empty(vector.shape, dtype=torch.float64).scatter_(-1, order, by_rank.expand(vector.shape))
    _drop_others(vector, random_numbers(piece, model).reshape(vector.shape) < keep.numpy() * _WHOLE)
    return vector.div_(keep) if piece.settings["rescale"] else vector


def check_probabilities(density: float, epsilon: float, model: str) -> None:
    """Refuses a spread around a density that leaves probabilities.

    Raises:
        BadInput: a probability would be zero, negative or above 1.
    """
    if density != 1 and not 0 < density - epsilon <= density + epsilon <= 1:
        raise BadInput(
            f"density {density:g} and epsilon {epsilon:g} of {model} give probabilities from {density - epsilon:g} to "
            f"{density + epsilon:g}. They have to lie above 0 and not above 1: choose a smaller epsilon."
        )


def random_numbers(piece: Operands, model: int) -> np.ndarray:
    """One number below 2**32 for each element, fixed by seed, tensor, model and the element's position alone."""
    key = digest("merge", piece.seed, piece.name, piece.models[model])
    generator = np.random.PCG64DXSM(int(key[:32], 16))
    first, count = piece.start // 2, piece.shape.numel()
    generator.advance(first)  # each number of 64 bits serves two elements
    skip = piece.start % 2
    numbers: np.ndarray = generator.random_raw((count + skip + 1) // 2).view(np.uint32)
    return numbers[skip : skip + count]


def _drop_others(vector: Tensor, kept: np.ndarray) -> None:
    numbers = vector.numpy()
    np.multiply(numbers, kept, out=numbers)  # and NaN stays NaN


def _ascending(sizes: np.ndarray) -> np.ndarray:
    """Positions in each row of numbers, none negative, from the smallest up; equal ones as they stand."""
    if sizes.dtype != np.float32:
        return np.argsort(sizes, axis=-1, kind="stable")
    # Bits of such numbers rise with the numbers: with the position below them they sort as integers, much faster.
    keys = sizes.view(np.uint32).astype(np.int64) << 32
    keys |= np.arange(sizes.shape[-1])
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return keys


def _just_below(value: float, like: Tensor) -> float:
    """The next smaller number of the tensor's type: what is larger than it is at least ``value``."""
    kind = np.float64 if like.dtype == torch.float64 else np.float32
    return float(np.nextafter(kind(value), kind(-1)))
