"""What a reader of some format found: samples with the names and labels that came with them."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from taskatlas.errors import BadInput

Kind = Literal["array", "image", "text", "words"]

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")


Coded = tuple[np.ndarray | None, tuple[str, ...] | None]  # labels and class names


class Samples(NamedTuple):
    """Samples in order; ids None stands for positions, labels are coded integers."""

    kind: Kind
    inputs: Any  # np.ndarray (n, ...) for "array", else a sequence
    ids: Sequence[str] | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None


def coded_labels(labels: Any, source: str = "labels") -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as int64 (n,), with the sorted class names where they were strings.

    Args:
        labels: integers, booleans or strings; a sequence, an array or a tensor.
        source: where they come from, for the messages.

    Raises:
        BadInput: a label is missing, or is neither an integer nor a string.

    Example:
        >>> coded_labels(["cat", "ant", "cat"])
        (array([1, 0, 1]), ('ant', 'cat'))
    """
    found = _as_array(labels, source)
    if found.ndim != 1:
        raise BadInput(f"the {source} have shape {found.shape}; give one label a sample.")
    if found.dtype.kind in "biu":
        return found.astype(np.int64), None
    if found.dtype.kind == "U":
        names, codes = np.unique(found, return_inverse=True)
        return codes.astype(np.int64), tuple(str(name) for name in names)
    raise BadInput(f"the {source} are of type {found.dtype}; labels are integers or strings.")


def named_labels(labels: Any, names: Sequence[str] | None, source: str) -> Coded:
    """Labels whose classes a data set names; none where all are -1, which marks labels that are kept back.

    Example:
        >>> named_labels([1, 0], ["ant", "cat"], "labels")
        (array([1, 0]), ('ant', 'cat'))
        >>> named_labels([-1, -1], ["ant", "cat"], "labels")
        (None, None)
    """
    coded, found_names = coded_labels(labels, source)
    if names is None or found_names is not None:
        return coded, found_names
    return (None, None) if (coded == -1).all() else (coded, tuple(names))


def read_labels(texts: Sequence[str], source: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels out of a text file: integers where every one of them is written as one, else strings.

    Example:
        >>> read_labels(["2", "0"], "column label")
        (array([2, 0]), None)
    """
    if all(_WHOLE_NUMBER.fullmatch(text) for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64), None
    return coded_labels(texts, source)


def _as_array(labels: Any, source: str) -> np.ndarray:
    if hasattr(labels, "detach"):  # a tensor, without importing torch to find out
        return np.asarray(labels.detach().cpu())
    if isinstance(labels, np.ndarray) and labels.dtype != object:
        return labels
    plain = [item.item() if getattr(item, "ndim", None) == 0 else item for item in labels]
    if any(isinstance(item, str) for item in plain) and not all(isinstance(item, str) for item in plain):
        other = next(position for position, item in enumerate(plain) if not isinstance(item, str))
        raise BadInput(f"the {source} mix strings with others: number {other} is {plain[other]!r}.")
    missing = next((position for position, item in enumerate(plain) if item is None), None)
    if missing is not None:
        raise BadInput(f"the {source} have none at sample {missing}. Label every sample or none.")
    try:
        return np.array(plain) if plain else np.empty(0, dtype=np.int64)
    except ValueError as error:
        raise BadInput(f"the {source} are not one integer or string a sample.") from error
