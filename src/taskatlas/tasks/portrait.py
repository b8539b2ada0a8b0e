"""What is this task? Its surest samples, the known labels that it resembles, and what of a sample it goes by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from taskatlas.errors import BadInput
from taskatlas.probe import Probe, class_names
from taskatlas.tasks.agreement import Agreement
from taskatlas.tasks.metadata import correlation_ratio, sample_metadata
from taskatlas.tasks.samples import hold_out
from taskatlas.tasks.similarity import adjusted_mutual_information, similarity
from taskatlas.tasks.task import Task

_TOLD = 6  # known tasks and metadata that a portrait names


@dataclass(frozen=True, repr=False)
class Portrait:
    """One task, for a person to recognise.

    Attributes:
        task: its name.
        class_rates: shares of its classes.
        surest: for each class the ids of the samples that it is surest of.
        shares: for each known class, the share of its samples in the task's class 1; empty without known classes.
        information: adjusted mutual information with the known classes; None without.
        resembles: known tasks by similarity, the closest first.
        goes_by: what can be measured of a sample, by the correlation ratio with the task, the strongest first.
        agreement: its score, where it was measured.
    """

    task: str
    class_rates: tuple[float, ...]
    surest: tuple[tuple[str, ...], ...]
    shares: Mapping[str, float] = field(default_factory=dict)
    information: float | None = None
    resembles: Mapping[str, float] = field(default_factory=dict)
    goes_by: Mapping[str, float] = field(default_factory=dict)
    agreement: Agreement | None = None

    def __repr__(self) -> str:
        strongest = ", ".join(f"{name} {value:.2f}" for name, value in list(self.goes_by.items())[:3])
        return f"Portrait({self.task!r}, goes by {strongest or 'nothing that was measured'})"

    def as_row(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "task": self.task,
            "class_rates": list(self.class_rates),
            "surest": [list(ids) for ids in self.surest],
            "shares": dict(self.shares),
            "information": self.information,
            "resembles": dict(self.resembles),
            "goes_by": dict(self.goes_by),
        }


def portray(
    tasks: Sequence[Task],
    data: Probe,
    *,
    known: Sequence[Task] = (),
    scores: Sequence[Agreement] = (),
    count: int = 16,
    metadata: Mapping[str, Float[np.ndarray, " n"]] | None = None,
) -> list[Portrait]:
    """Portraits of tasks on the samples of a data set.

    Args:
        tasks: labels for at least these samples.
        data: the samples, with labels where they are known.
        known: tasks whose meaning is known, such as ``human_tasks``, or attributes out of a CSV.
        scores: agreement scores, by the tasks' names.
        count: how many of the surest samples are named for each class.
        metadata: numbers about each sample in the order of the data; None: ``sample_metadata``.

    Raises:
        BadInput: labels that do not fit the ids.

    Example:
        >>> data = Probe.from_text(["a", "b", "long text", "longer text"], labels=[0, 0, 1, 1])
        >>> portray([Task.of_probe("long", data)], data)[0]
        Portrait('long', goes by words 1.00, characters 0.99, length of a word 0.98)
    """
    measured = sample_metadata(data) if metadata is None else metadata
    named = {score.task: score for score in scores}
    found = []
    for task in tasks:
        own = task.among(data.ids)
        strengths = {
            name: correlation_ratio(own.labels, np.asarray(values, float)) for name, values in measured.items()
        }
        likeness = {one.name: similarity(own, one.among(data.ids)) for one in known}
        shares, information = _of_classes(own, data)
        found.append(
            Portrait(
                task.name,
                tuple(own.class_rates.tolist()),
                surest(own, count),
                shares,
                information,
                _largest(likeness),
                _largest(strengths),
                named.get(task.name),
            )
        )
    return found


def surest(task: Task, count: int) -> tuple[tuple[str, ...], ...]:
    """For each class the ids of the samples that a task is surest of; the first ones where it knows no certainty.

    Example:
        >>> surest(Task("odd", np.array([0, 1, 1]), ("a", "b", "c"), np.array([1, 1, 2], np.float32)), 1)
        (('a',), ('c',))
    """
    sure = np.zeros(len(task)) if task.certainty is None else task.certainty
    order = sorted(range(len(task)), key=lambda row: (-float(sure[row]), task.ids[row]))
    members: list[list[str]] = [[] for _ in range(task.classes)]
    for row in order:
        own = members[task.labels[row]]
        if len(own) < count:
            own.append(task.ids[row])
    return tuple(tuple(own) for own in members)


def coverage(
    embedding: Float[np.ndarray, "n d"],
    ids: Sequence[str],
    known: Sequence[Task],
    *,
    held_out: float = 0.2,
    seed: int = 0,
) -> dict[str, float]:
    """How well a linear probe on an embedding tells each known task: accuracy on held-out samples, from 0 to 1.

    What the discovered tasks are linear in covers a known task if such a probe expresses it (Atanov et al., NeurIPS
    2022, section 4.3).

    Args:
        embedding: of the samples, such as ``Discovered.embedding``.
        ids: theirs.
        known: tasks on these samples.
        held_out: share of the samples that the probe is tested on.
        seed: which ones.

    Raises:
        BadInput: labels that do not fit the ids.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((200, 2))
        >>> ids = [str(i) for i in range(200)]
        >>> coverage(x, ids, [Task("left", (x[:, 0] < 0).astype(int), tuple(ids))])["left"] > 0.9
        True
    """
    from sklearn.linear_model import LogisticRegression

    if len(embedding) != len(ids):
        raise BadInput(f"an embedding of {len(embedding)} samples has {len(ids)} ids.")
    learned, held = hold_out(ids, held_out, seed)
    found = {}
    for task in known:
        labels = task.on(ids)
        if np.ptp(labels[learned]) == 0:
            raise BadInput(f"task {task.name!r} is constant on the samples that the probe learns from.")
        probe = LogisticRegression(max_iter=2000).fit(embedding[learned], labels[learned])
        found[task.name] = float((probe.predict(embedding[held]) == labels[held]).mean())
    return found


def _of_classes(task: Task, data: Probe) -> tuple[dict[str, float], float | None]:
    labels: Int64[np.ndarray, " n"] | None = data.labels
    if labels is None or data.kind == "words" or np.ptp(labels) == 0:
        return {}, None
    names = class_names(data)
    shares = (
        {names[one]: float((task.labels[labels == one] == 1).mean()) for one in np.unique(labels).tolist()}
        if task.classes == 2
        else {}
    )
    return shares, adjusted_mutual_information(task, Task("known", labels.astype(np.int64), data.ids))


def _largest(values: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: (-item[1], item[0]))[:_TOLD])
