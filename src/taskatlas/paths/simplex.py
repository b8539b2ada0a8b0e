"""Predictions as points: rows on the simplex, checked, and their square roots on the unit sphere."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from taskatlas.errors import BadInput

Array = TypeVar("Array", Tensor, np.ndarray)  # what goes in as NumPy comes out as NumPy
Labels = Int[Tensor | np.ndarray, " _"]  # one true class a sample
Truth = Labels | Real[Tensor | np.ndarray, "_ _"]  # labels, or (samples, classes) probabilities
Weights = Real[Tensor | np.ndarray, " _"]
TOLERANCE = 1e-4  # how far a row's sum may be from one: float32 passes, float16 and few printed digits mostly do not


def check_simplex(probs: Real[Array, "*models samples classes"], names: Sequence[str] | None = None) -> None:
    """Refuses rows that are no probabilities: non-negative and summing to one, both to 1e-4.

    Args:
        probs: probabilities of one model or of many.
        names: the models' names for the message; their positions where there are none.

    Raises:
        BadInput: a row is no probability; the message names the model and the sample.

    Example:
        >>> check_simplex(np.array([[0.5, 0.5], [0.9, 0.2]]))
        Traceback (most recent call last):
        ...
        taskatlas.errors.BadInput: model 0, sample 1: the probabilities sum to 1.1. Give a softmax of the logits.
    """
    _row_sums(as_tensor(probs), names)


def from_log_probabilities(
    log_probs: Float[Array, "*models samples classes"],
) -> Float[Array, "*models samples classes"]:
    """Probabilities of log-probabilities, checked; minus infinity stands for a class that is ruled out.

    Raises:
        BadInput: a row's probabilities do not sum to one; the message names the model and the sample.

    Example:
        >>> from_log_probabilities(np.log(np.array([[0.25, 0.75]])))
        array([[0.25, 0.75]])
    """
    probs = as_tensor(log_probs).exp()
    _row_sums(probs, None)
    return like(probs, log_probs)


def unit_roots(probs: Tensor, names: Sequence[str] | None = None, first_sample: int = 0) -> Tensor:
    """Square roots of probabilities (..., C), each row scaled to unit length.

    Float32 rows sum to one within 1e-7 only; scaling makes a model's distance from itself zero.

    Args:
        probs: probabilities.
        names: of the models, and
        first_sample: position of the first sample in the probe, for the message.

    Raises:
        BadInput: a row is no probability.
    """
    sums = _row_sums(probs, names, first_sample)
    return (probs / sums[..., None]).clamp_(min=0).sqrt_()


def as_tensor(values: Tensor | np.ndarray) -> Tensor:
    """``values`` as a floating tensor without gradient; float32 and float64 are kept, integers become float64.

    Raises:
        BadInput: half precision, which is too coarse for distances.
    """
    tensor = values.detach() if isinstance(values, Tensor) else _shared_tensor(np.asarray(values))
    if tensor.dtype in (torch.float16, torch.bfloat16):
        raise BadInput(
            f"{tensor.dtype} is too coarse for distances between predictions. Take the softmax in float32, not after."
        )
    return tensor if tensor.is_floating_point() else tensor.double()


def like(result: Tensor, source: Array) -> Array:
    """``result`` as the kind of array that ``source`` is, in its precision (float64 for integers)."""
    if isinstance(source, Tensor):
        return result.to(source.dtype if source.is_floating_point() else torch.float64)
    numbers: np.ndarray = result.cpu().numpy()
    return numbers.astype(source.dtype if np.issubdtype(source.dtype, np.floating) else np.float64, copy=False)


def check_labels(labels: Tensor | np.ndarray, samples: int, classes: int) -> Tensor:
    """Labels as a tensor of positions among the classes.

    Raises:
        BadInput: another number of samples, or a label that is no class; the message names the sample.
    """
    values = labels.detach() if isinstance(labels, Tensor) else np.asarray(labels)
    if not _are_whole_numbers(values):
        raise BadInput(f"labels are whole numbers from 0 to {classes - 1}, not {values.dtype}.")
    # torch has no arithmetic for every kind of whole number
    found = values.long() if isinstance(values, Tensor) else torch.from_numpy(values.astype(np.int64))
    if found.shape != (samples,):
        raise BadInput(f"{tuple(found.shape)} labels do not fit {samples} samples. Give one label a sample.")
    outside = ((found < 0) | (found >= classes)).nonzero()
    if len(outside):
        sample = int(outside[0, 0])
        raise BadInput(
            f"sample {sample}: label {int(found[sample])} is out of range; with {classes} classes labels run from 0 to "
            f"{classes - 1}."
        )
    return found


def check_weights(weights: Weights | None, count: int, what: str) -> Tensor:
    """Weights of ``count`` things, scaled to sum to one; even ones where there are none.

    Raises:
        BadInput: another number of weights, a negative one or NaN, or none above zero.
    """
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    found = as_tensor(weights).double()
    if found.shape != (count,):
        raise BadInput(f"{tuple(found.shape)} weights do not fit {count} {what}. Give one weight for each.")
    if not bool(torch.isfinite(found).all()) or bool((found < 0).any()) or not bool((found > 0).any()):
        raise BadInput(f"the weights of {what} must be finite, not negative, and not all zero.")
    return found / found.sum()


def _are_whole_numbers(values: Tensor | np.ndarray) -> bool:
    if isinstance(values, Tensor):
        return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    return values.dtype.kind in "iu"


def _row_sums(probs: Tensor, names: Sequence[str] | None, first_sample: int = 0) -> Tensor:
    if probs.ndim < 2 or 0 in probs.shape:
        raise BadInput(f"predictions have the shape (models, samples, classes), not {tuple(probs.shape)}.")
    sums = probs @ torch.ones(probs.shape[-1], dtype=probs.dtype, device=probs.device)
    off = (sums - 1).abs().max()
    if not bool((off <= TOLERANCE) & (probs.min() >= -TOLERANCE)):  # NaN fails both
        good = ((sums - 1).abs() <= TOLERANCE) & (probs.amin(-1) >= -TOLERANCE)
        where = tuple(int(i) for i in (~good).nonzero()[0])
        raise BadInput(_describe(probs[where], (*where[:-1], where[-1] + first_sample), names))
    return sums


def _describe(row: Tensor, where: tuple[int, ...], names: Sequence[str] | None) -> str:
    *model, sample = where
    position = model[0] if len(model) == 1 else tuple(model)
    name = repr(names[model[0]]) if names is not None and model else (position if model else 0)
    if bool(torch.isnan(row).any()):
        found = "a probability is NaN. Did this model diverge?"
    elif bool((row <= 0).all()) and bool((row < 0).any()):
        found = "all values are negative: these look like log-probabilities. Take their exponential first."
    elif bool((row < -TOLERANCE).any()):
        found = f"a probability is negative ({float(row.min()):.4g}). Give a softmax of the logits."
    else:
        found = f"the probabilities sum to {float(row.sum()):.5g}. Give a softmax of the logits."
    return f"model {name}, sample {sample}: {found}"


def _shared_tensor(values: np.ndarray) -> Tensor:
    """No copy where NumPy lets torch write; read-only arrays are copied, for torch warns about them."""
    if values.dtype.kind not in "fiub":
        raise BadInput(f"predictions are numbers, not {values.dtype}.")
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(values if values.flags.writeable and min(values.strides, default=0) >= 0 else values.copy())
