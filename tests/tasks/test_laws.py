"""Learners, sets of tasks, agreement and ways to split hold to their laws, and what does not is found out."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from taskatlas.tasks import Split, Task, adversarial_split, human_tasks, random_tasks
from taskatlas.testing import (
    AGREEMENT_LAWS,
    LEARNER_LAWS,
    SPLIT_LAWS,
    TASK_SET_LAWS,
    AgreementLaws,
    LearnerLaws,
    SplitLaws,
    TaskSetLaws,
    check_agreement,
    check_learner,
    check_split,
    check_task_set,
)


@pytest.mark.parametrize("laws", SPLIT_LAWS, ids=lambda laws: laws.name)
@pytest.mark.parametrize("seed", range(4))
def test_laws_hold(laws, seed):
    check_split(laws, seed)


def made_of(parts):
    return lambda target, task: Split("mine", target.ids, parts(target, task), target.labels)


BREAKERS = {
    "the target's samples": lambda target, task: adversarial_split(task, target),
    "sample order": made_of(lambda target, task: np.arange(len(target)) % 2),
    "adversarial": made_of(lambda target, task: target.labels),
    "mirrored": made_of(lambda target, task: target.labels),
}


@pytest.mark.parametrize("law", BREAKERS)
def test_a_way_that_breaks_a_law_is_named(law):
    laws = SplitLaws("mine", BREAKERS[law], adversarial=law == "adversarial", mirrored=law == "mirrored")
    with pytest.raises(AssertionError, match=f"mine breaks the law .{law}"):
        check_split(laws)


def test_an_uneven_split_is_not_balanced():
    with pytest.raises(AssertionError, match="breaks the law 'balanced'"):
        check_split(SplitLaws("plain", adversarial_split, balanced=True))


@pytest.mark.parametrize(
    ("laws", "check"),
    [
        *((laws, check_learner) for laws in LEARNER_LAWS),
        *((laws, check_task_set) for laws in TASK_SET_LAWS),
        *((laws, check_agreement) for laws in AGREEMENT_LAWS),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_laws_of_learners_tasks_and_agreement_hold(laws, check):
    check(laws, 2)


def linear(outputs=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))


class Masked(nn.Module):
    """Trained beside others it gets a mask of its own."""

    def __init__(self):
        super().__init__()
        self.within = linear()

    def forward(self, x):
        return self.within(x * (torch.rand_like(x[..., :1]) > 0.5))


count = itertools.count()


def never_the_same():
    net = linear()
    with torch.no_grad():
        net[1].bias += next(count)
    return net


LEARNERS = {
    "classes": lambda: linear(3),
    "seed": never_the_same,
    "own samples": lambda: nn.Sequential(nn.BatchNorm2d(3), linear()),
    "stacked as alone": Masked,
}


@pytest.mark.parametrize("law", LEARNERS)
def test_a_learner_that_breaks_a_law_is_named(law):
    with pytest.raises(AssertionError, match=f"mine breaks the law .{law}. with seed 0"):
        check_learner(LearnerLaws("mine", LEARNERS[law], own_samples=law == "own samples"))


def by_place(data, n):
    return [Task.of_probe(f"{i}", data, np.random.default_rng(i).integers(0, 2, len(data))) for i in range(n)]


TASK_SETS = {
    "as many": lambda data, n: human_tasks(data, n - 1),
    "samples": lambda data, n: human_tasks(data.take(np.arange(100)), n),
    "sample order": by_place,
    "class rates": lambda data, n: random_tasks(data, n, rates=(0.98, 0.02)),
    "no complements": lambda data, n: [task for one in random_tasks(data, n // 2) for task in (one, one.complement())],
}


@pytest.mark.parametrize("law", TASK_SETS)
def test_tasks_that_break_a_law_are_named(law):
    with pytest.raises(AssertionError, match=f"mine breaks the law .{law}. with seed 0"):
        check_task_set(TaskSetLaws("mine", TASK_SETS[law]))


def test_tasks_may_be_declared_to_have_complements():
    check_task_set(TaskSetLaws("mine", TASK_SETS["no complements"], distinct=False))


def same(one, other):
    return (one.argmax(-1) == other.argmax(-1)).double()


MEASURES = {
    "a share": lambda one, other: 2 + float(same(one, other).mean()),
    "symmetric": lambda one, other: float(one.softmax(-1).amax(-1).mean()),
    "sample order": lambda one, other: float((same(one, other) * torch.linspace(0, 1, len(one))).mean()),
    "class order": lambda one, other: float((same(one, other) * (one.argmax(-1) == 0)).mean()),
    "whole": lambda one, other: float(same(one, other).mean() / 2),
    "lower where they differ": lambda one, other: 1.0,
}


@pytest.mark.parametrize("law", MEASURES)
def test_a_measure_that_breaks_a_law_is_named(law):
    with pytest.raises(AssertionError, match=f"mine breaks the law .{law}. with seed 0"):
        check_agreement(AgreementLaws("mine", MEASURES[law]))
