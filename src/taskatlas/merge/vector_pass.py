"""One pass over task vectors for several merged models at once.

Merging costs what reading N task vectors from memory costs. So the gradients of the models that ran, and the merges of
those that run next, are computed piece by piece of D: a piece is read from memory once and serves all of them from the
cache. A gradient lies where its model's weights were, and is replaced by the next merge:

    ∂L_j/∂λ_ji = ⟨g_j, τ_i⟩        and then        θ_j = θ₀ + Σ_i λ_ji τ_i.

Dot products are summed in the precision of the vectors within a piece and in float64 over pieces, in the order of D:
the result does not depend on the number of threads.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int64
from numba.extending import intrinsic
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.compiled_loops import compiled, compiled_in_parallel
from taskatlas.merge.low_rank import Vectors
from taskatlas.merge.task_vectors import Level, TaskVectors

_PIECE = 4096  # elements of D: those of eight task vectors, the base and two models are 180 kB
_ABREAST = 4  # task vectors: a gradient or a model is gone through once for so many; the loops below are written for it
_DTYPES = (torch.float32, torch.float64)


def pass_over(
    vectors: Vectors,
    models: Sequence[Mapping[str, Tensor]],
    level: Level,
    *,
    ran: int = 0,
    coefficients: Float[Tensor, "next N *T"] | None = None,
) -> Float[Tensor, "ran N *T"]:
    """∂L/∂λ of the models that ran, in float64; then merges those that run next, in their place.

    Args:
        vectors: base and task vectors, dense or low-rank.
        models: tensors by name, contiguous and in the shapes of the base: the first ``ran`` models hold ∂L/∂θ, and
            θ(λ) is written over the first ``next``.
        level: of the gradients.
        ran: how many models hold gradients.
        coefficients: λ of the models that run next; None: there are none.

    Raises:
        BadInput: more models than are given, other coefficients than experts and tensors have, or a tensor that does
            not lie as it has to; nothing is written then.

    Example:
        >>> base = {"w": torch.zeros(2), "b": torch.ones(1)}
        >>> vectors = TaskVectors.of(base, {"a": {"w": torch.tensor([1.0, 0.0]), "b": torch.tensor([3.0])}})
        >>> model = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
        >>> pass_over(vectors, [model], "task", ran=1, coefficients=torch.tensor([[0.5]]))
        tensor([[7.]], dtype=torch.float64)
        >>> model
        {'w': tensor([0.5000, 0.0000]), 'b': tensor([2.])}
    """
    base = vectors.base
    following = base.new_empty(0, len(vectors.names)) if coefficients is None else coefficients.detach().to(base)
    sizes = (len(vectors.names),), (len(vectors.names), len(vectors.places))
    if max(ran, len(following)) > len(models) or tuple(following.shape[1:]) not in sizes:
        raise BadInput(
            f"{ran} models that ran and coefficients of shape {tuple(following.shape)} do not fit {len(models)} models "
            f"of {sizes[1][0]} experts and {sizes[1][1]} tensors."
        )
    used = models[: max(ran, len(following))]
    for model in used:
        _check_lies_so(model, vectors)
    here = base.device.type == "cpu" and base.dtype in _DTYPES and base.is_contiguous()
    if here and isinstance(vectors, TaskVectors):
        return _compiled(vectors, used, level, ran, following)
    found = [vectors.gradient(_flat(model, vectors), level) for model in used[:ran]]
    for model, wanted in zip(used, following, strict=False):
        for name, value in vectors.views(vectors.merged(wanted)).items():
            model[name].copy_(value)
    return torch.stack(found) if found else torch.empty(0, *sizes[level == "layer"], dtype=torch.float64)


def _check_lies_so(model: Mapping[str, Tensor], vectors: Vectors) -> None:
    """What is compiled goes by addresses, and checks nothing."""
    dtype, device = vectors.base.dtype, vectors.base.device
    for name, shape in vectors.shapes.items():
        value = model.get(name)
        if value is None or value.shape != shape or not value.is_contiguous() or value.dtype != dtype:
            raise BadInput(f"the model's tensor {name!r} has to be contiguous, {tuple(shape)}, and {dtype}.")
        if value.device != device:
            raise BadInput(f"the model's tensor {name!r} lies on {value.device}, the vectors on {device}.")


def _flat(model: Mapping[str, Tensor], vectors: Vectors) -> Tensor:
    return torch.cat([model[name].reshape(-1) for name in vectors.places])


def _compiled(
    vectors: TaskVectors, models: Sequence[Mapping[str, Tensor]], level: Level, ran: int, following: Tensor
) -> Tensor:
    experts, tensors = len(vectors.names), len(vectors.places)
    pieces = _pieces(tuple((place.start, place.stop) for place in vectors.places.values()))
    addresses = [model[name].data_ptr() for model in models for name in vectors.places]
    by_tensor = following if following.ndim == 3 else following[:, :, None].expand(-1, -1, tensors)
    matrix, padding = vectors.matrix, -experts % _ABREAST  # the last expert again, with coefficients of zero
    rows = np.array([*range(experts), *[experts - 1] * padding, experts])
    dots = np.zeros((len(pieces), ran, experts + padding), matrix.numpy().dtype)
    _pass_over_pieces(
        (matrix.data_ptr() + rows * matrix.stride(0) * matrix.element_size()).astype(np.uintp),
        np.array(addresses, np.uintp).reshape(-1, tensors),
        np.pad(by_tensor.numpy(), ((0, 0), (0, padding), (0, 0))),
        pieces,
        dots,
    )
    layers = np.zeros((ran, experts, tensors))
    if len(pieces):
        columns = pieces[:, 3]
        firsts = np.flatnonzero(np.diff(columns, prepend=-1))
        sums = np.add.reduceat(dots[:, :, :experts], firsts, axis=0, dtype=np.float64)
        layers[:, :, columns[firsts]] = sums.transpose(1, 2, 0)
    found = torch.from_numpy(layers)
    return found if level == "layer" else found.sum(2)


@lru_cache(maxsize=8)
def _pieces(places: tuple[tuple[int, int], ...]) -> Int64[np.ndarray, "pieces 4"]:
    """Where each begins in D and within its tensor, how long it is, and of which tensor it is: none is of two."""
    found = [
        (start, start - first, min(_PIECE, last - start), column)
        for column, (first, last) in enumerate(places)
        for start in range(first, last, _PIECE)
    ]
    return np.array(found, np.int64).reshape(-1, 4)


@intrinsic
@no_type_check
def _at(context: Any, address: Any) -> Any:  # noqa: ARG001
    """The memory at an address."""

    def generated(_, builder, __, arguments):
        return builder.inttoptr(arguments[0], numba.core.cgutils.voidptr_t)

    return numba.types.voidptr(address), generated


@compiled
@no_type_check
def _numbers(address: Any, start: int, size: int, like: np.ndarray) -> np.ndarray:
    """So many numbers from there on, of a type."""
    return numba.carray(_at(address), start + size, like.dtype)[start:]


@compiled_in_parallel
@no_type_check  # what is compiled cannot be wrapped
def _pass_over_pieces(
    vectors: np.ndarray, models: np.ndarray, coefficients: np.ndarray, pieces: np.ndarray, dots: np.ndarray
) -> None:
    """Gradients into ``dots``, merges into the models."""
    for piece in numba.prange(len(pieces)):
        _pass_over_piece(vectors, models, coefficients, pieces[piece], dots[piece])


@compiled
@no_type_check
def _pass_over_piece(
    vectors: np.ndarray, models: np.ndarray, coefficients: np.ndarray, piece: np.ndarray, dots: np.ndarray
) -> None:
    experts = len(vectors) - 1  # with the padding
    start, offset, size, column = piece
    for i in range(0, experts, _ABREAST):
        a, b = _numbers(vectors[i], start, size, dots), _numbers(vectors[i + 1], start, size, dots)
        c, d = _numbers(vectors[i + 2], start, size, dots), _numbers(vectors[i + 3], start, size, dots)
        for row in range(len(dots)):
            gradient, found = _numbers(models[row, column], offset, size, dots), dots[row]
            of_a, of_b, of_c, of_d = found[i], found[i + 1], found[i + 2], found[i + 3]
            for e in range(size):
                of_a += a[e] * gradient[e]
                of_b += b[e] * gradient[e]
                of_c += c[e] * gradient[e]
                of_d += d[e] * gradient[e]
            found[i], found[i + 1], found[i + 2], found[i + 3] = of_a, of_b, of_c, of_d
    base = _numbers(vectors[experts], start, size, dots)
    for row in range(len(coefficients)):
        theta = _numbers(models[row, column], offset, size, dots)
        for e in range(size):
            theta[e] = base[e]
    for i in range(0, experts, _ABREAST):
        a, b = _numbers(vectors[i], start, size, dots), _numbers(vectors[i + 1], start, size, dots)
        c, d = _numbers(vectors[i + 2], start, size, dots), _numbers(vectors[i + 3], start, size, dots)
        for row in range(len(coefficients)):
            theta, scales = _numbers(models[row, column], offset, size, dots), coefficients[row, :, column]
            of_a, of_b, of_c, of_d = scales[i], scales[i + 1], scales[i + 2], scales[i + 3]
            for e in range(size):
                theta[e] += of_a * a[e] + of_b * b[e] + of_c * c[e] + of_d * d[e]
