"""Which features of several networks do the same: one group of features, from their covariance on shared data."""

from collections.abc import Callable, Sequence
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
        places: (n, d) integers from 0 to d - 1; every merged feature has a member. A model with fewer features than d
            has -1 in the last columns.

    Raises:
        BadInput: a merged feature without a member, or a place that is none.

    Example:
        >>> Alignment(np.array([[0, 1], [1, 0]])).merge
        array([[0.5, 0. , 0. , 0.5],
               [0. , 0.5, 0.5, 0. ]], dtype=float32)
        >>> Alignment(np.array([[0, 1], [1, -1]])).merge
        array([[1. , 0. , 0. ],
               [0. , 0.5, 0.5]], dtype=float32)
    """

    places: Integer[np.ndarray, "models features"]

    def __post_init__(self) -> None:
        known = self.places.ndim == 2 and not (np.diff(self._absent.astype(int), axis=1) < 0).any()
        if not known or not np.array_equal(np.unique(self._flat), np.arange(self.width)):
            raise BadInput(
                f"an alignment of models with {self.places.shape[-1]} features gives each feature a place from 0 to "
                f"{self.places.shape[-1] - 1} and leaves no place empty; -1 stands last, where a model has fewer."
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
        """How many features the widest of them has, and the merged one too."""
        return self.places.shape[1]

    @property
    def widths(self) -> tuple[int, ...]:
        """How many features each model has."""
        return tuple(int(count) for count in (~self._absent).sum(axis=1))

    @property
    def is_permutation(self) -> bool:
        """Whether each model's features are only reordered, so that aligning changes no function."""
        return not self._absent.any() and all(len(np.unique(row)) == self.width for row in self.places)

    @property
    def counts(self) -> Integer[np.ndarray, " merged"]:
        """How many members each merged feature has."""
        return np.bincount(self._flat, minlength=self.width)

    @property
    def merge(self) -> Float[np.ndarray, "merged features"]:
        """(d, features of all models): the members' weights in each merged feature, 1 / count; rows sum to 1."""
        flat = self._flat
        found = np.zeros((self.width, flat.size), np.float32)
        found[flat, np.arange(flat.size)] = (1 / self.counts)[flat]
        return found

    @property
    def unmerge(self) -> Float[np.ndarray, "features merged"]:
        """(features of all models, d): membership, 0 or 1."""
        flat = self._flat
        found = np.zeros((flat.size, self.width), np.float32)
        found[np.arange(flat.size), flat] = 1
        return found

    def agreement(self, covariance: Float[np.ndarray, "features _"]) -> float:
        """Mean over the merged features of the correlation among members from different models, from -1 to 1.

        A merged feature whose members all come from one model counts 0: nothing of another model agrees with it. As
        many of these as the widest model has features beyond those of all others do not count, for they have to be; nor
        does one whose members are all constant. Where there is no other, all agree.
        """
        correlation = correlation_of(covariance)
        alive = np.diagonal(correlation) > 0
        owners, flat = np.repeat(np.arange(self.n_models), self.widths), self._flat
        spare = max(0, 2 * self.width - flat.size)
        agreed = []
        for place in range(self.width):
            members = np.flatnonzero(flat == place)
            if alive[members].any():
                apart = owners[members, None] != owners[members]
                if not apart.any() and spare:
                    spare -= 1
                else:
                    agreed.append(correlation[np.ix_(members, members)][apart].mean() if apart.any() else 0.0)
        return float(np.mean(agreed)) if agreed else 1.0

    @property
    def _absent(self) -> np.ndarray:
        return self.places == -1

    @property
    def _flat(self) -> Integer[np.ndarray, " features"]:
        """The places of all features, those of the first model first."""
        return self.places[~self._absent]


def match_features(
    covariance: Float[np.ndarray, "features _"],
    n_models: int | Sequence[int],
    method: Method = "zip",
    a: float | int = 0.3,
    b: float | int = 0.125,
) -> Alignment:
    """Matches the features of n networks by how they vary together on shared data.

    ``zip`` joins the two most alike again and again, also within a model (Stoica et al., ICLR 2024, section 4.3);
    ``permute`` assigns each model's features to the first model's, one to one; ``cycle_consistent`` does so for all
    pairs of models at once; ``optimal`` pairs the features of two models in the best possible way, slowly;
    ``identity`` leaves them where they are. No feature is ever left out.

    Networks may differ in width for ``zip`` alone, the others being one to one. As many merged features result as the
    widest network has, so that what is merged is a network of the widest one's sizes.

    Features that are constant on the data correlate 0 with all others; two at the same position belong together, so
    that a model zipped with itself is itself. Where two pairs are alike to rounding, that of two models comes first.

    Args:
        covariance: (n·d, n·d), the features of the first model first (``covariance_of``); stays as it is.
        n_models: how many networks, n; or, where they differ, how many features each has.
        method: see above.
        a: of zip: correlations of a joined feature are multiplied by it, from 0 to 1.
        b: of zip: which share of the features to be removed a model may lose to itself, from 0 to 1; 0 for none. All
            features but as many as are left are to be removed, and each model has an n-th part of them.

    Raises:
        BadInput: no covariance of such networks, no such method or one that is not for different widths, or a or b out
            of range.

    Example:
        >>> draw = np.random.default_rng(0)
        >>> x = draw.normal(size=(100, 3))
        >>> covariance = np.cov(np.hstack([x, x[:, [2, 0, 1]]]).T)
        >>> match_features(covariance, 2).places
        array([[0, 1, 2],
               [2, 0, 1]])
        >>> match_features(covariance[:5, :5], (3, 2)).places
        array([[ 0,  1,  2],
               [ 2,  0, -1]])
    """
    if method not in get_args(Method):
        raise BadInput(f"method={method!r} is no way to match. Choose one of: {', '.join(get_args(Method))}.")
    widths = _widths(covariance, n_models)
    if method != "zip" and len(set(widths)) > 1:
        raise BadInput(
            f"{method} matches features one to one, and the models have {', '.join(map(str, widths))}. Choose 'zip'."
        )
    if not (0 <= a <= 1 and 0 <= b <= 1):
        raise BadInput(f"a={a} and b={b} are shares; give numbers from 0 to 1.")
    likeness = _likeness(covariance, widths)
    if method == "zip":
        places = np.full((len(widths), max(widths)), -1)
        present = np.arange(max(widths)) < np.array(widths)[:, None]
        places[present] = np.unique(greedy_zip(likeness, widths, a, b), return_inverse=True)[1]
        return Alignment(places)
    ways: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "permute": permute,
        "cycle_consistent": cycle_consistent,
        "optimal": optimal_pairs,
        "identity": lambda x, n: np.tile(np.arange(len(x) // n), (n, 1)),
    }
    return Alignment(ways[method](likeness, len(widths)))


def _widths(covariance: np.ndarray, n_models: int | Sequence[int]) -> tuple[int, ...]:
    """How many features each model has."""
    square = covariance.ndim == 2 and len(covariance)
    if isinstance(n_models, Sequence):
        if not square or sum(n_models) != len(covariance) or not all(width > 0 for width in n_models):
            raise BadInput(
                f"a covariance of shape {covariance.shape} is not that of models with "
                f"{', '.join(map(str, n_models))} features."
            )
        return tuple(n_models)
    if n_models < 1 or not square or len(covariance) % n_models:
        raise BadInput(
            f"a covariance of shape {covariance.shape} is not that of {n_models} models with as many features each."
        )
    return (len(covariance) // n_models,) * n_models


def _likeness(covariance: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Correlations, settled where the data do not decide: what is 1 to rounding, and constant features."""
    found = correlation_of(covariance)
    ends = np.cumsum(widths)
    parts = [slice(int(end) - width, int(end)) for end, width in zip(ends, widths, strict=True)]
    silent = constant_features(np.diagonal(covariance).astype(np.float64))
    below = np.nextafter(found.dtype.type(1), found.dtype.type(0))
    for one in parts:
        for other in parts:
            block = found[one, other]
            block[block > _ALIKE] = below if one is other else 1
            if one is not other:
                common = min(block.shape)
                both = np.flatnonzero(silent[one][:common] & silent[other][:common])
                block[both, both] = 1
    return found
