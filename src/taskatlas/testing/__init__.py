"""The laws that hold for every method, as checks that a method of your own can run too: one row, every check."""

from taskatlas.testing.space import (
    KERNEL_LAWS,
    SELECTION_LAWS,
    KernelLaws,
    SelectionLaws,
    check_kernel,
    check_selection,
)

__all__ = [
    "KERNEL_LAWS",
    "SELECTION_LAWS",
    "KernelLaws",
    "SelectionLaws",
    "check_kernel",
    "check_selection",
]
