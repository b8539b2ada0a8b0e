"""Everything at once: runs on one map, with their progress, lengths, distances and how sure all of it is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Real

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.bootstrap import bootstrap_measures, percentile_interval
from taskatlas.paths.compare import EqualProgress, matched, mean_distances, mean_of_seeds, mean_path, reindexed
from taskatlas.paths.embedding import Embedding, ProjectedPath
from taskatlas.paths.inpca import InPCA
from taskatlas.paths.predictions import as_predictions, run_labels, saturated_share_among
from taskatlas.paths.progress import check_truth
from taskatlas.paths.reindex import Regression, find_regressions
from taskatlas.paths.seed_bootstrap import bootstrap_seeds, task_members
from taskatlas.paths.simplex import Truth
from taskatlas.paths.trajectory import Trajectory, truth_of
from taskatlas.paths.tree import Distance, TaskTree, joined, task_tree

LEVEL = 0.95  # of the intervals
_AXES = 3
_UNEQUAL = 3  # times as many snapshots in one run as in another are worth a note


@dataclass(frozen=True, eq=False, repr=False)
class RunSummary:
    """What is measured of one run.

    Attributes:
        name: a label that no other run has.
        task: of which it is a seed.
        steps: (T,) of its snapshots.
        length: Fisher length of the path.
        tortuosity: length over that of the geodesic between its ends; infinite for a path that comes back.
        progress: (T,) from ignorance (0) to the truth (1); None without a truth.
        accuracy: (T,) None without labels.
        regressions: where progress fell back.
        note: how the run was made, where that is known.
    """

    name: str
    task: str
    steps: Real[np.ndarray, " steps"]
    length: float
    tortuosity: float
    progress: Float[np.ndarray, " steps"] | None = None
    accuracy: Float[np.ndarray, " steps"] | None = None
    regressions: tuple[Regression, ...] = ()
    note: str = ""

    def __repr__(self) -> str:
        end = "" if self.progress is None else f", progress {self.progress[-1]:.3f} at the end"
        return f"RunSummary({self.name!r}, {len(self.steps)} snapshots, length {self.length:.3f}{end})"


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Runs on one map and what is measured of them.

    Attributes:
        runs: in the order given.
        embedding: their map, with the geodesic from ignorance to the truth and the mean paths of tasks of several seeds
            laid onto it.
        tree: of the distances between tasks; None for a single one, or where two share no progress.
        saturated: share of (pair of models, sample) whose Bhattacharyya coefficient is below the floor; None for other
            metrics.
        samples, classes: of the predictions.
        intervals: 95 % bootstrap intervals, empty without a bootstrap: under ``samples`` and ``seeds``, for each
            measure its low and high ends.
        notes: what could not be done, or has to be known to read the map, a sentence each.
    """

    runs: tuple[RunSummary, ...]
    embedding: Embedding
    tree: TaskTree | None
    saturated: float | None
    samples: int
    classes: int
    intervals: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Trace({len(self.runs)} runs of {len(self.tasks)} tasks; {self.embedding})"

    @property
    def tasks(self) -> dict[str, list[int]]:
        """The positions of each task's runs."""
        return task_members([run.task for run in self.runs])

    @property
    def task_of(self) -> dict[str, str]:
        """The task of each run."""
        return {run.name: run.task for run in self.runs}


def trace_runs(
    runs: Sequence[Trajectory],
    *,
    truth: Truth | None = None,
    tasks: Sequence[str] | None = None,
    metric: str = "bhattacharyya",
    n_components: int | None = None,
    landmarks: int | None = None,
    distance: Distance | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> Trace:
    """Draws runs on one map and measures them: progress, accuracy, lengths, regressions, distances, tree.

    Predictions that lie on disk are read in blocks, so runs may be larger than memory.

    Args:
        runs: on the same samples, of any length.
        truth: labels or probabilities that progress is measured toward; the first labels that a run carries where there
            are none. Without any, progress and accuracy are left out.
        tasks: the task of each run: runs of one task are its seeds. The runs' names where there are none.
        metric: the distance of the map: bhattacharyya, hellinger or symmetric_kl.
        n_components: axes of the map, two at least; None: three, or as many as there are models or landmarks.
        landmarks: so many models make the map; see ``InPCA``.
        distance: between tasks; see ``task_tree``. None: at equal progress, or Fréchet's where there is no truth or two
            tasks share no progress.
        bootstrap: resamples for intervals, over samples and, where a task has several runs, over seeds; 0 for none.
        seed: of the landmarks and the resamples.

    Raises:
        BadInput: no runs, other samples or classes, a truth or tasks that do not fit, or a single model.

    Example:
        >>> steps = np.log([[[0.5, 0.5]] * 2, [[0.3, 0.7], [0.2, 0.8]], [[0.1, 0.9], [0.4, 0.6]]])
        >>> found = trace_runs([Trajectory("a", steps, [0, 1, 2], ["x", "y"], [1, 1])])
        >>> found.runs[0]
        RunSummary('a', 3 snapshots, length 1.020, progress 0.359 at the end)
    """
    models = as_predictions(list(runs))
    assert isinstance(models, list)
    _, samples, classes = models[0].log_probs.shape
    truth = truth_of(models, truth)
    if truth is not None:
        check_truth(truth, samples, classes)
    elif distance == "progress":
        raise BadInput("runs are compared at equal progress toward a truth, and there are no labels. Give labels.")
    if bootstrap and landmarks is not None:
        raise BadInput("a bootstrap needs a map that all models made. Leave out either the landmarks or the bootstrap.")
    if n_components is not None and n_components < 2:
        raise BadInput(f"a map to look at has two axes at least, not {n_components}.")
    if tasks is not None and len(tasks) != len(runs):
        raise BadInput(f"{len(tasks)} tasks do not fit {len(runs)} runs. Name the task of each run.")
    count = min(sum(len(run) for run in runs), landmarks or math.inf)
    axes = int(min(_AXES, count)) if n_components is None else n_components
    fit = InPCA(axes, metric, landmarks=landmarks, random_state=seed).fit(models)
    embedding = fit.as_embedding(truth)
    names, of = run_labels(runs), [run.name for run in runs] if tasks is None else list(tasks)
    rows = list(zip(models, names, of, strict=True))
    summaries: list[RunSummary] = []
    notes: list[str] = []
    for run, name, task in track(rows, "measuring runs"):
        steps = run.step_lengths()
        summaries.append(_summary(run, name, task, truth, float(steps.sum())))
        notes += _repeats(name, steps)
    notes += _unequal(runs)
    sides: dict[str, EqualProgress] = {}
    if truth is not None and len(runs) > 1:
        both = list(zip(models, summaries, strict=True))
        known = [reindexed(run, truth, reached=one.progress) for run, one in track(both, "re-indexing by progress")]
        sides = {task: mean_of_seeds([known[i] for i in members], truth) for task, members in task_members(of).items()}
        means, said = _mean_paths(sides, fit)
        notes += said
        embedding = replace(embedding, paths=[*embedding.paths, *means])
    tree, said = _tree(runs, sides, distance)
    return Trace(
        tuple(summaries),
        embedding,
        tree,
        saturated_share_among(models, fit.base_) if metric == "bhattacharyya" else None,
        samples,
        classes,
        _intervals(models, fit, truth, names, of, tree, bootstrap, seed) if bootstrap else {},
        (*notes, *said),
    )


def _summary(run: Trajectory, name: str, task: str, truth: Truth | None, length: float) -> RunSummary:
    progress = None if truth is None else run.progress(truth)
    accuracy = None if truth is None or truth.ndim == 2 else run.accuracy(truth)
    fallen = () if progress is None else find_regressions(progress, run.steps)
    return RunSummary(name, task, run.steps, length, run.tortuosity(length), progress, accuracy, fallen, run.note)


def _repeats(name: str, step_lengths: Float[np.ndarray, " transitions"]) -> list[str]:
    """Says when snapshots say nothing new and still weigh in the map."""
    count = int((step_lengths == 0).sum())
    if not count:
        return []
    return [f"run {name!r} repeats a snapshot in {count} of its {len(step_lengths)} steps, and each weighs in the map."]


def _unequal(runs: Sequence[Trajectory]) -> list[str]:
    """Says when the map is above all one of its longest runs."""
    counts = [len(run) for run in runs]
    if max(counts) < _UNEQUAL * min(counts):
        return []
    return [
        f"runs have from {min(counts)} to {max(counts)} snapshots, and the map's centre and axes follow the long ones; "
        "resample runs by progress, or give InPCA point_weights, where this is not wanted."
    ]


def _mean_paths(sides: Mapping[str, EqualProgress], fit: InPCA) -> tuple[list[ProjectedPath], list[str]]:
    """The mean paths of tasks of several seeds on the map, and why there is none of some."""
    means, notes = [], []
    for task, side in sides.items():
        if len(side.seeds) > 1:
            try:
                path = mean_path(side)
            except BadInput as error:
                notes.append(f"task {task!r} has no mean path: {error}")
            else:
                means.append(ProjectedPath(task, "mean", path.values, *fit.project(path)))
    return means, notes


def _tree(
    runs: Sequence[Trajectory], sides: Mapping[str, EqualProgress], distance: Distance | None
) -> tuple[TaskTree | None, list[str]]:
    """The tree of tasks, or why it is another one than was to be expected, or none."""
    notes = []
    if sides and distance != "frechet":
        if len(sides) < 2:
            return None, []
        try:
            pairs = [matched(first, second) for first, second in itertools.combinations(sides.values(), 2)]
        except BadInput as error:
            if distance == "progress":
                return None, [f"there are no distances at equal progress: {error}"]
            notes.append(f"runs are compared as paths and each by itself, for some share no progress: {error}")
        else:
            return joined(list(sides), mean_distances(pairs)), []
    return (task_tree(runs, distance="frechet") if len(runs) > 1 else None), notes


def _intervals(
    models: list[Trajectory],
    fit: InPCA,
    truth: Truth | None,
    names: Sequence[str],
    tasks: Sequence[str],
    tree: TaskTree | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    axes = len(fit.signature_)
    drawn = fit.bootstrap(resamples, seed=seed)
    measured = bootstrap_measures(models, truth=truth, resamples=resamples, seed=seed)
    samples = {
        "explained_stress": _ends(drawn.explained_stress),
        "eigenvalues": _ends(drawn.eigenvalues[:, :axes]),
        **{what: _ends_by_name(names, getattr(measured, what)) for what in ("length", "progress", "accuracy")},
    }
    at_paths = tree is not None and tree.distance == "frechet"  # these are distances between runs, not tasks
    found: dict[str, Any] = {"resamples": resamples, "level": LEVEL, "samples": samples}
    if len(set(tasks)) < len(tasks):
        seeds = bootstrap_seeds(
            models, truth=truth, tasks=tasks, metric=fit.metric, n_components=axes, resamples=resamples, seed=seed
        )
        found["seeds"] = {
            "explained_stress": _ends(seeds.explained_stress),
            "eigenvalues": _ends(seeds.eigenvalues),
            **{what: _ends_by_name(seeds.tasks, getattr(seeds, what)) for what in ("length", "progress", "accuracy")},
            "distances": None if seeds.distances is None or at_paths else _ends(seeds.distances),
        }
    return found


def _ends(values: Float[np.ndarray, "resamples *shape"]) -> dict[str, Any]:
    low, high = percentile_interval(values, LEVEL)
    return {"low": low.tolist(), "high": high.tolist()}


def _ends_by_name(names: Sequence[str], values: Float[np.ndarray, "resamples names"]) -> dict[str, Any] | None:
    """Both ends for each name; None where nothing was measured."""
    if np.isnan(values).all():
        return None
    low, high = percentile_interval(values, LEVEL)
    return {name: [float(a), float(b)] for name, a, b in zip(names, low, high, strict=True)}
