"""The laws of the room of tasks: what every way to make a train/test split must hold to.

A way is one row: its function and what it declares. The check draws a target and a task from a seed, tries every law
that the row declares, and raises an AssertionError that names the way, the law and the values that break it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np

from taskatlas.tasks.adversarial import adversarial_split, controls
from taskatlas.tasks.split import RESERVED, TEST, TRAIN, Split
from taskatlas.tasks.task import Task

MakeSplit = Callable[[Task, Task], Split]
"""(target, task) -> a split of the target's samples."""

_SAMPLES = 120


@dataclass(frozen=True)
class SplitLaws:
    """A way to split and what it declares.

    All are pure, leave the target's labels as they are, put no sample in two parts, and give the same parts whatever
    the order of the samples.

    Example:
        >>> def first_half(target, task):
        ...     return Split("first half", target.ids, np.arange(len(target)) * 2 // len(target), target.labels)
        >>> check_split(SplitLaws("first_half", first_half, adversarial=False))
        Traceback (most recent call last):
            ...
        AssertionError: first_half breaks the law 'sample order' with seed 0: ...
    """

    name: str
    make: MakeSplit
    adversarial: bool = True  # the task agrees with the target on all of train and on none of test
    balanced: bool = False  # as many of each class in a part
    mirrored: bool = True  # by the complement of a task: train and test exchanged


def check_split(laws: SplitLaws, seed: int = 0) -> None:
    """Tries every law that a way to split declares, on a target and a task drawn from the seed.

    Raises:
        AssertionError: names the way, the law, the seed and the values.

    Example:
        >>> for laws in SPLIT_LAWS:
        ...     check_split(laws, seed=1)
    """

    def broken(law: str, found: object) -> NoReturn:
        raise AssertionError(f"{laws.name} breaks the law {law!r} with seed {seed}: {found}")

    random = np.random.default_rng(seed)
    ids = tuple(f"sample {number}" for number in random.permutation(_SAMPLES))
    target, task = (
        Task(name, (random.random(_SAMPLES) < rate).astype(np.int64), ids)
        for name, rate in (("target", 0.5), ("task", 0.4))
    )
    split = laws.make(target, task)
    if split.ids != ids or not np.array_equal(split.target, target.labels):
        broken("the target's samples", "other samples or labels than the target's")
    if laws.make(target, task).digest != split.digest:
        broken("deterministic", "a second call gives other parts")
    order = random.permutation(_SAMPLES)
    moved = laws.make(target.among([ids[row] for row in order]), task)
    if moved.digest != split.digest:
        broken("sample order", f"{(moved.parts != split.parts[order]).sum()} samples are in another part")
    agree = task.labels == target.labels
    if laws.adversarial and not (agree[split.parts == TRAIN].all() and not agree[split.parts == TEST].any()):
        broken("adversarial", "train holds samples on which task and target differ, or test some on which they agree")
    if laws.balanced:
        for part in (TRAIN, TEST):
            counts = np.bincount(target.labels[split.parts == part], minlength=2)
            if counts[0] != counts[1]:
                broken("balanced", f"part {part} has {counts.tolist()} of the classes")
    if laws.mirrored:
        other = laws.make(target, task.complement()).parts
        exchanged = np.select([split.parts == TRAIN, split.parts == TEST], [TEST, TRAIN], split.parts)
        used = (other < RESERVED) & (exchanged < RESERVED)
        if not np.array_equal(other[used], exchanged[used]):
            broken("mirrored", f"{(other[used] != exchanged[used]).sum()} samples are not in the other part")


def _control(name: str, target: Task, task: Task) -> Split:
    return controls(target, adversarial_split(target, task))[name]


SPLIT_LAWS: tuple[SplitLaws, ...] = (
    SplitLaws("adversarial", adversarial_split),
    SplitLaws("adversarial (reserved)", partial(adversarial_split, reserve=0.2)),
    SplitLaws("adversarial (balanced)", partial(adversarial_split, balance="classes"), balanced=True),
    SplitLaws("adversarial (share)", partial(adversarial_split, train_share=0.6)),
    SplitLaws("random task", partial(_control, "random task"), adversarial=False, mirrored=False),
    SplitLaws("random split", partial(_control, "random split"), adversarial=False, mirrored=False),
)
"""Every way of ``taskatlas.tasks`` to split by a task, with what it declares."""
