"""Freed memory that goes back to the system."""

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Gives back what was freed and lies unused in the heap; does nothing where the C library is not glibc.

    Before version 2.38 glibc does not use freed aligned blocks, as torch asks for, again once something small lies
    between them (bug 14581). The gradients of every backward pass are such blocks, so a loop of many passes would hold
    ever more memory.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
