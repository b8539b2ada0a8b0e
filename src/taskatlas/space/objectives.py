"""The objectives of greedy selection: what each candidate would gain, kept up to date as picks are made.

Mutual information and entropy are read off Schur complements (see ``selection``); coverage keeps the conditional
covariance; facility location the largest covariance to a pick.
"""

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

from taskatlas.errors import BadInput

Method = Literal["mutual_information", "coverage", "entropy", "facility_location"]

_SMALLEST_EIGENVALUE = 1e-10


@runtime_checkable
class Objective(Protocol):
    """A set of picks that grows, and what it is worth."""

    total: float

    def gains(self) -> Float[np.ndarray, " m"]:
        """What each candidate would add to the total; minus infinity for those that cannot be picked again."""

    def pick(self, y: int) -> None:
        """Adds candidate ``y`` to the set."""


def make_objective(
    method: Method,
    covariance: Float[np.ndarray, "m m"],
    importance: Float[np.ndarray, " m"],
) -> Objective:
    """The objective of a method over m tasks, with nothing picked yet.

    Args:
        method: see ``select``.
        covariance: positive definite but for ``facility_location``.
        importance: weight of each task; all ones where the method takes none.

    Raises:
        BadInput: the covariance is not positive definite.
    """
    if method == "facility_location":
        return _FacilityLocation(covariance, importance)
    precision = _inverse(covariance)  # whatever the method, a covariance that is not positive definite is refused
    if method == "mutual_information":
        return _MutualInformation(covariance, precision)
    return _Coverage(covariance, importance) if method == "coverage" else _Entropy(covariance)


class _Conditional:
    """The diagonal of a matrix's Schur complement as positions are eliminated, by a partial Cholesky factor.

    Of a covariance, that is var(v | picked); of its inverse, 1 / var(v | all others that are left).
    """

    def __init__(self, matrix: Float[np.ndarray, "m m"]) -> None:
        self._matrix = matrix
        self._rows = np.empty((0, len(matrix)))
        self.diagonal = np.diagonal(matrix).copy()

    def eliminate(self, y: int) -> None:
        row = (self._matrix[y] - self._rows[:, y] @ self._rows) / np.sqrt(self.diagonal[y])
        self._rows = np.vstack([self._rows, row])
        self.diagonal = np.maximum(self.diagonal - row**2, np.finfo(float).tiny)
        self.diagonal[y] = 1.0  # of no more meaning; kept harmless


class _MutualInformation:
    """I(A; V∖A)."""

    def __init__(self, covariance: Float[np.ndarray, "m m"], precision: Float[np.ndarray, "m m"]) -> None:
        self._given_picks = _Conditional(covariance)
        self._given_rest = _Conditional(precision)
        self._open = np.ones(len(covariance), dtype=bool)
        self.total = 0.0

    def gains(self) -> Float[np.ndarray, " m"]:
        ratio = self._given_picks.diagonal * self._given_rest.diagonal
        return np.where(self._open, 0.5 * np.log(ratio), -np.inf)

    def pick(self, y: int) -> None:
        self.total += self.gains()[y]
        self._given_picks.eliminate(y)
        self._given_rest.eliminate(y)
        self._open[y] = False


class _Coverage:
    """Σ_{v∉A} w_v ½ ln(var(v) / var(v | A))."""

    def __init__(self, covariance: Float[np.ndarray, "m m"], importance: Float[np.ndarray, " m"]) -> None:
        self._prior = np.diagonal(covariance).copy()
        self._conditional = covariance.copy()
        self._importance = importance
        self._open = np.ones(len(covariance), dtype=bool)
        self.total = 0.0

    def gains(self) -> Float[np.ndarray, " m"]:
        variance = np.diagonal(self._conditional)
        explained = self._conditional**2 / variance[:, None]  # row y: what picking y takes from each variance
        after = np.maximum(variance - explained, np.finfo(float).tiny)
        np.fill_diagonal(after, 1.0)
        reached = self._importance * 0.5 * (np.log(self._prior) - np.log(after))
        reached[:, ~self._open] = 0.0
        np.fill_diagonal(reached, 0.0)
        gains = reached.sum(axis=1) - self.total
        gains[~self._open] = -np.inf
        return gains

    def pick(self, y: int) -> None:
        self.total += self.gains()[y]
        column = self._conditional[:, y].copy()
        variance = column[y]
        self._conditional -= np.outer(column, column / variance)
        self._open[y] = False
        picked = ~self._open  # picked tasks keep a variance of one, so that no later step divides by rounding noise
        self._conditional[picked] = 0.0
        self._conditional[:, picked] = 0.0
        self._conditional[picked, picked] = 1.0


class _Entropy:
    """H(A); each step adds ½ ln(2πe var(y | A))."""

    def __init__(self, covariance: Float[np.ndarray, "m m"]) -> None:
        self._given_picks = _Conditional(covariance)
        self._open = np.ones(len(covariance), dtype=bool)
        self.total = 0.0

    def gains(self) -> Float[np.ndarray, " m"]:
        return np.where(self._open, 0.5 * np.log(2 * np.pi * np.e * self._given_picks.diagonal), -np.inf)

    def pick(self, y: int) -> None:
        self.total += self.gains()[y]
        self._given_picks.eliminate(y)
        self._open[y] = False


class _FacilityLocation:
    """Σ_v w_v max_{a∈A} Σ_va, with nothing covered at the start (negative covariances cover nothing)."""

    def __init__(self, covariance: Float[np.ndarray, "m m"], importance: Float[np.ndarray, " m"]) -> None:
        self._covariance = covariance
        self._importance = importance
        self._covered = np.zeros(len(covariance))
        self.total = 0.0

    def gains(self) -> Float[np.ndarray, " m"]:
        return np.maximum(self._covariance - self._covered, 0.0) @ self._importance

    def pick(self, y: int) -> None:
        self.total += self.gains()[y]
        self._covered = np.maximum(self._covered, self._covariance[y])


def _inverse(covariance: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """The precision matrix; a covariance that is not safely positive definite is refused."""
    try:
        inverse = cho_solve(cho_factor(covariance, lower=True), np.eye(len(covariance)))
    except np.linalg.LinAlgError:
        inverse = np.full_like(covariance, np.inf)
    # Cholesky may pass on rounding alone; the trace of the inverse bounds the smallest eigenvalue from below.
    if not 1 / np.trace(inverse) > _SMALLEST_EIGENVALUE:
        smallest = float(np.linalg.eigvalsh(covariance)[0])
        if smallest < _SMALLEST_EIGENVALUE:
            raise BadInput(
                f"the covariance is not positive definite: its smallest eigenvalue is {smallest:.3g}. Map with more "
                f"samples, or add noise of at least {max(1e-6, 2 * abs(smallest)):.1g} (noise=, --noise)."
            )
    return np.asarray(inverse)
