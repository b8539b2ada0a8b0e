"""Centred kernel alignment (CKA): how alike two networks arrange the same samples.

With K and L the Gram matrices of two feature sets on n common samples and H = I - 11ᵀ/n,

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),

where HSIC is ⟨HKH, HLH⟩ (biased: Kornblith et al., ICML 2019, section 3; the covariance of Huang et al., NeurIPS 2021,
section 3.1) or its unbiased estimate HSIC₁ (debiased: Song et al., JMLR 2012, equation 5; Nguyen et al., ICLR 2021).
Biased CKA of unrelated features grows towards 1 as the number of features nears the number of samples: independent
noise in 768 dimensions scores .96 on 32 samples and .27 on 2,048. Debiased CKA scores 0 for it on average.

Everything here follows from three sums over samples: ⟨K, L⟩, the row sums of K, and its diagonal. They come from tiles
of the Gram matrices of all networks at once, or, where there are many more samples than features, from products of
features. Products are made in the features' own precision; sums over tiles and everything after are float64.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from taskatlas.engine import single_threaded_products
from taskatlas.errors import BadInput
from taskatlas.space.samples import BLOCK, Centred, Samples, centre_all

_TILE_BYTES = 10 * 2**20  # what one tile of all networks' Gram matrices may take, in each thread
_LARGEST_TILE = 384
_COLUMNS = 2**14  # entries of a tile that are converted to float64 at once
_MEDIAN_SAMPLES = 2000

Matrix = Float[np.ndarray, "n m"]
TileMaker = Callable[[int, slice, slice], np.ndarray]


def cka(X: np.ndarray, Y: np.ndarray, debiased: bool = False) -> float:
    """Linear CKA of two feature matrices on the same samples, in float64.

    Args:
        X: (n, d1) features; row i belongs to the same sample as row i of ``Y``.
        Y: (n, d2) features.
        debiased: the unbiased HSIC₁ in place of the biased HSIC; may then be slightly negative. Needs n > 3.

    Returns:
        1 for features equal up to rotation, scale and shift; 0 for unrelated ones (on average, if debiased).

    Raises:
        BadInput: the numbers of samples differ, values are not finite, or a matrix does not vary.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> Q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
        >>> round(cka(X, 5 * X @ Q + 1), 12)
        1.0
    """
    pair = [np.asarray(X, dtype=np.float64), np.asarray(Y, dtype=np.float64)]
    return float(cka_matrix(pair, debiased=debiased)[0, 1])


def cka_matrix(
    features: Sequence[Samples], against: Sequence[Samples] | None = None, *, debiased: bool = False
) -> Matrix:
    """Linear CKA of every pair of feature matrices, each read in blocks.

    Args:
        features: m matrices (n, d_i) on the same n samples.
        against: with it, CKA of ``features`` against these instead of among themselves.
        debiased: see ``cka``.

    Returns:
        (m, m), symmetric with unit diagonal; or (m, len(against)).

    Raises:
        BadInput: as ``cka``; the message counts the matrices from 0.
    """
    centred, rows, columns = centre_all(features, against)
    n = centred[0].shape[0]
    if _tiles_are_cheaper(centred, rows, columns):
        sums = _tile_sums(n, len(centred), partial(_linear_tile, centred))
    else:
        sums = _product_sums(centred, rows, columns)
    return _aligned(sums, debiased)[np.ix_(rows, columns)]


def rbf_cka_matrix(features: Sequence[Samples], against: Sequence[Samples] | None = None) -> Matrix:
    """CKA of every pair under a Gaussian kernel exp(-‖x - y‖² / 2σ²), with σ the median distance of each network.

    Sees likeness of neighbourhoods that the linear kernel misses (Kornblith et al., ICML 2019, section 3.3). The
    median is taken over the first 2,000 samples.

    Args:
        features: m matrices (n, d_i) on the same n samples.
        against: as in ``cka_matrix``.

    Returns:
        (m, m), symmetric with unit diagonal; or (m, len(against)).

    Raises:
        BadInput: as ``cka``.
    """
    centred, rows, columns = centre_all(features, against)
    n = centred[0].shape[0]
    gammas = [0.5 / _median_squared_distance(x) for x in centred]
    return _aligned(_tile_sums(n, len(centred), partial(_rbf_tile, centred, gammas)), debiased=False)[
        np.ix_(rows, columns)
    ]


def minibatch_cka(batches: Iterable[Sequence[np.ndarray]]) -> Matrix:
    """Debiased linear CKA of every pair, from a stream of batches (Nguyen et al., ICLR 2021, equation 3).

    HSIC₁ is summed over the batches and divided once; the mean of the batches' own CKA would be biased.

    Args:
        batches: each a sequence of m matrices (b, d_i), b > 3, on the same b samples; b may change.

    Returns:
        (m, m), symmetric with unit diagonal.

    Raises:
        BadInput: no batch, a batch of fewer than four samples, or as ``cka``.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(2, 40, 3))
        >>> matrix = minibatch_cka([x, 2 * x] for x in X)
        >>> matrix.round(9)
        array([[1., 1.],
               [1., 1.]])
    """
    total: np.ndarray | None = None
    for position, batch in enumerate(batches):
        _check_batch(batch, position, None if total is None else len(total))
        # Batches weigh in by their own scale, so they must not be normalised one by one.
        plain = [Centred(x, np.asarray(x, np.float64).mean(axis=0), 1.0, np.dtype(np.float64)) for x in batch]
        b = len(batch[0])
        term = _hsic(_tile_sums(b, len(batch), partial(_linear_tile, plain)), debiased=True) / (b * (b - 3))
        total = term if total is None else total + term
    if total is None:
        raise BadInput("there is no batch to align; give at least one.")
    return _normalised(total)


def minibatch_cka_matrix(
    features: Sequence[Samples], against: Sequence[Samples] | None = None, *, batch_size: int = 1024
) -> Matrix:
    """``minibatch_cka`` of stored features: arithmetic that grows with the number of samples, not with its square.

    Args:
        features: m matrices (n, d_i) on the same n samples, n > 3.
        against: as in ``cka_matrix``.
        batch_size: samples in a batch; a remainder of fewer than four joins the last batch.

    Returns:
        (m, m), symmetric with unit diagonal; or (m, len(against)).

    Raises:
        BadInput: as ``cka``.
    """
    centred, rows, columns = centre_all(features, against)
    n = centred[0].shape[0]
    starts = [start for start in range(0, n, batch_size) if n - start > 3 or start == 0]
    stops = [*starts[1:], n]
    batches = ([x[a:b] for x in centred] for a, b in zip(starts, stops, strict=True))
    return minibatch_cka(batches)[np.ix_(rows, columns)]


def _check_batch(batch: Sequence[np.ndarray], position: int, m: int | None) -> None:
    shapes = [x.shape for x in batch]
    if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise BadInput(
            f"batch {position} holds shapes {shapes}; give matrices (samples, features) of the same samples."
        )
    if m is not None and len(batch) != m:
        raise BadInput(f"batch {position} holds {len(batch)} matrices and those before hold {m}; give one a network.")
    if shapes[0][0] < 4:
        raise BadInput(
            f"batch {position} holds {shapes[0][0]} samples; debiased CKA needs at least four in each batch."
        )
    for i, x in enumerate(batch):
        if not np.isfinite(x).all():
            raise BadInput(f"matrix {i} of batch {position} holds NaN or infinite values. Check its weights and tap.")


@dataclass(frozen=True)
class _GramSums:
    """All that alignment needs to know of m Gram matrices K_i over n samples."""

    inner: Float[np.ndarray, "m m"]  # ⟨K_i, K_j⟩
    row_sums: Float[np.ndarray, "m n"]
    diagonals: Float[np.ndarray, "m n"]


def _tiles_are_cheaper(centred: Sequence[Centred], rows: Sequence[int], columns: Sequence[int]) -> bool:
    """Whether half of each Gram matrix costs fewer multiplications than the products of features."""
    n = centred[0].shape[0]
    widths = np.array([x.shape[1] for x in centred], dtype=float)
    tiles = n * n * widths.sum() / 2 + n * n * len(centred) ** 2 / 2
    products = n * (widths[rows].sum() * widths[columns].sum() / (2 if rows == columns else 1) + (widths**2).sum() / 2)
    return bool(tiles <= products)


def _tile_sums(n: int, m: int, tile_of: TileMaker) -> _GramSums:
    """The sums from square tiles on and above the diagonal: each tile of all m networks, then one product (m, m).

    Tiles are shared among as many threads as the arithmetic may use, each multiplying alone, and added up in a fixed
    order: the result is the same, to the bit, for any number of threads.
    """
    size = int(np.clip(np.sqrt(_TILE_BYTES / (4 * m)), 16, _LARGEST_TILE))
    blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    pairs = [(down, across) for position, down in enumerate(blocks) for across in blocks[position:]]
    inner = np.zeros((m, m))
    row_sums = np.zeros((m, n))
    diagonals = np.zeros((m, n))
    with single_threaded_products() as threads, ThreadPoolExecutor(threads) as pool:
        parts = pool.map(partial(_tile_part, m, tile_of), pairs)
        for (down, across), (product, sums_down, sums_across, diagonal) in zip(pairs, parts, strict=True):
            row_sums[:, down] += sums_down
            if down == across:
                inner += product
                diagonals[:, down] = diagonal
            else:
                inner += 2 * product
                row_sums[:, across] += sums_across
    return _GramSums(inner, row_sums, diagonals)


def _tile_part(
    m: int, tile_of: TileMaker, pair: tuple[slice, slice]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of one tile of every network: products between all, sums of its rows and of its columns, and its diagonal."""
    first = tile_of(0, *pair)
    tiles = np.empty((m, *first.shape), dtype=first.dtype)
    tiles[0] = first
    for i in range(1, m):
        tiles[i] = tile_of(i, *pair)
    flat = tiles.reshape(m, -1)
    product = np.zeros((m, m))
    for start in range(0, flat.shape[1], _COLUMNS):
        columns = flat[:, start : start + _COLUMNS].astype(np.float64)
        product += columns @ columns.T
    sums = (tiles.sum(axis=2, dtype=np.float64), tiles.sum(axis=1, dtype=np.float64))
    return product, *sums, np.diagonal(tiles, axis1=1, axis2=2).astype(np.float64)


def _linear_tile(centred: Sequence[Centred], i: int, down: slice, across: slice) -> np.ndarray:
    left = centred[i][down]
    return left @ (left if across == down else centred[i][across]).T


def _rbf_tile(centred: Sequence[Centred], gammas: Sequence[float], i: int, down: slice, across: slice) -> np.ndarray:
    return np.exp(-gammas[i] * _squared_distances(centred[i][down], centred[i][across]))


def _product_sums(centred: Sequence[Centred], rows: Sequence[int], columns: Sequence[int]) -> _GramSums:
    """The sums by ⟨XXᵀ, YYᵀ⟩ = ‖XᵀY‖²; centred features have row sums of zero. Pairs not asked for stay zero."""
    m, n = len(centred), centred[0].shape[0]
    wanted = sorted({(min(i, j), max(i, j)) for i in rows for j in columns} | {(i, i) for i in range(m)})
    inner = np.zeros((m, m))
    with single_threaded_products() as threads, ThreadPoolExecutor(threads) as pool:
        for (i, j), value in zip(wanted, pool.map(partial(_product_norm, centred), wanted), strict=True):
            inner[i, j] = inner[j, i] = value
    diagonals = np.empty((m, n))
    for i, x in enumerate(centred):
        for start in range(0, n, BLOCK):
            block = slice(start, min(start + BLOCK, n))
            diagonals[i, block] = np.square(x[block], dtype=np.float64).sum(axis=1)
    return _GramSums(inner, np.zeros((m, n)), diagonals)


def _product_norm(centred: Sequence[Centred], pair: tuple[int, int]) -> float:
    """‖XᵀY‖² of one pair."""
    first, second = (centred[position] for position in pair)
    product = np.zeros((first.shape[1], second.shape[1]))
    for start in range(0, first.shape[0], BLOCK):
        block = slice(start, min(start + BLOCK, first.shape[0]))
        left = first[block]
        product += left.T @ (left if first is second else second[block])
    return float(np.vdot(product, product))


def _hsic(sums: _GramSums, debiased: bool) -> Matrix:
    """HSIC of every pair, up to a factor common to all: biased ⟨HKH, HLH⟩, or HSIC₁ · n (n - 3)."""
    n = sums.row_sums.shape[1]
    if not debiased:
        totals = sums.row_sums.sum(axis=1)
        return sums.inner - 2 / n * (sums.row_sums @ sums.row_sums.T) + np.outer(totals, totals) / n**2
    if n < 4:
        raise BadInput(f"debiased CKA needs at least four samples; the probe has {n}.")
    hollow = sums.inner - sums.diagonals @ sums.diagonals.T  # ⟨K̃, L̃⟩ with the diagonals set to zero
    row_sums = sums.row_sums - sums.diagonals
    totals = row_sums.sum(axis=1)
    return hollow + np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (row_sums @ row_sums.T)


def _aligned(sums: _GramSums, debiased: bool) -> Matrix:
    return _normalised(_hsic(sums, debiased))


def _normalised(hsic: Matrix) -> Matrix:
    """hsic_ij / sqrt(hsic_ii hsic_jj), with an exact unit diagonal."""
    own = np.diagonal(hsic)
    if (own <= 0).any():
        raise BadInput(
            f"feature matrix {int(np.argmin(own))} has no structure beyond noise on this probe. Use more samples."
        )
    roots = np.sqrt(own)
    aligned = hsic / np.outer(roots, roots)
    np.fill_diagonal(aligned, 1.0)
    return (aligned + aligned.T) / 2


def _squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.astype(np.float64, copy=False), right.astype(np.float64, copy=False)
    norms = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1)
    return np.maximum(norms - 2 * (left @ right.T), 0.0)


def _median_squared_distance(values: Samples) -> float:
    block = values[slice(0, _MEDIAN_SAMPLES)]
    squared = _squared_distances(block, block)[np.triu_indices(len(block), k=1)]
    squared = squared[squared > 1e-12 * max(squared.max(initial=0.0), 1e-300)]
    if not squared.size:
        raise BadInput("more than half of the samples share one feature vector. Choose another tap or another probe.")
    return float(np.median(np.sqrt(squared)) ** 2)
