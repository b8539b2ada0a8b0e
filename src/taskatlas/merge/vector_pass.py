"""One pass over task vectors for several merged models at once.

Merging costs what reading N task vectors from memory costs. So the gradients of the models that ran, and the merges of
those that run next, are computed piece by piece of D: a piece is read from memory once and serves all of them from the
cache. A gradient lies where its model's weights were, and is replaced by the next merge:

    ∂L_j/∂λ_ji = ⟨g_j, τ_i⟩        and then        θ_j = θ₀ + Σ_i λ_ji τ_i.

Dot products are summed in the precision of the vectors within a piece and in float64 over pieces, in the order of D:
the result does not depend on the number of threads.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.low_rank import Vectors
from taskatlas.merge.task_vectors import Level, TaskVectors

_PIECE = 2048  # elements of D: those of eight task vectors, the base and two models are 90 kB
_DTYPES = (torch.float32, torch.float64)


def pass_over(
    vectors: Vectors,
    models: Float[Tensor, "models D"],
    level: Level,
    *,
    ran: int = 0,
    coefficients: Float[Tensor, "next N *T"] | None = None,
) -> Float[Tensor, "ran N *T"]:
    """∂L/∂λ of the models that ran, in float64; then merges those that run next, in their place.

    Args:
        vectors: base and task vectors, dense or low-rank.
        models: the first ``ran`` rows hold ∂L/∂θ; the first ``next`` rows are overwritten by θ(λ).
        level: of the gradients.
        ran: how many rows hold gradients.
        coefficients: λ of the models that run next; None: there are none.

    Raises:
        BadInput: more models than rows, or other coefficients than experts and tensors have.

    Example:
        >>> base = {"w": torch.zeros(2), "b": torch.ones(1)}
        >>> vectors = TaskVectors.of(base, {"a": {"w": torch.tensor([1.0, 0.0]), "b": torch.tensor([3.0])}})
        >>> models = torch.tensor([[1.0, 2.0, 3.0]])
        >>> pass_over(vectors, models, "task", ran=1, coefficients=torch.tensor([[0.5]]))
        tensor([[7.]], dtype=torch.float64)
        >>> models
        tensor([[0.5000, 0.0000, 2.0000]])
    """
    following = models.new_empty(0, len(vectors.names)) if coefficients is None else coefficients.detach().to(models)
    sizes = (len(vectors.names),), (len(vectors.names), len(vectors.places))
    if max(ran, len(following)) > len(models) or tuple(following.shape[1:]) not in sizes:
        raise BadInput(
            f"{ran} models that ran and coefficients of shape {tuple(following.shape)} do not fit {len(models)} models "
            f"of {sizes[1][0]} experts and {sizes[1][1]} tensors."
        )
    if isinstance(vectors, TaskVectors) and models.device.type == "cpu" and models.dtype in _DTYPES:
        return _compiled(vectors, models, level, ran, following)
    found = [vectors.gradient(row, level) for row in models[:ran]]
    for row, wanted in zip(models, following, strict=False):
        vectors.merged(wanted, out=row)
    return torch.stack(found) if found else torch.empty(0, *sizes[level == "layer"], dtype=torch.float64)


def _compiled(vectors: TaskVectors, models: Tensor, level: Level, ran: int, following: Tensor) -> Tensor:
    starts, stops, columns = _pieces(vectors)
    dots = np.zeros((len(starts), ran, len(vectors.names)), models.numpy().dtype)
    by_tensor = following if following.ndim == 3 else following[:, :, None].expand(-1, -1, len(vectors.places))
    arrays = (vectors.matrix.numpy(), models.numpy(), by_tensor.contiguous().numpy(), starts, stops, columns, dots)
    threads = min(torch.get_num_threads(), len(starts))
    parts = [*pairwise(np.linspace(0, len(starts), threads + 1).astype(int))]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _pass_over_pieces(*arrays, *part), parts))
    layers = np.zeros((ran, len(vectors.names), len(vectors.places)))
    for row, gradient in enumerate(layers):
        for expert, of_tensors in enumerate(gradient):
            of_tensors[:] = np.bincount(columns, dots[:, row, expert].astype(np.float64), len(of_tensors))
    found = torch.from_numpy(layers)
    return found if level == "layer" else found.sum(2)


def _pieces(vectors: TaskVectors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where every piece of D starts and stops, and of which tensor it is: none is of two."""
    starts: list[int] = []
    columns: list[int] = []
    for column, place in enumerate(vectors.places.values()):
        found = range(place.start, place.stop, _PIECE)
        starts += found
        columns += [column] * len(found)
    return np.array(starts), np.array([*starts[1:], vectors.base.numel()]), np.array(columns)


@numba.njit(nogil=True, fastmath={"contract", "reassoc"})
@no_type_check  # what is compiled cannot be wrapped
def _pass_over_pieces(
    matrix: np.ndarray,
    models: np.ndarray,
    coefficients: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    columns: np.ndarray,
    dots: np.ndarray,
    first: int,
    last: int,
) -> None:
    """The pieces from ``first`` to before ``last``: gradients into ``dots``, merges into ``models``."""
    experts = len(matrix) - 1
    for piece in range(first, last):
        start, stop, column = starts[piece], stops[piece], columns[piece]
        for row in range(dots.shape[1]):
            gradient = models[row, start:stop]
            for expert in range(experts):
                delta = matrix[expert, start:stop]
                total = dots[piece, row, expert]
                for e in range(len(delta)):
                    total += delta[e] * gradient[e]
                dots[piece, row, expert] = total
        for row in range(len(coefficients)):
            theta = models[row, start:stop]
            base = matrix[experts, start:stop]
            for e in range(len(base)):
                theta[e] = base[e]
            for expert in range(experts):
                delta = matrix[expert, start:stop]
                scale = coefficients[row, expert, column]
                for e in range(len(delta)):
                    theta[e] += scale * delta[e]
