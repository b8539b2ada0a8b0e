"""Running somebody's network without leaving a trace in it or in the random generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards all is as it was found, also when the block raises.

    Restored are the ``training`` flag of every submodule, each by itself, all buffers (BatchNorm's statistics among
    them), and the random states of Python, numpy and torch (with those of the CUDA devices in use), so a training that
    is looked at goes on as one that is not.

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
    buffers = [
        (part, name, buffer, buffer.clone())
        for part, _ in modes
        for name, buffer in part.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        _set_modes([(part, False) for part, _ in modes])
        with torch.no_grad():
            yield
    finally:
        _set_modes(modes)
        _restore(buffers)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for part, mode in modes:
        part.training = mode  # not .train() or .eval(): a network may override it, and it would reach the children


def _restore(buffers: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]) -> None:
    """Puts back buffers that were exchanged, and values that were changed; what was not is not written to."""
    with torch.no_grad():
        for part, name, buffer, before in buffers:
            if getattr(part, name, None) is not buffer:
                setattr(part, name, buffer)
            if not torch.equal(buffer, before):
                buffer.copy_(before)
