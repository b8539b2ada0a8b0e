"""Mutual k-nearest neighbours: the share of neighbours that two networks agree on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from taskatlas.errors import BadInput
from taskatlas.space.samples import Centred, Samples, centre_all

_BLOCK = 512  # samples whose distances to all others are held at once
_DECIMALS = 10  # of distances in units of their mean: ties stay ties whatever the rounding


def mutual_knn_matrix(
    features: Sequence[Samples], against: Sequence[Samples] | None = None, *, k: int = 10
) -> Float[np.ndarray, "n m"]:
    """Mean share of each sample's k nearest others (Euclidean) that two networks have in common, for every pair.

    The local measure of Huh et al. (ICML 2024, section 2.2). As the normalised product of 0/1 neighbour matrices it is
    positive semi-definite. Two unrelated networks score k / (n - 1) on average.

    Args:
        features: m matrices (n, d_i) on the same n samples, n > k.
        against: with it, ``features`` against these instead of among themselves.
        k: neighbours of a sample; ties go to the sample that comes first.

    Returns:
        (m, m), symmetric with unit diagonal; or (m, len(against)).

    Raises:
        BadInput: no more samples than neighbours, or as ``cka``.

    Example:
        >>> X = np.array([[0.0], [1.0], [10.0], [11.0]])
        >>> mutual_knn_matrix([X, -X, X[[0, 2, 1, 3]]], k=1)
        array([[1., 1., 0.],
               [1., 1., 0.],
               [0., 0., 1.]])
    """
    centred, rows, columns = centre_all(features, against)
    n = centred[0].shape[0]
    if n <= k:
        raise BadInput(f"{k} neighbours need more than {k} samples; the probe has {n}.")
    chosen = np.stack([(_neighbours(x, k) + n * np.arange(n)[:, None]).ravel() for x in centred])
    indicators = csr_array(
        (np.ones(chosen.size), np.sort(chosen, axis=1).ravel(), np.arange(0, chosen.size + 1, n * k)),
        shape=(len(centred), n * n),
    )
    return (indicators[rows] @ indicators[columns].T).toarray() / (n * k)


def _neighbours(values: Centred, k: int) -> np.ndarray:
    """(n, k) positions of each sample's nearest others, in float64, first come first served among equals."""
    n = values.shape[0]
    exact = replace(values, dtype=np.dtype(np.float64))
    everything = exact[slice(0, n)] * np.sqrt(n)  # squared norms are one on average
    norms = np.square(everything).sum(axis=1)
    nearest = np.empty((n, k), dtype=np.int64)
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n))
        distances = norms[rows, None] + norms - 2 * (everything[rows] @ everything.T)
        distances[np.arange(rows.stop - start), np.arange(start, rows.stop)] = np.inf
        nearest[rows] = np.argsort(distances.round(_DECIMALS), axis=1, kind="stable")[:, :k]
    return nearest
