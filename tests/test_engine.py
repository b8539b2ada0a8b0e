"""Where jobs run: the same results in the same order from every engine, and failures that come through."""

import io
import math
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest

from taskatlas.engine import run_jobs, track, track_bytes
from taskatlas.errors import BadInput
from taskatlas.space import cka


class Inline(Executor):
    """An executor of somebody else's: runs a job at once, except that it may leave some undone."""

    def __init__(self, limit=100):
        self.limit, self.futures, self.closed = limit, [], False

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        if len(self.futures) < self.limit:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
        self.futures.append(future)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.closed = True


@pytest.mark.parametrize("engine", ["local", "threads", "threads:1", "threads:3", Inline()])
def test_results_come_in_the_order_of_the_jobs(engine):
    jobs = [(base, 3) for base in range(20)]
    assert run_jobs(pow, jobs, engine=engine) == [base**3 for base in range(20)]
    assert run_jobs(pow, [], engine=engine) == []
    assert run_jobs(lambda: 7, [(), ()], engine=engine) == [7, 7]


def test_the_order_is_not_the_order_of_finishing():
    done = [threading.Event() for _ in range(5)]
    finished = []

    def job(position):
        if position < 4:
            assert done[position + 1].wait(30)
        finished.append(position)
        done[position].set()
        return position

    assert run_jobs(job, [(i,) for i in range(5)], engine="threads:5") == [0, 1, 2, 3, 4]
    assert finished == [4, 3, 2, 1, 0]


def test_processes_give_the_same_bits_as_this_one():
    draw = np.random.default_rng(0)
    jobs = [(draw.standard_normal((300, 20)), draw.standard_normal((300, 30))) for _ in range(3)]
    expected = run_jobs(cka, jobs)
    assert run_jobs(cka, jobs, engine="processes:2") == expected
    assert run_jobs(cka, jobs, engine="threads:2") == expected


@pytest.mark.parametrize("engine", ["local", "threads:2", Inline()])
def test_what_a_job_raises_comes_through(engine):
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        run_jobs(math.sqrt, [(1.0,), (-1.0,), (4.0,)], engine=engine)


def test_a_failure_cancels_what_has_not_begun():
    executor = Inline(limit=1)
    with pytest.raises(ZeroDivisionError):
        run_jobs(lambda a, b: a / b, [(1, 0), (1, 1), (1, 2)], engine=executor)
    assert [future.cancelled() for future in executor.futures] == [False, True, True]


def test_an_executor_that_was_handed_in_stays_open():
    inline = Inline()
    run_jobs(pow, [(2, 2)], engine=inline)
    assert not inline.closed
    with ThreadPoolExecutor(1) as threads:
        run_jobs(pow, [(2, 2)], engine=threads)
        assert run_jobs(pow, [(2, 3)], engine=threads) == [8]


@pytest.mark.parametrize("engine", ["", "slurm", "local:2", "dask:tcp://host:1", "Threads:2", "thread:2"])
def test_an_unknown_engine_is_refused(engine):
    with pytest.raises(BadInput, match=rf"no engine '{engine}'\. Choose local|does not name a number of workers"):
        run_jobs(pow, [(2, 2)], engine=engine)


@pytest.mark.parametrize(
    "engine", ["threads:0", "processes:0", "threads:-1", "processes:two", "threads:1.5", "threads: 2"]
)
def test_workers_are_a_positive_number(engine):
    with pytest.raises(BadInput, match=f"engine '{engine}' does not name a number of workers.*processes:4"):
        run_jobs(pow, [(2, 2)], engine=engine)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_alone(monkeypatch, capsys):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    assert list(track(iter([1, 2, 3]), "counting sheep", total=3)) == [1, 2, 3]
    assert run_jobs(pow, [(2, 3), (3, 2)], engine="threads:2", description="raising powers") == [8, 9]
    assert "counting sheep" in shown.getvalue()
    assert "raising powers" in shown.getvalue()
    assert "3/3" in shown.getvalue()
    assert "2/2" in shown.getvalue()
    silent = io.StringIO()
    monkeypatch.setattr(sys, "stderr", silent)
    assert list(track([1, 2], "counting sheep")) == [1, 2]
    assert silent.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_a_failure_goes_through_the_progress_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ZeroDivisionError):
        run_jobs(lambda a, b: a / b, [(1, 0)], engine="threads:1")


def test_bytes_are_shown_on_a_terminal_alone(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with track_bytes("moving sheep", 4_000_000) as advance:
        advance(1_000_000)
        advance(3_000_000)
    assert "moving sheep" in shown.getvalue()
    assert "4.0/4.0 MB" in shown.getvalue()
    silent = io.StringIO()
    monkeypatch.setattr(sys, "stderr", silent)
    with track_bytes("moving sheep", 1) as advance:
        advance(1)
    assert silent.getvalue() == ""
