"""Compiled loops run on torch's number of threads, leave numba's alone, and may be called from anywhere."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from typing import no_type_check

import numba
import numpy as np
import pytest
import torch

from taskatlas.merge.compiled_loops import compiled, compiled_in_parallel


@compiled
@no_type_check
def square(x):
    return x * x


@compiled_in_parallel
@no_type_check
def squares(x, out, threads):
    for i in numba.prange(len(x)):
        out[i] = square(x[i])
        threads[i] = numba.get_num_threads()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(size=1000):
    x, out, used = np.arange(float(size)), np.zeros(size), np.zeros(size, int)
    squares(x, out, used)
    np.testing.assert_array_equal(out, x**2)
    return set(used)


@pytest.mark.parametrize("count", [2, 10_000])
def test_as_many_threads_as_torch_has(threads, count):
    before = numba.get_num_threads()
    threads(count)
    assert run() == {min(count, numba.config.NUMBA_NUM_THREADS)}
    assert numba.get_num_threads() == before


def test_numbas_threads_are_what_they_were_after_an_error(threads):
    threads(2)
    before = numba.get_num_threads()
    with pytest.raises(numba.TypingError):
        squares(np.zeros(2), "no array", np.zeros(2))
    assert numba.get_num_threads() == before


def test_calls_from_several_threads(threads):
    threads(2)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: run(20_000), range(40)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are not forked here")
def test_one_thread_in_a_forked_process(threads):
    """Threads of OpenMP do not survive a fork, and torch too runs there on one thread alone."""
    threads(2)
    run()
    threads(1)
    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    assert code == 0
