"""Material for the tests of learning: small pictures that can be told apart, and networks whose steps draw numbers."""

import numpy as np
import torch
from torch import nn

from taskatlas.probe import Probe
from taskatlas.probe.images import EncodedInMemory, LazyImages, encode_png


def pictures(n=40, side=8, classes=3, seed=0):
    """A probe of PNGs in memory, decoded anew at each look; a class has a colour of its own, on noise."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    colours = draw.integers(40, 216, (classes, 3))
    noise = draw.integers(-40, 40, (n, side, side, 3))
    pixels = (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    images = LazyImages(EncodedInMemory(tuple(encode_png(image) for image in pixels)))
    return Probe("image", images, tuple(f"p{i:03}" for i in draw.permutation(n)), labels.astype(np.int64))


def network(classes=3, seed=0):
    """With batch statistics and dropout: what an interruption could disturb."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, classes),
        )


def same(one, other):
    """Whether two networks agree in every bit of their parameters and statistics."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
