"""Torch's one random state, shared by all threads: whoever sets it takes turns."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

TURNS = RLock()
"""Held while the global state is read or set, and while weights are drawn from it."""


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draws from a seed, alone; afterwards the state is as it was.

    Example:
        >>> before = torch.get_rng_state()
        >>> with drawing_from(0):
        ...     torch.rand(1)
        tensor([0.4963])
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    with TURNS, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def state_kept(device: torch.device) -> Iterator[None]:
    """Afterwards the state is as it was, here and on a GPU; other threads may draw meanwhile."""
    with TURNS:
        state = torch.get_rng_state()
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        with TURNS:
            torch.set_rng_state(state)
            if on_device is not None:
                torch.cuda.set_rng_state(on_device, device)
