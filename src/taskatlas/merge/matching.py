"""Which features of several networks do the same: one group of features, from their covariance on shared data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Integer

from taskatlas.errors import BadInput
from taskatlas.merge.assignment import cycle_consistent, optimal_pairs, permute
from taskatlas.merge.covariance import constant_features, correlation_of
from taskatlas.merge.greedy_zip import greedy_zip

Method = Literal["zip", "permute", "cycle_consistent", "optimal", "identity"]

_ALIKE = 1 - 1e-6  # a correlation this close to 1 differs from it by rounding


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """For every feature of n models the one of d merged features that it becomes part of.

    A merged feature is the mean of its members, and every member is taken to be what the merged feature is:
    merged = ``merge`` @ features, and features ≈ ``unmerge`` @ merged, with the features of all models joined.

    Attributes:
        places: (n, d) integers from 0 to d - 1; every merged feature has a member.

    Raises:
        BadInput: a merged feature without a member, or a place that is none.

    Example:
        >>> Alignment(np.array([[0, 1], [1, 0]])).merge
        array([[0.5, 0. , 0. , 0.5],
               [0. , 0.5, 0.5, 0. ]], dtype=float32)
    """

    places: Integer[np.ndarray, "models features"]

    def __post_init__(self) -> None:
        if self.places.ndim != 2 or not np.array_equal(np.unique(self.places), np.arange(self.width)):
            raise BadInput(
                f"an alignment of models with {self.places.shape[-1]} features gives each feature a place from 0 to "
                f"{self.places.shape[-1] - 1} and leaves no place empty."
            )

    def __repr__(self) -> str:
        kind = "a permutation of each" if self.is_permutation else "zipped"
        return f"Alignment({self.n_models} models x {self.width} features, {kind})"

    @property
    def n_models(self) -> int:
        """How many models are aligned."""
        return len(self.places)

    @property
    def width(self) -> int:
        """How many features each of them has, and the merged one too."""
        return self.places.shape[1]

    @property
    def is_permutation(self) -> bool:
        """Whether each model's features are only reordered, so that aligning changes no function."""
        return all(len(np.unique(row)) == self.width for row in self.places)

    @property
    def counts(self) -> Integer[np.ndarray, " merged"]:
        """How many members each merged feature has."""
        return np.bincount(self.places.ravel(), minlength=self.width)

    @property
    def merge(self) -> Float[np.ndarray, "merged features"]:
        """(d, n·d): the members' weights in each merged feature, 1 / count; rows sum to 1."""
        found = np.zeros((self.width, self.places.size), np.float32)
        flat = self.places.ravel()
        found[flat, np.arange(flat.size)] = (1 / self.counts)[flat]
        return found

    @property
    def unmerge(self) -> Float[np.ndarray, "features merged"]:
        """(n·d, d): membership, 0 or 1."""
        found = np.zeros((self.places.size, self.width), np.float32)
        found[np.arange(self.places.size), self.places.ravel()] = 1
        return found

    def agreement(self, covariance: Float[np.ndarray, "features _"]) -> float:
        """Mean over the merged features of the correlation among members from different models, from -1 to 1.

        A merged feature whose members all come from one model counts 0: nothing of another model agrees with it. One
        whose members are all constant does not count; where there is no other, all agree.
        """
        correlation = correlation_of(covariance)
        alive = np.diagonal(correlation) > 0
        owners, flat = np.arange(self.places.size) // self.width, self.places.ravel()
        agreed = []
        for place in range(self.width):
            members = np.flatnonzero(flat == place)
            if alive[members].any():
                apart = owners[members, None] != owners[members]
                agreed.append(correlation[np.ix_(members, members)][apart].mean() if apart.any() else 0.0)
        return float(np.mean(agreed)) if agreed else 1.0


def match_features(
    covariance: Float[np.ndarray, "features _"],
    n_models: int,
    method: Method = "zip",
    a: float | int = 0.3,
    b: float | int = 0.125,
) -> Alignment:
    """Matches the features of n networks of one width by how they vary together on shared data.

    ``zip`` joins the two most alike again and again, also within a model (Stoica et al., ICLR 2024, section 4.3);
    ``permute`` assigns each model's features to the first model's, one to one; ``cycle_consistent`` does so for all
    pairs of models at once; ``optimal`` pairs the features of two models in the best possible way, slowly;
    ``identity`` leaves them where they are. No feature is ever left out.

    Features that are constant on the data correlate 0 with all others; two at the same position belong together, so
    that a model zipped with itself is itself. Where two pairs are alike to rounding, that of two models comes first.

    Args:
        covariance: (n·d, n·d), the features of the first model first (``covariance_of``); stays as it is.
        n_models: how many networks, n.
        method: see above.
        a: of zip: correlations of a joined feature are multiplied by it, from 0 to 1.
        b: of zip: which share of the features to be removed a model may lose to itself, from 0 to 1; 0 for none.

    Raises:
        BadInput: no covariance of n networks of one width, no such method, or a or b out of range.

    Example:
        >>> draw = np.random.default_rng(0)
        >>> x = draw.normal(size=(100, 3))
        >>> covariance = np.cov(np.hstack([x, x[:, [2, 0, 1]]]).T)
        >>> match_features(covariance, 2).places
        array([[0, 1, 2],
               [2, 0, 1]])
    """
    if method not in get_args(Method):
        raise BadInput(f"method={method!r} is no way to match. Choose one of: {', '.join(get_args(Method))}.")
    if n_models < 1 or covariance.ndim != 2 or not len(covariance) or len(covariance) % n_models:
        raise BadInput(
            f"a covariance of shape {covariance.shape} is not that of {n_models} models with as many features each."
        )
    if not (0 <= a <= 1 and 0 <= b <= 1):
        raise BadInput(f"a={a} and b={b} are shares; give numbers from 0 to 1.")
    likeness = _likeness(covariance, n_models)
    if method == "zip":
        first_members = greedy_zip(likeness, n_models, a, b)
        return Alignment(np.unique(first_members, return_inverse=True)[1].reshape(n_models, -1))
    ways: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "permute": permute,
        "cycle_consistent": cycle_consistent,
        "optimal": optimal_pairs,
        "identity": lambda x, n: np.tile(np.arange(len(x) // n), (n, 1)),
    }
    return Alignment(ways[method](likeness, n_models))


def _likeness(covariance: np.ndarray, n_models: int) -> np.ndarray:
    """Correlations, settled where the data do not decide: what is 1 to rounding, and constant features."""
    found = correlation_of(covariance)
    width = len(found) // n_models
    silent = constant_features(np.diagonal(covariance).astype(np.float64)).reshape(n_models, width)
    below = np.nextafter(found.dtype.type(1), found.dtype.type(0))
    for one in range(n_models):
        rows = slice(one * width, (one + 1) * width)
        for other in range(n_models):
            columns = slice(other * width, (other + 1) * width)
            block = found[rows, columns]
            block[block > _ALIKE] = below if one == other else 1
            if one != other:
                both = np.flatnonzero(silent[one] & silent[other])
                block[both, both] = 1
    return found
