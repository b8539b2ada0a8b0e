"""The greedy zip: of all features of all models the two most alike are joined, again and again, until enough are left.

Features of one model may be joined too, up to a budget of its own (Stoica et al., ICLR 2024, section 4.3 and
algorithm 1). A feature that was joined is a mean and matches less sharply than it did, so its correlations become ``a``
times the smaller of the two that it was made of.

The straightforward loop looks through the whole matrix for every join, and copies it to take a row out. Here nothing
is copied, and a join costs a few passes over single rows. Correlations only fall, so the largest one that a row had
when it was last looked at bounds what it has now; a row is looked at again only when its bound is the largest of all
and no longer true. What is gone, or not allowed, has minus infinity in a vector that is added while looking.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

_LOWEST = -2.0  # on the diagonal: below every correlation, and finite, so that it can be multiplied by zero


def greedy_zip(
    correlation: Float[np.ndarray, "features features"], widths: Sequence[int], a: float | int, b: float | int
) -> Integer[np.ndarray, " features"]:
    """For each feature the first one of those that it was joined with; as many as the widest model has are left.

    A join of two features that both have members of one model is a join within that model, and spends one of its
    budget. Of three models and more, features may remain of which no two are allowed; all budgets are lifted then,
    and no feature is lost. Ties go to the pair that comes first by row, then by column.

    Args:
        correlation: symmetric, the features of the first model first; overwritten.
        widths: how many features each of the n models has.
        a: what is left of a correlation after a join, from 0 to 1; a negative one stays as it is, or it would rise.
        b: from 0 to 1; every model's budget is that share of the n-th part of the features that are removed, rounded
            down, but at least 1 unless b is 0.

    Example:
        >>> x = np.array([[1, 0, 0, 0.9], [0, 1, 0.8, 0], [0, 0.8, 1, 0], [0.9, 0, 0, 1]])
        >>> greedy_zip(x, (2, 2), a=0.3, b=0.0)
        array([0, 1, 1, 0])
    """
    state = _Joining(correlation, widths, within_model_budget(widths, b))
    factor = correlation.dtype.type(a)
    for _ in range(len(correlation) - max(widths)):
        state.join(*state.best_pair(), factor)
    return _roots(state.first_member)


def within_model_budget(widths: Sequence[int], b: float | int) -> int:
    """How many joins within itself each model may have.

    Example:
        >>> within_model_budget((32, 32), 0.125), within_model_budget((32, 32), 0.01), within_model_budget((32, 32), 0)
        (2, 1, 0)
        >>> within_model_budget((48, 32), 0.125)
        2
    """
    removed = sum(widths) - max(widths)
    return max(1, math.floor(removed / len(widths) * b + 1e-9)) if b > 0 else 0


class _Joining:
    """The joins so far. A joined feature lives on in the row and column of its first member."""

    def __init__(self, correlation: np.ndarray, widths: Sequence[int], budget: int) -> None:
        features, n_models = len(correlation), len(widths)
        dtype = correlation.dtype
        self.correlation = correlation
        np.fill_diagonal(correlation, _LOWEST)
        self.lost = dtype.type(-np.inf)
        self.first_member = np.arange(features)
        self.gone = np.zeros(features, dtype)  # -inf where a feature has become part of another
        owners = np.repeat(np.arange(n_models), widths)
        self.owners = [1 << int(owner) for owner in owners]  # as bits, the models of each feature's members
        self.owned = np.where(owners == np.arange(n_models)[:, None], self.lost, dtype.type(0))  # -inf: has members
        self.budgets = [budget] * n_models
        self.closed = 0 if budget else (1 << n_models) - 1  # as bits, the models that may not be joined within
        self.row, self.shrunk = np.empty(features, dtype), np.empty(features, dtype)
        self.partners = correlation.argmax(axis=1)  # allowed or not: these are bounds
        self.bounds = correlation[self.first_member, self.partners]

    def best_pair(self) -> tuple[int, int]:
        """The two most alike of those that may be joined, the earlier first."""
        while True:
            first = int(self.bounds.argmax())
            if self.bounds[first] == self.lost:
                self._lift_budgets()
                continue
            second = int(self.partners[first])
            allowed = not (self.owners[first] & self.owners[second] & self.closed) and not self.gone[second]
            if allowed and self.correlation[first, second] == self.bounds[first]:
                return first, second
            self._look(first)

    def join(self, first: int, second: int, factor: np.floating) -> None:
        """Makes one feature of two."""
        x, row = self.correlation, self.row
        np.minimum(x[first], x[second], out=row)
        if self.bounds[first] < 1:  # features that always agree are one feature twice: joined, it is as sharp as before
            np.multiply(row, factor, out=self.shrunk)
            np.minimum(row, self.shrunk, out=row)
        row[first] = _LOWEST
        x[first] = row
        x[:, first] = row
        self.first_member[second] = first
        self.gone[second] = self.bounds[second] = self.lost
        self._spend(self.owners[first] & self.owners[second])
        self.owners[first] |= self.owners[second]
        np.minimum(self.owned[:, first], self.owned[:, second], out=self.owned[:, first])

    def _look(self, feature: int) -> None:
        """Finds the best partner of a feature as things stand."""
        np.add(self.correlation[feature], self.gone, out=self.row)
        for model, owned in enumerate(self.owned):
            if self.owners[feature] & self.closed & 1 << model:
                self.row += owned
        self.partners[feature] = best = self.row.argmax()
        self.bounds[feature] = self.row[best]

    def _spend(self, models: int) -> None:
        for model in range(len(self.budgets)):
            if models & 1 << model:
                self.budgets[model] -= 1
                if self.budgets[model] == 0:
                    self.closed |= 1 << model

    def _lift_budgets(self) -> None:
        self.closed = 0
        self.budgets = [len(self.gone)] * len(self.budgets)
        for feature in np.flatnonzero(self.gone == 0):
            self._look(int(feature))


def _roots(first_member: Integer[np.ndarray, " features"]) -> Integer[np.ndarray, " features"]:
    """Follows joined features to where they ended; each points to an earlier one or to itself."""
    while True:
        further = first_member[first_member]
        if np.array_equal(further, first_member):
            return first_member
        first_member = further
