"""The laws that hold for every method, as checks that a method of your own can run too: one row, every check."""

from taskatlas.testing.merge import MERGE_LAWS, MergeLaws, check_merge
from taskatlas.testing.paths import DIVERGENCE_LAWS, DivergenceLaws, check_divergence
from taskatlas.testing.space import (
    KERNEL_LAWS,
    SELECTION_LAWS,
    KernelLaws,
    SelectionLaws,
    check_kernel,
    check_selection,
)
from taskatlas.testing.tasks import (
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

__all__ = [
    "AGREEMENT_LAWS",
    "DIVERGENCE_LAWS",
    "KERNEL_LAWS",
    "LEARNER_LAWS",
    "MERGE_LAWS",
    "SELECTION_LAWS",
    "SPLIT_LAWS",
    "TASK_SET_LAWS",
    "AgreementLaws",
    "DivergenceLaws",
    "KernelLaws",
    "LearnerLaws",
    "MergeLaws",
    "SelectionLaws",
    "SplitLaws",
    "TaskSetLaws",
    "check_agreement",
    "check_divergence",
    "check_kernel",
    "check_learner",
    "check_merge",
    "check_selection",
    "check_split",
    "check_task_set",
]
