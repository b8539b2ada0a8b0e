"""What a merge works on: one tensor as every model has it, with the numbers that say how, whole or piece by piece."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from taskatlas.errors import BadInput

Result = TypeVar("Result")

PIECE = 2**18
"""Elements of a piece: a handful of pieces fit into a processor's cache, and Python's own time is small beside them."""

Cut = Literal["elements", "rows"]
"""Where a tensor may be cut into pieces: anywhere, or between rows."""


@dataclass(frozen=True)
class Operands:
    """One tensor of every model, and how to merge it.

    Attributes:
        name: of the tensor, for messages and for the seeds of random methods.
        models: a name for each model. Seeds and the order of sums follow names, never positions.
        tensors: one a model, of one shape, as they are stored; memory-mapped ones are read when they are used. The
            base is never among them.
        base: the same tensor of the base model, where there is one.
        parameters: of each model: weight, density and what else its method has, complete.
        settings: of the merge: lambda, normalize and what else its method has, complete.
        seed: of random methods.
        start: the first element's position, where this is a piece of a tensor.
        labels: what messages call the models, if not by their names.
    """

    name: str
    models: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    base: Tensor | None
    parameters: tuple[Mapping[str, float], ...]
    settings: Mapping[str, Any]
    seed: int = 0
    start: int = 0
    labels: tuple[str, ...] = ()

    @property
    def everything(self) -> tuple[Tensor, ...]:
        """The tensors of all models and of the base."""
        return self.tensors if self.base is None else (*self.tensors, self.base)

    @property
    def called(self) -> tuple[str, ...]:
        """The models, as messages call them."""
        return self.labels or self.models

    @property
    def shape(self) -> torch.Size:
        """Of the tensor; all have the same."""
        return self.everything[0].shape

    @property
    def dtype(self) -> torch.dtype:
        """In which to compute: float64 where a tensor has it, else float32."""
        wide = any(tensor.dtype == torch.float64 for tensor in self.everything)
        return torch.float64 if wide else torch.float32

    def in_order(self) -> "Operands":
        """The same with models in the order of their names, so that sums do not depend on how they were listed."""
        order = sorted(range(len(self.models)), key=lambda i: (self.models[i], sorted(self.parameters[i].items())))
        if order == list(range(len(order))):
            return self
        return replace(
            self,
            models=tuple(self.models[i] for i in order),
            tensors=tuple(self.tensors[i] for i in order),
            parameters=tuple(self.parameters[i] for i in order),
            labels=tuple(self.labels[i] for i in order) if self.labels else (),
        )

    def rows(self) -> "Operands":
        """The same tensors as matrices: rows run along the last axis. A vector or a number is one row."""
        return self._reshaped((-1, self.shape[-1] if self.shape else 1))

    def columns(self) -> "Operands":
        """The same tensors as matrices: columns run along the first axis. A vector or a number is one column."""
        return self._reshaped((self.shape[0] if self.shape else 1, -1))

    def flat(self) -> "Operands":
        """The same tensors as vectors."""
        return self._reshaped((-1,))

    def piece(self, start: int, stop: int) -> "Operands":
        """Of matrices the rows, of vectors the elements, from ``start`` to before ``stop``."""
        width = self.shape[1] if len(self.shape) == 2 else 1
        return replace(self._each(lambda tensor: tensor[start:stop]), start=self.start + start * width)

    def take(self, places: Tensor, block: int) -> "Operands":
        """Of vectors, blocks of so many neighbours, one after the other; ``places`` counts blocks from 0."""
        whole = self.shape[0] // block * block
        return self._each(lambda tensor: tensor[:whole].view(-1, block)[places].reshape(-1))

    def _each(self, part: Callable[[Tensor], Tensor]) -> "Operands":
        """Of every tensor a part; floats of 8 bits, in which nothing can be computed, as wider ones."""

        def computable(tensor: Tensor) -> Tensor:
            few = part(tensor)
            return few.to(self.dtype) if few.is_floating_point() and few.itemsize == 1 else few

        base = None if self.base is None else computable(self.base)
        return replace(self, tensors=tuple(computable(tensor) for tensor in self.tensors), base=base)

    def _reshaped(self, shape: Sequence[int]) -> "Operands":
        return replace(
            self,
            tensors=tuple(tensor.reshape(shape) for tensor in self.tensors),
            base=None if self.base is None else self.base.reshape(shape),
        )


def pieces(operands: Operands) -> list[Operands]:
    """Every piece of vectors, or every few rows of matrices. Where they are cut depends on the shape alone.

    Example:
        >>> x = torch.zeros(3, 200_000)
        >>> operands = Operands("x", ("a",), (x,), None, ({},), {})
        >>> [piece.start for piece in pieces(operands.flat())], [piece.start for piece in pieces(operands.rows())]
        ([0, 262144, 524288], [0, 200000, 400000])
    """
    length, width = (*operands.shape, 1)[:2]
    step = max(1, PIECE // max(1, width))
    return [operands.piece(start, min(start + step, length)) for start in range(0, length, step)]


def each_piece(function: Callable[[Operands], Result], operands: Operands, threads: int | None = None) -> list[Result]:
    """``function`` of every piece, in their order.

    Args:
        function: called on several threads at once.
        operands: vectors or matrices.
        threads: as many as torch has where None. On each, torch computes alone: threads that wait for each other at
            every step are slow where anything else runs on the machine.

    Example:
        >>> operands = Operands("x", ("a",), (torch.ones(3, 200_000),), None, ({},), {})
        >>> each_piece(lambda piece: int(piece.tensors[0].sum()), operands.flat(), threads=2)
        [262144, 262144, 75712]
    """
    several = pieces(operands)
    _keep_freed_memory()
    threads = min(threads or torch.get_num_threads(), len(several))

    def of_some(some: Sequence[Operands]) -> list[Result]:
        torch.get_num_threads()  # a thread's first call sets its number, so it comes before the limit
        # Numbers that are none are refused by name, in the end.
        with _openmp().limit(limits=1, user_api="openmp"), np.errstate(all="ignore"):
            return [function(piece) for piece in some]

    if threads <= 1:
        return of_some(several)
    share = -(-len(several) // threads)  # neighbours go to one thread, which reads on where it was
    with ThreadPoolExecutor(threads) as pool:
        shares = [several[first : first + share] for first in range(0, len(several), share)]
        return [result for results in pool.map(of_some, shares) for result in results]


def refuse_not_finite(operands: Operands) -> None:
    """Looks through every tensor, whole.

    Raises:
        BadInput: an element is NaN or infinite; the message names the tensor and the model.
    """
    for model, tensor in zip((*operands.called, "the base"), operands.everything, strict=False):
        flat = tensor.reshape(-1)
        for start in range(0, len(flat), PIECE):
            part = flat[start : start + PIECE].to(operands.dtype)
            if not torch.isfinite(part).all():
                kind = "NaN" if torch.isnan(part).any() else "an infinite number"
                raise BadInput(
                    f"the tensor {operands.name!r} of {model} holds {kind}. Leave that model out or repair it."
                )


def refuse_nan(name: str, model: str, tensor: Tensor) -> None:
    """Looks through a tensor that is copied; infinities are a mask's.

    Raises:
        BadInput: an element is NaN; the message names the tensor and the model.
    """
    parts = torch.split(tensor.reshape(-1), PIECE)
    if tensor.is_floating_point() and any(bool(torch.isnan(part.float()).any()) for part in parts):
        raise BadInput(f"the tensor {name!r} of {model} holds NaN. Leave that model out or repair it.")


@cache
def _keep_freed_memory() -> None:
    """Until glibc has seen a large block freed, it hands every freed piece back to the system and asks for it anew."""
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


@cache
def _openmp() -> ThreadpoolController:
    """Looking for the libraries takes milliseconds, so it is done once; a limit holds for the thread that sets it."""
    return ThreadpoolController()
