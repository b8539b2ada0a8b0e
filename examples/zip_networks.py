"""Builders of the networks that zipping is published for: ResNets and VGGs of any width, and a pyramid of generators.

``vectors`` is a file (.npy) with one row for each class, such as the embedding of its name: networks then give, in
place of a linear layer's outputs, a hundred times the cosine of their features with each row.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parent))  # a builder is opened from anywhere
import cifar_resnet_projection
from cifar_resnet_projection import ProjectionResNet

VGG = {
    11: (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    16: (
        *(64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"),
        *(512, 512, 512, "pool", 512, 512, 512, "pool"),
    ),
}


class VectorHead(nn.Module):
    """Logits that say how near features are to given vectors, as in CLIP."""

    def __init__(self, features: int, vectors: np.ndarray) -> None:
        super().__init__()
        rows = F.normalize(torch.from_numpy(np.asarray(vectors, np.float32)), dim=1)
        self.project = nn.Linear(features, rows.shape[1])
        self.register_buffer("vectors", rows)

    def forward(self, x: Tensor) -> Tensor:
        return 100 * F.normalize(self.project(x), dim=-1) @ self.vectors.T


class Vgg(nn.Module):
    """Simonyan and Zisserman (ICLR 2015) with norms, of CIFAR size: 32 x 32 images end as one pixel."""

    def __init__(self, depth: int, width: float, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for size in VGG[depth]:
            if size == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            wide = max(1, round(size * width))
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
            channels = wide
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean(dim=(2, 3)))


class Pyramid(nn.Module):
    """Generators of growing scale, each adding detail to what the one before made (Shaham et al., SinGAN, ICCV 2019).

    Takes noise of the smallest scale; ``scale0``, ``scale1`` ... are the outputs up to which pyramids are zipped.
    """

    def __init__(self, scales: int, width: int, growth: float = 4 / 3) -> None:
        super().__init__()
        self.growth = growth
        for scale in range(scales):
            self.add_module(f"scale{scale}", Detail(width, first=scale == 0))

    def forward(self, noise: Tensor) -> Tensor:
        image = noise
        for scale, part in enumerate(self.children()):
            if scale:
                size = [round(side * self.growth**scale) for side in noise.shape[2:]]
                image = F.interpolate(image, size=size, mode="bilinear", align_corners=True)
            image = part(image)
        return image


class Detail(nn.Module):
    """Five convolutions; what they give is added to the image that they take."""

    def __init__(self, width: int, first: bool) -> None:
        super().__init__()
        sizes = (3, width, width, width, width)
        self.first = first
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(one, other, 3, padding=1), nn.BatchNorm2d(other), nn.LeakyReLU(0.2))
                for one, other in pairwise(sizes)
            )
        )
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        made = torch.tanh(self.tail(self.body(image)))
        return made if self.first else made + image


def prepare(images: list[np.ndarray]) -> Tensor:
    """As for other networks of CIFAR size, with channels outermost in memory: other orders may not train in torch."""
    return cifar_resnet_projection.prepare(images).contiguous()


def network(
    name: str, classes: int, width: float = 1, vectors: str | None = None, rows: Sequence[int] = ()
) -> tuple[nn.Module, object]:
    """``resnet20``, ``resnet32``, ... or ``vgg11``, ``vgg16``, ``width`` times as wide as they are usually.

    With ``vectors``, the classes are those of some ``rows``.
    """
    if name.startswith("vgg"):
        made: nn.Module = Vgg(int(name.removeprefix("vgg")), width, classes)
    else:
        made = ProjectionResNet((int(name.removeprefix("resnet")) - 2) // 6, round(16 * width), classes)
    if vectors is not None:
        made.linear = VectorHead(made.linear.in_features, np.load(vectors)[list(rows)])
    return made, prepare
