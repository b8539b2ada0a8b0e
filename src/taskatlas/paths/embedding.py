"""An InPCA map as a result: coordinates, signed eigenvalues, which run and step each point is, and its picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write, digest


@dataclass(frozen=True, eq=False, repr=False)
class Embedding:
    """Points of an InPCA map.

    Attributes:
        coordinates: (M, k), in units of the square root of the distance; axes in the order of |eigenvalue|.
        eigenvalues: (M,) signed, all of them; a negative one makes its axis time-like.
        runs: M names, of the run to which each point belongs.
        steps: (M,) training step of each point.

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
        for values in (coordinates, eigenvalues, steps):
            values.flags.writeable = False
        fields = {"coordinates": coordinates, "eigenvalues": eigenvalues, "runs": runs, "steps": steps}
        for field, value in fields.items():
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
        return digest("embedding", self.coordinates, self.eigenvalues, self.runs, self.steps)

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
        with atomic_write(Path(path)) as file, file.open("wb") as stream:
            np.savez(
                stream,
                coordinates=self.coordinates,
                eigenvalues=self.eigenvalues,
                runs=np.array(self.runs),
                steps=self.steps,
            )

    @classmethod
    def load(cls, path: Path | str) -> "Embedding":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing, cut short, or no embedding.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["coordinates"], file["eigenvalues"], file["runs"].tolist(), file["steps"])
        except (
            Exception
        ) as error:  # a broken archive fails in many ways, and none of them is anything but a broken archive
            raise BadInput(
                f"{path} is no embedding that can be read ({error}). Give a file that Embedding.save wrote."
            ) from error

    def plot(self, ax: Any = None, *, axes: Sequence[int] = (0, 1)) -> Any:
        """Draws the runs as lines in two or three axes of the map, time-like ones marked as such.

        A run's first point is hollow and its last is filled. Along a time-like axis (dashed, grey) distance counts
        negative: points far apart on it are closer than they look.

        Args:
            ax: where to draw; for three axes it must be 3-D.
            axes: two or three positions among the map's axes.

        Raises:
            BadInput: axes that the map does not have.
        """
        import matplotlib.pyplot as plt

        if len(axes) not in (2, 3) or not all(0 <= axis < self.coordinates.shape[1] for axis in axes):
            raise BadInput(
                f"cannot draw axes {tuple(axes)} of a map with {self.coordinates.shape[1]}: give two or three."
            )
        if ax is None:
            flat = {"projection": "3d"} if len(axes) == 3 else {}
            ax = plt.figure(layout="constrained").add_subplot(**flat)
        for run in dict.fromkeys(self.runs):
            rows = np.flatnonzero(np.array(self.runs) == run)
            points = self.coordinates[rows[np.argsort(self.steps[rows], kind="stable")]][:, list(axes)].T
            (line,) = ax.plot(*points, linewidth=1.2, marker=".", markersize=4, label=run)
            ax.plot(*points[:, :1], marker="o", color=line.get_color(), markerfacecolor="white")
            ax.plot(*points[:, -1:], marker="o", color=line.get_color())
        for axis, letter in zip(axes, "xyz", strict=False):
            self._label(ax, letter, axis)
        shown = len(axes) if sorted(axes) == list(range(len(axes))) else len(self.signs)
        ax.set_title(
            f"InPCA of {len(self.runs)} models: {self.explained_stress[shown - 1]:.0%} of stress on {shown} axes"
        )
        ax.legend(frameon=False, fontsize="small")
        if len(axes) == 2:
            ax.set_aspect("equal", adjustable="datalim")
        return ax

    def _label(self, ax: Any, letter: str, axis: int) -> None:
        time_like = self.signs[axis] < 0
        label = f"axis {axis + 1} (λ = {self.eigenvalues[axis]:.3g}{', time-like' if time_like else ''}) [√nat]"
        getattr(ax, f"set_{letter}label")(label, color="0.4" if time_like else "black")
        if time_like and letter in "xy" and ax.name != "3d":
            for side in ("bottom", "top") if letter == "x" else ("left", "right"):
                ax.spines[side].set(linestyle=(0, (4, 4)), color="0.4")


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
