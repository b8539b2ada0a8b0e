"""Models to compare, wherever their predictions are: an array in memory, or runs whose files are read slab by slab."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.bhattacharyya import bhattacharyya, saturated_share
from taskatlas.paths.hellinger import hellinger
from taskatlas.paths.pairwise import sample_slices
from taskatlas.paths.simplex import check_weights
from taskatlas.paths.symmetric_kl import symmetric_kl
from taskatlas.paths.trajectory import Trajectory, check_same_samples

METRICS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"bhattacharyya": bhattacharyya, "hellinger": hellinger, "symmetric_kl": symmetric_kl}
)


@runtime_checkable
class Points(Protocol):
    """Models whose predictions are made a block of samples at a time, and never all at once."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of models, samples and classes."""

    def probabilities(self, samples: slice) -> Float[np.ndarray, "models some classes"]:
        """Probabilities of some of the samples."""


Predictions = np.ndarray | list[Trajectory] | Points
_SLAB = 2**24  # bytes of probabilities made at a time from trajectories
_MANY = 8  # slabs, from which on it takes long enough for a progress bar


def as_predictions(models: Any) -> Predictions:
    """An array (M, N, C), a list of runs on the same samples, or points that are made in blocks.

    Raises:
        BadInput: neither, or runs on other samples.
    """
    if isinstance(models, Trajectory):
        return [models]
    if isinstance(models, list | tuple) and models and all(isinstance(run, Trajectory) for run in models):
        check_same_samples(models)
        return list(models)
    if isinstance(models, Points):
        return models
    array: np.ndarray | None = as_numpy(models) if isinstance(models, np.ndarray | Tensor) else None
    if array is None or array.ndim != 3:
        raise BadInput(
            "a map is made of trajectories, or of probabilities of the shape (models, samples, classes), not of "
            f"{type(models).__name__ if array is None else array.shape}. For distances say metric='precomputed'."
        )
    return array


def as_numpy(values: Any) -> Any:
    """Tensors as NumPy arrays, and anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def sizes(models: Predictions) -> tuple[int, int, int]:
    """Numbers of models, samples and classes."""
    if isinstance(models, list):
        _, samples, classes = models[0].log_probs.shape
        return sum(len(run) for run in models), samples, classes
    count, samples, classes = models.shape
    return count, samples, classes


def names(models: Predictions) -> tuple[tuple[str, ...], np.ndarray]:
    """Run and step of each model; runs of one name, seeds of a task, are numbered."""
    if not isinstance(models, list):
        count = models.shape[0]
        return ("models",) * count, np.arange(count)
    labels = run_labels(models)
    runs = tuple(label for label, run in zip(labels, models, strict=True) for _ in range(len(run)))
    return runs, np.concatenate([run.steps for run in models])


def run_labels(runs: Sequence[Trajectory]) -> list[str]:
    """A label for each run, no two alike: its name, with a number where others share it."""
    times = Counter(run.name for run in runs)
    numbers = {name: itertools.count(1) for name in times}

    def label(name: str) -> str:
        numbered = (f"{name} #{number}" for number in numbers[name])
        return name if times[name] == 1 else next(one for one in numbered if one not in times)

    return [label(run.name) for run in runs]


def distances_among(
    models: Predictions, base: np.ndarray, metric: str, sample_weights: np.ndarray | None = None
) -> Float[np.ndarray, "models base"]:
    """Distances from all models to those at the positions ``base``; among these exactly symmetric."""
    divergence = METRICS[metric]

    def part(samples: slice, weights: np.ndarray | None) -> np.ndarray:
        known = _take(models, samples)
        if len(base) == len(known):
            return np.asarray(divergence(known, weights=weights))
        across = np.asarray(divergence(known, known[base], weights=weights))
        across[base] = divergence(known[base], weights=weights)
        return across

    return _sum_over_samples(part, models, sample_weights, sizes(models)[0])


def distances_between(
    new: Predictions, models: Predictions, metric: str, sample_weights: np.ndarray | None = None
) -> Float[np.ndarray, "new models"]:
    """Distances from new models to known ones.

    Raises:
        BadInput: the new models were not recorded on the same samples and classes.
    """
    if isinstance(new, list) and isinstance(models, list):
        check_same_samples([models[0], *new])
    if sizes(new)[1:] != sizes(models)[1:]:
        raise BadInput(
            f"the map was made from {sizes(models)[1]} samples and {sizes(models)[2]} classes, and the new models have "
            f"{sizes(new)[1]} and {sizes(new)[2]}. Predict them on the same probe."
        )
    divergence = METRICS[metric]

    def part(samples: slice, weights: np.ndarray | None) -> np.ndarray:
        return np.asarray(divergence(_take(new, samples), _take(models, samples), weights=weights))

    rows = sizes(models)[0] + 2 * sizes(new)[0]  # new points may be in float64
    return _sum_over_samples(part, models, sample_weights, rows)


def saturated_share_among(models: Predictions, base: np.ndarray) -> float:
    """``saturated_share`` of the models at the positions ``base``, read slab by slab."""
    count, samples, classes = sizes(models)
    shares = [
        saturated_share(_take(models, where)[base]) * (where.stop - where.start) / samples
        for where in sample_slices(samples, count * classes * 4, _SLAB)
    ]
    return float(sum(shares))


def _sum_over_samples(
    part: Callable[[slice, np.ndarray | None], np.ndarray],
    models: Predictions,
    sample_weights: np.ndarray | None,
    rows: int,
) -> np.ndarray:
    """Distances are means over samples, so those of slabs, ``rows`` predictions a sample, add up by their shares."""
    _, samples, classes = sizes(models)
    weights = check_weights(sample_weights, samples, "samples").numpy()
    slab = rows * samples * classes * 4 if isinstance(models, np.ndarray) else _SLAB  # an array is in memory anyway
    total: Any = 0.0
    slices = [where for where in sample_slices(samples, rows * classes * 4, slab) if weights[where].sum() > 0]
    for where in slices if len(slices) < _MANY else track(slices, "measuring distances"):
        total = total + weights[where].sum() * part(where, None if sample_weights is None else weights[where])
    return np.asarray(total, dtype=np.float64)


def _take(models: Predictions, samples: slice) -> np.ndarray:
    if isinstance(models, list):
        return np.concatenate([run.probabilities(samples) for run in models])
    return models[:, samples] if isinstance(models, np.ndarray) else models.probabilities(samples)
