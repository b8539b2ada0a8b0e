"""The tree of tasks: which runs travel alike, joined from the closest pair up."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.compare import at_equal_progress, frechet_between, matched, mean_distances
from taskatlas.paths.predictions import run_labels
from taskatlas.paths.simplex import Truth
from taskatlas.paths.trajectory import Trajectory, check_same_samples, truth_of
from taskatlas.store import atomic_write, digest

Linkage = Literal["average", "single", "complete", "weighted"]
Distance = Literal["progress", "frechet"]


@dataclass(frozen=True, eq=False, repr=False)
class TaskTree:
    """Tasks, the distances among their runs, and the tree of these.

    Attributes:
        names: of the m tasks.
        distances: (m, m) in nats, symmetric with a zero diagonal.
        linkage: (m - 1, 4), as SciPy writes it.
        distance: how runs were compared, ``"progress"`` or ``"frechet"``; see ``trajectory_distance``.

    Raises:
        BadInput: fields that do not fit each other.
    """

    names: Sequence[str]
    distances: Any
    linkage: Any
    distance: str = "progress"

    def __post_init__(self) -> None:
        distances, joins = np.array(self.distances, dtype=np.float64), np.array(self.linkage, dtype=np.float64)
        count = len(self.names)
        if distances.shape != (count, count) or joins.shape != (count - 1, 4):
            raise BadInput(f"{count} names do not fit distances of {distances.shape} and a linkage of {joins.shape}.")
        for values in (distances, joins):
            values.flags.writeable = False
        for field, value in {"names": tuple(self.names), "distances": distances, "linkage": joins}.items():
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        return (
            f"TaskTree({len(self.names)} tasks, joined at {self.linkage[0, 2]:.3g} to {self.linkage[-1, 2]:.3g} nats)"
        )

    @property
    def digest(self) -> str:
        """Digest of all that it holds."""
        return digest("task tree", self.names, self.distances, self.linkage, self.distance)

    def path_lengths(self) -> Float[np.ndarray, "tasks tasks"]:
        """Length of the way between two tasks along the tree: up to where they are joined, and down."""
        return np.asarray(2 * squareform(cophenet(self.linkage)))

    def newick(self) -> str:
        """The tree in Newick's format, which programs that draw trees open; a branch's length is half a way, in nats.

        Example:
            >>> TaskTree(["a", "b"], [[0, 2], [2, 0]], [[0, 1, 2, 2]]).newick()
            "('a':1,'b':1);"
        """
        quoted = ["'" + name.replace("'", "''") + "'" for name in self.names]
        branches = [(text, 0.0) for text in quoted]
        for left, right, height, _ in self.linkage:
            parts = [f"{text}:{height / 2 - above:.9g}" for text, above in (branches[int(left)], branches[int(right)])]
            branches.append((f"({','.join(parts)})", height / 2))
        return f"{branches[-1][0]};"

    def save(self, path: Path | str) -> None:
        """Writes an .npz archive without pickles.

        Raises:
            BadInput: the place cannot be written.
        """
        with atomic_write(Path(path)) as file, file.open("wb") as stream:
            np.savez(
                stream,
                names=np.array(self.names),
                distances=self.distances,
                linkage=self.linkage,
                distance=np.array(self.distance),
            )

    @classmethod
    def load(cls, path: Path | str) -> "TaskTree":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing, cut short, or no tree.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["names"].tolist(), file["distances"], file["linkage"], str(file["distance"]))
        except Exception as error:  # a broken archive fails in many ways
            raise BadInput(
                f"{path} is no task tree that can be read ({error}). Give one that TaskTree.save wrote."
            ) from error

    def plot(self, figure: Any = None) -> Any:
        """Draws the tree joined to the rows of the heat map of distances, each task's name once; returns the figure."""
        from taskatlas.paths.drawing import draw_tree

        return draw_tree(self, figure)


def task_tree(
    runs: Sequence[Trajectory],
    *,
    truth: Truth | None = None,
    method: Linkage = "average",
    distance: Distance = "progress",
) -> TaskTree:
    """The tree of tasks by the distances between their runs; runs of one name are seeds of one task.

    Args:
        runs: at least two tasks, on the same samples.
        truth: labels or probabilities that progress is measured toward; the first labels that a run carries where there
            are none.
        method: how groups are joined: average, single, complete or weighted.
        distance: ``"progress"``: at equal progress, seeds averaged; ``"frechet"``: see ``trajectory_distance``, without
            a truth, and every run by itself.

    Raises:
        BadInput: fewer than two tasks, other samples, no truth, or two tasks without a common range of progress.

    Example:
        >>> def run(name, end):
        ...     probs = [[[0.5, 0.5]] * 2, [[1 - e, e] for e in end]]
        ...     return Trajectory(name, np.log(probs), [0, 1], ["x", "y"], [1, 1])
        >>> task_tree([run("a", (0.7, 0.9)), run("b", (0.9, 0.7)), run("c", (0.72, 0.9))]).linkage[0, :2]
        array([0., 2.])
    """
    if method not in get_args(Linkage):
        raise BadInput(f"there is no linkage {method!r}. Choose {', '.join(get_args(Linkage))}.")
    if distance not in get_args(Distance):
        raise BadInput(f"there is no distance between runs {distance!r}. Choose {' or '.join(get_args(Distance))}.")
    tasks: dict[str, list[Trajectory]] = {}
    for label, run in zip(run_labels(runs), runs, strict=True):
        tasks.setdefault(run.name if distance == "progress" else label, []).append(run)
    if len(tasks) < 2:
        raise BadInput("a tree joins two tasks at least; runs of one name count as seeds of one task.")
    check_same_samples(runs)
    if distance == "frechet":
        pairs = list(itertools.combinations([seeds[0] for seeds in tasks.values()], 2))
        found = [frechet_between(first, second) for first, second in track(pairs, "comparing paths")]
    else:
        truth = runs[0].truth(truth_of(runs, truth))
        sides = [at_equal_progress(seeds, truth) for seeds in track(list(tasks.values()), "re-indexing by progress")]
        found = mean_distances([matched(first, second) for first, second in itertools.combinations(sides, 2)])
    return joined(list(tasks), found, method, distance)


def joined(
    names: Sequence[str], distances: Sequence[float], method: Linkage = "average", distance: Distance = "progress"
) -> TaskTree:
    """The tree of tasks by their distances, those of the pairs in ``itertools.combinations``' order."""
    return TaskTree(tuple(names), squareform(distances), linkage(distances, method=method), distance)
