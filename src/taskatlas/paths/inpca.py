"""InPCA: a map of predictions on which every axis keeps its sign.

With distances D among M models, W = -½ J D J (J centres), W = V Λ Vᵀ, and the coordinates are X = V √|λ|.
Bhattacharyya's distance is not the square of a Euclidean one, so some λ are negative: their axes are *time-like*, a
difference along them makes two models closer. They are kept, in the order of |λ|, and so the map loses nothing:
D_ij = Σ_k sgn(λ_k) (X_ik - X_jk)² (Quinn et al., PNAS 2019; Ramesh et al., ICML 2023, section 2).

Points may have weights: with w summing to one and s = M w, J = I - 1 wᵀ, and √s W √s is decomposed; V is divided by √s.
Even weights change nothing; a point of weight zero shapes neither centre nor axes and is projected like a new one.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from taskatlas.errors import BadInput
from taskatlas.paths.bootstrap import MapBootstrap, resampled_maps
from taskatlas.paths.decomposition import decompose
from taskatlas.paths.embedding import Embedding, ProjectedPath, explained_stress
from taskatlas.paths.geodesic import TowardTruth
from taskatlas.paths.predictions import (
    METRICS,
    Predictions,
    as_numpy,
    as_predictions,
    distances_among,
    distances_between,
    names,
    sizes,
)
from taskatlas.paths.progress import check_truth
from taskatlas.paths.simplex import Truth, check_weights
from taskatlas.paths.trajectory import truth_of

_NOTHING = 1e-13  # an eigenvalue below this share of the largest is rounding; nothing is projected on its axis
# Close to the truth a geodesic's points lie ever further apart: a class that is nearly ruled out costs a logarithm.
_PLACES = np.concatenate([np.linspace(0, 0.9, 19), 1 - np.geomspace(0.08, 1e-3, 9), [1.0]])


class InPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Intensive principal component analysis, a scikit-learn transformer.

    Args:
        n_components: axes to keep; None for all, with which distances are reproduced exactly.
        metric: ``"bhattacharyya"``, ``"hellinger"`` or ``"symmetric_kl"`` for trajectories or predictions (M, N, C);
            ``"precomputed"`` for distances (M, M).
        landmarks: for more models than a full matrix allows (above some thousands): so many models, drawn at random,
            make the map, and the others are projected onto it, in O(M · landmarks).
        random_state: seed of the draw.

    Attributes:
        embedding_: (M, n_components) coordinates, in units of the square root of the distance.
        eigenvalues_: (M,) signed, all of them, sorted by magnitude (of the landmarks where there are some).
        signature_: (n_components,) +1 for space-like axes, -1 for time-like ones.
        explained_stress_: (n_components,) of the first axis, of the first two, ...: 1 - sqrt(1 - Σ_{i≤k} λ_i² / Σ λ²).
        base_: positions of the models that made the map.

    On every axis the coordinate that is largest in magnitude is positive (the first one, where several tie).
    Eigenvectors have no sign of their own: align two fits with ``procrustes`` before you compare them.

    Example:
        >>> corners = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])  # squared distances of an equilateral triangle
        >>> InPCA(n_components=2, metric="precomputed").fit(corners).explained_stress_.round(3)
        array([0.293, 1.   ])
    """

    def __init__(
        self,
        n_components: int | None = 3,
        metric: str = "bhattacharyya",
        *,
        landmarks: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.metric = metric
        self.landmarks = landmarks
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, point_weights: Any = None, sample_weights: Any = None) -> "InPCA":  # noqa: ARG002
        """Finds the map of these models.

        Args:
            X: trajectories, one or several, on the same samples; or probabilities (M, N, C); or, precomputed, distances
                (M, M), symmetric with a zero diagonal.
            y: ignored.
            point_weights: (M,) of the models: against the pull of runs with many snapshots.
            sample_weights: (N,) of the samples in the distance.

        Raises:
            BadInput: rows that are no probabilities, runs on other samples, a matrix of distances that is none, more
                axes than models, or weights that do not fit.
        """
        if self.metric == "precomputed":
            models: Predictions = _checked_distances(validate_data(self, X, dtype=np.float64))
            if sample_weights is not None:
                raise BadInput("precomputed distances hold no samples any more: weigh these in the distance itself.")
        elif self.metric in METRICS:
            models = as_predictions(X)
        else:
            raise BadInput(f"there is no metric {self.metric!r}. Choose {', '.join(METRICS)} or precomputed.")
        self.runs_, self.steps_ = names(models)
        weights = check_weights(as_numpy(point_weights), len(self.runs_), "models").numpy()
        self.base_ = self._choose_base(weights)
        axes = self._checked_axes(len(self.base_))
        self._sample_weights = as_numpy(sample_weights)
        if self.metric == "precomputed":
            across = np.asarray(models)[:, self.base_]
        else:
            across = distances_among(models, self.base_, self.metric, self._sample_weights)
            self._models = models
        distances = across[self.base_]
        self._weights = weights[self.base_] / weights[self.base_].sum()
        self._means = distances @ self._weights
        self.eigenvalues_, coordinates = decompose(distances, self._weights)
        self._coordinates = coordinates[:, :axes]
        self.signature_ = np.where(self.eigenvalues_[:axes] < 0, -1, 1)
        self.explained_stress_ = explained_stress(self.eigenvalues_)[:axes]
        self.embedding_ = self._onto_axes(across)[0]
        self.embedding_[self.base_] = self._coordinates
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Float[np.ndarray, "models axes"]:
        """Fits and returns ``embedding_``."""
        found: np.ndarray = self.fit(X, y, **fit_params).embedding_
        return found

    def transform(self, X: Any) -> Float[np.ndarray, "new axes"]:
        """Coordinates of new models on the map.

        With d the distances to the fit's models, r the mean distances of these and s, w their weights:
        x = [-½ (d - w·d - r + w·r) s X] / λ, for even weights the published w V / (sgn λ √|λ|).

        Args:
            X: trajectories or probabilities (K, N, C) on the fit's samples; precomputed, distances (K, M) to the models
                of the fit.

        Raises:
            BadInput: as ``fit``.
        """
        return self.project(X)[0]

    def project(self, X: Any) -> tuple[Float[np.ndarray, "new axes"], Float[np.ndarray, " new"]]:
        """``transform``, and what it leaves: a new model's squared distance from the centre less its projection's.

        The residual is in units of the distance. It is 0 for a model of the fit where all axes are kept, and negative
        where what is left is time-like.

        Raises:
            BadInput: as ``fit``.
        """
        check_is_fitted(self, "embedding_")
        if self.metric == "precomputed":
            return self._onto_axes(validate_data(self, X, dtype=np.float64, reset=False)[:, self.base_])
        across = distances_between(as_predictions(X), self._models, self.metric, self._sample_weights)
        return self._onto_axes(across[:, self.base_])

    def bootstrap(self, resamples: int = 100, *, seed: int = 0) -> MapBootstrap:
        """Maps of the probe's samples drawn with replacement: how much of this map is owed to these samples?

        Each keeps as many space-like and time-like axes as this one, and Procrustes turns it onto this one. Models have
        the weights that they have here; samples are drawn by theirs.

        Args:
            resamples: how many maps.
            seed: of the draws.

        Raises:
            BadInput: the map was made of precomputed distances, or not of all models; or no resample.

        Example:
            >>> P = np.random.default_rng(0).dirichlet(np.ones(3), size=(6, 40))
            >>> InPCA(n_components=2).fit(P).bootstrap(5).coordinates.shape
            (5, 6, 2)
        """
        check_is_fitted(self, "embedding_")
        if self.metric == "precomputed" or len(self.base_) < len(self.embedding_):
            raise BadInput(
                "a bootstrap draws samples again, so it needs predictions in place of precomputed distances, and a map "
                "that all models made: no landmarks, no weights of zero."
            )
        return resampled_maps(
            self._models,
            self.metric,
            (self.embedding_, self.signature_),
            point_weights=self._weights,
            sample_weights=self._sample_weights,
            resamples=resamples,
            seed=seed,
        )

    def as_embedding(self, truth: Truth | None = None) -> Embedding:
        """The map as a value to save and draw, with the run and the step of each point.

        Args:
            truth: labels or probabilities: the geodesic from ignorance to them is laid onto the map; the runs' own
                labels where there are none. A map of precomputed distances knows no predictions and has none.

        Raises:
            BadInput: a truth that does not fit.
        """
        check_is_fitted(self, "embedding_")
        paths = []
        if self.metric != "precomputed":
            runs = self._models if isinstance(self._models, list) else []
            found = truth_of(runs, truth)
            _, samples, classes = sizes(self._models)
            if found is not None and classes > 1:
                check_truth(found, samples, classes)
                points = TowardTruth(found, classes, _PLACES)
                paths.append(ProjectedPath("ignorance to truth", "truth", _PLACES, *self.project(points)))
        return Embedding(self.embedding_, self.eigenvalues_, self.runs_, self.steps_, self.metric, paths)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.metric == "precomputed"
        tags.input_tags.three_d_array = self.metric != "precomputed"
        return tags

    @property
    def _n_features_out(self) -> int:
        return int(self.embedding_.shape[1])

    def _choose_base(self, weights: Float[np.ndarray, " models"]) -> np.ndarray:
        weighty = np.flatnonzero(weights > 0)
        if self.landmarks is None or self.landmarks >= len(weighty):
            return weighty
        random = check_random_state(self.random_state)
        return np.sort(random.choice(weighty, max(1, int(self.landmarks)), replace=False))

    def _checked_axes(self, models: int) -> int:
        axes = models if self.n_components is None else int(self.n_components)
        if models < 2 or not 1 <= axes <= models:
            raise BadInput(
                f"cannot make a map of {axes} axes from n_samples = {models} models. Give two models at least, and "
                "choose n_components between 1 and their number (of landmarks, where there are some)."
            )
        return axes

    def _onto_axes(
        self, distances: Float[np.ndarray, "new base"]
    ) -> tuple[Float[np.ndarray, "new axes"], Float[np.ndarray, " new"]]:
        mean, grand = distances @ self._weights, self._means @ self._weights
        inner = -0.5 * (distances - mean[:, None] - self._means + grand)
        values = self.eigenvalues_[: len(self.signature_)]
        real = np.abs(values) > _NOTHING * np.abs(self.eigenvalues_[0])
        axes = np.divide(self._coordinates, values, out=np.zeros_like(self._coordinates), where=real)
        found = (inner * (len(self._weights) * self._weights)) @ axes
        return found, mean - grand / 2 - np.square(found) @ self.signature_


def _checked_distances(distances: np.ndarray) -> np.ndarray:
    if distances.shape[0] != distances.shape[1]:
        raise BadInput(f"distances among models are a square matrix, not one of the shape {distances.shape}.")
    size = float(np.abs(distances).max(initial=0.0))
    if float(np.abs(distances - distances.T).max(initial=0.0)) > 1e-6 * size:
        raise BadInput("this matrix of distances is not symmetric: D[i, j] and D[j, i] differ. Give the mean of both.")
    if float(np.abs(distances.diagonal()).max(initial=0.0)) > 1e-6 * size:
        raise BadInput("this matrix has a diagonal that is not zero. Give distances, not similarities.")
    return distances
