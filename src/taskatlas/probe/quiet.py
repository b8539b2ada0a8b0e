"""Running somebody's network without leaving a trace in it or in the random generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards all is as it was found, also when the block raises.

    Restored are the ``training`` flag of every submodule, each by itself, and the random states of Python, numpy and
    torch (with those of the CUDA devices in use), so a training that is looked at goes on as one that is not.

    Args:
        module: any network; its submodules may be in different modes.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1)).train()
        >>> with quiet(net):
        ...     net[0].training, net(torch.ones(1, 2)).requires_grad
        (False, False)
        >>> net[0].training
        True
    """
    modes = [(part, part.training) for part in module.modules()]
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode  # not .train(): a network may override it, and it would reach the children
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
