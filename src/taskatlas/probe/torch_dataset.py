"""Samples out of a torch data set: each item is (x, y) or x."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from taskatlas.errors import BadInput
from taskatlas.probe.images import EncodedInMemory, LazyImages, Mode, encode_picture, is_image
from taskatlas.probe.samples import Samples, coded_labels


def read_torch_dataset(dataset: Any, limit: int | None) -> Samples:
    """The first ``limit`` items of a data set, each asked for once and in order.

    Pillow images are kept as PNG, with the channels of the first; strings are texts; tensors and arrays are stacked.

    Raises:
        BadInput: no items, or an x that is none of these, or items of different shapes.
    """
    inputs: list[Any] = []
    labels: list[Any] = []
    mode: Mode = "RGB"
    for position, item in enumerate(islice(_items(dataset), limit)):
        x, labelled = (item[0], True) if isinstance(item, tuple | list) and len(item) == 2 else (item, False)
        if position == 0 and isinstance(x, Image.Image):
            mode = next((known for known in ("L", "RGBA") if x.mode == known), "RGB")
        inputs.append(_plain(x, position, mode))
        if labelled:
            labels.append(item[1])
        if len(labels) not in (0, len(inputs)) or type(inputs[-1]) is not type(inputs[0]):
            raise BadInput(f"item {position} of the data set is {_said(x)}, unlike those before it.")
    if not inputs:
        raise BadInput("the data set has no items.")
    coded = coded_labels(labels) if labels else (None, None)
    if isinstance(inputs[0], str):
        return Samples("text", inputs, None, *coded)
    if isinstance(inputs[0], bytes):
        return Samples("image", LazyImages(EncodedInMemory(tuple(inputs)), mode), None, *coded)
    if all(is_image(x) for x in inputs):
        return Samples("image", inputs, None, *coded)
    for position, x in enumerate(inputs):
        if x.shape != inputs[0].shape:
            raise BadInput(
                f"item {position} of the data set has shape {x.shape} and item 0 has {inputs[0].shape}. "
                "Resize them in the data set's transform."
            )
    return Samples("array", np.stack(inputs), None, *coded)


def plain_array(values: Any) -> np.ndarray:
    """A tensor, array or nested list as a numpy array; bfloat16, which numpy lacks, becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values)


def _items(dataset: Any) -> Iterator[Any]:
    """By position where there is a length: not every data set stops an iteration at its end."""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (dataset[position] for position in range(len(dataset)))
    if hasattr(dataset, "__iter__"):
        return iter(dataset)
    raise BadInput(f"a {type(dataset).__name__} is no data set: it has neither items with a length nor an iterator.")


def _plain(x: Any, position: int, mode: Mode) -> Any:
    if isinstance(x, str):
        return x
    if isinstance(x, Image.Image):
        return encode_picture(x, mode)
    if isinstance(x, np.ndarray | np.number | int | float) or hasattr(x, "detach"):
        return plain_array(x)
    raise BadInput(
        f"item {position} of the data set is {_said(x)}; an item is x or (x, label), "
        "with x a tensor, an array, a Pillow image or a string."
    )


def _said(x: Any) -> str:
    return f"a {type(x).__name__}"
