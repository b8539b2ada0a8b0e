"""The laws of the room of tasks: what learners, sets of tasks, agreement and ways to split must hold to.

Each is one row: its function and what it declares. A check draws its material from a seed, tries every law that the row
declares, and raises an AssertionError that names the row, the law and the values that break it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.learn import flat_mlp, outputs, resnet18, small_cnn, train, vit
from taskatlas.learn.randomness import drawing_from
from taskatlas.probe import Probe
from taskatlas.tasks.adversarial import adversarial_split, controls
from taskatlas.tasks.agreement import pair_agreement
from taskatlas.tasks.similarity import similarity_matrix
from taskatlas.tasks.split import RESERVED, TEST, TRAIN, Split
from taskatlas.tasks.task import Task, check_class_rates
from taskatlas.tasks.task_sets import human_tasks, random_tasks, untrained_tasks

MakeSplit = Callable[[Task, Task], Split]
"""(target, task) -> a split of the target's samples."""
MakeTasks = Callable[[Probe, int], Sequence[Task]]
"""(data, how many) -> tasks on the samples of the data, which are vectors of five classes."""
Agree = Callable[[Tensor, Tensor], float]
"""(logits, logits), each (samples, classes), of two networks -> in how far they agree, from 0 to 1."""

_SAMPLES = 120
_LEARNERS, _CLASSES, _TASKS = 3, 4, 6
_ROUNDING = 1e-6


@dataclass(frozen=True)
class LearnerLaws:
    """A network that learns tasks and what it declares.

    All say something of each class, end where the same numbers are drawn in the same weights, and end trained beside
    others where they end trained alone, up to rounding. All is done in double precision.

    Example:
        >>> wrong = LearnerLaws("wrong", lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
        >>> check_learner(wrong)
        Traceback (most recent call last):
            ...
        AssertionError: wrong breaks the law 'classes' with seed 0: outputs (6, 3) for 6 samples and 4 classes
    """

    name: str
    build: Callable[[], nn.Module]  # for samples (3, 8, 8) of four classes
    own_samples: bool = True  # what is said of a sample does not depend on others of a batch


def check_learner(laws: LearnerLaws, seed: int = 0) -> None:
    """Tries every law that a learner declares, on samples and weights drawn from the seed.

    Raises:
        AssertionError: names the learner, the law, the seed and the values.

    Example:
        >>> check_learner(LEARNER_LAWS[0], seed=1)
    """

    def broken(law: str, found: object) -> NoReturn:
        raise AssertionError(f"{laws.name} breaks the law {law!r} with seed {seed}: {found}")

    with drawing_from(seed):
        x = torch.randn(6 * _LEARNERS, 3, 8, 8, dtype=torch.double)
        learners = [laws.build().double() for _ in range(_LEARNERS)]
    with drawing_from(seed):
        torch.randn(6 * _LEARNERS, 3, 8, 8, dtype=torch.double)
        again = laws.build().double()
    y = torch.arange(len(x)) % _CLASSES
    few = outputs(learners[0], x[:6])
    if few.shape != (6, _CLASSES):
        broken("classes", f"outputs {tuple(few.shape)} for 6 samples and {_CLASSES} classes")
    if _farthest(again, learners[0]):
        broken("seed", "built twice with the same numbers drawn, its weights differ")
    if laws.own_samples:
        with torch.no_grad():
            alone = torch.cat([copy.deepcopy(learners[0]).train()(one[None]) for one in x[:6]])
            apart = float((copy.deepcopy(learners[0]).train()(x[:6]) - alone).abs().max())
        if apart > _ROUNDING:
            broken("own samples", f"an output moves by {apart:g} when other samples are in the batch")
    single = copy.deepcopy(learners)
    targets = [(y + shift) % _CLASSES for shift in range(_LEARNERS)]
    train(learners, x, targets, epochs=1, batch_size=6, seed=seed)
    for learner, target in zip(single, targets, strict=True):
        train([learner], x, [target], epochs=1, batch_size=6, seed=seed)
    apart = max(_farthest(one, other) for one, other in zip(learners, single, strict=True))
    if apart > _ROUNDING:
        broken("stacked as alone", f"a weight is {apart:g} away from where it would be alone")


@dataclass(frozen=True)
class TaskSetLaws:
    """A way to make tasks and what it declares.

    All make as many as are asked for, label each sample of the data, give a sample the same label whatever the order of
    the data, and make no task that is nearly constant.

    Example:
        >>> def both(data, n):
        ...     task = human_tasks(data, 1)[0]
        ...     return [task if number % 2 else task.complement() for number in range(n)]
        >>> check_task_set(TaskSetLaws("both", both))
        Traceback (most recent call last):
            ...
        AssertionError: both breaks the law 'no complements' with seed 0: tasks 0 and 1 are the same, up to renaming
    """

    name: str
    make: MakeTasks
    distinct: bool = True  # no task is another with its classes renamed


def check_task_set(laws: TaskSetLaws, seed: int = 0) -> None:
    """Tries every law that a way to make tasks declares, on samples drawn from the seed.

    Raises:
        AssertionError: names the way, the law, the seed and the values.

    Example:
        >>> for laws in TASK_SET_LAWS:
        ...     check_task_set(laws, seed=1)
    """

    def broken(law: str, found: object) -> NoReturn:
        raise AssertionError(f"{laws.name} breaks the law {law!r} with seed {seed}: {found}")

    random = np.random.default_rng(seed)
    x = random.standard_normal((_SAMPLES, 5)).astype(np.float32)
    ids = [f"sample {number}" for number in random.permutation(_SAMPLES)]
    data = Probe.from_arrays(x, labels=np.arange(_SAMPLES) % 5, ids=ids)
    tasks = laws.make(data, _TASKS)
    if len(tasks) != _TASKS:
        broken("as many", f"{len(tasks)} tasks where {_TASKS} were asked for")
    if any(set(task.ids) != set(data.ids) for task in tasks):
        broken("samples", "a task is of other samples than the data")
    moved = data.take(random.permutation(_SAMPLES))
    for number, (task, other) in enumerate(zip(tasks, laws.make(moved, _TASKS), strict=True)):
        changed = int((task.on(data.ids) != other.on(data.ids)).sum())
        if changed:
            broken("sample order", f"{changed} labels of task {number} change with the order of the data")
        try:
            check_class_rates(task)
        except BadInput as error:
            broken("class rates", error)
    alike = np.triu(similarity_matrix(tasks), 1)
    if laws.distinct and alike.max() == 1:
        one, two = np.argwhere(alike == 1)[0]
        broken("no complements", f"tasks {one} and {two} are the same, up to renaming")


@dataclass(frozen=True)
class AgreementLaws:
    """A measure of how far two networks agree and what it declares.

    All are from 0 to 1, the same in either order of the networks, of the samples and of the classes, and lower where
    half of the samples are answered otherwise.

    Example:
        >>> check_agreement(AgreementLaws("one-sided", lambda one, other: float(one.softmax(-1)[:, 0].mean())))
        Traceback (most recent call last):
            ...
        AssertionError: one-sided breaks the law 'symmetric' with seed 0: ...
    """

    name: str
    measure: Agree
    whole: bool = True  # 1 for two networks that are the same, however unsure


def check_agreement(laws: AgreementLaws, seed: int = 0) -> None:
    """Tries every law that a measure of agreement declares, on logits drawn from the seed.

    Raises:
        AssertionError: names the measure, the law, the seed and the values.

    Example:
        >>> for laws in AGREEMENT_LAWS:
        ...     check_agreement(laws, seed=1)
    """

    def broken(law: str, found: object) -> NoReturn:
        raise AssertionError(f"{laws.name} breaks the law {law!r} with seed {seed}: {found}")

    generator = torch.Generator().manual_seed(seed)
    one, other = 3 * torch.randn(2, _SAMPLES, _CLASSES, generator=generator, dtype=torch.double)
    found = laws.measure(one, other)
    if not 0 <= found <= 1:
        broken("a share", found)
    samples, classes = (torch.randperm(count, generator=generator) for count in (_SAMPLES, _CLASSES))
    for law, value in (
        ("symmetric", laws.measure(other, one)),
        ("sample order", laws.measure(one[samples], other[samples])),
        ("class order", laws.measure(one[:, classes], other[:, classes])),
    ):
        if abs(value - found) > _ROUNDING:
            broken(law, f"{value:g} where it was {found:g}")
    same = laws.measure(one, one)
    if laws.whole and abs(same - 1) > _ROUNDING:
        broken("whole", f"a network agrees with itself by {same:g}")
    half = torch.cat([one[::2], one[1::2].roll(1, -1)])
    lower = laws.measure(torch.cat([one[::2], one[1::2]]), half)
    if not lower < same:
        broken("lower where they differ", f"{lower:g} with half of the answers moved, {same:g} with none")


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


def _farthest(one: nn.Module, other: nn.Module) -> float:
    """By how much a weight of one network differs at most from another's."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


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

LEARNER_LAWS: tuple[LearnerLaws, ...] = (
    LearnerLaws("mlp", partial(flat_mlp, (3, 8, 8), _CLASSES)),
    LearnerLaws("small_cnn", partial(small_cnn, 3, _CLASSES)),
    LearnerLaws("resnet18", partial(resnet18, 3, _CLASSES, width=16)),
    LearnerLaws("vit", partial(vit, (3, 8, 8), _CLASSES, width=32, depth=1)),
)
"""Every learner of ``taskatlas.learn``, small, with what it declares."""

TASK_SET_LAWS: tuple[TaskSetLaws, ...] = (
    TaskSetLaws("human", human_tasks),
    TaskSetLaws("random", random_tasks),
    TaskSetLaws("untrained", partial(untrained_tasks, "mlp")),
)
"""Every way of ``taskatlas.tasks`` to make tasks without a search, with what it declares."""

AGREEMENT_LAWS: tuple[AgreementLaws, ...] = (
    AgreementLaws("agreement", lambda one, other: pair_agreement(one, other)[0]),
    AgreementLaws("soft agreement", lambda one, other: pair_agreement(one, other)[1], whole=False),
)
"""Agreement and soft agreement, with what they declare."""
