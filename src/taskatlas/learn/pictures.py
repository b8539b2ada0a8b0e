"""Pictures on their way into a network: brought to one size, varied at random while it learns, normalised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.learn.recipe import Crop

Pixels = UInt8[np.ndarray, "_ _ _"]  # height, width, channels

_COLOUR = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of ImageNet, as is usual
_GREY = (0.449,), (0.226,)  # those of its grey images
_MARGIN = 8 / 7  # an image that is not of the size has its shorter side scaled to 8/7 of it: 256 for 224
_SMALLEST_AREA, _WIDEST = 0.08, 4 / 3  # of a resized crop
_TRIES = 10


@dataclass(frozen=True)
class Preparation:
    """Images as a network takes them where it is only asked: one size, channels first, normalised as ImageNet's.

    An image of another size is scaled so that its shorter side is 8/7 of ``size``, and its middle is taken.

    Attributes:
        size: side of the square in pixels; None: images are alike, and stay as they are.
        channels: 3 (colour) or 1 (grey).

    Raises:
        BadInput: another number of channels, or a size below 1.

    Example:
        >>> Preparation(size=4)([np.zeros((6, 9, 3), np.uint8)]).shape
        torch.Size([1, 3, 4, 4])
    """

    size: int | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise BadInput(f"images have 1 channel (grey) or 3 (colour), not {self.channels}. Convert them.")
        if self.size is not None and self.size < 1:
            raise BadInput(f"the size is {self.size} pixels; give at least 1.")

    def __call__(self, images: list[Any]) -> Float[Tensor, "images channels height width"]:
        """A list of images as the network's input.

        Raises:
            BadInput: images of another number of channels, or that differ in size where none is named.
        """
        return self.normalised(stacked([self.fitted(image) for image in images]))

    def fitted(self, pixels: Pixels) -> Pixels:
        """An image at the size that the network takes.

        Raises:
            BadInput: it has another number of channels.
        """
        if pixels.shape[2] != self.channels:
            raise BadInput(f"an image has {pixels.shape[2]} channels and the network takes {self.channels}.")
        if self.size is None or pixels.shape[:2] == (self.size, self.size):
            return pixels
        side, shorter = round(self.size * _MARGIN), min(pixels.shape[:2])
        height, width = (max(side, round(length * side / shorter)) for length in pixels.shape[:2])
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return _scaled(pixels, (width, height), None)[top : top + self.size, left : left + self.size]

    def normalised(self, batch: UInt8[Tensor, "images channels height width"]) -> Float[Tensor, "images channels _ _"]:
        """From 0 to 255, to a mean of about 0 and a deviation of about 1, on the batch's device."""
        mean, deviation = (
            torch.tensor(values, device=batch.device).view(-1, 1, 1)
            for values in (_COLOUR if self.channels == 3 else _GREY)
        )
        return (batch.float() / 255 - mean) / deviation


def varied(pixels: Pixels, crop: Crop, flip: bool, size: int | None, random: np.random.Generator) -> Pixels:
    """A random crop of an image, flipped half of the time where that is wanted; see ``Recipe``.

    Args:
        pixels: the image; at its final size unless the crop is ``resized``.
        crop: how it is cropped.
        flip: whether left and right may be exchanged.
        size: side of a resized crop; None: the image's own height and width.
        random: decides; draws as often for every image of a shape.

    Example:
        >>> pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        >>> varied(pixels, "resized", True, 2, np.random.default_rng(0)).shape
        (2, 2, 3)
    """
    if crop == "shift":
        pixels = _shifted(pixels, random)
    elif crop == "resized":
        pixels = _resized_crop(pixels, size, random)
    return pixels[:, ::-1] if flip and random.random() < 0.5 else pixels


def stacked(images: Sequence[Pixels]) -> UInt8[Tensor, "images channels height width"]:
    """Images as one tensor, channels first.

    Raises:
        BadInput: they differ in shape.
    """
    for pixels in images:
        if pixels.shape != images[0].shape:
            raise BadInput(
                f"images of {images[0].shape[:2]} and {pixels.shape[:2]} pixels do not go into one batch. "
                "Say to what size they are brought (--size, or Preparation(size=...))."
            )
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def _shifted(pixels: Pixels, random: np.random.Generator) -> Pixels:
    (height, width), (down, right) = pixels.shape[:2], (max(1, length // 8) for length in pixels.shape[:2])
    padded = np.pad(pixels, ((down, down), (right, right), (0, 0)), mode="reflect")
    top, left = random.integers(2 * down + 1), random.integers(2 * right + 1)
    return padded[top : top + height, left : left + width]


def _resized_crop(pixels: Pixels, size: int | None, random: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    target = (width, height) if size is None else (size, size)
    for _ in range(_TRIES):
        area = height * width * random.uniform(_SMALLEST_AREA, 1)
        aspect = np.exp(random.uniform(-np.log(_WIDEST), np.log(_WIDEST)))
        across, down = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = (int(random.integers(room + 1)) for room in (width - across, height - down))
            return _scaled(pixels, target, (left, top, left + across, top + down))
    return _scaled(pixels, target, None)


def _scaled(pixels: Pixels, size: tuple[int, int], box: tuple[int, int, int, int] | None) -> Pixels:
    """The part of an image in a box (left, top, right, bottom), scaled to a width and a height."""
    grey = pixels.shape[2] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    scaled = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
    return scaled[..., None] if grey else scaled
