"""Re-indexing by progress: from "after so many steps" to "so far along the way to the truth".

Runs differ in pace, so they are compared at equal progress. A run's progress may fall back; the rule here is *first
passage*: a value of progress belongs to the first snapshot that has reached it, and to the point before it on the
geodesic from the snapshot before (Ramesh et al., ICML 2023, section 2). That point is searched for, because
progress does not grow evenly along this geodesic.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer, Real
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.geodesic import angles, slerp_weights
from taskatlas.paths.pairwise import BLOCK, sample_slices
from taskatlas.paths.progress import cosines_of_path, slope_at
from taskatlas.paths.simplex import Truth, unit_roots

_SLACK = 1e-9  # a grid that ends where the run ends may miss it by rounding
_MOST_STEPS = 60
_CLOSE = 1e-9  # a step of the search this small ends it


class Regression(NamedTuple):
    """A stretch of a run in which progress lies below the best it had: from the best to where that is reached again."""

    start: float  # step of the best progress so far
    end: float  # last step that lies below it
    depth: float  # how far progress fell


def find_regressions(
    progress: Float[np.ndarray, " steps"], steps: Real[np.ndarray, " steps"]
) -> tuple[Regression, ...]:
    """Stretches in which progress lies below the best so far, in order.

    Example:
        >>> find_regressions(np.array([0.1, 0.4, 0.2, 0.3, 0.5]), np.array([0, 1, 2, 3, 4]))
        (Regression(start=1.0, end=3.0, depth=0.2),)
    """
    found: list[Regression] = []
    best = 0
    for position in range(1, len(progress)):
        fall = float(progress[best] - progress[position])
        if fall <= 0:
            best = position
        elif position == best + 1:
            found.append(Regression(float(steps[best]), float(steps[position]), fall))
        else:
            found[-1] = Regression(found[-1].start, float(steps[position]), max(fall, found[-1].depth))
    return tuple(found)


def check_grid(
    grid: Float[np.ndarray, " grid"], progress: Float[np.ndarray, " steps"], name: str
) -> Float[np.ndarray, " grid"]:
    """The grid, its ends moved onto the run's where rounding alone parts them.

    Raises:
        BadInput: the grid does not increase, or leaves the progress that the run passes through.
    """
    low, high = float(progress[0]), float(progress.max())
    if grid.ndim != 1 or not len(grid) or not (np.diff(grid) > 0).all():
        raise BadInput("a grid of progress is a list of increasing numbers.")
    if not (grid[0] >= low - _SLACK and grid[-1] <= high + _SLACK):
        raise BadInput(
            f"run {name!r} goes from progress {low:.4f} to {high:.4f}; the grid from {grid[0]:.4f} to {grid[-1]:.4f} "
            "leaves this range. Choose a grid within it."
        )
    return grid.clip(low, high)


class Passage(NamedTuple):
    """Where a path first passes through each value of a grid of progress: between which snapshots, and how far."""

    before: Integer[np.ndarray, " grid"]
    after: Integer[np.ndarray, " grid"]
    share: Float[np.ndarray, " grid"]  # of the way on the geodesic from one to the other
    steps: Float[np.ndarray, " grid"]  # training steps, between recorded ones


def first_passage(
    log_probs: Float[np.ndarray, "steps samples classes"],
    steps: Real[np.ndarray, " steps"],
    progress: Float[np.ndarray, " steps"],
    grid: Float[np.ndarray, " grid"],
    truth: Truth,
) -> Passage:
    """Where a path has the progress asked for; memory is bounded by the snapshots' cosines and some blocks.

    Args:
        log_probs: the path, which may lie on disk.
        steps: of its snapshots.
        progress: of its snapshots, toward the same truth.
        grid: values between ``progress[0]`` and the highest progress.
        truth: labels or probabilities.
    """
    passed = np.array([int(np.argmax(progress >= value)) for value in grid])
    before = np.maximum(passed - 1, 0)  # check_grid left of the values before the first snapshot only its own
    share = _shares(log_probs, before, passed, torch.tensor(grid), truth).numpy()
    places = steps[before] + share * (steps[passed] - steps[before])
    return Passage(before, passed, share, places.astype(np.float64))


def points_of_passage(
    log_probs: Float[np.ndarray, "steps samples classes"], passage: Passage, samples: slice = slice(None)
) -> Float[np.ndarray, "grid some classes"]:
    """The square roots of a path's probabilities where it passes through a grid, for some of the samples, float64."""
    used = np.unique([passage.before, passage.after])
    roots = {t: _roots(log_probs, t, samples) for t in used.tolist()}
    points = np.empty((len(passage.after), *roots[int(used[0])].shape))
    share = torch.from_numpy(passage.share)
    for t in np.unique(passage.after):
        rows = np.flatnonzero(passage.after == t)
        a, b = roots[int(passage.before[rows[0]])], roots[int(t)]
        toward_a, toward_b = slerp_weights(angles(a, b), share[rows, None])
        for row, from_a, from_b in zip(rows, toward_a, toward_b, strict=True):
            points[row] = (from_a[:, None] * a + from_b[:, None] * b).numpy()
    return points


def _roots(log_probs: np.ndarray, snapshot: int, samples: slice) -> Tensor:
    return unit_roots(torch.from_numpy(np.exp(log_probs[snapshot, samples].astype(np.float64, order="C"))))


def _shares(log_probs: np.ndarray, before: np.ndarray, after: np.ndarray, values: Tensor, truth: Truth) -> Tensor:
    """How far between two snapshots each value of progress is reached.

    The distance to the geodesic toward the truth is convex, so a point has come further than a value exactly where the
    distance still falls at that value. Square roots on a great circle are sums of its ends', and so are their cosines.
    """
    from_start, from_end, theta = cosines_of_path(log_probs, truth)
    _, samples, classes = log_probs.shape
    angle = {
        t: torch.cat(
            [
                angles(_roots(log_probs, max(t - 1, 0), some), _roots(log_probs, t, some))
                for some in sample_slices(samples, classes, BLOCK)
            ]
        )
        for t in np.unique(after).tolist()
    }
    found = torch.empty_like(values)
    for some in sample_slices(len(values), samples, BLOCK // 4):
        first, second = before[some], after[some]
        ends = (from_start[first], from_start[second], from_end[first], from_end[second])
        between = torch.stack([angle[t] for t in second.tolist()])
        found[some] = _crossing(*ends, between, theta, values[some])
    return found


def _crossing(
    start_a: Tensor, start_b: Tensor, end_a: Tensor, end_b: Tensor, between: Tensor, theta: Tensor, values: Tensor
) -> Tensor:
    """Where on the way from a to b the slope of the distance at each value changes its sign, by the Illinois method.

    A secant inside a bracket; where one end of it stays, the slope there is halved, so that it moves at last. The far
    end has reached the value, so that is the answer where the slope is positive all the way.
    """

    def slope(share: Tensor) -> Tensor:
        toward_a, toward_b = slerp_weights(between, share[:, None])
        return slope_at(toward_a * start_a + toward_b * start_b, toward_a * end_a + toward_b * end_b, theta, values)

    low, high = torch.zeros_like(values), torch.ones_like(values)
    at_low, at_high = slope(low).clamp(min=0), slope(high).clamp(max=0)
    place = high
    for _ in range(_MOST_STEPS):
        rise = at_low - at_high
        new = torch.where(rise > 0, (low * -at_high + high * at_low) / rise.clamp(min=1e-300), high)
        if bool(((new - place).abs() <= _CLOSE).all()):
            break
        place, here = new, slope(new)
        up = here > 0
        at_low, at_high = torch.where(up, here, at_low / 2), torch.where(up, at_high / 2, here)
        low, high = torch.where(up, place, low), torch.where(up, high, place)
    return place
