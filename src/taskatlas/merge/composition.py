"""Sparsify, elect, combine: the family of methods that add task vectors to a base, and the plain average.

A task vector is the difference of a model from the base (Ilharco et al., ICLR 2023). Each is made sparse; one sign may
be elected for each element; what remains is summed with weights, or averaged, and added to the base, scaled. Every
method of the family is a setting of ``combine``.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from taskatlas.merge.elect import elected_sum
from taskatlas.merge.operands import Operands
from taskatlas.merge.quantile import kth_largest

Sparsify = Callable[[Tensor, Operands, int, Any], Tensor]


def combine(
    piece: Operands, measured: Sequence[Any] | None = None, *, sparsify: Sparsify | None = None, elect: bool = False
) -> Tensor:
    """The merged piece: base + lambda · Σ w τ, with τ made sparse, and only where signs agree if one is elected.

    Without a base, the models themselves are summed. With ``normalize``, the sum is divided by the weights' sum: of
    those that agree, where a sign is elected.
    """
    weights = [parameters["weight"] for parameters in piece.parameters]
    normalize = piece.settings["normalize"]
    vectors = task_vectors(piece)
    if sparsify is not None:
        vectors = (
            sparsify(vector, piece, model, measured[model] if measured else None)
            for model, vector in enumerate(vectors)
        )
    if elect:
        alike = len(set(weights)) == 1 and weights[0] > 0
        by_count = piece.settings["consensus_method"] == "count"
        how = {"normalize": normalize, "weighted_votes": not alike, "by_count": by_count}
        merged = elected_sum(list(vectors), weights, **how)
    else:
        total = sum(weights) if normalize else 1.0
        several = zip(vectors, weights, strict=True)
        vector, weight = next(several)
        merged = vector.to(piece.dtype) * (weight / total)
        for vector, weight in several:
            merged.add_(vector, alpha=weight / total)
    scale = piece.settings.get("lambda", 1.0)
    if scale != 1:
        merged.mul_(scale)
    return merged if piece.base is None else merged.add_(piece.base)


def task_vectors(piece: Operands) -> Iterator[Tensor]:
    """What each model adds to the base, in ``piece.dtype``; without a base, the models' own tensors as they are."""
    if piece.base is None:
        yield from piece.tensors
    else:
        base = piece.base.to(piece.dtype)
        for tensor in piece.tensors:  # of two types, torch would make a second copy to subtract
            yield tensor - base if tensor.dtype == base.dtype else tensor.to(base.dtype).sub_(base)


def magnitudes(piece: Operands) -> Iterator[np.ndarray]:
    """Of each model's task vector."""
    return (vector.abs_().numpy() for vector in task_vectors(piece))


def least_kept(operands: Operands, threads: int | None = None) -> list[float]:
    """For each model, the magnitude that its elements must reach to be among the ``density`` largest of the tensor.

    A model that brings a ``threshold`` (of ``model_thresholds``) keeps to that.
    """
    if all("threshold" in parameters for parameters in operands.parameters):
        return [parameters["threshold"] for parameters in operands.parameters]
    return model_thresholds([operands], threads)


def model_thresholds(tensors: Iterable[Operands], threads: int | None = None) -> list[float]:
    """For each model, the magnitude of the smallest element that it keeps of all these tensors together.

    Of n elements the ⌊density · n⌋ largest are kept, one at least, and any that are as large as the smallest of them.
    Zero keeps all, infinity none. With all tensors of a model this is TIES as published; tensor by tensor it is TIES
    as it is done where memory is short.

    Args:
        tensors: with the same models in the same order, and with the densities of the first. Integers are passed over.
            They are gone through more than once, so that what maps files as it goes holds one tensor at a time.
        threads: as many as torch has where None.

    Returns:
        One a model, in the order of ``models``; to be given to each as its parameter ``threshold``.
    """
    vectors = _Vectors(tensors)
    total = sum(operands.shape[0] for operands in vectors)
    if not total:
        return []
    densities = [parameters["density"] for parameters in next(iter(vectors)).parameters]
    ranks = [[how_many(density, total)] if 0 < density < 1 else [] for density in densities]
    found = kth_largest(vectors, magnitudes, ranks, threads) if any(ranks) else [[] for _ in ranks]
    return [
        values[0] if values else 0.0 if density else math.inf for values, density in zip(found, densities, strict=True)
    ]


@dataclass(frozen=True)
class _Vectors:
    """Tensors of numbers as vectors, made anew whenever they are gone through."""

    tensors: Iterable[Operands]

    def __iter__(self) -> Iterator[Operands]:
        return (operands.flat() for operands in self.tensors if operands.everything[0].is_floating_point())


def middle_kept(operands: Operands, threads: int | None = None) -> list[tuple[float, float]]:
    """For each model, the smallest and the largest magnitude that it keeps.

    Of n elements the ⌊gamma · n⌋ largest are dropped and, of the others, the ⌊density · n⌋ largest are kept, with any
    that are as large as the first or the last of them. Where gamma and density exceed 1 together, gamma gives way.
    """
    total = operands.shape.numel()
    ranks = []
    for parameters in operands.parameters:
        dropped = int(min(parameters["gamma"], 1 - parameters["density"]) * total)
        kept = how_many(parameters["density"], total)
        ranks.append([min(total, dropped + kept), dropped + 1])
    found = kth_largest([operands.flat()], magnitudes, ranks, threads)
    return [(low, high) for low, high in found]


def how_many(share: float, total: int) -> int:
    """⌊share · total⌋, but at least one."""
    return max(1, int(share * total))
