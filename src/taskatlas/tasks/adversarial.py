"""Splits that no network sees through: on its training samples another, easier task agrees with the target.

With a target τ and a task τ' on which networks generalise, train = {x: τ'(x) = τ(x)} and test = {x: τ'(x) ≠ τ(x)}. A
network that learns τ' explains all of its training samples, and is wrong on every test sample (Atanov et al., NeurIPS
2022, section 5). No pixel and no label is changed.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Int64

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.tasks.jobs import seed_of
from taskatlas.tasks.samples import Learner, canonical
from taskatlas.tasks.split import PARTS, RESERVED, TEST, TRAIN, UNUSED, Split
from taskatlas.tasks.task import Task
from taskatlas.tasks.task_sets import class_group_task, untrained_tasks

Polarity = Literal["as given", "complement"]
Balance = Literal["none", "classes"]

_RESERVE, _BALANCE, _RANDOM = 74, 75, 76  # what a random generator is for


class NoSplit(BadInput):
    """The task makes no such split of the target, and another task may."""


def adversarial_split(
    target: Task,
    task: Task,
    *,
    polarity: Polarity = "as given",
    labels: Task | None = None,
    balance: Balance = "none",
    train_share: float | None = None,
    reserve: float = 0.0,
    seed: int = 0,
    name: str | None = None,
) -> Split:
    """Train where a task agrees with the target, test where it does not.

    Args:
        target: two classes; of the data's own classes, a group against the rest (``class_group_task``).
        task: two classes, on the same samples.
        polarity: whether the task's classes are taken as given or exchanged; either makes a split, and they differ.
        labels: what the network learns, where that is not the target: the classes whose groups the target is.
        balance: ``classes``: samples are left out until each part has as many of each of the target's classes.
        train_share: samples of the larger part are left out until this share of the rest is for training; with balance,
            of each class.
        reserve: share of all samples that is reserved for validation, drawn before anything else.
        seed: of what is reserved and left out; both go by id.
        name: of the split; None: of the target and the task.

    Raises:
        BadInput: a target or a task of other than two classes or of other samples, a part that would be empty (as
            ``NoSplit``), or a balance that cannot be had.

    Example:
        >>> ids = ("a", "b", "c", "d")
        >>> target, task = Task("t", np.array([0, 0, 1, 1]), ids), Task("u", np.array([0, 1, 0, 1]), ids)
        >>> adversarial_split(target, task).train
        array([0, 3])
    """
    for one, error in ((target, BadInput), (task, NoSplit)):
        if one.classes != 2:
            raise error(
                f"task {one.name!r} has {one.classes} classes and a split takes two; of more, make a group against the "
                "rest (class_group_task)."
            )
    if polarity not in get_args(Polarity) or balance not in get_args(Balance):
        raise BadInput(f"there is no polarity {polarity!r} or no balance {balance!r}.")
    easy = task.on(target.ids)
    if polarity == "complement":
        easy = 1 - easy
    called = f"{target.name} by {task.name}" if name is None else name
    parts = np.where(easy == target.labels, TRAIN, TEST).astype(np.int64)
    for part, said in ((TRAIN, "agree nowhere"), (TEST, "are the same")):
        if not (parts == part).any():
            raise NoSplit(
                f"split {called!r} has no {PARTS[part]} samples: the task and the target {said}. Choose another task."
            )
    parts[_reserved(target.ids, reserve, seed)] = RESERVED
    for part in (TRAIN, TEST):
        if not (parts == part).any():
            raise NoSplit(
                f"split {called!r} has no {PARTS[part]} samples left after a share of {reserve:g} was reserved. "
                "Reserve less, or choose another task."
            )
    if balance == "classes":
        parts = _balanced(parts, target.labels, target.ids, seed)
    if train_share is not None:
        groups = [target.labels == label for label in (0, 1)] if balance == "classes" else [parts >= 0]
        for group in groups:
            parts[group] = _with_share(parts[group], train_share, [target.ids[row] for row in group.nonzero()[0]], seed)
    wanted = target.labels if labels is None else labels.on(target.ids)
    how = {
        "made": "adversarial",
        "target": target.name,
        "target_digest": target.digest,
        "task": task.name,
        "task_digest": task.digest,
        "task_note": task.note,
        "polarity": polarity,
        "labels": None if labels is None else labels.name,
        "balance": balance,
        "train_share": train_share,
        "reserve": reserve,
        "seed": seed,
    }
    return Split(called, target.ids, parts, wanted, how)


def adversarial_splits(
    target: Task, tasks: Sequence[Task], *, polarity: Polarity | None = None, **settings: Any
) -> tuple[list[tuple[Task, Split]], list[str]]:
    """The splits of a target by each of many tasks, and for each task that makes none the reason.

    Args:
        target: two classes.
        tasks: those of two classes.
        polarity: of the tasks; None: the one in which the task agrees with the target more often, so that more samples
            are for training.
        **settings: as ``adversarial_split``.

    Raises:
        BadInput: no task makes a split, or as ``adversarial_split``.
    """
    made: list[tuple[Task, Split]] = []
    refused: list[str] = []
    for task in tasks:
        agreed = float((task.on(target.ids) == target.labels).mean())
        side: Polarity = polarity or ("as given" if agreed >= 0.5 else "complement")
        try:
            made.append((task, adversarial_split(target, task, polarity=side, **settings)))
        except NoSplit as error:
            refused.append(str(error))
    if not made:
        raise BadInput(f"no task makes a split of this target. {next(iter(refused), 'Give tasks.')}")
    return made, refused


def untrained_split(
    target: Task,
    learner: Learner,
    data: Probe,
    *,
    labels: Task | None = None,
    reserve: float = 0.0,
    size: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Split:
    """A split by a network that never learned: within each class, the lower half of its logit goes to one side.

    Every class of the labels is halved, so that train and test have as many of it, to one sample (the recipe for
    ImageNet of Atanov et al., appendix). In class 1 of the target the upper half trains, in class 0 the lower.

    Raises:
        BadInput: as ``adversarial_split``, or the learner does not fit.
    """
    task = halving_tasks(target, learner, data, 1, labels=labels, reserve=reserve, size=size, seed=seed, device=device)[
        0
    ]
    return adversarial_split(target, task, labels=labels, reserve=reserve, seed=seed)


def halving_tasks(
    target: Task,
    learner: Learner,
    data: Probe,
    n: int,
    *,
    labels: Task | None = None,
    reserve: float = 0.0,
    size: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> list[Task]:
    """Tasks of untrained networks whose border lies, within each class, at the median of what is not reserved.

    Splits by them have each class in halves; see ``untrained_split``. Samples are read a batch at a time.

    Args:
        target: that is to be split.
        learner: how a network is built.
        data: the samples.
        n: how many tasks, each from a network of its own.
        labels: the classes; None: those of the target.
        reserve: share that the splits will reserve, with this seed.
        size: to what side images are brought.
        seed: of the weights, and of what is reserved.
        device: where the networks run.

    Raises:
        BadInput: the learner does not fit, or labels do not fit the ids.
    """
    classes = (target if labels is None else labels).on(target.ids)
    halved = np.ones(len(target), dtype=np.bool_)
    halved[_reserved(target.ids, reserve, seed)] = False
    tasks = []
    for easy in untrained_tasks(learner, data, n, size=size, seed=seed, device=device):
        assert easy.certainty is not None
        score = np.where(easy.labels == 1, easy.certainty, -easy.certainty)[easy.rows_of(target.ids)]
        upper = (score > 0).astype(np.int64)
        for one in np.unique(classes):
            members = np.flatnonzero(halved & (classes == one))
            ranked = members[np.lexsort((np.array(target.ids)[members], score[members]))]
            upper[ranked] = np.arange(len(ranked)) >= len(ranked) // 2
        name = f"untrained {seed}" if n == 1 else easy.name
        tasks.append(Task(name, upper, target.ids, note=f"{easy.note}, halved within each class"))
    return tasks


def group_target(data: Probe, group: Sequence[int | str] | None = None, *, seed: int | None = None) -> Task:
    """A two-way target of a data set's classes: a group against the rest.

    Args:
        data: labelled samples.
        group: the classes whose label becomes 1; None: half of the classes, drawn by the seed, or, without a seed, the
            first half.
        seed: of the draw.

    Raises:
        BadInput: fewer than two classes, or an unknown one.

    Example:
        >>> group_target(Probe.from_arrays(np.zeros((4, 1)), labels=[0, 1, 2, 3])).name
        '0+1'
    """
    if group is None:
        present = np.unique(data.labels) if data.labels is not None else np.zeros(0, np.int64)
        if len(present) < 2:
            raise BadInput("a target needs labels of at least two classes.")
        order = present if seed is None else np.random.default_rng(seed).permutation(present)
        group = [int(one) for one in order[: len(present) // 2]]
    return class_group_task(data, group)


def controls(target: Task, split: Split, *, seed: int = 0) -> dict[str, Split]:
    """Splits that an adversarial one is compared with.

    ``random task``: the same rule with a task of random labels that agrees with the target as often in each of its
    classes, so that the parts are as large as the split's and have its shares of the classes; ``random split``: parts
    as large as the split's, drawn at random. Both leave the reserved samples where they are.

    Raises:
        BadInput: the target is of other samples.
    """
    labels = target.on(split.ids)
    own = seed_of(seed, "control", split.name)
    how = {"made": "control", "of": split.name, "of_digest": split.digest, "seed": seed}
    made = {
        "random task": _drawn_again(split, [labels == label for label in np.unique(labels)], own),
        "random split": _drawn_again(split, [np.ones(len(split), dtype=np.bool_)], own),
    }
    return {
        name: Split(f"{split.name}, {name}", split.ids, those, split.target, how | {"control": name})
        for name, those in made.items()
    }


def _drawn_again(split: Split, groups: Sequence[Bool[np.ndarray, " n"]], seed: int) -> Int64[np.ndarray, " n"]:
    """As many of each group of samples for training and testing as there are, drawn anew by id."""
    parts, random = split.parts.copy(), np.random.default_rng([_RANDOM, seed])
    for group in groups:
        used = canonical(np.flatnonzero(group & (split.parts < RESERVED)), split.ids)
        count = int((split.parts[used] == TRAIN).sum())
        drawn = used[random.permutation(len(used))]
        parts[drawn[:count]] = TRAIN
        parts[drawn[count:]] = TEST
    return parts


def _reserved(ids: Sequence[str], share: float, seed: int) -> Int64[np.ndarray, " reserved"]:
    """Rows that are reserved."""
    if not 0 <= share < 1:
        raise BadInput(f"a share of {share:g} cannot be reserved; give 0 up to 0.5.")
    rows = canonical(np.arange(len(ids)), ids)
    drawn = rows[np.random.default_rng([_RESERVE, seed]).permutation(len(rows))]
    return drawn[: round(share * len(ids))]


def _balanced(
    parts: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"], ids: Sequence[str], seed: int
) -> Int64[np.ndarray, " n"]:
    """As many of each class in a part, others unused."""
    parts = parts.copy()
    for part in (TRAIN, TEST):
        members = [np.flatnonzero((parts == part) & (labels == one)) for one in (0, 1)]
        least = min(len(those) for those in members)
        if not least:
            raise NoSplit(
                f"the classes cannot be balanced: class {int(not len(members[1]))} has no "
                f"{('train', 'test')[part]} sample. Choose another task, or no balance."
            )
        for those in members:
            parts[_left_out(those, len(those) - least, ids, seed)] = UNUSED
    return parts


def _with_share(parts: Int64[np.ndarray, " n"], share: float, ids: Sequence[str], seed: int) -> Int64[np.ndarray, " n"]:
    """So that a share of train and test together is for training; others unused."""
    if not 0 < share < 1:
        raise BadInput(f"a train share of {share:g} cannot be had; give a number between 0 and 1.")
    parts = parts.copy()
    train, test = (np.flatnonzero(parts == part) for part in (TRAIN, TEST))
    keep_train = min(len(train), round(len(test) * share / (1 - share)))
    keep_test = min(len(test), round(len(train) * (1 - share) / share))
    if not keep_train or not keep_test:
        raise NoSplit(
            f"a train share of {share:g} cannot be had of {len(train)} samples that agree and {len(test)} that do not."
        )
    parts[_left_out(train, len(train) - keep_train, ids, seed)] = UNUSED
    parts[_left_out(test, len(test) - keep_test, ids, seed)] = UNUSED
    return parts


def _left_out(
    rows: Int64[np.ndarray, " rows"], count: int, ids: Sequence[str], seed: int
) -> Int64[np.ndarray, " count"]:
    drawn = canonical(rows, ids)
    return drawn[np.random.default_rng([_BALANCE, seed]).permutation(len(drawn))[:count]]
