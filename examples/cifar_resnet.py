"""A builder for the CIFAR-10 networks that circulate as ``resnet20-….th``: depth and width are read from the weights.

These are the networks of He et al. (CVPR 2016, section 4.2) with parameter-free shortcuts (option A), as trained by
Yerlan Idelbayev (github.com/akamaster/pytorch_resnet_cifar10). With a folder of them:

    taskatlas map RESNETS --builder examples/cifar_resnet.py:build --probe IMAGES --out atlas
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions around a shortcut that skips rows and columns and pads channels with zeros."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, outgoing, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outgoing)
        self.conv2 = nn.Conv2d(outgoing, outgoing, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outgoing)
        self.stride, self.padding = stride, (outgoing - incoming) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class CifarResNet(nn.Module):
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
    return CifarResNet(blocks, len(weights["conv1.weight"]), len(weights["linear.weight"])), prepare


def prepare(images: list[np.ndarray]) -> Tensor:
    """Stacks uint8 images (32, 32, 3), scales them to [0, 1] and normalises with ImageNet's mean and deviation."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (batch - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
