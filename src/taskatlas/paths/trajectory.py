"""A run as a path: what a model said about the same samples at each of its snapshots."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from taskatlas.errors import BadInput
from taskatlas.paths.importers import Kind, hdf5_as_run, read_npz
from taskatlas.paths.length import Step, length_ratio, step_lengths
from taskatlas.paths.pairwise import BLOCK, pieces, sample_slices
from taskatlas.paths.progress import check_truth, cosines_of_path, nearest
from taskatlas.paths.reindex import Regression, check_grid, find_regressions, first_passage, points_of_passage
from taskatlas.paths.simplex import TOLERANCE, Labels, Truth, check_labels
from taskatlas.paths.trajectory_file import read_run, write_run
from taskatlas.store import Store, digest


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """Log-probabilities of one run on a fixed probe, snapshot by snapshot.

    Runs that share a name are seeds of one task. Loaded from a file, ``log_probs`` stays on disk, and what is measured
    reads it in blocks.

    Attributes:
        name: of the run, or of its task.
        log_probs: (T, N, C) natural logarithms of probabilities, float32; minus infinity for what is ruled out.
        steps: (T,) training steps (or epochs) of the snapshots, strictly increasing.
        ids: N names of the samples, unique, kept as strings; runs are compared only where these agree.
        labels: (N,) true classes, where they are known.
        probe: digest of the probe that was predicted, where it is known.
        note: how this path was made, where it was not recorded, or what is missing of a record.

    Raises:
        BadInput: shapes that do not fit, a row that is no probability (the message names run, step and sample), steps
            that do not increase, ids that are not unique, or a label out of range.

    Example:
        >>> run = Trajectory("a", np.log(np.array([[[0.5, 0.5]], [[0.1, 0.9]]])), [0, 10], ["x"], [1])
        >>> run
        Trajectory('a', 2 snapshots from step 0 to 10, 1 samples, 2 classes)
        >>> run.progress().round(4)
        array([0.    , 0.5903])
    """

    name: str
    log_probs: Any
    steps: Any
    ids: Sequence[Any]
    labels: Any = None
    probe: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        log_probs = np.asarray(self.log_probs)
        if log_probs.ndim != 3 or 0 in log_probs.shape or log_probs.dtype.kind != "f":
            raise BadInput(
                f"run {self.name!r}: log-probabilities have the shape (steps, samples, classes), "
                f"not {log_probs.shape} of {log_probs.dtype}."
            )
        if log_probs.dtype == np.float16:
            raise BadInput(f"run {self.name!r}: float16 is too coarse for distances. Record in float32.")
        snapshots, samples, classes = log_probs.shape
        labels = None
        if self.labels is not None:
            try:
                labels = check_labels(np.array(self.labels), samples, classes).numpy()
            except BadInput as error:
                raise BadInput(f"run {self.name!r}: {error}") from error
        fields = {
            "log_probs": _read_only(log_probs.astype(np.float32, copy=False)),
            "steps": _read_only(_checked_steps(self.name, self.steps, snapshots)),
            "ids": _checked_ids(self.name, self.ids, samples),
            "labels": None if labels is None else _read_only(labels),
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)
        self._check_rows()

    def __repr__(self) -> str:
        snapshots, samples, classes = self.log_probs.shape
        note = f"; {self.note}" if self.note else ""
        return (
            f"Trajectory({self.name!r}, {snapshots} snapshots from step {self.steps[0]:g} to {self.steps[-1]:g}, "
            f"{samples} samples, {classes} classes{note})"
        )

    def __len__(self) -> int:
        return len(self.log_probs)

    @property
    def digest(self) -> str:
        """Digest of everything it holds but the note."""
        return digest("trajectory", self.name, list(self.log_probs), self.steps, self.ids, self.labels, self.probe)

    @classmethod
    def from_npz(
        cls,
        path: Path | str,
        *,
        name: str | None = None,
        predictions: str | None = None,
        kind: Kind | None = None,
    ) -> "Trajectory":
        """Reads a NumPy archive: ``log_probs``, ``probs`` or ``logits`` (T, N, C), and ``steps``, ``labels``, ``ids``.

        Args:
            path: the archive.
            name: of the run; the file's name where there is none.
            predictions: which array holds the predictions, where it has another name.
            kind: what that array holds: log_probs, probs or logits.

        Raises:
            BadInput: no such file, no archive, or no predictions in it; and as the class.
        """
        return cls(name=name or _stem(path), **read_npz(Path(path), predictions, kind))

    @classmethod
    def from_hdf5(
        cls,
        path: Path | str,
        *,
        name: str | None = None,
        predictions: str | None = None,
        kind: Kind | None = None,
        store: Store | None = None,
    ) -> "Trajectory":
        """Reads an HDF5 file with the data sets that ``from_npz`` expects; needs h5py.

        Predictions larger than memory are no matter: they are converted block by block into a run's file in the store,
        once, and mapped into memory from there.

        Args:
            path: the file.
            name: of the run; the file's name where there is none.
            predictions: which data set holds the predictions, where it has another name.
            kind: what that data set holds: log_probs, probs or logits.
            store: where the converted run is kept; None: the user's store.

        Raises:
            BadInput: no such file, no HDF5, or no predictions in it; and as the class.
            MissingExtra: h5py is not installed.
        """
        fields = read_run(hdf5_as_run(Path(path), predictions, kind, store or Store.default()))
        return cls(**fields | {"name": name or _stem(path)})

    def save(self, path: Path | str) -> None:
        """Writes a safetensors file: the arrays, and the rest as its metadata.

        Raises:
            BadInput: the place cannot be written.
        """
        write_run(
            Path(path),
            (self.log_probs[steps, some] for steps, some in pieces(self.log_probs.shape)),
            self.log_probs.shape,
            name=self.name,
            steps=self.steps,
            ids=self.ids,
            labels=self.labels,
            probe=self.probe,
            note=self.note,
        )

    @classmethod
    def load(cls, path: Path | str, *, names: Mapping[str, str] = MappingProxyType({})) -> "Trajectory":
        """Reads what ``save`` wrote; the log-probabilities stay on disk, mapped into memory.

        Args:
            path: the file.
            names: what to call a run instead of what its file says, by that.

        Raises:
            BadInput: the file is missing, cut short, or no trajectory; and as the class.
        """
        fields = read_run(Path(path))
        return cls(**fields | {"name": names.get(fields["name"], fields["name"])})

    def probabilities(self, samples: slice = slice(None)) -> Float[np.ndarray, "steps samples classes"]:
        """(T, N, C) probabilities, of some of the samples where wanted, float32."""
        probs: np.ndarray = np.exp(self.log_probs[:, samples])
        return probs

    def take(self, ids: Sequence[str]) -> "Trajectory":
        """The same run on these samples, in this order: how runs on different samples are made comparable.

        Raises:
            BadInput: a sample that the run does not have.
        """
        rows = {name: row for row, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in rows]
        if missing:
            raise BadInput(f"run {self.name!r} has no sample {missing[0]!r} ({len(missing)} of {len(ids)} missing).")
        chosen = [rows[name] for name in ids]
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, log_probs=self.log_probs[:, chosen], ids=tuple(ids), labels=labels, probe=None)

    def truth(self, truth: Truth | None = None) -> Truth:
        """The truth that is given, or else the run's own labels.

        Raises:
            BadInput: neither is there.
        """
        found = self.labels if truth is None else np.asarray(truth)
        if found is None:
            raise BadInput(f"run {self.name!r} has no labels. Give the truth: one label a sample.")
        checked: np.ndarray = found
        return checked

    def accuracy(self, truth: Labels | None = None) -> Float[np.ndarray, " steps"]:
        """Share of the samples whose likeliest class is the true one, at each snapshot.

        Raises:
            BadInput: no labels, or labels that do not fit.
        """
        labels = check_labels(self.truth(truth), *self.log_probs.shape[1:]).numpy()
        right = np.zeros(len(self), dtype=np.int64)
        for steps, some in pieces(self.log_probs.shape):
            right[steps] += (self.log_probs[steps, some].argmax(-1) == labels[some]).sum(-1)
        return right / len(labels)

    def progress(self, truth: Truth | None = None) -> Float[np.ndarray, " steps"]:
        """Progress of each snapshot from ignorance (0) to the truth (1), float64; see ``progress``.

        Args:
            truth: labels, or probabilities; the run's own labels where there are none.

        Raises:
            BadInput: no truth, or one that does not fit.
        """
        found = self.truth(truth)
        check_truth(found, *self.log_probs.shape[1:])
        together = max(1, BLOCK // self.log_probs[0].size)
        blocks = (self.log_probs[first : first + together] for first in range(0, len(self), together))
        return np.concatenate([nearest(*cosines_of_path(block, found)).numpy() for block in blocks])

    def regressions(self, truth: Truth | None = None) -> tuple[Regression, ...]:
        """Stretches in which progress lies below the best so far: what re-indexing by first passage skips.

        Raises:
            BadInput: as ``progress``.
        """
        return find_regressions(self.progress(truth), self.steps)

    def resample(
        self,
        grid: Sequence[float | int] | Float[np.ndarray, " grid"],
        truth: Truth | None = None,
    ) -> "Trajectory":
        """The run re-indexed by progress: one snapshot for each value of the grid, by first passage.

        For each value, the first snapshot that has reached it is found, and the point on the geodesic from the snapshot
        before which has just this progress. Where progress falls back, the run is skipped until it is past its best
        again; the note says how often and how deep, ``regressions`` says where.

        Args:
            grid: values of progress, increasing, within what the run passes through.
            truth: as ``progress``.

        Returns:
            A run whose progress is the grid and whose steps lie between the recorded ones.

        Raises:
            BadInput: a value that the run never passes through; the message says from where to where it goes.
        """
        found = self.truth(truth)
        reached = self.progress(found)
        values = check_grid(np.asarray(grid, dtype=np.float64), reached, self.name)
        passage = first_passage(self.log_probs, self.steps, reached, values, found)
        _, samples, classes = self.log_probs.shape
        log_probs = np.empty((len(values), samples, classes), dtype=np.float32)
        with np.errstate(divide="ignore"):
            for some in sample_slices(samples, len(values) * classes, BLOCK):
                log_probs[:, some] = 2 * np.log(points_of_passage(self.log_probs, passage, some))
        fallen = find_regressions(reached, self.steps)
        note = "re-indexed by progress (first passage)"
        if fallen:
            deepest = max(fallen, key=lambda regression: regression.depth)
            note += (
                f", {len(fallen)} regressions skipped, the deepest by {deepest.depth:.3f} after step {deepest.start:g}"
            )
        return replace(self, log_probs=log_probs, steps=passage.steps, note=note)

    def step_lengths(self, step: Step = "angle") -> Float[np.ndarray, " transitions"]:
        """Fisher length of each step between snapshots, (T - 1,); see ``step_lengths``."""
        return np.array([self._distance(t, t + 1, step) for t in range(len(self) - 1)])

    def length(self, step: Step = "angle") -> float:
        """Fisher length of the whole path; see ``path_length``."""
        return float(self.step_lengths(step).sum())

    def tortuosity(self, length: float | None = None) -> float:
        """Length over the length of the geodesic between the ends; see ``tortuosity``. A length that is known helps."""
        return length_ratio(self.length() if length is None else length, self._distance(0, len(self) - 1))

    def plot(self, ax: Any = None) -> Any:
        """Draws progress (left) and accuracy, both from 0 to 1, against steps.

        Raises:
            BadInput: the run has no labels.
        """
        from taskatlas.paths.drawing import draw_run

        return draw_run(self, ax)

    def _distance(self, first: int, second: int, step: Step = "angle") -> float:
        """Fisher length of the step between two snapshots: its square is a mean over samples, so blocks add up."""
        _, samples, classes = self.log_probs.shape
        square = 0.0
        for some in sample_slices(samples, classes, BLOCK // 2):
            both = np.exp(self.log_probs[[first, second], some].astype(np.float64))
            square += float(step_lengths(both, step=step)[0]) ** 2 * both.shape[1] / samples
        return float(np.sqrt(square))

    def _check_rows(self) -> None:
        for steps, some in pieces(self.log_probs.shape):
            block = self.log_probs[steps, some]
            sums = np.exp(block.astype(np.float64)).sum(-1)
            bad = np.argwhere(~(np.abs(sums - 1) <= TOLERANCE))
            if len(bad):
                step, sample = bad[0]
                name = self.ids[some.start + sample]
                where = f"run {self.name!r}, step {self.steps[steps.start + step]:g}, sample {name!r}"
                if np.isnan(block[step, sample]).any():
                    raise BadInput(f"{where}: a log-probability is NaN. Did the run diverge?")
                raise BadInput(
                    f"{where}: the probabilities sum to {sums[step, sample]:.5g}. Give a softmax of the logits or its "
                    "logarithm, whichever is asked for."
                )


def truth_of(runs: Sequence[Trajectory], truth: Truth | None = None) -> Truth | None:
    """The truth that is given, or else the first labels that a run carries; None where there are neither."""
    return next((run.labels for run in runs if run.labels is not None), None) if truth is None else np.asarray(truth)


def check_same_samples(runs: Sequence[Trajectory]) -> None:
    """Refuses runs that were not recorded on the same samples in the same order, with the same classes and labels.

    Samples without names of their own are all called 0, 1, 2, ...: where both probes are known, these have to agree.

    Raises:
        BadInput: names the two runs that differ, and how to make them comparable.
    """
    first = runs[0]
    labelled = next((run for run in runs if run.labels is not None), first)
    known = next((run for run in runs if run.probe is not None), first)
    for run in runs[1:]:
        if run.ids != first.ids:
            common = len(set(run.ids) & set(first.ids))
            how = "in another order" if common == len(first.ids) == len(run.ids) else f"with {common} in common"
            raise BadInput(
                f"runs {first.name!r} and {run.name!r} were recorded on other samples ({len(first.ids)} and "
                f"{len(run.ids)}, {how}). Bring both to common ids with Trajectory.take(ids)."
            )
        if run.log_probs.shape[2] != first.log_probs.shape[2]:
            raise BadInput(
                f"runs {first.name!r} and {run.name!r} have {first.log_probs.shape[2]} and {run.log_probs.shape[2]} "
                "classes. Put them on one label set first, for example by imprinting."
            )
        if run.labels is not None and (labelled.labels != run.labels).any():
            raise BadInput(
                f"runs {labelled.name!r} and {run.name!r} carry other labels for the same samples. Give both the true "
                "labels; what a run was trained on does not belong here."
            )
        if run.probe is not None and run.probe != known.probe:
            raise BadInput(
                f"runs {known.name!r} and {run.name!r} were recorded on different probes whose samples have the same "
                "ids. Record both on one; if only its labels were others, Trajectory.take(ids) lets them be compared."
            )


def _checked_steps(name: str, steps: Any, snapshots: int) -> np.ndarray:
    found = np.array(steps)
    if found.shape != (snapshots,) or found.dtype.kind not in "iuf":
        raise BadInput(f"run {name!r}: {found.shape} steps do not fit {snapshots} snapshots. Give one number for each.")
    if not (np.isfinite(found).all() and (np.diff(found.astype(np.float64)) > 0).all()):
        raise BadInput(f"run {name!r}: the steps do not increase. Sort the snapshots, and keep one of those alike.")
    return found


def _checked_ids(name: str, ids: Sequence[Any], samples: int) -> tuple[str, ...]:
    found = tuple(str(sample) for sample in ids)
    if len(found) != samples:
        raise BadInput(f"run {name!r}: {len(found)} ids do not fit {samples} samples. Give one id a sample.")
    if len(set(found)) != samples:
        twice = next(sample for sample, times in Counter(found).items() if times > 1)
        raise BadInput(f"run {name!r}: two samples have the id {twice!r}. Ids name samples, so no two are alike.")
    return found


def _read_only(values: np.ndarray) -> np.ndarray:
    view = values.view()
    view.flags.writeable = False
    return view


def _stem(path: Path | str) -> str:
    return Path(path).name.split(".")[0]
