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
from taskatlas.testing.tasks import SPLIT_LAWS, SplitLaws, check_split

__all__ = [
    "DIVERGENCE_LAWS",
    "KERNEL_LAWS",
    "MERGE_LAWS",
    "SELECTION_LAWS",
    "SPLIT_LAWS",
    "DivergenceLaws",
    "KernelLaws",
    "MergeLaws",
    "SelectionLaws",
    "SplitLaws",
    "check_divergence",
    "check_kernel",
    "check_merge",
    "check_selection",
    "check_split",
]
