"""What lies in the span of its inputs: inner products, from them coefficients, and one weighted sum.

Whatever the size of the tensors, all that such a method has to know of them are the inner products between them: one
small matrix, or one for each line of the tensor.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.engine import single_threaded_products
from taskatlas.merge.operands import Operands, each_piece, pieces

Along = Literal["everything", "last", "first"]
"""What makes a vector: the whole tensor, or each line along its last or its first axis."""


@dataclass(frozen=True)
class Coefficients:
    """What each tensor is multiplied by, for each vector in it.

    Attributes:
        values: for the models in their order and, last, for the base where there is one.
        along: what the vectors are.
        width: elements of a vector along the last axis, or the number of vectors along the first.
    """

    values: Float[np.ndarray, "tensors vectors"]
    along: Along = "everything"
    width: int = 1


def inner_products(
    operands: Operands, along: Along = "everything", *, from_base: bool = True, threads: int | None = None
) -> Float[np.ndarray, "vectors tensors tensors"]:
    """In float64 between the models less the base; or else between the models and, last, the base."""

    def stack(piece: Operands) -> np.ndarray:
        tensors = piece.tensors if from_base else piece.everything
        numbers = np.stack([tensor.double().numpy() for tensor in tensors])
        if from_base and piece.base is not None:
            numbers -= piece.base.double().numpy()
        return numbers

    def of_rows(piece: Operands) -> np.ndarray:
        numbers = stack(piece)
        return np.einsum("irc,jrc->rij", numbers, numbers)

    def of_all(piece: Operands) -> np.ndarray:
        numbers = stack(piece)
        return (numbers @ numbers.T)[None]

    if along == "last":
        return np.concatenate(each_piece(of_rows, operands.rows(), threads))
    if along == "everything":
        with single_threaded_products():
            return np.asarray(sum(each_piece(of_all, operands.flat(), threads)))
    total = np.zeros(())
    for piece in pieces(operands.columns()):  # one after the other: each has a matrix for every column
        numbers = stack(piece)
        total = total + np.einsum("irc,jrc->cij", numbers, numbers)
    return total


def onto_base(
    operands: Operands, coefficients: Float[np.ndarray, "vectors models"], along: Along = "everything"
) -> Coefficients:
    """Coefficients of differences from the base as coefficients of models and base."""
    if operands.base is not None:
        coefficients = np.column_stack([coefficients, 1 - coefficients.sum(axis=1)])
    lines = {"everything": operands.flat, "last": operands.rows, "first": operands.columns}[along]()
    return Coefficients(coefficients.T, along, lines.shape[-1])


def weighted_sum(piece: Operands, coefficients: Coefficients) -> Tensor:
    """The sum of all models and the base, each times its coefficient; a flat piece."""
    merged = torch.zeros(piece.shape, dtype=piece.dtype)
    if coefficients.along == "everything":
        for tensor, values in zip(piece.everything, coefficients.values, strict=True):
            merged.add_(tensor, alpha=float(values[0]))
        return merged
    place = torch.arange(piece.start, piece.start + piece.shape.numel())
    vector = place // coefficients.width if coefficients.along == "last" else place % coefficients.width
    for tensor, values in zip(piece.everything, coefficients.values, strict=True):
        merged.addcmul_(tensor.to(piece.dtype), torch.from_numpy(values).to(piece.dtype)[vector])
    return merged


def cosines(
    products: Float[np.ndarray, "vectors tensors tensors"],
) -> tuple[Float[np.ndarray, "vectors tensors"], Float[np.ndarray, "vectors tensors tensors"]]:
    """Lengths, and the cosines of the angles between; a zero vector has a cosine of zero with all."""
    lengths = np.sqrt(np.einsum("vii->vi", products))
    return lengths, ratio(products, lengths[:, :, None] * lengths[:, None])


def ratio(above: np.ndarray, below: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """Their quotient, and ``otherwise`` where the divisor is zero."""
    quotient = np.full(np.broadcast_shapes(above.shape, below.shape), otherwise)
    return np.divide(above, below, out=quotient, where=below != 0)
