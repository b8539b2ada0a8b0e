"""How far apart two runs are: at equal progress, not at equal step.

Runs are re-indexed by progress on one grid, the probabilities of seeds are averaged at each value, the distance is
taken there, and its mean over the values that both sides pass through is the distance between runs (Ramesh et al.,
ICML 2023, section 3). All runs use the same grid, so distances among many are means over the same places.
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


def trajectory_distance(
    a: Runs,
    b: Runs,
    *,
    truth: Truth | None = None,
    grid: Float[np.ndarray, " grid"] = GRID,
    method: Literal["progress", "frechet"] = "progress",
) -> float:
    """Distance between two tasks' runs in nats; runs may differ in length.

    Args:
        a: a run, or several seeds of a task.
        b: the same for the other side, on the same samples.
        truth: labels or probabilities that progress is measured toward; the first run's labels where there are none.
        grid: values of progress; those that a run never passes through are left out.
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
    return distance_on_grid(on_grid(left, grid, found), on_grid(right, grid, found))


def mean_trajectory(
    runs: Sequence[Trajectory],
    *,
    truth: Truth | None = None,
    grid: Float[np.ndarray, " grid"] = GRID,
    name: str | None = None,
) -> Trajectory:
    """The mean of several seeds: probabilities averaged at equal progress, over the range that all pass through.

    Seeds may differ in length. A mean of predictions lies a little behind its parts in progress, where these disagree.

    Args:
        runs: seeds, on the same samples.
        truth: as ``trajectory_distance``.
        grid: values of progress; those that a seed never passes through are left out.
        name: of the mean; the first seed's where there is none.

    Returns:
        A run whose steps are the seeds' mean steps at these values of progress.

    Raises:
        BadInput: other samples, no truth, or no common range of progress.
    """
    check_same_samples(_seeds(runs))
    mean = on_grid(runs, grid, runs[0].truth(truth))
    if not len(mean.probs):
        raise BadInput(f"these seeds have no common range of progress: {_ranges(mean)}.")
    note = f"mean of {len(runs)} seeds at equal progress (first passage)"
    with np.errstate(divide="ignore"):
        log_probs = np.log(mean.probs)
    return Trajectory(name or runs[0].name, log_probs, mean.steps, runs[0].ids, runs[0].labels, runs[0].probe, note)


@dataclass(frozen=True, eq=False)
class OnGrid:
    """Mean predictions of seeds at the values of a grid of progress that all of them pass through."""

    name: str
    start: int  # first such value's position in the grid
    probs: Float[np.ndarray, "some samples classes"]
    steps: Float[np.ndarray, " some"]  # mean over the seeds
    low: float  # progress from which and
    high: float  # to which the seeds go


def on_grid(runs: Sequence[Trajectory], grid: Float[np.ndarray, " grid"], truth: Truth) -> OnGrid:
    """Brings seeds of one task to the values of a grid that all of them pass through."""
    reached = [run.progress(truth) for run in runs]
    low = max(float(values[0]) for values in reached)
    high = min(float(values.max()) for values in reached)
    inside = np.flatnonzero((grid >= low) & (grid <= high))
    if not len(inside):
        nothing = np.zeros((0, *runs[0].log_probs.shape[1:]))
        return OnGrid(runs[0].name, 0, nothing, np.zeros(0), low, high)
    seeds = [run.resample(grid[inside], truth) for run in runs]
    probs = np.mean([np.exp(seed.log_probs.astype(np.float64)) for seed in seeds], axis=0)
    steps = np.mean([seed.steps for seed in seeds], axis=0)
    return OnGrid(runs[0].name, int(inside[0]), probs, steps, low, high)


def distance_on_grid(a: OnGrid, b: OnGrid) -> float:
    """Mean Bhattacharyya distance over the values of progress that both sides have.

    Raises:
        BadInput: there are none.
    """
    first, last = max(a.start, b.start), min(a.start + len(a.probs), b.start + len(b.probs))
    if first >= last:
        raise BadInput(
            f"runs {a.name!r} and {b.name!r} have no progress in common on this grid: {_ranges(a)} and {_ranges(b)}. "
            "Give a finer grid, or leave one out."
        )
    left, right = (unit_roots(torch.from_numpy(side.probs[first - side.start : last - side.start])) for side in (a, b))
    apart = (left - right).square().sum(-1) / 2  # 1 less the coefficient: exactly 0 for a run and itself
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


def _ranges(side: OnGrid) -> str:
    return f"from {side.low:.3f} to {side.high:.3f}" if side.low <= side.high else "its seeds share none"
