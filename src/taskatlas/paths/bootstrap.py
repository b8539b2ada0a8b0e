"""How sure a map is: the samples of the probe drawn again and again, each map laid over the first."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from taskatlas.engine import track
from taskatlas.paths.decomposition import decompose
from taskatlas.paths.embedding import explained_stress
from taskatlas.paths.predictions import Predictions, distances_among, sizes
from taskatlas.paths.procrustes import procrustes
from taskatlas.paths.simplex import check_weights


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


def resampled_maps(
    models: Predictions,
    metric: str,
    target: tuple[np.ndarray, np.ndarray],
    *,
    point_weights: np.ndarray,
    sample_weights: np.ndarray | None,
    resamples: int,
    seed: int,
) -> MapBootstrap:
    """Maps of resampled probes, laid over the target: coordinates (M, k) and the signs of their axes (k,)."""
    embedding, signature = target
    count, samples, _ = sizes(models)
    chances = check_weights(sample_weights, samples, "samples").numpy()
    random = np.random.default_rng(seed)
    coordinates = np.zeros((resamples, *embedding.shape))
    eigenvalues = np.zeros((resamples, count))
    for draw in track(range(resamples), "resampling the probe"):
        times = random.multinomial(samples, chances).astype(np.float64)
        values, axes = decompose(distances_among(models, np.arange(count), metric, times), point_weights)
        for sign in (1, -1):
            wanted = np.flatnonzero(signature == sign)
            there = np.flatnonzero(np.sign(values) == sign)[: len(wanted)]
            coordinates[draw][:, wanted[: len(there)]] = axes[:, there]
        motion = procrustes(coordinates[draw], embedding, signature)
        coordinates[draw], eigenvalues[draw] = motion.apply(coordinates[draw]), values
    stress = np.stack([explained_stress(values)[: len(signature)] for values in eigenvalues])
    return MapBootstrap(coordinates, eigenvalues, stress)
