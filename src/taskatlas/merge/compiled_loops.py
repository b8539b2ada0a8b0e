"""Loops that are compiled, on as many threads as torch has.

numba's threads are OpenMP's where it finds torch's OpenMP, and then they are torch's own. Other threads would have to
share the processor with torch's, which wait for more work for some milliseconds before they sleep.
"""

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, TypeVar, no_type_check

import numba
import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_EXACT_ENOUGH = {"contract", "reassoc"}  # sums may be taken in parts, products and sums in one instruction
_ONE_AT_A_TIME = Lock()  # some of numba's kinds of threads must not be started from two threads at once


def compiled(function: Function) -> Function:
    """A function that is compiled when it is first used; none that a type checker has wrapped (``no_type_check``)."""
    found: Function = numba.njit(nogil=True, fastmath=_EXACT_ENOUGH)(function)
    return found


def compiled_in_parallel(function: Callable[..., None]) -> Callable[..., None]:
    """A function whose ``numba.prange`` runs on as many threads as torch has, compiled when it is first used.

    On one thread it starts none, so that it works in a forked process as torch does there.

    Example:
        >>> import numpy as np
        >>> @compiled_in_parallel
        ... def double(x, out):
        ...     for i in numba.prange(len(x)):
        ...         out[i] = 2 * x[i]
        >>> out = np.zeros(3)
        >>> double(np.array([1.0, 2.0, 3.0]), out)
        >>> out
        array([2., 4., 6.])
    """
    alone = compiled(function)
    together = numba.njit(nogil=True, fastmath=_EXACT_ENOUGH, parallel=True)(function)

    @wraps(function)
    @no_type_check
    def run(*arguments: Any) -> None:
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        if threads == 1:
            alone(*arguments)
            return
        with _ONE_AT_A_TIME:
            before = numba.get_num_threads()
            numba.set_num_threads(threads)
            try:
                together(*arguments)
            finally:
                numba.set_num_threads(before)

    return run
