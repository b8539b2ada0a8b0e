"""How alike tasks are: the share of samples on which they agree when classes are renamed, and mutual information."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from taskatlas.errors import BadInput
from taskatlas.tasks.task import Task


def similarity(one: Task, other: Task) -> float:
    """The share of samples on which two tasks agree, with the classes of one renamed so that it is largest.

    For two binary tasks max(s, 1 − s) with s the plain share of agreement (Atanov et al., NeurIPS 2022, section 3.2):
    .5 for unrelated balanced tasks, 1 for a task and its complement.

    Raises:
        BadInput: the tasks are of other samples.

    Example:
        >>> task = Task("odd", np.array([0, 1, 0, 1]), ("a", "b", "c", "d"))
        >>> similarity(task, task.complement())
        1.0
    """
    table = _contingency(one, other)
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / table.sum())


def adjusted_mutual_information(one: Task, other: Task) -> float:
    """Mutual information of two tasks, adjusted so that it is 0 on average for unrelated ones and 1 for the same.

    Vinh, Epps and Bailey (JMLR 2010), with the mean of the entropies.

    Raises:
        BadInput: the tasks are of other samples.

    Example:
        >>> task = Task("odd", np.array([0, 1, 0, 1]), ("a", "b", "c", "d"))
        >>> adjusted_mutual_information(task, task.complement())
        1.0
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(one.labels, _same_samples(one, other)))


def similarity_matrix(tasks: Sequence[Task], others: Sequence[Task] | None = None) -> Float[np.ndarray, "tasks others"]:
    """``similarity`` of every pair; of the tasks among themselves where there are no others.

    Raises:
        BadInput: tasks of other samples.

    Example:
        >>> ids = ("a", "b", "c", "d")
        >>> similarity_matrix([Task("odd", np.array([0, 1, 0, 1]), ids), Task("late", np.array([0, 0, 1, 1]), ids)])
        array([[1. , 0.5],
               [0.5, 1. ]])
    """
    if others is not None:
        return np.array([[similarity(one, other) for other in others] for one in tasks]).reshape(len(tasks), -1)
    found = np.eye(len(tasks))
    for i, one in enumerate(tasks):
        for j in range(i):
            found[i, j] = found[j, i] = similarity(one, tasks[j])
    return found


def mean_similarity(tasks: Sequence[Task]) -> float:
    """The mean of ``similarity`` over all pairs of different tasks; NaN for a single one."""
    pairs = similarity_matrix(tasks)[np.triu_indices(len(tasks), 1)]
    return float(pairs.mean()) if len(pairs) else float("nan")


def _contingency(one: Task, other: Task) -> np.ndarray:
    labels = _same_samples(one, other)
    table = np.zeros((one.classes, other.classes))
    np.add.at(table, (one.labels, labels), 1)
    return table


def _same_samples(one: Task, other: Task) -> np.ndarray:
    """The other's labels in the order of the first one's samples."""
    if len(one) != len(other):
        raise BadInput(f"task {one.name!r} has {len(one)} samples and {other.name!r} has {len(other)}.")
    return other.on(one.ids)
