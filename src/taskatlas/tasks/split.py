"""A split of a data set: which samples a network learns from, which it is tested on, and how that came about."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.store import atomic_write, digest
from taskatlas.tasks.task import Task

TRAIN, TEST, RESERVED, UNUSED = range(4)
PARTS = ("train", "test", "reserved", "unused")


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Samples in a train, a test and a reserved part; a scikit-learn splitter with one fold.

    Attributes:
        name: what it is called.
        ids: n names of the samples, unique.
        parts: (n,) 0 train, 1 test, 2 reserved (for validation, never touched), 3 in none.
        target: (n,) the classes that a network is to learn.
        how: how it was made, as plain values.

    Raises:
        BadInput: lengths that differ, ids that are not unique, an unknown part, or an empty train or test part.

    Example:
        >>> split = Split("half", ("a", "b", "c", "d"), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
        >>> split
        Split('half', 2 train, 2 test)
        >>> [(train.tolist(), test.tolist()) for train, test in split.split(np.zeros((4, 2)))]
        [([0, 1], [2, 3])]
    """

    name: str
    ids: tuple[str, ...]
    parts: Int64[np.ndarray, " n"]
    target: Int64[np.ndarray, " n"]
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.parts.shape != (n,) or self.target.shape != (n,):
            raise BadInput(
                f"split {self.name!r} has {len(self.parts)} parts and {len(self.target)} targets for {n} ids."
            )
        if len(set(self.ids)) != n:
            raise BadInput(f"split {self.name!r} names a sample twice; ids must be unique.")
        if n and not 0 <= self.parts.min() <= self.parts.max() <= UNUSED:
            raise BadInput(f"split {self.name!r} has a part that is none of 0 (train) to 3 (unused).")
        for part in (TRAIN, TEST):
            if not (self.parts == part).any():
                raise BadInput(f"split {self.name!r} has no {PARTS[part]} samples; give each part some.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        reserved = f", {len(self.reserved)} reserved" if len(self.reserved) else ""
        return f"Split({self.name!r}, {len(self.train)} train, {len(self.test)} test{reserved})"

    @property
    def train(self) -> Int64[np.ndarray, " train"]:
        """Positions of the training samples."""
        return np.flatnonzero(self.parts == TRAIN)

    @property
    def test(self) -> Int64[np.ndarray, " test"]:
        """Positions of the test samples."""
        return np.flatnonzero(self.parts == TEST)

    @property
    def reserved(self) -> Int64[np.ndarray, " reserved"]:
        """Positions of the samples that are kept for validation."""
        return np.flatnonzero(self.parts == RESERVED)

    @property
    def digest(self) -> str:
        """Digest of the parts and targets by id; the order of the samples does not matter."""
        order = sorted(range(len(self)), key=self.ids.__getitem__)
        return digest("split", [self.ids[row] for row in order], self.parts[order], self.target[order])

    def split(self, X: Any = None, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # noqa: ARG002
        """Yields (train, test) positions, as scikit-learn's splitters do.

        Raises:
            BadInput: X has another number of samples than the split.
        """
        rows = len(self) if X is None else X.shape[0] if hasattr(X, "shape") else len(X)
        if rows != len(self):
            raise BadInput(f"split {self.name!r} is of {len(self)} samples and X has {rows}; give the same, in order.")
        yield self.train, self.test

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002
        """1, as scikit-learn's splitters say."""
        return 1

    def rows_of(self, ids: Sequence[str], part: int = TRAIN) -> Int64[np.ndarray, " rows"]:
        """Which of some samples, by their ids, are in a part; what the split does not know is in none.

        Example:
            >>> Split("half", ("a", "b"), np.array([0, 1]), np.array([0, 1])).rows_of(["b", "c", "a"])
            array([2])
        """
        chosen = {self.ids[row] for row in np.flatnonzero(self.parts == part)}
        return np.array([row for row, name in enumerate(ids) if name in chosen], dtype=np.int64)

    def subsets(self, dataset: Any, ids: Sequence[str] | None = None) -> tuple[Any, Any]:
        """The train and test part of a data set as ``torch.utils.data.Subset``.

        Args:
            dataset: of the split's samples, in its order.
            ids: of the data set's samples, where its order or its samples are others.

        Raises:
            BadInput: a data set of another length.
        """
        from torch.utils.data import Subset

        if ids is None and len(dataset) != len(self):
            raise BadInput(
                f"split {self.name!r} is of {len(self)} samples and the data set has {len(dataset)}; give its ids."
            )
        rows = [(self.train, self.test)] if ids is None else [(self.rows_of(ids), self.rows_of(ids, TEST))]
        train, test = rows[0]
        return Subset(dataset, train.tolist()), Subset(dataset, test.tolist())

    def probes(self, data: Probe) -> dict[str, Probe]:
        """The parts of samples, by name, each with the split's target as its labels.

        A bare partition, which has no target, leaves the data's own labels; and where the target is the data's own
        classes these keep their names.

        Raises:
            BadInput: no sample of a part is in the data.
        """
        place = {name: row for row, name in enumerate(self.ids)}
        found = {}
        for part in (TRAIN, TEST, RESERVED):
            rows = self.rows_of(data.ids, part)
            if not len(rows) and part != RESERVED:
                raise BadInput(
                    f"split {self.name!r} has no {PARTS[part]} sample in common with the data: its ids are like "
                    f"{self.ids[0]!r} and the data's like {data.ids[0]!r}."
                )
            if len(rows):
                own = data.take(rows)
                labels = self.target[[place[name] for name in own.ids]]
                if own.labels is None or (self.target.any() and not np.array_equal(own.labels, labels)):
                    own = Probe(own.kind, own.inputs, own.ids, labels)
                found[PARTS[part]] = own
        return found

    def add_column(self, dataset: Any, id_column: str | None = None, name: str = "split") -> Any:
        """A Hugging Face data set with a column that says each row's part.

        Args:
            dataset: a ``datasets.Dataset``.
            id_column: of the samples' ids; None: the rows are in the split's order.
            name: of the new column.

        Raises:
            BadInput: rows that the split does not know.
        """
        if id_column is None and len(dataset) != len(self):
            raise BadInput(f"split {self.name!r} is of {len(self)} samples and the data set has {len(dataset)} rows.")
        part_of = dict(zip(self.ids, self.parts.tolist(), strict=True))
        ids = self.ids if id_column is None else [str(one) for one in dataset[id_column]]
        unknown = next((one for one in ids if one not in part_of), None)
        if unknown is not None:
            raise BadInput(f"split {self.name!r} does not know the sample {unknown!r} of column {id_column!r}.")
        return dataset.add_column(name, [PARTS[part_of[one]] for one in ids])

    def manifest(self) -> dict[str, Any]:
        """How the split was made, its sizes, and each class's share of each part, as plain values.

        Example:
            >>> split = Split("half", ("a", "b", "c", "d"), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
            >>> split.manifest()["class_shares"]["train"]
            [0.5, 0.5]
        """
        classes = int(self.target.max()) + 1
        rows = {name: np.flatnonzero(self.parts == part) for part, name in enumerate(PARTS)}
        return {
            "name": self.name,
            "samples": len(self),
            "digest": self.digest,
            "how": dict(self.how),
            "sizes": {name: len(those) for name, those in rows.items()},
            "class_shares": {
                name: (np.bincount(self.target[those], minlength=classes) / len(those)).tolist()
                for name, those in rows.items()
                if len(those)
            },
        }

    def save(self, path: Path | str) -> None:
        """Writes ``.npz`` (positions ``train``, ``test``, ``reserved``; ids, target, manifest) or ``.csv`` (id, part).

        The CSV has the columns id, part and target, and no record of how the split was made.

        Raises:
            BadInput: another ending, or a place that cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".npz", ".csv"):
            raise BadInput(f"{path} cannot hold a split; let the name end in .npz or .csv.")
        with atomic_write(path) as file:
            if path.suffix == ".csv":
                self._write_csv(file)
                return
            np.savez_compressed(
                file,
                train=self.train,
                test=self.test,
                reserved=self.reserved,
                ids=np.array(self.ids),
                target=self.target,
                manifest=np.array(json.dumps(self.manifest())),
            )

    @classmethod
    def load(cls, path: Path | str) -> "Split":
        """A split that ``save`` wrote.

        Raises:
            BadInput: the file is no such split.
        """
        from taskatlas.tasks.split_files import read_split

        return read_split(Path(path))

    def save_group_dro(self, path: Path | str) -> None:
        """Writes ``image_id,partition`` with 0 train, 1 validation (reserved), 2 test, as group_DRO's CelebA reads it.

        Raises:
            BadInput: the place cannot be written.
        """
        number = {TRAIN: 0, RESERVED: 1, TEST: 2}
        with atomic_write(Path(path)) as file, file.open("w", newline="", encoding="utf-8") as text:
            rows = csv.writer(text)
            rows.writerow(["image_id", "partition"])
            rows.writerows(
                (name, number[part]) for name, part in zip(self.ids, self.parts.tolist(), strict=True) if part in number
            )

    def plot(self, ax: Any = None) -> Any:
        """Draws each class's share of each part; returns the matplotlib axes."""
        from taskatlas.tasks.drawing import draw_split

        return draw_split(self, ax)

    def _write_csv(self, file: Path) -> None:
        with file.open("w", newline="", encoding="utf-8") as text:
            rows = csv.writer(text)
            rows.writerow(["id", "part", "target"])
            parts = [PARTS[part] for part in self.parts.tolist()]
            rows.writerows(zip(self.ids, parts, self.target.tolist(), strict=True))


def as_task(split: Split) -> Task:
    """The split's target as a task.

    Example:
        >>> as_task(Split("half", ("a", "b"), np.array([0, 1]), np.array([0, 1])))
        Task('half target', 2 samples, classes .500 .500)
    """
    return Task(f"{split.name} target", split.target, split.ids)
