"""Tasks and targets as a person names them on a command line."""

from pathlib import Path
from typing import Any

from taskatlas.errors import BadInput
from taskatlas.probe import Probe, class_names
from taskatlas.tasks.adversarial import group_target, halving_tasks
from taskatlas.tasks.files import AGREEMENT
from taskatlas.tasks.samples import Learner
from taskatlas.tasks.split_files import read_class_groups
from taskatlas.tasks.task import Task
from taskatlas.tasks.task_files import CERTAINTY, TASKS, read_tasks
from taskatlas.tasks.task_sets import class_group_task, human_tasks, random_tasks, untrained_tasks

HALVES = "halves"
_FEW = 4  # tasks, where no number is given


def open_tasks(
    said: str, data: Probe, learner: Learner = "mlp", *, size: int | None = None, seed: int = 0, device: str = "cpu"
) -> list[Task]:
    """Tasks on the samples of a data set.

    ``human``, ``random`` or ``untrained``, each with ``:N`` for another number than 4; a CSV with a column a task, or a
    folder that holds tasks.csv, with ``:COLUMN`` for one of them; an .npy with groups of classes.

    Raises:
        BadInput: nothing of these, or no label for some sample.

    Example:
        >>> import numpy as np
        >>> open_tasks("human:2", Probe.from_arrays(np.zeros((4, 1)), labels=[0, 1, 2, 3]))[1].name
        '0+2'
    """
    kind, count = _counted(said)
    if kind == "human":
        return human_tasks(data, count)
    if kind == "random":
        return random_tasks(data, count, seed=seed)
    if kind == "untrained":
        return untrained_tasks(learner, data, count, size=size, seed=seed, device=device)
    if kind == HALVES:
        raise BadInput("halves:N are tasks for `taskatlas split` alone; write untrained:N.")
    path, column = _place(said)
    if path.suffix == ".npy":
        return [class_group_task(data, group) for group in read_class_groups(path, len(class_names(data)))]
    return [task.among(data.ids) for task in read_tasks(path, None if column is None else [column])]


def scores_of(said: str) -> Path | None:
    """The file of agreement scores beside the tasks of a folder; None where there is none.

    Example:
        >>> scores_of("human:3")
    """
    path = _place(said)[0] / AGREEMENT
    return path if path.is_file() else None


def open_halves(said: str, target: Task, learner: Learner, data: Probe, **settings: Any) -> list[Task] | None:
    """The tasks of ``halves:N``, by untrained networks that halve each class; None where something else is said.

    Args:
        said: by a person.
        target: that is to be split.
        learner: how a network is built.
        data: the samples.
        **settings: as ``halving_tasks``.

    Raises:
        BadInput: no number, or as ``halving_tasks``.
    """
    kind, count = _counted(said)
    return halving_tasks(target, learner, data, count, **settings) if kind == HALVES else None


def files_of(*said: str | None) -> list[Path]:
    """The files that things named by a person are read from: FILE, FILE:WHAT, or the tables of tasks in a folder.

    Example:
        >>> files_of("human:3", None, "cat,dog")
        []
    """
    places = [_place(one)[0] for one in said if one is not None]
    inside = [place / name for place in places if place.is_dir() for name in (TASKS, CERTAINTY)]
    return [place for place in [*places, *inside] if place.is_file()]


def open_target(said: str | None, data: Probe) -> Task:
    """A two-way target: classes separated by commas against the rest, or FILE:COLUMN; None: half of the classes.

    Raises:
        BadInput: an unknown class or column.

    Example:
        >>> open_target("cat,eel", Probe.from_text(["a", "b", "c"], labels=["cat", "dog", "eel"])).labels
        array([1, 0, 1])
    """
    if said is None:
        return group_target(data)
    path, column = _place(said)
    if column is not None or path.is_file():
        return read_tasks(path, None if column is None else [column])[0].among(data.ids)
    return group_target(data, [one.strip() for one in said.split(",") if one.strip()])


def _counted(said: str) -> tuple[str | None, int]:
    """The kind of task that is meant and how many, where no file is."""
    kind, _, after = said.partition(":")
    if kind not in ("human", "random", "untrained", HALVES) or Path(said).exists():
        return None, 0
    if after and not (after.isascii() and after.isdigit() and int(after)):
        raise BadInput(f"{said!r} names no number of tasks. Write, for example, {kind}:8.")
    return kind, int(after) if after else _FEW


def _place(said: str) -> tuple[Path, str | None]:
    """A path, and the column of it that is meant, if one is."""
    if Path(said).exists():
        return Path(said), None
    path, colon, column = said.rpartition(":")
    if colon and Path(path).exists():
        return Path(path), column
    return Path(said), None
