"""Images that stay encoded, in memory or on disk, until a batch needs their pixels."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, overload, runtime_checkable

import numpy as np
from PIL import Image

from taskatlas.errors import BadInput
from taskatlas.probe.samples import Samples, coded_labels
from taskatlas.store import digest

Mode = Literal["L", "RGB", "RGBA"]

CHANNELS: dict[Mode, int] = {"L": 1, "RGB": 3, "RGBA": 4}
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_TOO_DEEP = ("I", "F", "I;16")  # more than 8 bits a channel: Pillow would clip them without a word


@runtime_checkable
class Encoded(Protocol):
    """Where encoded images come from: a folder's files, a Parquet column, a list in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> bytes: ...

    def where(self, position: int) -> str:
        """The file or row of an image, for an error message."""

    def take(self, rows: Sequence[int]) -> "Encoded":
        """Some of them, in the order given."""


@dataclass(frozen=True, eq=False)
class EncodedFiles:
    """Image files."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int, /) -> bytes:
        try:
            return self.paths[position].read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read the image {self.paths[position]}: {error.strerror}.") from error

    def where(self, position: int) -> str:
        """The path of an image."""
        return str(self.paths[position])

    def take(self, rows: Sequence[int]) -> "EncodedFiles":
        """Some of the files, in the order given."""
        return EncodedFiles(tuple(self.paths[row] for row in rows))


@dataclass(frozen=True, eq=False)
class EncodedInMemory:
    """Encoded images held in memory."""

    images: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int, /) -> bytes:
        return self.images[position]

    def where(self, position: int) -> str:
        """The position of an image."""
        return f"image {position}"

    def take(self, rows: Sequence[int]) -> "EncodedInMemory":
        """Some of the images, in the order given."""
        return EncodedInMemory(tuple(self.images[row] for row in rows))


@dataclass(frozen=True, eq=False)
class LazyImages(Sequence[np.ndarray]):
    """Encoded images as a sequence of uint8 arrays (height, width, channels), decoded anew at each access."""

    encoded: Encoded
    mode: Mode = "RGB"

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, position: int, /) -> np.ndarray: ...

    @overload
    def __getitem__(self, position: slice, /) -> "LazyImages": ...

    def __getitem__(self, position: int | slice, /) -> "np.ndarray | LazyImages":
        if isinstance(position, slice):
            return self.take(range(len(self))[position])
        row = range(len(self))[position]
        return decode_image(self.encoded[row], self.mode, self.encoded.where(row))

    def take(self, rows: Sequence[int]) -> "LazyImages":
        """Some of the images, in the order given."""
        return LazyImages(self.encoded.take(rows), self.mode)

    def digests(self) -> Iterator[str]:
        """A digest of each image's content, in order; finds what is no image on the way.

        A PNG is known by its pixels, so an array and its PNG are the same sample. Any other format is known by its
        bytes and only its header is decoded: it may be lossy, and then the bytes are what was given.

        Raises:
            BadInput: a file is no image; names it.
        """
        for position in range(len(self)):
            content = self.encoded[position]
            if _open(content, self.encoded.where(position)).format == "PNG":
                yield digest(self[position])
            else:
                yield digest(content, self.mode)


def decode_image(content: bytes, mode: Mode, where: str) -> np.ndarray:
    """The pixels of an encoded image, uint8 (height, width, channels), converted to ``mode``.

    Raises:
        BadInput: it is no image, is damaged, has more than 8 bits a channel, or is suspiciously large.

    Example:
        >>> decode_image(encode_png(np.zeros((2, 3, 1), np.uint8)), "RGB", "an image").shape
        (2, 3, 3)
    """
    image = _open(content, where)
    if image.mode.startswith(_TOO_DEEP):
        raise BadInput(f"{where} has more than 8 bits a channel (mode {image.mode}). Convert it to 8 bits first.")
    try:
        pixels = np.asarray(image.convert(mode))
    except Exception as error:  # Pillow's decoders raise whatever a damaged file provokes
        raise BadInput(f"{where} is a damaged image: {error}.") from error
    return pixels.reshape(image.height, image.width, CHANNELS[mode])


def encode_png(pixels: np.ndarray) -> bytes:
    """A uint8 array (height, width, 1, 3 or 4) as a PNG, which loses nothing.

    Raises:
        BadInput: the array is no such image.
    """
    if not is_image(pixels):
        raise BadInput(
            f"an image of shape {pixels.shape} and type {pixels.dtype} cannot be kept as PNG; "
            "images are uint8 (height, width, 1, 3 or 4)."
        )
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
    return file.getvalue()


def encode_picture(picture: Image.Image, mode: Mode) -> bytes:
    """A Pillow image as a PNG of the given mode."""
    return encode_png(np.asarray(picture.convert(mode)).reshape(picture.height, picture.width, CHANNELS[mode]))


def is_image(pixels: np.ndarray) -> bool:
    """Whether an array is uint8 (height, width, 1, 3 or 4), with at least one pixel."""
    return pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] in CHANNELS.values() and pixels.size > 0


def mode_of(images: Sequence[Any]) -> Mode:
    """The one mode of a sequence of image arrays.

    Raises:
        BadInput: an entry is no image, or they differ in their number of channels.
    """
    if isinstance(images, LazyImages):
        return images.mode
    channels = set()
    for position, pixels in enumerate(images):
        if not (isinstance(pixels, np.ndarray) and is_image(pixels)):
            shape = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise BadInput(f"sample {position} is {shape}; images are uint8 arrays (height, width, 1, 3 or 4).")
        channels.add(pixels.shape[-1])
    if len(channels) != 1:
        raise BadInput(f"the images have {sorted(channels)} channels; convert them to one number of channels.")
    return next(mode for mode, count in CHANNELS.items() if count in channels)


def read_image_folder(folder: Path, mode: Mode) -> Samples:
    """Every image below a folder, sorted by path; ids are the paths from there, first sub-folders are the labels.

    Raises:
        BadInput: there is no image, or some images are in sub-folders and some are not.
    """
    paths = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise BadInput(f"{folder} holds no images (looked for {', '.join(sorted(_SUFFIXES))}, also in sub-folders).")
    loose = [path for path in paths if len(path.parts) == 1]
    if loose and len(loose) < len(paths):
        raise BadInput(
            f"{folder} holds images beside sub-folders of images, such as {loose[0]}. "
            "Put every image into its label's sub-folder, or all into one folder."
        )
    images = LazyImages(EncodedFiles(tuple(folder / path for path in paths)), mode)
    ids = [path.as_posix() for path in paths]
    if loose:
        return Samples("image", images, ids)
    return Samples("image", images, ids, *coded_labels([path.parts[0] for path in paths]))


def _open(content: bytes, where: str) -> Image.Image:
    """Reads the header only."""
    try:
        image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise _too_large(where) from error
    except Exception as error:
        raise BadInput(f"{where} is not an image that can be read. Remove it or convert it to PNG.") from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _too_large(where)
    return image


def _too_large(where: str) -> BadInput:
    return BadInput(
        f"{where} decodes to more than {Image.MAX_IMAGE_PIXELS} pixels, as files made to fill a memory do. "
        "Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    )
