"""An InPCA map as a result: coordinates, signed eigenvalues, which run and step each point is, and its picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write, digest

_UNITS = {"bhattacharyya": " [√nat]", "symmetric_kl": " [√nat]", "hellinger": "", "precomputed": " [√distance]"}


@dataclass(frozen=True, eq=False, repr=False)
class ProjectedPath:
    """A path that was laid onto a finished map: it shaped neither its centre nor its axes.

    Attributes:
        name: what it is, or of which task.
        kind: ``"truth"``, the geodesic from ignorance to the truth, or ``"mean"``, the mean of a task's seeds.
        places: (P,) progress of its points.
        coordinates: (P, k) on the map's axes.
        residuals: (P,) of each point, in units of the distance, what the axes leave of it; see ``InPCA.project``.
    """

    name: str
    kind: str
    places: Float[np.ndarray, " points"]
    coordinates: Float[np.ndarray, "points axes"]
    residuals: Float[np.ndarray, " points"]

    def __repr__(self) -> str:
        return f"ProjectedPath({self.name!r}, {len(self.places)} points)"


@dataclass(frozen=True, eq=False, repr=False)
class Embedding:
    """Points of an InPCA map.

    Attributes:
        coordinates: (M, k), in units of the square root of the distance; axes in the order of |eigenvalue|.
        eigenvalues: (M,) signed, all of them; a negative one makes its axis time-like.
        runs: M names, of the run to which each point belongs.
        steps: (M,) training step of each point.
        metric: the distance that was mapped.
        paths: what was projected onto the map beside the points that made it.

    Raises:
        BadInput: fields that do not fit each other.

    Example:
        >>> Embedding(np.array([[1.0, 0.5], [-1.0, 0.5]]), np.array([2.0, -0.5]), ["a", "a"], [0, 1])
        Embedding(2 points of 1 run, 2 axes (1 time-like), explained stress 1.000)
    """

    coordinates: Any
    eigenvalues: Any
    runs: Sequence[str]
    steps: Any
    metric: str = "bhattacharyya"
    paths: Sequence[ProjectedPath] = ()

    def __post_init__(self) -> None:
        coordinates, eigenvalues = (
            np.array(values, dtype=np.float64) for values in (self.coordinates, self.eigenvalues)
        )
        runs, steps = tuple(str(run) for run in self.runs), np.array(self.steps)
        points, axes = coordinates.shape
        if len(runs) != points or len(steps) != points or axes > len(eigenvalues):
            raise BadInput(
                f"an embedding of {points} points on {axes} axes needs a run and a step for each point and an "
                f"eigenvalue for each axis, not {len(runs)}, {len(steps)} and {len(eigenvalues)}."
            )
        for path in self.paths:
            if path.coordinates.shape != (len(path.places), axes) or len(path.residuals) != len(path.places):
                raise BadInput(f"{path} has other points or axes than its {len(path.places)} places and {axes} axes.")
        for values in (coordinates, eigenvalues, steps):
            values.flags.writeable = False
        fields = {"coordinates": coordinates, "eigenvalues": eigenvalues, "runs": runs, "steps": steps}
        for field, value in (fields | {"paths": tuple(self.paths)}).items():
            object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        points, axes = self.coordinates.shape
        runs = len(set(self.runs))
        return (
            f"Embedding({points} points of {runs} run{'s' if runs != 1 else ''}, {axes} axes "
            f"({int((self.signs < 0).sum())} time-like), explained stress {self.explained_stress[-1]:.3f})"
        )

    @property
    def digest(self) -> str:
        """Digest of all that it holds."""
        paths = [(path.name, path.kind, path.places, path.coordinates, path.residuals) for path in self.paths]
        return digest("embedding", self.coordinates, self.eigenvalues, self.runs, self.steps, self.metric, paths)

    @property
    def signs(self) -> Float[np.ndarray, " axes"]:
        """+1 for a space-like axis, -1 for a time-like one."""
        return np.where(self.eigenvalues[: self.coordinates.shape[1]] < 0, -1.0, 1.0)

    @property
    def explained_stress(self) -> Float[np.ndarray, " axes"]:
        """Explained stress of the first axis, of the first two, and so on; see ``explained_stress``."""
        return explained_stress(self.eigenvalues)[: self.coordinates.shape[1]]

    def distances(self) -> Float[np.ndarray, "points points"]:
        """Distances that the kept axes reproduce: Σ_k sgn(λ_k)(x_ik - x_jk)², exact where all axes are kept."""
        gram = (self.coordinates * self.signs) @ self.coordinates.T
        own = gram.diagonal()
        return np.asarray(own[:, None] + own - 2 * gram)

    def save(self, path: Path | str) -> None:
        """Writes an .npz archive without pickles.

        Raises:
            BadInput: the place cannot be written.
        """
        arrays: dict[str, Any] = {
            "coordinates": self.coordinates,
            "eigenvalues": self.eigenvalues,
            "runs": np.array(self.runs),
            "steps": self.steps,
            "metric": np.array(self.metric),
            "projected_names": np.array([one.name for one in self.paths], dtype=str),
            "projected_kinds": np.array([one.kind for one in self.paths], dtype=str),
            "projected_ends": np.cumsum([0, *(len(one.places) for one in self.paths)]),
            "projected_places": np.concatenate([np.zeros(0), *(one.places for one in self.paths)]),
            "projected_points": np.concatenate([self.coordinates[:0], *(one.coordinates for one in self.paths)]),
            "projected_residuals": np.concatenate([np.zeros(0), *(one.residuals for one in self.paths)]),
        }
        with atomic_write(Path(path)) as file, file.open("wb") as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: Path | str) -> "Embedding":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing, cut short, or no embedding.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                ends = file["projected_ends"].tolist()
                paths = [
                    ProjectedPath(
                        str(name),
                        str(kind),
                        *(file[f"projected_{what}"][first:last] for what in ("places", "points", "residuals")),
                    )
                    for name, kind, first, last in zip(
                        file["projected_names"], file["projected_kinds"], ends[:-1], ends[1:], strict=True
                    )
                ]
                return cls(
                    file["coordinates"],
                    file["eigenvalues"],
                    file["runs"].tolist(),
                    file["steps"],
                    str(file["metric"]),
                    paths,
                )
        except (
            Exception
        ) as error:  # a broken archive fails in many ways, and none of them is anything but a broken archive
            raise BadInput(
                f"{path} is no embedding that can be read ({error}). Give a file that Embedding.save wrote."
            ) from error

    def axis_label(self, axis: int) -> str:
        """What an axis is called in a picture: its number, what it adds to the explained stress, kind and unit.

        Example:
            >>> Embedding(np.eye(2), [2.0, -0.5], ["a", "a"], [0, 1]).axis_label(1)
            'axis 2, time-like: +24 % of stress [√nat]'
        """
        stress = self.explained_stress
        added = 100 * (stress[axis] - (stress[axis - 1] if axis else 0.0))
        percent = f"{'+' if axis else ''}{added:.{0 if added >= 10 else 1}f} %"
        kind = ", time-like" if self.signs[axis] < 0 else ""
        return f"axis {axis + 1}{kind}: {percent} of stress{_UNITS[self.metric]}"

    def plot(self, ax: Any = None, *, axes: Sequence[int] = (0, 1), tasks: Mapping[str, str] | None = None) -> Any:
        """Draws the runs as lines in two or three axes of the map, time-like ones marked as such.

        A run's first point is hollow and its last is filled. Along a time-like axis (dashed, grey) distance counts
        negative: points far apart on it are closer than they look. What was projected onto the map is drawn too: the
        geodesic from ignorance to the truth dashed, the mean of a task's seeds as a broad line.

        Args:
            ax: where to draw; for three axes it must be 3-D.
            axes: two or three positions among the map's axes.
            tasks: the task of each run, where several runs are seeds of one: these share a colour.

        Raises:
            BadInput: axes that the map does not have.
        """
        from taskatlas.paths.drawing import draw_embedding

        if len(axes) not in (2, 3) or not all(0 <= axis < self.coordinates.shape[1] for axis in axes):
            raise BadInput(
                f"cannot draw axes {tuple(axes)} of a map with {self.coordinates.shape[1]}: give two or three."
            )
        return draw_embedding(self, ax, axes, tasks)


def explained_stress(eigenvalues: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Explained stress of the first k axes, for every k: 1 - sqrt(1 - Σ_{i≤k} λ_i² / Σ λ²).

    Args:
        eigenvalues: all of them, in the order of |λ|.

    Example:
        >>> explained_stress(np.array([4.0, -3.0])).round(2)
        array([0.4, 1. ])
    """
    squares = np.square(eigenvalues / max(float(np.abs(eigenvalues).max(initial=0.0)), 1e-300))
    left = squares[::-1].cumsum()[::-1]  # what lies beyond each axis, summed from the smallest: no 1 - 1 at the end
    beyond = np.append(left[1:], 0.0)
    return 1 - np.sqrt(beyond / left[0]) if left[0] > 0 else np.ones_like(squares)
