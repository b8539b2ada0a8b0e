"""Orthogonal Procrustes similarity: how much of one network's features a rotation of the other's explains."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from taskatlas.space.samples import BLOCK, Samples, centre_all


def procrustes_matrix(
    features: Sequence[Samples], against: Sequence[Samples] | None = None
) -> Float[np.ndarray, "n m"]:
    """Nuclear norm ‖X̃ᵀỸ‖_* of every pair of centred features of unit Frobenius norm.

    It is 1 - δ²/2 with δ the orthogonal Procrustes distance of the two (Schönemann, 1966; Williams et al., NeurIPS
    2021, section 2). Two narrower sets of features are as if padded with zeros.

    Args:
        features: m matrices (n, d_i) on the same n samples.
        against: with it, ``features`` against these instead of among themselves.

    Returns:
        (m, m), symmetric with unit diagonal; or (m, len(against)). Not always positive semi-definite.

    Raises:
        BadInput: the numbers of samples differ, values are not finite, or a matrix does not vary.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(30, 2))
        >>> procrustes_matrix([X, X[:, ::-1] * 3]).round(6)
        array([[1., 1.],
               [1., 1.]])
    """
    centred, rows, columns = centre_all(features, against)
    n = centred[0].shape[0]
    found: dict[tuple[int, int], float] = {}
    for i in rows:
        for j in columns:
            if i == j or (j, i) in found:
                continue
            product = np.zeros((centred[i].shape[1], centred[j].shape[1]))
            for start in range(0, n, BLOCK):
                block = slice(start, min(start + BLOCK, n))
                product += centred[i][block].T @ centred[j][block]
            found[i, j] = float(np.linalg.svd(product, compute_uv=False).sum())
    value = found | {(j, i): similarity for (i, j), similarity in found.items()}
    return np.array([[1.0 if i == j else value[i, j] for j in columns] for i in rows])
