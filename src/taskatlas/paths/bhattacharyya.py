"""Bhattacharyya distance between models: how far their predictions lie apart, sample by sample.

With square roots on the unit sphere, the coefficient of two models on a sample is the cosine of the angle between
them, and the distance is d(P, Q) = -mean_n ln sum_c sqrt(p_nc q_nc) (Ramesh et al., ICML 2023, section 2).

Four things make it fast. The matrix is symmetric, so only tiles on and above the diagonal are computed. A sum of
logarithms is the logarithm of a product, so as many coefficients as the floating type can hold are multiplied before
one logarithm is taken. A tile stays in the processor's cache from the matrix product to the sum. And threads share out
tiles, not the many small products in them: nobody waits for anybody, and results do not depend on how many there are.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float, Real
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.pairwise import CHUNK, check_pair, finished, floating, one_thread_each, sample_slices, slabs
from taskatlas.paths.simplex import Array, Weights, check_weights, like, unit_roots

FLOOR = 1e-6  # smallest coefficient: a sample on which two models never overlap counts -ln FLOOR = 13.8 nats
_ROWS, _COLUMNS = 64, 256  # a tile of the matrix
_TILE = 400_000  # coefficients of a tile taken up at a time: they stay in cache

Tile = tuple[slice, slice]
Visit = Callable[[Tile, slice, Tensor], None]


def bhattacharyya(
    probs: Real[Array, "models samples classes"],
    others: Real[Array, "others _ _"] | None = None,
    *,
    floor: float = FLOOR,
    weights: Weights | None = None,
    chunk: int = CHUNK,
) -> Float[Array, "models second"]:
    """Pairwise Bhattacharyya distances in nats, averaged over samples.

    Symmetric and zero on itself; not a metric. From ignorance (1/C) to the truth (one-hot) it is ln(C)/2. Computed in
    the precision of ``probs`` and summed in float64; beyond input and result, memory is bounded by 4 ``chunk`` and one
    matrix of float64 in the shape of the result.

    Args:
        probs: probabilities, rows on the simplex to 1e-4.
        others: a second set of models, for cross distances; without it the distances among ``probs``.
        floor: the smallest coefficient a sample may have, so that models that never overlap are at a finite distance;
            ``saturated_share`` says how often it acts.
        weights: of the samples, scaled to sum to one; all alike where there are none.
        chunk: bytes of predictions taken up at a time (at least one sample of all models).

    Returns:
        (models, models), or (models, others).

    Raises:
        BadInput: a row is no probability (the message names the model and the sample), the two sets have other
            samples or classes, or the floor is not between the smallest number of their precision and 1.

    Example:
        >>> import numpy as np
        >>> ignorance, truth = np.full((1, 1, 4), 0.25), np.eye(4)[None, :1]
        >>> bhattacharyya(ignorance, truth).round(4)  # ln(4) / 2
        array([[0.6931]])
        >>> bhattacharyya(np.eye(2)[:, None]).round(2)
        array([[ 0.  , 13.82],
               [13.82,  0.  ]])
    """
    rows, columns, samples, _ = check_pair(probs, others)
    dtype, device = floating(probs)
    _check_floor(floor, dtype)
    scale = check_weights(weights, samples, "samples").to(device)
    together = 1 if weights is not None else _products_before_a_log(floor, dtype)
    total = torch.zeros(rows, columns, dtype=torch.float64, device=device)

    def add(tile: Tile, where: slice, overlap: Tensor) -> None:
        overlap.clamp_(min=floor)
        if weights is None:
            total[tile] += _sum_of_logs(overlap, together)
        else:
            total[tile] += torch.tensordot(scale[where], overlap.log_().double(), 1)

    _visit_tiles(probs, others, chunk, together, add)
    mean = total if weights is not None else total.div_(samples)
    return like(finished(mean.neg_(), symmetric=others is None), probs)


def saturated_share(
    probs: Real[Array, "models samples classes"],
    others: Real[Array, "others _ _"] | None = None,
    *,
    floor: float = FLOOR,
    chunk: int = CHUNK,
) -> float:
    """Share of (pair of different models, sample) whose coefficient is below the floor, from 0 to 1.

    Where it is not small, distances depend on the floor: report it, or compare ``hellinger``, which needs none.

    Raises:
        BadInput: as ``bhattacharyya``.

    Example:
        >>> saturated_share(torch.eye(2)[:, None])
        1.0
    """
    rows, columns, samples, _ = check_pair(probs, others)
    dtype, device = floating(probs)
    _check_floor(floor, dtype)
    below = torch.zeros(rows, columns, dtype=torch.int64, device=device)

    def count(tile: Tile, where: slice, overlap: Tensor) -> None:  # noqa: ARG001
        below[tile] += torch.count_nonzero(overlap < floor, 0)

    _visit_tiles(probs, others, chunk, 1, count)
    pairs = rows * columns if others is not None else rows * (rows - 1) // 2
    counted = int((below if others is not None else below.triu(1)).sum())
    return counted / (pairs * samples) if pairs else 0.0


def _check_floor(floor: float, dtype: torch.dtype) -> None:
    smallest = torch.finfo(dtype).tiny
    if not smallest <= floor < 1:
        raise BadInput(
            f"the floor of the coefficient is {floor}; in {dtype} it lies from {smallest:.2g} to below 1, such as 1e-6."
        )


def _products_before_a_log(floor: float, dtype: torch.dtype) -> int:
    """How many coefficients, each at least ``floor``, a product holds without leaving the type's normal range."""
    most = int(math.log(torch.finfo(dtype).tiny) / math.log(floor))
    return max(1, min(most, 12))  # after a dozen the logarithm is cheap already, and a tile would outgrow the cache


def _visit_tiles(probs: Array, others: Array | None, chunk: int, together: int, visit: Visit) -> None:
    """Calls ``visit(tile, samples, coefficients)`` with (samples, tile's rows, tile's columns) for every tile.

    A tile's samples come in order and in one thread. The coefficients lie in a buffer that is used again: fresh memory
    would cost more than the arithmetic.
    """
    with one_thread_each() as workers:
        for samples, first, second in slabs(probs, others, chunk, together):
            left = unit_roots(first, first_sample=samples.start).transpose(0, 1).contiguous()
            right = left
            if others is not None:
                right = unit_roots(second, first_sample=samples.start).transpose(0, 1).contiguous()
            tiles = _tiles(left.shape[1], right.shape[1], symmetric=others is None)
            for _ in workers.map(partial(_visit_tile, left, right, samples.start, together, visit), tiles):
                pass


def _visit_tile(left: Tensor, right: Tensor, start: int, together: int, visit: Visit, tile: Tile) -> None:
    a, b = left[:, tile[0]], right[:, tile[1]].transpose(1, 2)
    area = a.shape[1] * b.shape[2]
    buffer = a.new_empty(min(len(a), max(together, _TILE // area)) * area)
    for part in sample_slices(len(a), area, buffer.numel(), together):
        shape = (part.stop - part.start, a.shape[1], b.shape[2])
        overlap = buffer[: shape[0] * area].view(shape)
        torch.bmm(a[part], b[part], out=overlap)
        visit(tile, slice(start + part.start, start + part.stop), overlap)


def _tiles(rows: int, columns: int, *, symmetric: bool) -> Iterator[Tile]:
    height = min(_ROWS, max(16, rows // 8))  # some tiles for each thread also where there are few models
    for top in range(0, rows, height):
        for left in range(top if symmetric else 0, columns, _COLUMNS):
            yield slice(top, min(top + height, rows)), slice(left, min(left + _COLUMNS, columns))


def _sum_of_logs(overlap: Tensor, together: int) -> Tensor:
    """Sum over the samples of ln(overlap), one logarithm for ``together`` samples."""
    whole = len(overlap) // together * together
    groups = overlap[:whole].view(-1, together, *overlap.shape[1:])
    logs: Tensor = groups.prod(1).log_().sum(0, dtype=torch.float64)
    return logs + overlap[whole:].prod(0).log_()
