"""Loops that are compiled, on as many threads as torch has.

numba's threads are torch's own where both are OpenMP's, as on Linux unless tbb is installed. Others have to share the
processor with torch's, which wait for more work for some milliseconds before they sleep.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Any, TypeVar, no_type_check

import numba
import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_EXACT_ENOUGH = {"contract", "reassoc"}  # sums may be taken in parts, products and sums in one instruction
_ONE_AT_A_TIME = Lock()  # some of numba's kinds of threads must not be started from two threads at once


def compiled(function: Function) -> Function:
    """A function that is compiled when it is first used.

    It has to be marked ``no_type_check``: what a type checker has wrapped cannot be compiled.
    """
    found: Function = numba.njit(nogil=True, fastmath=_EXACT_ENOUGH)(function)
    return found


def compiled_in_parallel(function: Callable[..., None]) -> Callable[..., None]:
    """A function whose ``numba.prange`` runs on as many threads as torch has, compiled when it is first used.

    In a forked process it works where torch does: on one thread, where none is started.

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
        if min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS) == 1:
            alone(*arguments)
            return
        with _ONE_AT_A_TIME, _as_many_threads_as_torch():
            together(*arguments)

    return run


@contextmanager
def _as_many_threads_as_torch() -> Iterator[None]:
    of_torch = torch.get_num_threads()
    of_numba = numba.get_num_threads()  # the first time this starts threads, which gives torch their number
    if torch.get_num_threads() != of_torch:
        torch.set_num_threads(of_torch)
    numba.set_num_threads(min(of_torch, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(of_numba)
