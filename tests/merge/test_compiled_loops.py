"""Compiled loops run on torch's number of threads, leave numba's alone, and may be called from anywhere."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
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
        threads[i] = numba.get_thread_id()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(size=1000):
    x, out, used = np.arange(float(size)), np.zeros(size), np.full(size, -1)
    squares(x, out, used)
    np.testing.assert_array_equal(out, x**2)
    return set(used.tolist())


ON_A_LARGE_MACHINE = """
import sys
import numba, torch
sys.path.insert(0, sys.argv[1])
from test_compiled_loops import run
torch.set_num_threads(3)
assert run() == run() == {0, 1, 2}
assert torch.get_num_threads() == 3
assert numba.get_num_threads() == 8
torch.set_num_threads(100)
assert run() == set(range(8))
torch.set_num_threads(1)
assert run() == {0}
assert numba.get_num_threads() == 8
"""


def test_as_many_threads_as_torch_has_and_no_others_are_changed():
    command = [sys.executable, "-c", ON_A_LARGE_MACHINE, str(Path(__file__).parent)]
    subprocess.run(command, check=True, env={**os.environ, "NUMBA_NUM_THREADS": "8"})


def test_numbas_threads_are_what_they_were_after_an_error(threads):
    threads(2)
    before = numba.get_num_threads()
    with pytest.raises(numba.TypingError):
        squares(np.zeros(2), "no array", np.zeros(2))
    assert numba.get_num_threads() == before
    run()  # nothing is locked


FROM_SEVERAL_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
import torch
sys.path.insert(0, sys.argv[1])
from test_compiled_loops import run
torch.set_num_threads(3)
run()
def often(_):
    torch.set_num_threads(3)
    for _ in range(50):
        assert run(20_000) == {0, 1, 2}
with ThreadPoolExecutor(4) as pool:
    list(pool.map(often, range(4)))
"""


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_calls_from_several_threads(layer):
    """numba's own kind of threads ends the process if it is started from two threads at once."""
    command = [sys.executable, "-c", FROM_SEVERAL_THREADS, str(Path(__file__).parent)]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4", "NUMBA_THREADING_LAYER": layer}
    subprocess.run(command, check=True, env=environment)


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
