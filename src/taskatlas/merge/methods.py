"""The methods of merging in weight space, each a row: what it takes, what it measures, how it combines."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.composition import linear, task_arithmetic
from taskatlas.merge.operands import Cut, Operands, cuts, refuse_not_finite


@dataclass(frozen=True)
class Method:
    """A way to merge one tensor of several models: numbers measured on the whole, then a function of pieces.

    Attributes:
        name: as recipes call it.
        combine: takes a piece and what was measured; returns the merged piece in the piece's shape, in
            ``Operands.dtype``.
        base: whether it takes a base model. The base is never counted among the models.
        least: number of models.
        most: number of models; None for any.
        parameters: of each model, with defaults; None where it has to be given.
        settings: of the merge, with defaults; None where it has to be given.
        measure: looks at the whole tensors, piece by piece, and returns what ``combine`` needs. None: nothing.
        cut: how pieces are cut for ``combine``.
    """

    name: str
    combine: Callable[[Operands, Any], Tensor]
    base: Literal["required", "optional", "none"] = "required"
    least: int = 1
    most: int | None = None
    parameters: Mapping[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    measure: Callable[[Operands], Any] | None = None
    cut: Cut = "elements"


def merge_tensor(method: Method, operands: Operands, dtype: torch.dtype, *, threads: int | None = None) -> Tensor:
    """One merged tensor; sums are float32, or float64 where a model's tensor is float64.

    Integers and booleans are copied, from the base or else from the first model by name. So is a tensor that holds an
    infinite number and is the same in all models: a mask.

    Args:
        method: how to merge.
        operands: what to merge, in any order of models.
        dtype: of the result, for tensors of floating-point numbers; others keep theirs.
        threads: how many pieces are worked on at once; the number of processors where None. The result is the same.

    Raises:
        BadInput: NaN or an infinite number in a tensor, or a result too large for ``dtype``; names tensor and model.

    Example:
        >>> a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
        >>> weights = ({"weight": 1.0}, {"weight": 3.0})
        >>> operands = Operands("w", ("a", "b"), (a, b), None, weights, {"normalize": True})
        >>> merge_tensor(METHODS["linear"], operands, torch.float32)
        tensor([2.5000, 5.0000])
    """
    operands = operands.in_order()
    like = operands.everything[-1] if operands.base is not None else operands.tensors[0]
    if not like.is_floating_point():
        return like.clone()
    shape = operands.shape
    operands = operands.rows() if method.cut == "rows" else operands.flat()
    merged = torch.empty(operands.shape, dtype=dtype)
    largest = torch.finfo(dtype).max

    def work(places: list[tuple[int, int]]) -> bool:
        """Whether all came out as numbers that the result's type can hold."""
        sound = True
        for start, stop in places:
            piece = method.combine(operands.piece(start, stop), measured)
            low, high = torch.aminmax(piece)
            sound = sound and -largest <= low.item() and high.item() <= largest  # NaN fails both
            merged[start:stop] = piece
        return sound

    measured = None if method.measure is None or not shape.numel() else method.measure(operands)
    places = list(cuts(operands, method.cut)) if shape.numel() else []
    if not all(_in_threads(work, places, threads or os.cpu_count() or 1)):
        if torch.isinf(like).any() and all(torch.equal(like, tensor) for tensor in operands.everything):
            return like.to(dtype).clone()
        refuse_not_finite(operands)
        raise BadInput(
            f"the merged tensor {operands.name!r} has elements too large for {str(dtype).removeprefix('torch.')}. "
            "Choose smaller weights or a wider type."
        )
    return merged.reshape(shape)


def _in_threads(
    work: Callable[[list[tuple[int, int]]], bool], places: list[tuple[int, int]], threads: int
) -> list[bool]:
    """Shares pieces among threads, neighbours to the same one."""
    share = -(-len(places) // threads)
    if share <= 1:
        return [work(places)]
    shares = [places[start : start + share] for start in range(0, len(places), share)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, shares))


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("linear", linear, base="none", parameters={"weight": None}, settings={"normalize": True}),
        Method(
            "task_arithmetic",
            task_arithmetic,
            parameters={"weight": None},
            settings={"normalize": False, "lambda": 1.0},
        ),
    )
}
"""Every method, by the name that recipes use."""
