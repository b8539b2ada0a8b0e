"""How sure results are given few trainings: each task's seeds drawn again and again.

A resample draws, for every task, as many of its seeds as it has, with replacement. A map in which a run stands twice is
one in which its points weigh twice, so distances among models are computed once; means of seeds are weighted alike.
With two or three seeds a task, an interval says what these seeds do; for what others would do it is too narrow, by
about sqrt(S / (S - 1)) in width for S seeds, as every bootstrap of a mean is. Distances between means lean upward: a
draw has fewer different seeds than there are, and a mean of fewer seeds keeps more of their noise.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.bootstrap import check_resamples
from taskatlas.paths.compare import EqualProgress, Reindexed, matched, mean_distances, mean_of_seeds, reindexed
from taskatlas.paths.decomposition import decompose
from taskatlas.paths.embedding import explained_stress
from taskatlas.paths.predictions import METRICS, distances_among
from taskatlas.paths.simplex import Truth
from taskatlas.paths.trajectory import Trajectory, check_same_samples, truth_of


@dataclass(frozen=True, eq=False, repr=False)
class SeedBootstrap:
    """What R resamples of the seeds of m tasks find.

    Attributes:
        tasks: m names.
        draws: (R, runs) how often each run was drawn.
        eigenvalues: (R, k), of the first k axes of each resample's map, signed.
        explained_stress: (R, k), cumulative.
        length: (R, m) mean Fisher length of the drawn seeds.
        progress: (R, m) mean progress at the end, toward the truth; NaN where there is none.
        accuracy: (R, m) mean accuracy at the end; NaN where there are no labels.
        distances: (R, m, m) between tasks at equal progress; None where there is no truth, or no common progress.
    """

    tasks: tuple[str, ...]
    draws: Integer[np.ndarray, "resamples runs"]
    eigenvalues: Float[np.ndarray, "resamples axes"]
    explained_stress: Float[np.ndarray, "resamples axes"]
    length: Float[np.ndarray, "resamples tasks"]
    progress: Float[np.ndarray, "resamples tasks"]
    accuracy: Float[np.ndarray, "resamples tasks"]
    distances: Float[np.ndarray, "resamples tasks tasks"] | None

    def __repr__(self) -> str:
        return f"SeedBootstrap({len(self.eigenvalues)} resamples of the seeds of {len(self.tasks)} tasks)"


def bootstrap_seeds(
    runs: Sequence[Trajectory],
    *,
    truth: Truth | None = None,
    tasks: Sequence[str] | None = None,
    metric: str = "bhattacharyya",
    n_components: int = 3,
    resamples: int = 100,
    seed: int = 0,
) -> SeedBootstrap:
    """Draws the seeds of each task again and again: maps, lengths, progress and distances of each draw.

    Args:
        runs: on the same samples.
        truth: labels or probabilities; the first labels that a run carries where there are none.
        tasks: the task of each run; the runs' names where there are none.
        metric: the distance that is mapped.
        n_components: axes of the maps.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        BadInput: no task has two seeds, other samples, fewer models than axes, or no resample.

    Example:
        >>> from taskatlas.paths.geodesic import geodesic
        >>> start, ends = np.full((2, 2), 0.5), [np.array([[p, 1 - p], [0.9, 0.1]]) for p in (0.8, 0.9)]
        >>> seeds = [Trajectory("a", np.log(geodesic(start, end, [0, 1.0])), [0, 1], "xy", [0, 0]) for end in ends]
        >>> bootstrap_seeds(seeds, n_components=1, resamples=5).length.shape
        (5, 1)
    """
    check_resamples(resamples)
    members = task_members([run.name for run in runs] if tasks is None else tasks)
    if all(len(rows) < 2 for rows in members.values()):
        raise BadInput("no task has two seeds, so there is nothing to draw again. Give runs of one task one name.")
    check_same_samples(runs)
    found = truth_of(runs, truth)
    random = np.random.default_rng(seed)
    draws = np.zeros((resamples, len(runs)), dtype=np.int64)
    for draw in draws:
        for rows in members.values():
            draw[rows] = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
    values, stress = _maps(runs, draws, metric, n_components)
    measures = {"length": np.array([run.length() for run in runs])}
    measures["progress"] = _at_the_end([None if found is None else run.progress(found) for run in runs])
    labels = found if found is not None and found.ndim == 1 else None
    measures["accuracy"] = _at_the_end([None if labels is None else run.accuracy(labels) for run in runs])
    means = {name: _means(per_run, draws, members) for name, per_run in measures.items()}
    distances = None if found is None or len(members) < 2 else _distances(runs, found, draws, members)
    return SeedBootstrap(tuple(members), draws, values, stress, **means, distances=distances)


def task_members(tasks: Sequence[str]) -> dict[str, list[int]]:
    """The positions of each task's runs, tasks in the order in which they first come.

    Example:
        >>> task_members(["a", "b", "a"])
        {'a': [0, 2], 'b': [1]}
    """
    members: dict[str, list[int]] = {}
    for position, task in enumerate(tasks):
        members.setdefault(task, []).append(position)
    return members


def _maps(
    runs: Sequence[Trajectory], draws: Integer[np.ndarray, "resamples runs"], metric: str, axes: int
) -> tuple[Float[np.ndarray, "resamples axes"], Float[np.ndarray, "resamples axes"]]:
    """Eigenvalues and explained stress of each draw's map, as if its runs stood in it as often as they were drawn."""
    if metric not in METRICS:
        raise BadInput(f"there is no metric {metric!r}. Choose {', '.join(METRICS)}.")
    count = sum(len(run) for run in runs)
    distances = distances_among(list(runs), np.arange(count), metric)
    owner = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    values, stress = np.zeros((2, len(draws), axes))
    for position, draw in enumerate(track(draws, "resampling seeds", total=len(draws))):
        times = draw[owner]
        there = np.flatnonzero(times)
        if len(there) < axes:
            raise BadInput(f"a draw of seeds has {len(there)} models, too few for {axes} axes. Give fewer axes.")
        points = int(times.sum())
        found, _ = decompose(distances[np.ix_(there, there)], times[there] / points)
        found = found * points / len(there)
        values[position], stress[position] = found[:axes], explained_stress(found)[:axes]
    return values, stress


def _at_the_end(curves: Sequence[np.ndarray | None]) -> Float[np.ndarray, " runs"]:
    return np.array([np.nan if curve is None else float(curve[-1]) for curve in curves])


def _means(
    per_run: Float[np.ndarray, " runs"],
    draws: Integer[np.ndarray, "resamples runs"],
    members: Mapping[str, Sequence[int]],
) -> Float[np.ndarray, "resamples tasks"]:
    return np.stack([draws[:, rows] @ per_run[rows] / len(rows) for rows in members.values()], axis=1)


def _distances(
    runs: Sequence[Trajectory],
    truth: Truth,
    draws: Integer[np.ndarray, "resamples runs"],
    members: Mapping[str, Sequence[int]],
) -> Float[np.ndarray, "resamples tasks tasks"] | None:
    """Distances between tasks in each draw; draws that are alike in two tasks are compared once."""
    known = [reindexed(run, truth) for run in track(runs, "re-indexing by progress", total=len(runs))]
    groups = [list(rows) for rows in members.values()]
    wanted: dict[tuple[int, int, bytes, bytes], int] = {}
    where = np.zeros((len(draws), len(groups), len(groups)), dtype=np.int64)
    pairs: list[tuple[EqualProgress, EqualProgress]] = []
    for position, draw in enumerate(draws):
        for i, j in itertools.combinations(range(len(groups)), 2):
            first, second = draw[groups[i]], draw[groups[j]]
            key = (i, j, first.tobytes(), second.tobytes())
            if key not in wanted:
                wanted[key] = len(pairs)
                sides = (_side(known, rows, times, truth) for rows, times in ((groups[i], first), (groups[j], second)))
                try:
                    pairs.append(matched(*sides))
                except BadInput:  # these two share no progress, in this draw and so in all seeds together
                    return None
            where[position, i, j] = where[position, j, i] = wanted[key]
    found = np.array(mean_distances(pairs))[where]
    found[:, np.arange(len(groups)), np.arange(len(groups))] = 0.0
    return found


def _side(known: Sequence[Reindexed], rows: Sequence[int], times: np.ndarray, truth: Truth) -> EqualProgress:
    drawn = np.flatnonzero(times).tolist()
    return mean_of_seeds([known[rows[one]] for one in drawn], truth, (times[drawn] / times.sum()).tolist())
