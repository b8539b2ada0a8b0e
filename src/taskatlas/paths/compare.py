"""How far apart two runs are: at equal progress, not at equal step.

Runs are re-indexed by progress, the probabilities of seeds are averaged at each value, the distance is taken there, and
its mean over the values that both sides pass through is the distance between runs (Ramesh et al., ICML 2023, section
2). All use one grid, hundredths of the way to the truth, and finer values where both have come less than a tenth of it.
A run that hardly comes forward is thus compared near its start only, where all runs are alike; Fréchet's distance,
which asks for no progress, tells it from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.bhattacharyya import FLOOR
from taskatlas.paths.pairwise import BLOCK, sample_slices
from taskatlas.paths.predictions import distances_between
from taskatlas.paths.reindex import Passage, first_passage, points_of_passage
from taskatlas.paths.simplex import Truth, unit_roots
from taskatlas.paths.trajectory import Trajectory, check_same_samples, truth_of

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
        truth: labels or probabilities that progress is measured toward; the first labels that a run carries where there
            are none.
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
        return frechet_between(left[0], right[0])
    if method != "progress":
        raise BadInput(f"there is no distance between runs {method!r}. Choose progress or frechet.")
    found = left[0].truth(truth_of([*left, *right], truth))
    return mean_distances([matched(at_equal_progress(left, found), at_equal_progress(right, found))])[0]


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
    mean = mean_path(at_equal_progress(runs, runs[0].truth(truth_of(runs, truth))))
    note = f"mean of {len(runs)} seeds at equal progress (first passage)"
    with np.errstate(divide="ignore"):
        log_probs = np.log(mean.probabilities())
    return Trajectory(name or runs[0].name, log_probs, mean.steps, runs[0].ids, runs[0].labels, runs[0].probe, note)


@dataclass(frozen=True, eq=False)
class Reindexed:
    """A run at the values of a grid of progress that it passes through."""

    run: Trajectory
    reached: Float[np.ndarray, " steps"]  # progress of its snapshots
    grid: Float[np.ndarray, " grid"]
    inside: slice  # which values of the grid it passes through
    passage: Passage | None  # where; None where there are none

    @property
    def size(self) -> int:
        """How many models ``points`` holds at once, snapshots and points between them."""
        if self.passage is None:
            return 1
        return len(self.passage.after) + len(np.unique([self.passage.before, self.passage.after]))

    def points(self, samples: slice) -> Float[np.ndarray, "inside some classes"]:
        """Its probabilities there, for some of the samples."""
        _, _, classes = self.run.log_probs.shape
        if self.passage is None:
            return np.zeros((0, samples.stop - samples.start, classes))
        return np.square(points_of_passage(self.run.log_probs, self.passage, samples))


@dataclass(frozen=True, eq=False)
class EqualProgress:
    """The mean of seeds at values of progress that all of them pass through; read a block of samples at a time."""

    seeds: tuple[Reindexed, ...]
    weights: tuple[float, ...]  # of the seeds; they sum to one
    truth: Truth
    low: float  # progress from which and
    high: float  # to which all seeds go
    inside: slice  # which values of the grid they all pass through

    def __str__(self) -> str:
        return f"{self.seeds[0].run.name!r} goes from {self.low:.4f} to {self.high:.4f}"

    def __len__(self) -> int:
        return max(0, self.inside.stop - self.inside.start)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of values, samples and classes."""
        _, samples, classes = self.seeds[0].run.log_probs.shape
        return len(self), samples, classes

    @property
    def values(self) -> Float[np.ndarray, " values"]:
        """The values of progress."""
        return self.seeds[0].grid[self.inside]

    @property
    def steps(self) -> Float[np.ndarray, " values"]:
        """Training steps at these values, the mean over the seeds."""
        parts = [
            weight * seed.passage.steps[_within(self.inside, seed.inside)]
            for seed, weight in zip(self.seeds, self.weights, strict=True)
            if seed.passage is not None
        ]
        return np.sum(parts, axis=0) if parts else np.zeros(0)

    def probabilities(self, samples: slice = slice(None)) -> Float[np.ndarray, "values some classes"]:
        """The seeds' mean probabilities, for some of the samples, float64."""
        some = slice(*samples.indices(self.shape[1]))
        return self.mean_of([seed.points(some) for seed in self.seeds])

    def mean_of(self, points: Sequence[Float[np.ndarray, "_ _ _"]]) -> Float[np.ndarray, "values some classes"]:
        """The mean of what the seeds' ``points`` are."""
        parts = [own[_within(self.inside, seed.inside)] for seed, own in zip(self.seeds, points, strict=True)]
        if len(parts) == 1:
            return parts[0]
        mean = np.zeros_like(parts[0])
        for part, weight in zip(parts, self.weights, strict=True):
            mean += weight * part
        return mean


def reindexed(
    run: Trajectory,
    truth: Truth,
    grid: Float[np.ndarray, " grid"] = GRID,
    reached: Float[np.ndarray, " steps"] | None = None,
) -> Reindexed:
    """Brings a run to the values of a grid that it passes through; ``reached`` is its progress, where it is known."""
    reached = run.progress(truth) if reached is None else reached
    inside = _between(grid, float(reached[0]), float(reached.max()))
    passage = None
    if inside.stop > inside.start:
        passage = first_passage(run.log_probs, run.steps, reached, grid[inside], truth)
    return Reindexed(run, reached, grid, inside, passage)


def at_equal_progress(
    runs: Sequence[Trajectory], truth: Truth, grid: Float[np.ndarray, " grid"] = GRID
) -> EqualProgress:
    """The seeds of one task at the values of a grid that all of them pass through."""
    return mean_of_seeds([reindexed(run, truth, grid) for run in runs], truth)


def mean_of_seeds(seeds: Sequence[Reindexed], truth: Truth, weights: Sequence[float] | None = None) -> EqualProgress:
    """The seeds of one task, on one grid, as one side of a comparison; weights sum to one and are even by default."""
    low = max(float(seed.reached[0]) for seed in seeds)
    high = min(float(seed.reached.max()) for seed in seeds)
    shares = tuple(weights) if weights is not None else (1 / len(seeds),) * len(seeds)
    return EqualProgress(tuple(seeds), shares, truth, low, high, _between(seeds[0].grid, low, high))


def mean_path(side: EqualProgress) -> EqualProgress:
    """The side itself, or, where it has few values of its grid, the side at finer ones.

    Raises:
        BadInput: its seeds have no progress in common.
    """
    if side.low > side.high:
        raise BadInput(
            f"these seeds have no progress in common: one starts at {side.low:.4f}, one ends at {side.high:.4f}."
        )
    return side if len(side) >= _FEW else _at(side, np.unique(np.linspace(side.low, side.high, _FEW)))


def matched(a: EqualProgress, b: EqualProgress) -> tuple[EqualProgress, EqualProgress]:
    """Both sides at the same values of progress: the grid's, or finer ones where they share few.

    Raises:
        BadInput: they share no progress at all; the message says from where to where each goes.
    """
    common = slice(max(a.inside.start, b.inside.start), min(a.inside.stop, b.inside.stop))
    if common.stop - common.start >= _FEW:
        return replace(a, inside=common), replace(b, inside=common)
    low, high = max(a.low, b.low), min(a.high, b.high)
    if low > high:
        raise BadInput(f"these runs have no progress in common: {a}, {b}. Fréchet's distance, frechet, needs none.")
    grid = np.unique(np.linspace(low, high, _FEW))
    return _at(a, grid), _at(b, grid)


def mean_distances(pairs: Sequence[tuple[EqualProgress, EqualProgress]]) -> list[float]:
    """For each pair of matched sides, the mean over progress of the distance between their predictions.

    A run that stands in several pairs is re-indexed once; memory is bounded by some blocks.
    """
    runs = {id(seed): seed for pair in pairs for side in pair for seed in side.seeds}
    _, samples, classes = pairs[0][0].shape
    numbers = classes * sum(seed.size for seed in runs.values())
    totals = np.zeros(len(pairs))
    for some in track(list(sample_slices(samples, numbers, 4 * BLOCK)), "comparing runs"):
        points = {key: seed.points(some) for key, seed in runs.items()}
        for position, pair in enumerate(pairs):
            left, right = (side.mean_of([points[id(seed)] for seed in side.seeds]) for side in pair)
            totals[position] += mean_distance(left, right) * left.shape[1]
    return [float(total) / samples + 0.0 for total in totals]


def mean_distance(left: Float[np.ndarray, "some samples classes"], right: Float[np.ndarray, "_ _ _"]) -> float:
    """Mean over the first axis of the Bhattacharyya distances between predictions of the same place."""
    a, b = (unit_roots(torch.from_numpy(side)) for side in (left, right))
    apart = (a - b).square().sum(-1) / 2  # 1 less the coefficient: exactly 0 for a run and itself
    return float(-torch.log1p(-apart.clamp(max=1 - FLOOR)).mean()) + 0.0


def frechet_between(a: Trajectory, b: Trajectory) -> float:
    """Discrete Fréchet distance of two runs on the same samples, in nats."""
    return frechet_distance(distances_between([a], [b], "bhattacharyya"))


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


def _at(side: EqualProgress, grid: Float[np.ndarray, " grid"]) -> EqualProgress:
    """A side at other values, all of which it passes through."""
    seeds = tuple(
        replace(
            seed,
            grid=grid,
            inside=slice(0, len(grid)),
            passage=first_passage(seed.run.log_probs, seed.run.steps, seed.reached, grid, side.truth),
        )
        for seed in side.seeds
    )
    return replace(side, seeds=seeds, inside=slice(0, len(grid)))


def _between(grid: Float[np.ndarray, " grid"], low: float, high: float) -> slice:
    """Which of the increasing values lie within these bounds."""
    first, last = int(np.searchsorted(grid, low, "left")), int(np.searchsorted(grid, high, "right"))
    return slice(first, max(first, last))


def _within(part: slice, whole: slice) -> slice:
    """Where a part of the grid lies in what a seed has of it."""
    return slice(part.start - whole.start, part.stop - whole.start)
