"""Where independent jobs run, and how their progress is shown.

A job is a picklable function with arguments; results come back in the order of the jobs, so a result never depends on
who computed it or when. ``engine`` is ``"local"`` (this process, one after the other), ``"threads:N"``,
``"processes:N"``, or any ``concurrent.futures.Executor``: a cluster's client that offers one needs nothing more.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from taskatlas.errors import BadInput, WorkFailed

Item = TypeVar("Item")
Result = TypeVar("Result")
Engine = str | Executor


def run_jobs(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    *,
    engine: Engine = "local",
    description: str = "working",
) -> list[Result]:
    """``[function(*job) for job in jobs]``, on the engine, with a progress bar.

    Raises:
        BadInput: the engine is not one, or a job cannot be sent to another process.
        WorkFailed: a worker died.
        Exception: whatever a job raised; jobs that have not started are cancelled.

    Example:
        >>> run_jobs(pow, [(2, 3), (3, 2)], engine="threads:2")
        [8, 9]
    """
    with _executor(engine) as executor:
        if executor is None:
            return [function(*job) for job in track(jobs, description)]
        futures = {executor.submit(function, *job): position for position, job in enumerate(jobs)}
        results: dict[int, Result] = {}
        try:
            for future in track(as_completed(futures), description, total=len(jobs)):
                results[futures[future]] = future.result()
        except BrokenExecutor as error:
            raise WorkFailed(
                f"a worker died while {description} ({error}). What was finished is kept: run again, with fewer "
                "workers if memory ran out."
            ) from error
        except BaseException as error:
            for future in futures:
                future.cancel()
            if isinstance(error, pickle.PicklingError | AttributeError | TypeError):
                _check_sendable(executor, function, jobs[0], error)
            raise
        return [results[position] for position in range(len(jobs))]


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Passes ``items`` through, with a progress bar on standard error where that is a terminal.

    Example:
        >>> list(track([1, 2], "counting"))
        [1, 2]
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def track_bytes(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many more bytes are done, with a progress bar as ``track`` has.

    Example:
        >>> with track_bytes("copying", 10) as done:
        ...     done(4)
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def track_steps(description: str, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Yields a function that is called after each step with how the work stands, shown beside a progress bar.

    Args:
        description: what is being done.
        total: steps there are.
        done: steps that an earlier run did.

    Example:
        >>> with track_steps("searching", 2) as step:
        ...     step("agreement 0.93")
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")
        yield lambda note: progress.update(task, advance=1, note=note)


@contextmanager
def single_threaded_products() -> Iterator[int]:
    """While it lasts, numpy's matrix products use one thread each; yields how many threads they used before.

    For work that is divided among threads already: many small products on many threads wait for one another.

    Example:
        >>> with single_threaded_products() as threads:
        ...     threads >= 1
        True
    """
    controller = _thread_controller()
    libraries = [library for library in controller.info() if library["user_api"] == "blas"]
    with controller.limit(limits=1, user_api="blas"):
        yield max((int(library["num_threads"]) for library in libraries), default=1)


def _check_sendable(executor: Executor, function: Any, job: tuple[Any, ...], error: Exception) -> None:
    if not isinstance(executor, ProcessPoolExecutor):
        return
    try:
        pickle.dumps((function, job))
    except (pickle.PicklingError, AttributeError, TypeError):
        raise BadInput(
            f"the work cannot be sent to another process ({error}). Give a function that stands in a file by its name, "
            "or use the engine threads:N."
        ) from error


@contextmanager
def _executor(engine: Engine) -> Iterator[Executor | None]:
    """None stands for this process; an executor that was handed in is left open."""
    if isinstance(engine, Executor):
        yield engine
        return
    kind, _, number = engine.partition(":")
    workers = _worker_count(engine, number)
    if engine == "local":
        yield None
    elif kind == "threads":
        with ThreadPoolExecutor(workers) as threads:
            yield threads
    elif kind == "processes":
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_set_threads, initargs=(_torch_threads(),)
        ) as processes:
            yield processes
    else:
        raise BadInput(f"there is no engine {engine!r}. Choose local, threads:N, processes:N, or pass an Executor.")


@cache
def _thread_controller() -> ThreadpoolController:
    """Looking for the libraries takes milliseconds, so it is done once."""
    return ThreadpoolController()


def _worker_count(engine: str, number: str) -> int:
    if not number:
        return os.cpu_count() or 1
    if not (number.isascii() and number.isdigit()) or int(number) == 0:
        raise BadInput(f"engine {engine!r} does not name a number of workers. Write, for example, processes:4.")
    return int(number)


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _set_threads(count: int) -> None:
    """The same number of arithmetic threads in every worker: sums then round alike whatever the number of workers."""
    import torch

    torch.set_num_threads(count)
