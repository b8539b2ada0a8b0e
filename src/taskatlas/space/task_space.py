"""The map of a zoo: names and the covariance of their tasks, with what the probe's samples leave uncertain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write, digest

_ASYMMETRY = 1e-6


@dataclass(frozen=True, eq=False)
class TaskSpace:
    """How the tasks of m checkpoints relate: a covariance with unit diagonal, from one kernel on one probe.

    Example:
        >>> space = TaskSpace(("a", "b"), np.array([[1.0, 0.25], [0.25, 1.0]]))
        >>> space
        TaskSpace(2 checkpoints, mean covariance 0.250, kernel unknown)
        >>> space["a", "b"]
        0.25
    """

    names: tuple[str, ...]
    covariance: Float[np.ndarray, "m m"]
    replicates: Float[np.ndarray, "b m m"] | None = None  # the covariance on resampled probes, see ``map_tasks``
    kernel: str = "unknown"
    probe: str = ""  # digest of the probe
    features: tuple[str, ...] = ()  # digest of each checkpoint's features, where known
    seed: int = 0  # of the replicates

    def __post_init__(self) -> None:
        m = len(self.names)
        if m == 0:
            raise BadInput("a task space needs at least one checkpoint.")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise BadInput(f"two checkpoints are named {repeated[0]!r}. Give every checkpoint a name of its own.")
        check_covariance(self.covariance, self.names)
        if self.replicates is not None and (not len(self.replicates) or self.replicates.shape[1:] != (m, m)):
            raise BadInput(f"the replicates have shape {self.replicates.shape}, but there are {m} checkpoints.")
        if self.features and len(self.features) != m:
            raise BadInput(f"there are {len(self.features)} digests of features, but {m} checkpoints.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, pair: tuple[str, str]) -> float:
        first, second = self._positions(pair)
        return float(self.covariance[first, second])

    def __repr__(self) -> str:
        m = len(self.names)
        mean = (self.covariance.sum() - np.trace(self.covariance)) / max(m * (m - 1), 1)
        return f"TaskSpace({m} checkpoints, mean covariance {mean:.3f}, kernel {self.kernel})"

    @property
    def digest(self) -> str:
        """Digest of names and covariance, in name order: two spaces that differ in order alone are the same."""
        order = np.argsort(np.array(self.names))
        return digest([self.names[i] for i in order], np.ascontiguousarray(self.covariance[np.ix_(order, order)]))

    def interval(self, level: float = 0.95) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m m"]]:
        """Lower and upper end of a bootstrap interval for every covariance, each (m, m).

        The replicates' spread is laid around the covariance itself: replicates come from fewer samples, which shifts
        biased estimates.

        Args:
            level: the share of replicates between the ends, in (0, 1).

        Raises:
            BadInput: the space holds no replicates, or the level is out of range.
        """
        if self.replicates is None:
            raise BadInput("this task space holds no bootstrap replicates. Map the zoo with bootstrap=100.")
        if not 0 < level < 1:
            raise BadInput(f"the level is {level}; give a share between 0 and 1, such as 0.95.")
        tail = (1 - level) / 2
        spread = self.replicates - np.median(self.replicates, axis=0)
        low, high = np.quantile(spread, [tail, 1 - tail], axis=0)
        return self.covariance + low, self.covariance + high

    def subset(self, names: Sequence[str]) -> "TaskSpace":
        """The space of some checkpoints alone, in the order given.

        Raises:
            BadInput: an unknown name.
        """
        chosen = self._positions(names)
        grid = np.ix_(chosen, chosen)
        return TaskSpace(
            names=tuple(names),
            covariance=self.covariance[grid],
            replicates=None if self.replicates is None else self.replicates[:, chosen][:, :, chosen],
            kernel=self.kernel,
            probe=self.probe,
            features=tuple(self.features[i] for i in chosen) if self.features else (),
            seed=self.seed,
        )

    def linkage(self) -> Float[np.ndarray, "merges 4"]:
        """Ward linkage of the distances 1 - covariance with optimal leaf order, as scipy's ``linkage`` returns it.

        Raises:
            BadInput: fewer than two checkpoints.
        """
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform

        if len(self) < 2:
            raise BadInput("a tree needs at least two checkpoints.")
        distances = np.maximum(1 - (self.covariance + self.covariance.T) / 2, 0.0)
        np.fill_diagonal(distances, 0.0)
        return np.asarray(linkage(squareform(distances, checks=False), method="ward", optimal_ordering=True))

    def save(self, path: Path | str) -> None:
        """Writes an ``.npz`` without pickles.

        Raises:
            BadInput: the place cannot be written.
        """
        arrays: dict[str, Any] = {
            "names": np.array(self.names, dtype=np.str_),
            "covariance": np.asarray(self.covariance, dtype=np.float64),
            "kernel": np.array(self.kernel, dtype=np.str_),
            "probe": np.array(self.probe, dtype=np.str_),
            "features": np.array(self.features, dtype=np.str_),
            "seed": np.array(self.seed),
        }
        if self.replicates is not None:
            arrays["replicates"] = self.replicates
        with atomic_write(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path | str) -> "TaskSpace":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing, damaged or holds no task space.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                return cls(
                    names=tuple(str(name) for name in file["names"]),
                    covariance=np.asarray(file["covariance"], dtype=np.float64),
                    replicates=np.asarray(file["replicates"]) if "replicates" in file else None,
                    kernel=str(file["kernel"]) if "kernel" in file else "unknown",
                    probe=str(file["probe"]) if "probe" in file else "",
                    features=tuple(str(name) for name in file["features"]) if "features" in file else (),
                    seed=int(file["seed"]) if "seed" in file else 0,
                )
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files
            raise BadInput(f"{path} holds no task space ({error}). Give a file that `taskatlas map` wrote.") from error

    @classmethod
    def from_matrix(cls, path: Path | str, names: Path | str | None = None) -> "TaskSpace":
        """Reads a covariance from an ``.npy`` or ``.csv`` file and its names from a text file, one a line.

        A ``.csv`` may carry the names as its first row, with or without a column of names; ``names`` is then not
        needed.

        Raises:
            BadInput: a file is missing or damaged, or names and matrix do not fit.
        """
        path = Path(path)
        try:
            matrix, header = _read_npy(path) if path.suffix == ".npy" else _read_csv(path)
        except Exception as error:
            raise BadInput(f"{path} holds no matrix ({error}). Give an .npy or .csv file of numbers.") from error
        if names is not None:
            header = _read_names(Path(names))
        if header is None:
            raise BadInput(f"{path} names no checkpoints. Give a file with one name a line (--names).")
        if matrix.ndim != 2 or matrix.shape != (len(header), len(header)):
            raise BadInput(f"{path} holds a matrix of shape {matrix.shape} for {len(header)} names; they must fit.")
        try:
            return cls(names=tuple(header), covariance=matrix)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    def plot(self, ax: Any = None) -> Any:
        """Draws the tree beside the heat map, in leaf order, each name once; returns the axes of the heat map."""
        from taskatlas.space.drawing import draw_space

        return draw_space(self, ax)

    def _positions(self, names: Sequence[str]) -> list[int]:
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise BadInput(f"{unknown[0]!r} is not in the task space. There are: {', '.join(self.names[:8])} …")
        return [self.names.index(name) for name in names]


def check_covariance(covariance: Float[np.ndarray, "m n"], names: Sequence[str]) -> None:
    """Refuses what is no covariance of these checkpoints; whether it is positive definite is for its user to ask.

    Raises:
        BadInput: the wrong shape, NaN or infinite values, a variance that is not positive, or asymmetry beyond 1e-6.
    """
    m = len(names)
    if covariance.shape != (m, m):
        raise BadInput(f"the covariance has shape {covariance.shape}, but there are {m} checkpoints.")
    if not np.isfinite(covariance).all():
        i, j = np.argwhere(~np.isfinite(covariance))[0]
        raise BadInput(f"the covariance of {names[i]!r} and {names[j]!r} is {covariance[i, j]}; values must be finite.")
    difference = np.abs(covariance - covariance.T)
    if difference.max() > _ASYMMETRY:
        i, j = divmod(int(difference.argmax()), m)
        raise BadInput(
            f"the covariance is not symmetric: {covariance[i, j]:.6g} from {names[i]!r} to {names[j]!r}, and "
            f"{covariance[j, i]:.6g} back. Use (K + K.T) / 2 if that is meant."
        )
    variances = np.diagonal(covariance)
    if (variances <= 0).any():
        raise BadInput(
            f"the variance of {names[int(variances.argmin())]!r} is {variances.min():.3g}; it must be positive."
        )


def _read_names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read names from {path} ({error}). Give a text file with one name a line.") from error


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    matrix = np.load(path, allow_pickle=False)
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "fiu":
        raise ValueError(f"it holds {getattr(matrix, 'dtype', 'an archive')}")
    return matrix.astype(np.float64), None


def _read_csv(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """The matrix, and the names of its first row where that is not numbers."""
    import csv

    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets start a file with a byte order mark
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    if not rows:
        raise ValueError("it is empty")
    if all(_is_number(cell) for cell in rows[0]):
        return np.array(rows, dtype=np.float64), None
    header, body = rows[0], rows[1:]
    if body and all(len(row) == len(body) + 1 for row in body):
        header = header[-len(body) :]
        down = [row[0] for row in body]
        if down != header:
            raise ValueError(
                f"its first column names {', '.join(down[:3])} … and its first row {', '.join(header[:3])} …"
            )
        body = [row[1:] for row in body]
    return np.array(body, dtype=np.float64), header


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
