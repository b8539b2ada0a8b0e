"""What the room's jobs have in common: seeds that follow from names, and numbers that stay in the store."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.learn import Network
from taskatlas.probe import Probe
from taskatlas.store import Store, digest

_NUMBERS = "numbers.npy"
_SMALL = 256  # numbers in a sample


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


def identified(network: Network, data: Probe, *others: Any) -> dict[str, str] | None:
    """Digests of what a job works on; None where the network's source cannot be read and nothing vouches for it."""
    weights = {name: value.numpy() for name, value in network.module.state_dict().items()}  # a closure may decide them
    try:
        built = digest(network.digest, repr(network.module), weights)
        return {"network": built, "data": data.digest, "others": digest(*others)}
    except BadInput:
        return None


def stored(
    store: Store | None,
    kind: str,
    inputs: Mapping[str, str] | None,
    settings: Mapping[str, Any],
    measure: Callable[[], np.ndarray],
) -> np.ndarray:
    """An array of numbers from the store, measured first where it is not there."""
    if store is None or inputs is None:
        return measure()

    def build(folder: Path) -> None:
        np.save(folder / _NUMBERS, measure(), allow_pickle=False)

    return np.asarray(np.load(store.make(kind, inputs, settings, build) / _NUMBERS, allow_pickle=False))
