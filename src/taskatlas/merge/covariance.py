"""Covariance of the features of several models on the same data, in one pass over it.

A few samples at a time are centred by their own mean, multiplied in their own precision, at least float32, and pooled
in float64 (Chan, Golub and LeVeque, 1983, equation 2.1): sums of raw squares would cancel, and variances come out
negative, where a mean is large.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from taskatlas.errors import BadInput

Array: TypeAlias = np.ndarray | Tensor

_TILE = 256
_PADDING = 16
_CHUNK = 8192  # samples in one product: few enough for float32 to sum
_ROUNDING = 1e-6  # of a value's size: a deviation this small is rounding in float32


@dataclass(eq=False)
class Covariance:
    """Pools batches of features: how many samples there were, their mean and the sum of outer products about it.

    Example:
        >>> pooled = Covariance()
        >>> pooled.update(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]]))
        >>> pooled.update(torch.tensor([[5.0]]), torch.tensor([[8.0]]))
        >>> pooled.covariance.round(3)
        array([[ 2.667,  5.333],
               [ 5.333, 10.667]])
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    outer: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def update(self, *features: Real[Tensor, "samples _"]) -> None:
        """Takes in what every model makes of the same samples, the features of the first model first.

        Raises:
            BadInput: the models have other numbers of samples, or features other than before; NaN or infinite ones.
        """
        lengths = {len(values) for values in features}
        if len(lengths) != 1:
            raise BadInput(f"the models have {sorted(lengths)} samples; features are compared on the same ones.")
        for start in range(0, lengths.pop(), _CHUNK):
            rows = [values[start : start + _CHUNK] for values in features]
            self._pool(torch.cat([part.T.to(torch.promote_types(part.dtype, torch.float32)) for part in rows]))

    @property
    def covariance(self) -> Float[np.ndarray, "features features"]:
        """Divided by the number of samples; rows and columns of constant features are exactly 0.

        Raises:
            BadInput: there were no samples.
        """
        return self.above_rounding(self.sizes)

    @property
    def sizes(self) -> Float[np.ndarray, " features"]:
        """The root mean square of each feature.

        Raises:
            BadInput: there were no samples.
        """
        self._check_seen()
        return (self.mean.square() + self.outer.diagonal() / self.count).sqrt().cpu().numpy()

    def above_rounding(self, sizes: Float[np.ndarray, " features"]) -> Float[np.ndarray, "features features"]:
        """The covariance; rows and columns of features that vary no more than values of such sizes round are exactly 0.

        Args:
            sizes: of each feature, or of what it is computed from, if that is larger.

        Raises:
            BadInput: there were no samples.
        """
        self._check_seen()
        found = (self.outer / self.count).cpu().numpy()
        constant = np.sqrt(np.diagonal(found)) <= _ROUNDING * sizes
        found[constant] = 0
        found[:, constant] = 0
        return found

    def _check_seen(self) -> None:
        if not self.count:
            raise BadInput("there are no samples to compute a covariance on.")

    def _pool(self, values: Float[Tensor, "features samples"]) -> None:
        """Takes in a few samples, which it centres where they are."""
        count = values.shape[1]
        mean = values.sum(1).double() / count
        if not bool(mean.isfinite().all()):
            worst = int((~mean.isfinite()).nonzero()[0])
            raise BadInput(f"feature {worst} is NaN or infinite for some sample. Are the weights whole?")
        values -= mean.to(values.dtype).unsqueeze(1)
        if not self.count:
            self.mean, self.outer = torch.zeros_like(mean), mean.new_zeros(len(mean), len(mean))
        elif mean.shape != self.mean.shape:
            raise BadInput(f"there are {len(mean)} features where there were {len(self.mean)} before.")
        total = self.count + count
        apart = mean - self.mean
        self.outer += _outer(values).double()
        self.outer.addr_(apart, apart, alpha=self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total


def covariance_of(*features: Real[Array, "samples _"]) -> Float[np.ndarray, "features features"]:
    """Covariance (n·d, n·d) of the features of n models on the same samples, the features of the first model first.

    Pixels and tokens count as samples: see ``as_samples``. Rows of constant features (dead units) are exactly 0. For
    data that come in batches: ``Covariance``.

    Args:
        features: (samples, d) of each model.

    Raises:
        BadInput: the models have other numbers of samples, no samples at all, or NaN or infinite features.

    Example:
        >>> covariance_of(np.array([[0.0, 7], [2, 7]]), np.array([[1.0, 0], [5, 0]]))
        array([[1., 0., 2., 0.],
               [0., 0., 0., 0.],
               [2., 0., 4., 0.],
               [0., 0., 0., 0.]])
    """
    pooled = Covariance()
    pooled.update(*(torch.as_tensor(values) for values in features))
    return pooled.covariance


def as_samples(values: Tensor, axis: int) -> Tensor:
    """A tensor as (samples, features): the axis of the features last, all others one after the other.

    Example:
        >>> as_samples(torch.zeros(8, 3, 4, 4), axis=1).shape  # pixels
        torch.Size([128, 3])
        >>> as_samples(torch.zeros(8, 5, 16), axis=-1).shape  # tokens
        torch.Size([40, 16])
    """
    return values.movedim(axis, 0).reshape(values.shape[axis], -1).T


def correlation_of(covariance: Float[np.ndarray, "features _"]) -> Float[np.ndarray, "features features"]:
    """Correlations in the precision of the covariance; a constant feature correlates 0 with everything.

    The result is exactly symmetric. Its rows lie apart in memory by more than their length, so that columns are as
    quick to write as rows also where the length is a power of two.

    Raises:
        BadInput: no covariance: not square, not symmetric, a negative variance, NaN or infinite entries.

    Example:
        >>> correlation_of(np.array([[4.0, 1, 0], [1, 1, 0], [0, 0, 0]]))
        array([[1. , 0.5, 0. ],
               [0.5, 1. , 0. ],
               [0. , 0. , 0. ]])
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise BadInput(f"a covariance is a square matrix, not an array of shape {covariance.shape}.")
    variances = np.diagonal(covariance).astype(np.float64)
    if (variances < 0).any():
        worst = int(variances.argmin())
        raise BadInput(f"feature {worst} has the negative variance {variances[worst]:.3g}. Sum in float64.")
    alive = ~constant_features(variances)
    inverse = np.zeros(len(variances))
    inverse[alive] = 1 / np.sqrt(variances[alive])
    found = np.empty((len(variances), len(variances) + _PADDING), covariance.dtype)[:, : len(variances)]
    asymmetric = 1e-4 * float(variances.max(initial=0.0))
    for rows, columns in _upper_tiles(len(variances)):
        tile = covariance[rows, columns]
        if not np.isfinite(tile).all():
            raise BadInput("the covariance holds NaN or infinite entries. Are the features it was made from finite?")
        if np.abs(tile - covariance[columns, rows].T).max() > asymmetric:
            raise BadInput("the covariance is not symmetric. Give that of the features of all models, joined.")
        tile = tile * (inverse[rows, None] * inverse[columns]).astype(tile.dtype)
        if rows == columns:
            tile = np.triu(tile, 1) + np.triu(tile, 1).T + np.diag(alive[rows])
        found[rows, columns], found[columns, rows] = tile, tile.T
    return found


def constant_features(variances: Float[np.ndarray, " features"]) -> np.ndarray:
    """Which features do not vary, up to rounding beside the one that varies most."""
    resolution = np.finfo(np.float64).eps ** 2
    silent: np.ndarray = variances <= resolution * float(variances.max(initial=0.0))
    return silent


def _upper_tiles(length: int) -> Iterator[tuple[slice, slice]]:
    """Tiles on and above the diagonal: a tile and its mirror fit a cache."""
    for top in range(0, length, _TILE):
        for left in range(top, length, _TILE):
            yield slice(top, min(top + _TILE, length)), slice(left, min(left + _TILE, length))


def _outer(values: Float[Tensor, "features samples"]) -> Float[Tensor, "features features"]:
    """A matrix times its own transpose, of which numpy computes one half and mirrors it."""
    if values.device.type != "cpu":
        return values @ values.T
    return torch.from_numpy(values.numpy() @ values.numpy().T)
