"""How far apart two runs are: at equal progress, not at equal step.

Runs are re-indexed by progress, the probabilities of seeds are averaged at each value, the distance is taken there, and
its mean over the values that both sides pass through is the distance between runs (Ramesh et al., ICML 2023, section
2). All use one grid, hundredths of the way to the truth, and finer values where both have come less than a tenth of it.
A run that hardly comes forward is thus compared near its start only, where all runs are alike; Fréchet's distance,
which asks for no progress, tells it from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from taskatlas.errors import BadInput
from taskatlas.paths.bhattacharyya import FLOOR, bhattacharyya
from taskatlas.paths.simplex import Truth, unit_roots
from taskatlas.paths.trajectory import Trajectory, check_same_samples

Runs = Trajectory | Sequence[Trajectory]
GRID = np.linspace(0, 1, 101)
GRID.flags.writeable = False
_FEW = 11  # runs that share fewer values of the grid are compared at so many of their own


def trajectory_distance(
    a: Runs,
    b: Runs,
    *,
    truth: Truth | None = None,
    method: Literal["progress", "frechet"] = "progress",
) -> float:
    """Distance between two tasks' runs in nats; runs may differ in length.

    Args:
        a: a run, or several seeds of a task.
        b: the same for the other side, on the same samples.
        truth: labels or probabilities that progress is measured toward; the first run's labels where there are none.
        method: ``"progress"``: mean Bhattacharyya distance at equal progress. ``"frechet"``: discrete Fréchet distance,
            the least over all ways to walk both runs forward of the largest distance on the way; it needs no truth, and
            one run a side.

    Raises:
        BadInput: other samples, no truth, or no common range of progress (the message gives both).

    Example:
        >>> first = np.log([[[0.5, 0.5]], [[0.25, 0.75]], [[0.1, 0.9]]])
        >>> a = Trajectory("a", first, [0, 1, 2], ["x"], [1])
        >>> b = Trajectory("b", first[[0, 2]], [0, 5], ["x"], [1])
        >>> trajectory_distance(a, b) < 1e-6, round(trajectory_distance(a, b, method="frechet"), 4)
        (True, 0.0205)
    """
    left, right = _seeds(a), _seeds(b)
    check_same_samples([*left, *right])
    if method == "frechet":
        if len(left) != 1 or len(right) != 1:
            raise BadInput(
                "the Fréchet distance is one between two runs: average the seeds with mean_trajectory first."
            )
        return frechet_distance(bhattacharyya(left[0].probabilities(), right[0].probabilities()).astype(np.float64))
    if method != "progress":
        raise BadInput(f"there is no distance between runs {method!r}. Choose progress or frechet.")
    found = left[0].truth(truth)
    return mean_distance(*matched(at_equal_progress(left, found), at_equal_progress(right, found)))


def mean_trajectory(
    runs: Sequence[Trajectory],
    *,
    truth: Truth | None = None,
    name: str | None = None,
) -> Trajectory:
    """The mean of several seeds: probabilities averaged at equal progress, over the range that all pass through.

    Seeds may differ in length. A mean of predictions lies a little behind its parts in progress, where these disagree.

    Args:
        runs: seeds, on the same samples.
        truth: as ``trajectory_distance``.
        name: of the mean; the first seed's where there is none.

    Returns:
        A run whose steps are the seeds' mean steps at these values of progress.

    Raises:
        BadInput: other samples, no truth, or no common range of progress.
    """
    check_same_samples(_seeds(runs))
    mean = at_equal_progress(runs, runs[0].truth(truth))
    if mean.low > mean.high:
        raise BadInput(
            f"these seeds have no progress in common: one starts at {mean.low:.4f}, one ends at {mean.high:.4f}."
        )
    if len(mean.probs) < _FEW:
        mean = at_equal_progress(runs, mean.truth, np.unique(np.linspace(mean.low, mean.high, _FEW)))
    note = f"mean of {len(runs)} seeds at equal progress (first passage)"
    with np.errstate(divide="ignore"):
        log_probs = np.log(mean.probs)
    return Trajectory(name or runs[0].name, log_probs, mean.steps, runs[0].ids, runs[0].labels, runs[0].probe, note)


@dataclass(frozen=True, eq=False)
class EqualProgress:
    """Mean predictions of seeds at the values of a grid of progress that all of them pass through."""

    runs: Sequence[Trajectory]
    truth: Truth
    low: float  # progress from which and
    high: float  # to which all seeds go
    first: int  # position in the grid of the first value
    probs: Float[np.ndarray, "some samples classes"]
    steps: Float[np.ndarray, " some"]  # mean over the seeds

    def __str__(self) -> str:
        return f"{self.runs[0].name!r} goes from {self.low:.4f} to {self.high:.4f}"


def at_equal_progress(
    runs: Sequence[Trajectory], truth: Truth, grid: Float[np.ndarray, " grid"] = GRID
) -> EqualProgress:
    """Brings the seeds of one task to the values of a grid that all of them pass through."""
    reached = [run.progress(truth) for run in runs]
    low = max(float(values[0]) for values in reached)
    high = min(float(values.max()) for values in reached)
    inside = np.flatnonzero((grid >= low) & (grid <= high))
    if not len(inside):
        nothing = np.zeros((0, *runs[0].log_probs.shape[1:]))
        return EqualProgress(runs, truth, low, high, 0, nothing, np.zeros(0))
    seeds = [run.resample(grid[inside], truth) for run in runs]
    probs = np.mean([np.exp(seed.log_probs.astype(np.float64)) for seed in seeds], axis=0)
    steps = np.mean([seed.steps for seed in seeds], axis=0)
    return EqualProgress(runs, truth, low, high, int(inside[0]), probs, steps)


def matched(a: EqualProgress, b: EqualProgress) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of both sides at the same values of progress: the grid's, or finer ones where they share few.

    Raises:
        BadInput: they share no progress at all; the message says from where to where each goes.
    """
    first, last = max(a.first, b.first), min(a.first + len(a.probs), b.first + len(b.probs))
    if last - first >= _FEW:
        return a.probs[first - a.first : last - a.first], b.probs[first - b.first : last - b.first]
    low, high = max(a.low, b.low), min(a.high, b.high)
    if low > high:
        raise BadInput(f"these runs have no progress in common: {a}, {b}. Compare them by method='frechet'.")
    grid = np.unique(np.linspace(low, high, _FEW))
    left, right = (at_equal_progress(side.runs, side.truth, grid).probs for side in (a, b))
    return left, right


def mean_distance(left: Float[np.ndarray, "some samples classes"], right: Float[np.ndarray, "_ _ _"]) -> float:
    """Mean over the first axis of the Bhattacharyya distances between predictions of the same place."""
    a, b = (unit_roots(torch.from_numpy(side)) for side in (left, right))
    apart = (a - b).square().sum(-1) / 2  # 1 less the coefficient: exactly 0 for a run and itself
    return float(-torch.log1p(-apart.clamp(max=1 - FLOOR)).mean()) + 0.0


def frechet_distance(distances: Float[np.ndarray, "first second"]) -> float:
    """Discrete Fréchet distance of two paths whose points have these distances (Eiter and Mannila, 1994).

    Example:
        >>> frechet_distance(np.array([[0.0, 2.0], [1.0, 0.5]]))
        0.5
    """
    worst = np.maximum.accumulate(distances[0])
    for row in distances[1:]:
        before, worst = worst, np.empty_like(worst)
        worst[0] = max(before[0], row[0])
        for column in range(1, len(row)):
            worst[column] = max(row[column], min(before[column], before[column - 1], worst[column - 1]))
    return float(worst[-1])


def _seeds(runs: Runs) -> list[Trajectory]:
    seeds = [runs] if isinstance(runs, Trajectory) else list(runs)
    if not seeds:
        raise BadInput("there is no run to compare: give one trajectory a side, or several seeds.")
    return seeds
