"""Material for the tests of this room: features that share structure, spaces, networks in memory."""

import numpy as np
from torch import nn

from taskatlas.probe import Features
from taskatlas.space import TaskSpace


def related(seed, n, widths, dtype=np.float64, offset=0.0):
    """Feature matrices of these widths on the same n samples, alike through four shared directions."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 4))
    return [
        (shared @ rng.standard_normal((4, width)) + rng.standard_normal((n, width)) + offset).astype(dtype)
        for width in widths
    ]


def features(seed, n, widths, **kwargs):
    """What ``extract`` would return: float32 features of networks net-0, net-1, … on one probe."""
    return [
        Features(x, tuple(f"s{i}" for i in range(n)), f"net-{position}", "fc:input", "the probe", f"digest {position}")
        for position, x in enumerate(related(seed, n, widths, np.float32, **kwargs))
    ]


def covariance(seed, m, mixed=0.5):
    """A positive definite correlation matrix, entries of both signs, the smallest eigenvalue well above zero."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((m, m)) + mixed
    matrix = factors @ factors.T + np.eye(m)
    scale = np.sqrt(np.diagonal(matrix))
    return matrix / np.outer(scale, scale)


def space_of(matrix, names=None):
    """A task space, its names in sorted order unless they are given."""
    return TaskSpace(tuple(names or (f"task-{i:02d}" for i in range(len(matrix)))), np.asarray(matrix, dtype=float))


def network(seed, inputs=6, hidden=5, outputs=3):
    """A small network with weights of its own, whose features are the input of its last layer."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module
