"""What can be measured of a sample without a network: brightness, contrast, hue and size, length, source."""

from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from taskatlas.engine import track
from taskatlas.probe import Probe

_COLUMNS = 64  # of a table that are looked at each by itself
_SOURCES = 50  # folders up to which a source is worth a column

Columns = dict[str, np.ndarray]
"""Name -> (n,) numbers."""


def sample_metadata(data: Probe) -> Columns:
    """Numbers about each sample, by name, in the order of the data.

    Images: brightness and contrast (mean and deviation of grey, 0 to 1), saturation, hue as two coordinates on the
    circle of colours (red to cyan, and yellow-green to violet), detail (mean change between neighbours), width and
    height. Texts: characters, words, mean length of a word, shares of digits and of capitals. Arrays: mean and
    deviation of a sample, and its columns, up to 64. All: the folder in the id, one column each, where there are a few.

    Example:
        >>> probe = Probe.from_text(["Two words", "x"])
        >>> sample_metadata(probe)["words"]
        array([2., 1.])
    """
    match data.kind:
        case "image":
            found = _of_images(data)
        case "text":
            found = _of_texts(list(data.inputs))
        case "array":
            found = _of_rows(
                np.asarray(data.inputs, dtype=np.float64).reshape(len(data), -1), np.ndim(data.inputs) == 2
            )
        case _:
            found = {}
    return {name: values for name, values in (found | _sources(data.ids)).items() if np.ptp(values) > 0}


def correlation_ratio(labels: Int64[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> float:
    """η from 0 to 1: the root of the share of a number's variance that lies between classes; |r| for two classes.

    Example:
        >>> correlation_ratio(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 3.0, 3.0]))
        1.0
    """
    counts = np.bincount(labels)
    present = counts > 0
    means = np.bincount(labels, weights=values)[present] / counts[present]
    total = float(((values - values.mean()) ** 2).sum())
    between = float((counts[present] * (means - values.mean()) ** 2).sum())
    return float(np.sqrt(min(1.0, between / total))) if total > 0 else 0.0


def _of_images(data: Probe) -> Columns:
    rows = [_of_image(pixels) for pixels in track(data.inputs, "looking at images", total=len(data))]
    names = ("brightness", "contrast", "detail", "height", "width", "saturation", "hue (red)", "hue (yellow)")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names) if len(rows[0]) > i}


def _of_image(pixels: Any) -> list[float]:
    x = np.asarray(pixels, dtype=np.float32) / 255
    colour = x[..., :3] if x.shape[-1] >= 3 else x[..., :1]
    grey = colour @ np.array([0.299, 0.587, 0.114], np.float32) if colour.shape[-1] == 3 else colour[..., 0]
    detail = float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) if grey.size > 1 else 0
    row = [float(grey.mean()), float(grey.std()), detail, float(x.shape[0]), float(x.shape[1])]
    if colour.shape[-1] == 3:
        red, green, blue = colour.reshape(-1, 3).mean(0)
        saturation = colour.max(-1) - colour.min(-1)
        row += [float(saturation.mean()), float(red - (green + blue) / 2), float((red + green) / 2 - blue)]
    return row


def _of_texts(texts: list[str]) -> Columns:
    words = [text.split() for text in texts]
    characters = np.array([float(len(text)) for text in texts])
    shares = {
        "share of digits": [sum(letter.isdigit() for letter in text) for text in texts],
        "share of capitals": [sum(letter.isupper() for letter in text) for text in texts],
    }
    return {
        "characters": characters,
        "words": np.array([float(len(several)) for several in words]),
        "length of a word": np.array([np.mean([len(word) for word in several] or [0]) for several in words]),
        **{name: np.array(counts) / np.maximum(characters, 1) for name, counts in shares.items()},
    }


def _of_rows(x: Float[np.ndarray, "n d"], is_table: bool) -> Columns:
    columns = {f"column {i}": x[:, i] for i in range(min(x.shape[1], _COLUMNS))} if is_table else {}
    return {"mean": x.mean(1), "deviation": x.std(1), **columns}


def _sources(ids: tuple[str, ...]) -> Columns:
    folders = [str(PurePosixPath(name).parent) for name in ids]
    known = Counter(folders)
    if not 1 < len(known) <= _SOURCES:
        return {}
    return {f"source {name}": np.array([float(one == name) for one in folders]) for name in sorted(known)}
