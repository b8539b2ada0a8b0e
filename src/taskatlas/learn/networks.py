"""Networks without batch statistics, for demos, tests and learners that train several at once.

All are differentiable twice, and a sample's output never depends on its batch-mates.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taskatlas.errors import BadInput


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


def flat_mlp(shape: Sequence[int], classes: int, hidden: Sequence[int] = (64, 64)) -> nn.Sequential:
    """An ``mlp`` on samples of any shape, flattened.

    Example:
        >>> flat_mlp((1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(nn.Flatten(), *mlp(math.prod(shape), hidden, classes))


def resnet18(channels: int, classes: int, width: int = 64) -> nn.Sequential:
    """ResNet-18 for small images (He et al., CVPR 2016): a 3 × 3 stem, four stages of two blocks.

    Groups of 16 channels are normalised together (Wu and He, ECCV 2018) where the original takes batch statistics.

    Args:
        channels: of the image.
        classes: outputs.
        width: channels of the first stage, a multiple of 16.

    Example:
        >>> resnet18(3, 10, width=16)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    blocks: list[nn.Module] = []
    for level in range(4):
        incoming, outgoing = width * 2 ** max(0, level - 1), width * 2**level
        blocks += [_Residual(incoming, outgoing, 2 if level else 1), _Residual(outgoing, outgoing, 1)]
    stem = [nn.Conv2d(channels, width, 3, padding=1, bias=False), _norm(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width * 8, classes))


def vit(shape: Sequence[int], classes: int, patch: int = 4, width: int = 64, depth: int = 4) -> nn.Module:
    """A small vision transformer (Dosovitskiy et al., ICLR 2021), with a mean over patches before the head.

    Args:
        shape: of an image: channels, height, width; both sides multiples of ``patch``.
        classes: outputs.
        patch: side of a patch in pixels.
        width: of a token, a multiple of 32.
        depth: blocks.

    Raises:
        BadInput: patches do not tile the image.

    Example:
        >>> vit((3, 16, 16), 10)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
        raise BadInput(f"patches of {patch} pixels do not tile samples of shape {tuple(shape)}. Bring them to a size.")
    tokens = (shape[1] // patch) * (shape[2] // patch)
    return nn.Sequential(
        nn.Conv2d(shape[0], width, patch, stride=patch),
        nn.Flatten(2),
        _Positions(width, tokens),
        *(_TransformerBlock(width, width // 32) for _ in range(depth)),
        nn.LayerNorm(width),
        _MeanOfTokens(),
        nn.Linear(width, classes),
    )


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.within = nn.Sequential(
            nn.Conv2d(incoming, outgoing, 3, stride=stride, padding=1, bias=False),
            _norm(outgoing),
            nn.ReLU(),
            nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False),
            _norm(outgoing),
        )
        self.beside: nn.Module = nn.Identity()
        if stride > 1 or incoming != outgoing:
            self.beside = nn.Sequential(nn.Conv2d(incoming, outgoing, 1, stride=stride, bias=False), _norm(outgoing))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.within(x) + self.beside(x))


class _Positions(nn.Module):
    """(batch, width, tokens) to (batch, tokens, width), a learned position added."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) + self.position


class _TransformerBlock(nn.Module):
    """Attention and an MLP, each normalised first; plain products, which can be differentiated twice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.project, self.join = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.then = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        x = x + self.join((weights @ value).transpose(1, 2).flatten(2))
        return x + self.then(x)


class _MeanOfTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 16), channels)
