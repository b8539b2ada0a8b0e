"""What every divergence does: walk over the samples in bounded slabs, and fill a matrix of pairs."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.simplex import Array, as_tensor

CHUNK = 2**25  # bytes of one slab
_MIRRORED = 64  # rows of a symmetric matrix that are filled at a time
BLOCK = 2**18  # numbers of float64 taken up at a time: 2 MiB, which stay in cache


def check_pair(probs: Array, others: Array | None) -> tuple[int, int, int, int]:
    """Numbers of models, of other models (or the same again), of samples and of classes.

    Raises:
        BadInput: no (models, samples, classes), or two sets that differ in samples or classes.
    """
    for array in (probs,) if others is None else (probs, others):
        if array.ndim != 3 or 0 in array.shape:
            raise BadInput(f"predictions have the shape (models, samples, classes), not {tuple(array.shape)}.")
    if others is not None and probs.shape[1:] != others.shape[1:]:
        raise BadInput(
            f"two sets of models must share samples and classes, but these have {tuple(probs.shape[1:])} and "
            f"{tuple(others.shape[1:])}. Predict both on the same probe."
        )
    models, samples, classes = (int(size) for size in probs.shape)
    return models, models if others is None else int(others.shape[0]), samples, classes


def sample_slices(samples: int, bytes_a_sample: int, chunk: int, multiple: int = 1) -> Iterator[slice]:
    """Consecutive slices of at most ``chunk`` bytes and at least one sample; multiples of ``multiple`` where these fit.

    Example:
        >>> [s.stop for s in sample_slices(10, bytes_a_sample=8, chunk=40, multiple=2)]
        [4, 8, 10]
    """
    size = max(1, chunk // max(1, bytes_a_sample))
    size = max(size // multiple * multiple, min(size, multiple))
    for start in range(0, samples, size):
        yield slice(start, min(start + size, samples))


def pieces(shape: tuple[int, ...], most: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Cuts a path (T, N, C), in order, into at most ``most`` numbers: some whole snapshots, or some samples of one.

    Example:
        >>> [(t.start, t.stop, n.start, n.stop) for t, n in pieces((3, 4, 5), most=40)]
        [(0, 2, 0, 4), (2, 3, 0, 4)]
        >>> [(t.start, t.stop, n.start, n.stop) for t, n in pieces((2, 4, 5), most=15)]
        [(0, 1, 0, 3), (0, 1, 3, 4), (1, 2, 0, 3), (1, 2, 3, 4)]
    """
    snapshots, samples, classes = shape
    together = max(1, most // (samples * classes))
    for first in range(0, snapshots, together):
        for some in sample_slices(samples, classes, most if together == 1 else samples * classes):
            yield slice(first, min(first + together, snapshots)), some


def slabs(probs: Array, others: Array | None, chunk: int, multiple: int = 1) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Both sets of models on a bounded number of samples, in one floating type; the same slab twice for one set."""
    dtype, device = floating(probs)
    rows = len(probs) + (0 if others is None else len(others))
    for samples in sample_slices(int(probs.shape[1]), rows * int(probs.shape[2]) * dtype.itemsize, chunk, multiple):
        left = as_tensor(probs[:, samples])
        yield samples, left, left if others is None else as_tensor(others[:, samples]).to(device, dtype)


@contextmanager
def one_thread_each() -> Iterator[Executor]:
    """As many workers as torch has threads, each of which does its own arithmetic alone.

    Many small products that each wait for all threads are slow, and on a busy machine thirty times slower; large pieces
    of work that wait for nobody are not. The number of threads outside is as it was.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            yield workers
    finally:
        torch.set_num_threads(threads)  # the workers' setting is their own, but also that of threads to come


def floating(probs: Array) -> tuple[torch.dtype, torch.device]:
    """The precision and the place in which distances between these predictions are computed."""
    corner = as_tensor(probs[:1, :1])
    return corner.dtype, corner.device


def finished(distances: Tensor, *, symmetric: bool) -> Tensor:
    """Distances without what rounding left: never negative, and where symmetric exactly so, with a zero diagonal.

    Works in place. Of a symmetric matrix only the values above the diagonal are read.
    """
    distances.clamp_(min=0).add_(0.0)  # minus zero would print oddly
    if symmetric:
        distances.triu_(1)
        for first in range(0, len(distances), _MIRRORED):
            rows = slice(first, first + _MIRRORED)
            distances[rows, : rows.stop] += distances[: rows.stop, rows].T.clone()
    return distances
