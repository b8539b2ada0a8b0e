"""How sure results are given one probe: its samples drawn again and again, each map laid over the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.decomposition import decompose
from taskatlas.paths.embedding import explained_stress
from taskatlas.paths.geodesic import angles
from taskatlas.paths.pairwise import BLOCK, sample_slices
from taskatlas.paths.predictions import Predictions, distances_among, sizes
from taskatlas.paths.procrustes import procrustes
from taskatlas.paths.progress import check_truth, cosines_of_path, nearest
from taskatlas.paths.simplex import Truth, check_weights, unit_roots
from taskatlas.paths.trajectory import Trajectory, check_same_samples, truth_of


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


@dataclass(frozen=True, eq=False, repr=False)
class MeasureBootstrap:
    """What runs measure on R resampled probes, m runs at once on the same draws.

    Attributes:
        length: (R, m) Fisher lengths.
        progress: (R, m) progress at the end; NaN without a truth.
        accuracy: (R, m) accuracy at the end; NaN without labels.
    """

    length: Float[np.ndarray, "resamples runs"]
    progress: Float[np.ndarray, "resamples runs"]
    accuracy: Float[np.ndarray, "resamples runs"]

    def __repr__(self) -> str:
        return f"MeasureBootstrap({self.length.shape[0]} resamples, {self.length.shape[1]} runs)"


def check_resamples(resamples: int) -> None:
    """Refuses a bootstrap of nothing.

    Raises:
        BadInput: not even one resample.
    """
    if resamples < 1:
        raise BadInput(f"a bootstrap needs at least 1 resample, not {resamples}.")


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
    check_resamples(resamples)
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


def bootstrap_measures(
    runs: Sequence[Trajectory], *, truth: Truth | None = None, resamples: int = 100, seed: int = 0
) -> MeasureBootstrap:
    """Lengths, and progress and accuracy at the end, with the probe's samples drawn with replacement.

    Args:
        runs: on the same samples.
        truth: labels or probabilities; the first labels that a run carries where there are none.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        BadInput: other samples, a truth that does not fit, or no resample.

    Example:
        >>> steps = np.log([[[0.5, 0.5]] * 3, [[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]]])
        >>> bootstrap_measures([Trajectory("a", steps, [0, 1], "xyz", [1, 1, 0])], resamples=5)
        MeasureBootstrap(5 resamples, 1 runs)
    """
    check_resamples(resamples)
    check_same_samples(runs)
    found = truth_of(runs, truth)
    _, samples, classes = runs[0].log_probs.shape
    if found is not None:
        check_truth(found, samples, classes)
    random = np.random.default_rng(seed)
    times = random.multinomial(samples, np.full(samples, 1 / samples), size=resamples)
    length, progress, accuracy = np.full((3, resamples, len(runs)), np.nan)
    for position, run in enumerate(track(runs, "resampling the probe", total=len(runs))):
        length[:, position] = _lengths(run, times / samples)
        if found is None:
            continue
        from_start, from_end, theta = cosines_of_path(run.log_probs[-1:], found)
        for draw, counts in enumerate(times):
            rows = torch.from_numpy(np.repeat(np.arange(samples), counts))
            between = theta[rows] if len(theta) > 1 else theta
            progress[draw, position] = float(nearest(from_start[:, rows], from_end[:, rows], between))
        if found.ndim == 1:
            accuracy[:, position] = times @ (run.log_probs[-1].argmax(-1) == np.asarray(found)) / samples
    return MeasureBootstrap(length, progress, accuracy)


def _lengths(run: Trajectory, weights: Float[np.ndarray, "resamples samples"]) -> Float[np.ndarray, " resamples"]:
    """Fisher lengths with the samples weighed: sums over steps of 2 sqrt(Σ_n w_n θ_n²)."""
    _, samples, classes = run.log_probs.shape
    total = np.zeros(len(weights))
    for step in range(len(run) - 1):
        squares = np.zeros(len(weights))
        for some in sample_slices(samples, classes, BLOCK // 2):
            both = unit_roots(torch.from_numpy(np.exp(run.log_probs[step : step + 2, some].astype(np.float64))))
            squares += weights[:, some] @ angles(both[0], both[1]).square().numpy()
        total += 2 * np.sqrt(squares)
    return total
