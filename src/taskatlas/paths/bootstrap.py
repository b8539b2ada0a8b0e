"""How sure a map is: the samples of the probe drawn again and again, each map laid over the first."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.embedding import explained_stress
from taskatlas.paths.inpca import InPCA, decompose
from taskatlas.paths.predictions import as_predictions, distances_among, sizes
from taskatlas.paths.procrustes import procrustes


@dataclass(frozen=True, eq=False, repr=False)
class MapBootstrap:
    """Maps of resampled probes.

    Attributes:
        coordinates: (R, M, k), each aligned with the fit.
        eigenvalues: (R, M) signed, sorted by magnitude in each.
        explained_stress: (R, k), cumulative.
    """

    coordinates: Float[np.ndarray, "resamples models axes"]
    eigenvalues: Float[np.ndarray, "resamples models"]
    explained_stress: Float[np.ndarray, "resamples axes"]

    def __repr__(self) -> str:
        low, high = percentile_interval(self.explained_stress[:, -1])
        return f"MapBootstrap({len(self.eigenvalues)} resamples, explained stress {low:.3f} to {high:.3f} (95 %))"


def percentile_interval(values: Float[np.ndarray, "resamples *shape"], level: float = 0.95) -> Any:
    """Lower and upper ends of the percentile interval over the first axis, in the shape of the rest.

    Example:
        >>> percentile_interval(np.arange(101.0), level=0.9)
        array([ 5., 95.])
    """
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)


def bootstrap(models: Any, fit: InPCA, resamples: int = 100, *, seed: int = 0) -> MapBootstrap:
    """Maps of a probe whose samples are drawn with replacement: how much of a map is owed to these samples?

    Each map keeps as many space-like and time-like axes as the fit has, and is turned onto it by Procrustes; models of
    all resamples are thus on the same axes. All models have even weights.

    Args:
        models: what ``fit`` was fitted to, trajectories or probabilities.
        fit: the map to lay the others over.
        resamples: how many.
        seed: of the draws.

    Raises:
        BadInput: the fit is one of precomputed distances, or of other models.

    Example:
        >>> P = np.random.default_rng(0).dirichlet(np.ones(3), size=(6, 40))
        >>> bootstrap(P, InPCA(n_components=2).fit(P), resamples=5).coordinates.shape
        (5, 6, 2)
    """
    if fit.metric == "precomputed":
        raise BadInput("a bootstrap draws samples again, and precomputed distances hold none: fit the predictions.")
    found = as_predictions(models)
    count, samples, _ = sizes(found)
    if fit.embedding_.shape[0] != count:
        raise BadInput(f"the fit is a map of {fit.embedding_.shape[0]} models, not of these {count}.")
    random = np.random.default_rng(seed)
    everyone, even = np.arange(count), np.full(count, 1 / count)
    coordinates = np.zeros((resamples, *fit.embedding_.shape))
    eigenvalues = np.zeros((resamples, count))
    for draw in track(range(resamples), "resampling the probe"):
        times = random.multinomial(samples, np.full(samples, 1 / samples)).astype(np.float64)
        values, axes = decompose(distances_among(found, everyone, fit.metric, times), even)
        for sign in (1, -1):
            wanted = np.flatnonzero(fit.signature_ == sign)
            there = np.flatnonzero(np.sign(values) == sign)[: len(wanted)]
            coordinates[draw][:, wanted[: len(there)]] = axes[:, there]
        motion = procrustes(coordinates[draw], fit.embedding_, fit.signature_)
        coordinates[draw], eigenvalues[draw] = motion.apply(coordinates[draw]), values
    stress = np.stack([explained_stress(values)[: len(fit.signature_)] for values in eigenvalues])
    return MapBootstrap(coordinates, eigenvalues, stress)
