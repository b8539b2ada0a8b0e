"""What the jobs of the room share: seeds that follow from names, blocks of learners, numbers kept in the store."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from taskatlas.engine import Engine, run_jobs
from taskatlas.errors import BadInput
from taskatlas.learn import IGNORED, Network, has_batch_statistics, train
from taskatlas.probe import Probe
from taskatlas.store import Store, digest

_NUMBERS = "numbers.npy"
_SMALL = 256  # numbers in a sample
_TOGETHER = 8  # items whose learners train stacked; fixed, so that it does not depend on the engine


def seed_of(*names: Any) -> int:
    """A seed that follows from a seed and what it is for, far from those of its neighbours.

    Example:
        >>> seed_of(0, "repeat", 1) == seed_of(0, "repeat", 1), seed_of(0, "repeat", 1) == seed_of(0, "repeat", 2)
        (True, False)
    """
    return int(digest(*names)[:11], 16)


@contextmanager
def fitting_threads(x: Tensor) -> Iterator[None]:
    """One arithmetic thread while small samples are learned from: on more, threads wait for each other.

    Sums then round alike whatever the number of cores. Afterwards torch has as many threads as before.
    """
    before = torch.get_num_threads()
    if x[0].numel() <= _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def source_of(network: Network) -> str | None:
    """Digest of a network's builder and how it prepares samples; None where its source cannot be read."""
    try:
        return network.digest
    except BadInput:
        return None


def identified(network: Network, data: Probe, *others: Any) -> dict[str, str] | None:
    """Digests of what a job works on; None where the network's source cannot be read and nothing vouches for it."""
    source = source_of(network)
    if source is None:
        return None
    weights = {name: value.numpy() for name, value in network.module.state_dict().items()}  # a closure may decide them
    built = digest(source, repr(network.module), weights)
    return {"network": built, "data": data.digest, "others": digest(*others)}


def in_blocks(
    kinds: Sequence[Hashable],
    seeds: int,
    job: Callable[[list[int], int], tuple[Any, ...]],
    *,
    x: Tensor,
    engine: Engine,
    description: str,
) -> list[Float[np.ndarray, "seeds measures"]]:
    """Measures of each item in each repeat: items of one kind are measured together, eight to a job.

    Args:
        kinds: of the items; which ones go together follows from these alone.
        seeds: repeats.
        job: what ``stored_block`` is called with for some items, by position, in a repeat.
        x: the samples.
        engine: where jobs run.
        description: beside the progress bar.
    """
    by_kind: dict[Hashable, list[int]] = {}
    for position, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(position)
    blocks = [
        (positions[start : start + _TOGETHER], repeat)
        for positions in by_kind.values()
        for start in range(0, len(positions), _TOGETHER)
        for repeat in range(seeds)
    ]
    jobs = [job(positions, repeat) for positions, repeat in blocks]
    with fitting_threads(x):
        done = run_jobs(stored_block, jobs, engine=engine, description=description)
    found: list[list[np.ndarray]] = [[] for _ in kinds]
    for (positions, _), block in zip(blocks, done, strict=True):
        for position, row in zip(positions, block, strict=True):
            found[position].append(row)
    return [np.stack(rows) for rows in found]


def stored_block(
    store: Store,
    kind: str,
    key: Mapping[str, str] | None,
    work: Mapping[str, Any],
    measure: Callable[..., np.ndarray],
    *rest: Any,
) -> Float[np.ndarray, "items measures"]:
    """A job: ``measure(work, *rest)``, from the store where it is there; never where nothing vouches for its inputs."""
    compute = partial(measure, dict(work), *rest)
    if key is None:
        return compute()

    def build(folder: Path) -> None:
        np.save(folder / _NUMBERS, compute(), allow_pickle=False)

    return np.asarray(np.load(store.make(kind, key, work, build) / _NUMBERS, allow_pickle=False))


def fit_learners(
    modules: Sequence[nn.Module],
    x: Tensor,
    targets: Sequence[Int64[Tensor, " n"]],
    *,
    larger: int,
    batch_size: int,
    orders: Sequence[int] | None = None,
    **settings: Any,
) -> None:
    """Trains learners in place, each on the samples that count for it.

    Learners without batch statistics go through all samples together, where those of others count for nothing. To one
    with batch statistics no other sample is shown, for it would change how the learner's own are normalised.

    Args:
        modules: the learners.
        x: all samples.
        targets: for each learner the class of each sample, or -100 where it does not count.
        larger: how many times there are more samples than count; batches are as much larger where all are gone through.
        batch_size: samples a step that count.
        orders: as ``learn.train``, like all else.
    """
    if not any(map(has_batch_statistics, modules)):
        train(modules, x, targets, batch_size=larger * batch_size, orders=orders, **settings)
        return
    for position, (module, target) in enumerate(zip(modules, targets, strict=True)):
        own = target != IGNORED
        order = None if orders is None else orders[position : position + 1]
        train([module], x[own], [target[own]], batch_size=batch_size, orders=order, **settings)
