"""Seven corruptions of images at five severities, for asking how a merged model stands them.

The kinds are those of Hendrycks and Dietterich ("Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019) that data-adaptive fusion was published with. Strengths that do not depend on an image's size
are those of ImageNet-C; the length of a blur and the grain of a spatter are shares of the shorter side, so that images
of 32 and of 224 pixels suffer alike. What is random follows the seed alone.
"""

import io
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.store import digest

Image = UInt8[np.ndarray, "height width *channels"]

_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of white
_IMPULSES = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of values
_BLUR = (0.06, 0.09, 0.12, 0.16, 0.2)  # length, of the shorter side
_BLOCKS = (0.6, 0.5, 0.4, 0.3, 0.25)  # size to which an image is shrunk
_WET = (0.05, 0.1, 0.16, 0.23, 0.3)  # share of the image
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # share that is left
_JPEG = (25, 18, 15, 10, 7)  # quality

_GRAIN = 0.03  # of drops, of the shorter side
_EDGE = 0.5  # how far above the threshold a drop is opaque, in standard deviations of the field
_WATER, _MUD = np.array([175.0, 238.0, 238.0]), np.array([63.0, 42.0, 20.0])  # colours of light and of heavy spatter
_MUD_FROM = 4  # severity


def motion_blur(image: Image, severity: int, seed: int = 0) -> Image:
    """Blur along a line, its direction at random within 45 degrees of the horizontal."""
    angle = np.deg2rad(np.random.default_rng(seed).uniform(-45, 45))
    length = max(1.5, _BLUR[severity - 1] * min(image.shape[:2]))
    return _rounded(ndimage.convolve(image.astype(float), _channelwise(_line(length, angle), image), mode="reflect"))


def gaussian_noise(image: Image, severity: int, seed: int = 0) -> Image:
    """Independent normal noise on every value."""
    noise = np.random.default_rng(seed).normal(0, 255 * _NOISE[severity - 1], image.shape)
    return _rounded(image + noise)


def impulse_noise(image: Image, severity: int, seed: int = 0) -> Image:
    """Values that are black or white instead."""
    dice = np.random.default_rng(seed).random(image.shape)
    share = _IMPULSES[severity - 1]
    found = image.copy()
    found[dice < share / 2] = 0
    found[dice > 1 - share / 2] = 255
    return found


def pixelate(image: Image, severity: int, seed: int = 0) -> Image:  # noqa: ARG001 (all corruptions look alike)
    """Shrunk by averaging, and enlarged again as blocks."""
    from PIL import Image as Pillow

    height, width = image.shape[:2]
    small = tuple(max(1, round(side * _BLOCKS[severity - 1])) for side in (width, height))
    shrunk = Pillow.fromarray(_picture(image)).resize(small, Pillow.Resampling.BOX)
    return np.asarray(shrunk.resize((width, height), Pillow.Resampling.NEAREST)).reshape(image.shape).copy()


def spatter(image: Image, severity: int, seed: int = 0) -> Image:
    """Drops on the lens: of water, or of mud where it is bad."""
    field = np.random.default_rng(seed).normal(size=image.shape[:2])
    field = ndimage.gaussian_filter(field, max(0.7, _GRAIN * min(image.shape[:2])), mode="wrap")
    threshold = np.quantile(field, 1 - _WET[severity - 1])
    cover = np.clip((field - threshold) / (_EDGE * field.std() + 1e-12), 0, 1)
    colour = _MUD if severity >= _MUD_FROM else _WATER
    if image.ndim == 2 or image.shape[2] != len(colour):
        drops = np.full(image.shape, colour.mean())
    else:
        drops = np.broadcast_to(colour, image.shape)
    cover = cover if image.ndim == 2 else cover[..., None]
    return _rounded((1 - cover) * image + cover * drops)


def contrast(image: Image, severity: int, seed: int = 0) -> Image:  # noqa: ARG001
    """Every channel drawn towards its mean."""
    mean = image.mean((0, 1), keepdims=True)
    return _rounded(mean + (image - mean) * _CONTRAST[severity - 1])


def jpeg(image: Image, severity: int, seed: int = 0) -> Image:  # noqa: ARG001
    """Compressed as JPEG and read again."""
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(_picture(image)).save(file, "JPEG", quality=_JPEG[severity - 1])
    with Pillow.open(file) as opened:
        return np.asarray(opened).reshape(image.shape).copy()


CORRUPTIONS: Mapping[str, Callable[[Image, int, int], Image]] = {
    "motion_blur": motion_blur,
    "gaussian_noise": gaussian_noise,
    "impulse_noise": impulse_noise,
    "pixelate": pixelate,
    "spatter": spatter,
    "contrast": contrast,
    "jpeg": jpeg,
}


def corrupt(image: Image, kind: str, severity: int, seed: int = 0) -> Image:
    """One image, corrupted; the image that is given stays as it is.

    Args:
        image: uint8, height x width, or height x width x channels (1 or 3).
        kind: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: of what is random.

    Raises:
        BadInput: no such kind or severity, or an array that is no image.

    Example:
        >>> grey = np.full((4, 4, 3), 100, np.uint8)
        >>> corrupt(grey, "contrast", 5).max(), corrupt(grey, "gaussian_noise", 1).std() > 10
        (np.uint8(100), np.True_)
    """
    if kind not in CORRUPTIONS:
        raise BadInput(f"there is no corruption {kind!r}. Choose one of: {', '.join(CORRUPTIONS)}.")
    if not isinstance(severity, int | np.integer) or severity not in range(1, 6):
        raise BadInput(f"severity {severity} is none; it goes from 1 to 5.")
    is_image = image.ndim in (2, 3) and image.size > 0 and (image.ndim == 2 or image.shape[2] in (1, 3))
    if image.dtype != np.uint8 or not is_image:
        raise BadInput(f"an array {image.shape} of {image.dtype} is no image; give uint8, height x width x 1 or 3.")
    return CORRUPTIONS[kind](image, severity, seed)


def corrupted(probe: Probe, kind: str, severity: int, seed: int = 0) -> Probe:
    """A probe of images with every image corrupted; ids and labels stay. Each image's randomness follows its id.

    Raises:
        BadInput: as ``corrupt``; a probe of something else.
    """
    if probe.kind != "image":
        raise BadInput(f"a probe of {probe.kind} has no images to corrupt.")
    inputs = [
        corrupt(np.asarray(pixels), kind, severity, int(digest(seed, kind, severity, name)[:15], 16))
        for name, pixels in zip(probe.ids, (probe.inputs[row] for row in range(len(probe))), strict=True)
    ]
    return Probe("image", inputs, probe.ids, probe.labels, probe.class_names)


def _line(length: float, angle: float) -> np.ndarray:
    """A kernel that averages along a line through its middle, which is splatted on the pixels that it crosses."""
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    for step in np.linspace(-length / 2, length / 2, 8 * half + 1):
        row, column = half + step * np.sin(angle), half + step * np.cos(angle)
        top, left = int(np.floor(row)), int(np.floor(column))
        for r, c in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= r < len(kernel) and 0 <= c < len(kernel):
                kernel[r, c] += (1 - abs(row - r)) * (1 - abs(column - c))
    return kernel / kernel.sum()


def _channelwise(kernel: np.ndarray, image: np.ndarray) -> np.ndarray:
    return kernel if image.ndim == 2 else kernel[..., None]


def _picture(image: np.ndarray) -> np.ndarray:
    """As Pillow wants it: grey images without an axis of channels."""
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
