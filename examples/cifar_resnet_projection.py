"""A builder for ResNets of CIFAR size whose shortcuts project: depth, width and classes are read from the weights.

He et al. (CVPR 2016, section 4.2) with a 1 x 1 convolution and a norm wherever a shortcut changes shape (option B), as
networks are trained that are to be merged (Stoica et al., ICLR 2024). With a folder of them:

    taskatlas map RESNETS --builder examples/cifar_resnet_projection.py:build --probe IMAGES --out atlas
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)


class Block(nn.Module):
    """Two convolutions around a shortcut, which is empty where nothing changes shape."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, outgoing, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outgoing)
        self.conv2 = nn.Conv2d(outgoing, outgoing, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outgoing)
        self.shortcut = nn.Sequential()
        if stride != 1 or incoming != outgoing:
            self.shortcut = nn.Sequential(
                nn.Conv2d(incoming, outgoing, 1, stride, bias=False), nn.BatchNorm2d(outgoing)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ProjectionResNet(nn.Module):
    """A 3 x 3 stem, three stages of blocks, mean pooling and a linear head."""

    def __init__(self, blocks: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, 1)
        self.layer2 = self._stage(blocks, width, 2 * width, 2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(blocks: int, incoming: int, outgoing: int, stride: int) -> nn.Sequential:
        first = Block(incoming, outgoing, stride)
        return nn.Sequential(first, *(Block(outgoing, outgoing, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def build(weights: Mapping[str, Tensor]) -> tuple[nn.Module, Any]:
    """A network of the depth, width and number of classes that the weights have, and its preprocessing."""
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layer1.")})
    return ProjectionResNet(blocks, len(weights["conv1.weight"]), len(weights["linear.weight"])), prepare


def prepare(images: list[np.ndarray]) -> Tensor:
    """Stacks uint8 images (32, 32, 3), scales them to [0, 1] and normalises with CIFAR-10's mean and deviation."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (batch - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
