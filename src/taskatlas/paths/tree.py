"""The tree of tasks: which runs travel alike, joined from the closest pair up."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.cluster.hierarchy import cophenet, dendrogram, linkage
from scipy.spatial.distance import squareform

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.compare import at_equal_progress, matched, mean_distances
from taskatlas.paths.simplex import Truth
from taskatlas.paths.trajectory import Trajectory, check_same_samples
from taskatlas.store import atomic_write, digest

Linkage = Literal["average", "single", "complete", "weighted"]


@dataclass(frozen=True, eq=False, repr=False)
class TaskTree:
    """Tasks, the distances among their runs, and the tree of these.

    Attributes:
        names: of the m tasks.
        distances: (m, m) in nats, symmetric with a zero diagonal.
        linkage: (m - 1, 4), as SciPy writes it.

    Raises:
        BadInput: fields that do not fit each other.
    """

    names: Sequence[str]
    distances: Any
    linkage: Any

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
        return digest("task tree", self.names, self.distances, self.linkage)

    def path_lengths(self) -> Float[np.ndarray, "tasks tasks"]:
        """Length of the way between two tasks along the tree: up to where they are joined, and down."""
        return np.asarray(2 * squareform(cophenet(self.linkage)))

    def save(self, path: Path | str) -> None:
        """Writes an .npz archive without pickles.

        Raises:
            BadInput: the place cannot be written.
        """
        with atomic_write(Path(path)) as file, file.open("wb") as stream:
            np.savez(stream, names=np.array(self.names), distances=self.distances, linkage=self.linkage)

    @classmethod
    def load(cls, path: Path | str) -> "TaskTree":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing, cut short, or no tree.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["names"].tolist(), file["distances"], file["linkage"])
        except Exception as error:  # a broken archive fails in many ways
            raise BadInput(
                f"{path} is no task tree that can be read ({error}). Give one that TaskTree.save wrote."
            ) from error

    def plot(self, figure: Any = None) -> Any:
        """Draws the tree beside the heat map of distances, each task's name once, in the tree's order."""
        import matplotlib.pyplot as plt

        figure = (
            figure if figure is not None else plt.figure(figsize=(8, 0.3 * len(self.names) + 2.2), layout="constrained")
        )
        left, right = figure.subplots(1, 2, width_ratios=(1, 2))
        drawn = dendrogram(self.linkage, orientation="left", no_labels=True, ax=left, color_threshold=0)
        left.set(xlabel="joined at [nat]", title="Tree of runs")
        left.spines[["top", "left", "right"]].set_visible(False)
        _draw_heat_map(right, self.distances, self.names, drawn["leaves"] or [], figure)
        return figure


def task_tree(
    runs: Sequence[Trajectory],
    *,
    truth: Truth | None = None,
    method: Linkage = "average",
) -> TaskTree:
    """The tree of tasks by the distances between their runs; runs of one name are seeds of one task.

    Args:
        runs: at least two tasks, on the same samples.
        truth: labels or probabilities that progress is measured toward; the first run's labels where there are none.
        method: how groups are joined: average, single, complete or weighted.

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
    tasks: dict[str, list[Trajectory]] = {}
    for run in runs:
        tasks.setdefault(run.name, []).append(run)
    if len(tasks) < 2:
        raise BadInput("a tree joins two tasks at least; runs of one name count as seeds of one task.")
    check_same_samples(runs)
    found = runs[0].truth(truth)
    sides = [at_equal_progress(seeds, found) for seeds in track(list(tasks.values()), "re-indexing by progress")]
    pairs = [matched(first, second) for first, second in itertools.combinations(sides, 2)]
    distances = squareform(mean_distances(pairs))
    return TaskTree(tuple(tasks), distances, linkage(squareform(distances), method=method))


def _draw_heat_map(ax: Any, distances: np.ndarray, names: Sequence[str], leaves: Sequence[int], figure: Any) -> None:
    order = list(leaves)
    image = ax.imshow(distances[np.ix_(order, order)], origin="lower", cmap="viridis", aspect="auto")
    ax.set_yticks(range(len(order)), [names[leaf] for leaf in order])
    ax.set_xticks([])
    ax.set_title("Distance between runs at equal progress")
    figure.colorbar(image, ax=ax, label="Bhattacharyya distance [nat]")
