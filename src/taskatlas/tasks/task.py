"""A task: a label for every sample of a data set, by the samples' ids."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.probe.samples import coded_labels
from taskatlas.store import atomic_write, digest

LEAST = 0.05  # share of the samples that the smallest class of a task has at least, unless it is said otherwise


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """A way to divide samples into two classes or more.

    A task and its complement (the classes renamed) are one task to every score; a split follows the labels as they are.

    Attributes:
        name: what it is called.
        labels: (n,) classes from 0 on; at least two of them occur.
        ids: n names of the samples, unique.
        certainty: (n,) how far each sample is from the border, where that is known; larger is surer.
        note: where it comes from.

    Raises:
        BadInput: lengths that differ, ids that are not unique, a negative label, or a constant task.

    Example:
        >>> Task("odd", np.array([0, 1, 0, 1]), ("a", "b", "c", "d"))
        Task('odd', 4 samples, classes .500 .500)
    """

    name: str
    labels: Int64[np.ndarray, " n"]
    ids: tuple[str, ...]
    certainty: Float[np.ndarray, " n"] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        labels = self.labels
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(self.ids):
            raise BadInput(f"task {self.name!r} has labels of shape {labels.shape} for {len(self.ids)} samples.")
        if len(set(self.ids)) != len(self.ids):
            raise BadInput(f"task {self.name!r} has two labels for one sample; ids must be unique.")
        if self.certainty is not None and self.certainty.shape != labels.shape:
            raise BadInput(f"task {self.name!r} has {len(self.certainty)} certainties for {len(labels)} samples.")
        if len(labels) and labels.min() < 0:
            raise BadInput(f"task {self.name!r} has the label {labels.min()}; classes are numbered from 0 on.")
        if not len(labels) or labels.min() == labels.max():
            raise BadInput(f"task {self.name!r} is constant: it has one class. A task divides the samples.")

    @classmethod
    def of_probe(cls, name: str, probe: Probe, labels: Any = None) -> "Task":
        """A task over a probe's samples.

        Args:
            name: what it is called.
            probe: the samples.
            labels: integers, booleans or strings in the probe's order; None: the probe's own.

        Raises:
            BadInput: there are no labels, or they do not fit.

        Example:
            >>> Task.of_probe("kind", Probe.from_text(["a", "b"]), ["cat", "dog"]).labels
            array([0, 1])
        """
        given = probe.labels if labels is None else labels
        if given is None or probe.kind == "words":
            raise BadInput(f"the data has no label for each sample; task {name!r} needs them.")
        coded, _ = coded_labels(given)
        return cls(name, coded, probe.ids)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        rates = " ".join(f"{rate:.3f}".removeprefix("0") for rate in self.class_rates[:4])
        more = " …" if self.classes > 4 else ""
        return f"Task({self.name!r}, {len(self)} samples, classes {rates}{more})"

    @property
    def classes(self) -> int:
        """How many classes the labels count."""
        return int(self.labels.max()) + 1

    @property
    def class_rates(self) -> Float[np.ndarray, " classes"]:
        """The share of the samples in each class."""
        return np.bincount(self.labels) / len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Digest of the labels by id: neither the order of the samples nor the name matters."""
        order = np.array(sorted(range(len(self)), key=self.ids.__getitem__))
        return digest("task", [self.ids[row] for row in order], self.labels[order].astype("<i8"))

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def on(self, ids: Sequence[str]) -> Int64[np.ndarray, " n"]:
        """The labels of some samples, in the order of their ids.

        Raises:
            BadInput: a sample has no label in this task.
        """
        if tuple(ids) == self.ids:
            return self.labels
        return self.labels[self.rows_of(ids)]

    def rows_of(self, ids: Sequence[str]) -> Int64[np.ndarray, " n"]:
        """Where some samples stand among this task's.

        Raises:
            BadInput: a sample has no label in this task.
        """
        rows = [self._rows.get(name, -1) for name in ids]
        if -1 in rows:
            missing = [name for name, row in zip(ids, rows, strict=True) if row < 0]
            raise BadInput(
                f"task {self.name!r} has no label for {len(missing)} of {len(rows)} samples, such as {missing[0]!r} "
                f"(its own ids are like {self.ids[0]!r}). Are the task and the data of the same samples?"
            )
        return np.array(rows, dtype=np.int64)

    def among(self, ids: Sequence[str]) -> "Task":
        """The same task on some of its samples, in the order of their ids.

        Raises:
            BadInput: a sample has no label in this task, or the task is constant on these.
        """
        rows = self.rows_of(ids)
        certainty = None if self.certainty is None else self.certainty[rows]
        return Task(self.name, self.labels[rows], tuple(ids), certainty, self.note)

    def complement(self) -> "Task":
        """The same task with its classes renamed in reverse order."""
        return Task(self.name, self.classes - 1 - self.labels, self.ids, self.certainty, self.note)

    def save(self, path: Path | str) -> None:
        """Writes a CSV with the columns ``id``, the task's name and, where it is known, ``certainty``.

        Raises:
            BadInput: the place cannot be written.
        """
        columns: list[Sequence[Any]] = [self.ids, self.labels.tolist()]
        if self.certainty is not None:
            columns.append([repr(value) for value in self.certainty.tolist()])
        with atomic_write(Path(path)) as file, file.open("w", newline="", encoding="utf-8") as text:
            rows = csv.writer(text)
            rows.writerow(["id", self.name, "certainty"][: len(columns)])
            rows.writerows(zip(*columns, strict=True))

    @classmethod
    def load(cls, path: Path | str) -> "Task":
        """A task that ``save`` wrote.

        Raises:
            BadInput: the file is no such table.

        Example:
            >>> import tempfile
            >>> task = Task("odd", np.array([0, 1]), ("a", "b"))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     task.save(Path(folder) / "odd.csv")
            ...     Task.load(Path(folder) / "odd.csv").digest == task.digest
            True
        """
        from taskatlas.tasks.task_files import read_tasks

        return read_tasks(path)[0]


def least_rate(classes: int) -> float:
    """The share of the samples that each of some classes has at least: a twentieth, or half of its even share if less.

    Example:
        >>> least_rate(2), least_rate(25)
        (0.05, 0.02)
    """
    return min(LEAST, 0.5 / classes)


def check_class_rates(task: Task, least: float | None = None) -> None:
    """Refuses a task that is nearly constant: agreement on it says nothing, for a constant task has agreement 1.

    Args:
        task: the task.
        least: the least share of a class; None: ``least_rate`` of its classes.

    Raises:
        BadInput: a class has less than the share ``least`` of the samples, or ``least`` leaves no room for its classes.

    Example:
        >>> check_class_rates(Task("rare", np.arange(100) // 99, tuple(map(str, range(100)))))
        Traceback (most recent call last):
        ...
        taskatlas.errors.BadInput: task 'rare' is nearly constant: class 1 has 1.0 % of the samples, ...
    """
    least = least_rate(task.classes) if least is None else least
    if not 0 <= least <= 1 / task.classes:
        raise BadInput(
            f"a least class rate of {least} cannot be kept by {task.classes} classes; give 0 to {1 / task.classes:.3g}."
        )
    rates = task.class_rates
    if rates.min() < least:
        raise BadInput(
            f"task {task.name!r} is nearly constant: class {rates.argmin()} has {100 * rates.min():.1f} % of the "
            f"samples, and the least is {100 * least:.3g} %. Leave the task out, or lower the least class rate."
        )
