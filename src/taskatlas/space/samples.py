"""A matrix of features seen one block of samples at a time, so that a zoo never has to fit in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from taskatlas.errors import BadInput

BLOCK = 4096  # samples read at once where only sums over samples are kept


@runtime_checkable
class Samples(Protocol):
    """What a kernel reads: a shape and blocks of rows. Arrays and memory maps are this already."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, features)."""

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class SampleSubset:
    """Some rows of a matrix, gathered only when a block is read."""

    values: Samples
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows kept, features)."""
        return (len(self.rows), self.values.shape[1])

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        return self.values[self.rows[rows]]


@dataclass(frozen=True, eq=False)
class Standardised:
    """Features divided by their standard deviations when a block is read."""

    values: Samples
    deviations: Float[np.ndarray, " features"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, features)."""
        return self.values.shape

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        block = self.values[rows]
        return block / self.deviations.astype(np.result_type(block.dtype, np.float32))


@dataclass(frozen=True, eq=False)
class Centred:
    """Features with their column means removed and one common scale, in blocks of float32 or float64.

    The scale makes the squared norms sum to one, which no similarity here notices and which keeps float32 products
    of any features in range. Means and scale are summed in float64.
    """

    values: Samples
    mean: Float[np.ndarray, " features"]
    scale: float
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(samples, features)."""
        return self.values.shape

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        block = self.values[rows]
        if self.dtype == np.float32 and block.dtype == np.float32:
            # A mean far from zero is no float32: what its rounding leaves over is subtracted too.
            mean = self.mean.astype(np.float32)
            block = block - mean
            block -= (self.mean - mean).astype(np.float32)
            block *= np.float32(self.scale)
            return block
        return ((block - self.mean) * self.scale).astype(self.dtype, copy=False)


def centre(values: Samples, name: str = "one matrix") -> Centred:
    """Centres the columns of ``values`` (samples, features), reading it twice and copying one block at a time.

    Raises:
        BadInput: not a matrix, fewer than two samples, NaN or infinite values, or no variance at all; says of whom.

    Example:
        >>> centre(np.array([[0.0, 1.0], [2.0, 1.0]]))[:]
        array([[-0.70710678,  0.        ],
               [ 0.70710678,  0.        ]])
    """
    if len(values.shape) != 2:
        raise BadInput(f"the features of {name} have shape {values.shape}; give a matrix (samples, features).")
    n, d = values.shape
    if n < 2:
        raise BadInput(f"the features of {name} hold {n} sample(s); give at least two.")
    total, squares = np.zeros(d), np.zeros(d)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused below
        for start in range(0, n, BLOCK):
            total += values[start : start + BLOCK].sum(axis=0, dtype=np.float64)
        mean = total / n
        for start in range(0, n, BLOCK):
            block = values[start : start + BLOCK] - mean
            squares += np.einsum("ij,ij->j", block, block)
    if not np.isfinite(squares).all():
        raise BadInput(f"the features of {name} hold NaN or infinite values. Check that checkpoint's weights and tap.")
    if not (squares > n * (1e-7 * mean) ** 2).any():
        raise BadInput(f"the features of {name} are the same for every sample. Choose another tap or another probe.")
    dtype = np.dtype(np.float32 if values[:1].dtype.itemsize <= 4 else np.float64)
    return Centred(values, mean, float(squares.sum()) ** -0.5, dtype)


def standardise(values: Samples) -> Standardised:
    """Scales every column of ``values`` (samples, features) to unit variance; constant columns stay as they are.

    Example:
        >>> standardise(np.array([[0.0, 1.0], [4.0, 1.0]]))[:]
        array([[0., 1.],
               [2., 1.]])
    """
    n, d = values.shape
    total, squares = np.zeros(d), np.zeros(d)
    for start in range(0, n, BLOCK):
        total += values[start : start + BLOCK].sum(axis=0, dtype=np.float64)
    for start in range(0, n, BLOCK):
        squares += np.square(values[start : start + BLOCK] - total / n).sum(axis=0)
    deviations = np.sqrt(squares / n)
    return Standardised(values, np.where(deviations > 1e-7 * np.abs(total / n), deviations, 1.0))


def centre_all(
    features: Sequence[Samples], against: Sequence[Samples] | None
) -> tuple[list[Centred], list[int], list[int]]:
    """Everything centred once, with the positions of the rows and the columns that are wanted."""
    matrices = [*features, *(against or ())]
    if not features or not matrices:
        raise BadInput("there are no features to compare; give at least one matrix.")
    centred = [centre(x, f"matrix {position}") for position, x in enumerate(matrices)]
    counts = [x.shape[0] for x in centred]
    for position, count in enumerate(counts):
        if count != counts[0]:
            raise BadInput(
                f"feature matrix {position} has {count} samples and matrix 0 has {counts[0]}; use one probe for all."
            )
    rows = list(range(len(features)))
    columns = rows if against is None else list(range(len(features), len(matrices)))
    return centred, rows, columns
