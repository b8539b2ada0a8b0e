"""Two small networks: what demos, tests and small data need."""

from collections.abc import Sequence

from torch import nn


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them: (batch, inputs) to (batch, outputs).

    Example:
        >>> mlp(64, (32,), 10)
        Sequential(
          (0): Linear(in_features=64, out_features=32, bias=True)
          (1): ReLU()
          (2): Linear(in_features=32, out_features=10, bias=True)
        )
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def small_cnn(channels: int, classes: int, width: int = 16) -> nn.Sequential:
    """Three convolutions, each halving the image, a mean over space and a linear head; no batch statistics.

    Example:
        >>> import torch
        >>> small_cnn(3, 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    for level in range(3):
        incoming = channels if level == 0 else width * 2 ** (level - 1)
        layers += [nn.Conv2d(incoming, width * 2**level, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width * 4, classes))
