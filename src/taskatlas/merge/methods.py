"""The methods of merging in weight space, each a row: what it takes, what it measures, how it combines."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.composition import combine, least_kept, middle_kept
from taskatlas.merge.elementwise import nearswap, passthrough
from taskatlas.merge.limits import ANY, NOT_NEGATIVE, SHARE, Limits, should_be
from taskatlas.merge.model_stock import model_stock
from taskatlas.merge.operands import Cut, Operands, each_piece, refuse_not_finite
from taskatlas.merge.sce import select_and_weigh, select_calculate_erase
from taskatlas.merge.span import weighted_sum
from taskatlas.merge.sparsify import (
    check_probabilities,
    keep_at_random,
    keep_at_random_by_rank,
    keep_largest,
    keep_middle,
)
from taskatlas.merge.spherical import karcher, multislerp, nuslerp, slerp

_NO_SUM = 1e-8  # as a share of the sum of magnitudes: weights that sum to less cancel up to rounding


@dataclass(frozen=True)
class Method:
    """A way to merge one tensor of several models: numbers measured on the whole, then a function of pieces.

    Attributes:
        name: as recipes call it.
        combine: takes a piece and what was measured; returns the merged piece, in its shape and in ``Operands.dtype``.
        base: whether it takes a base model. The base is never counted among the models.
        least: number of models.
        most: number of models; None for any.
        parameters: of each model, with defaults; None where it has to be given.
        settings: of the merge, with defaults; None where it has to be given.
        limits: of parameters and settings; any other number has to be finite.
        measure: looks at the whole tensors, on so many threads, and returns what ``combine`` needs. None: nothing.
        cut: how pieces are cut for ``combine``.
    """

    name: str
    combine: Callable[[Operands, Any], Tensor]
    base: Literal["required", "optional", "none"] = "required"
    least: int = 1
    most: int | None = None
    parameters: Mapping[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)
    measure: Callable[[Operands, int | None], Any] | None = None
    cut: Cut = "elements"

    def should_be(self, key: str, value: int | float | str) -> str | None:
        """What a value that its limits refuse has to be, for within a sentence; None where they allow it.

        Example:
            >>> METHODS["ties"].should_be("density", 1.5), METHODS["ties"].should_be("scope", "all")
            ('from 0 to 1', 'model or tensor')
        """
        return should_be(self.limits.get(key, ANY), value)

    def normalizes(self, settings: Mapping[str, Any]) -> bool:
        """Whether weights are divided by their sum: as a setting says, or always."""
        return "weight" in self.parameters and bool(settings.get("normalize", settings.get("normalize_weights", True)))


def merge_tensor(method: Method, operands: Operands, dtype: torch.dtype, *, threads: int | None = None) -> Tensor:
    """One merged tensor; sums are float32, or float64 where a model's tensor is float64.

    Integers and booleans are copied, from the base or else from the first model by name. So is a tensor that holds
    infinite numbers and is the same in all models: a mask.

    Args:
        method: how to merge.
        operands: what to merge, in any order of models.
        dtype: of the result, for tensors of floating-point numbers; others keep theirs.
        threads: as many as torch has where None. The result is the same, to the bit.

    Raises:
        BadInput: NaN or an infinite number in a tensor; a parameter out of bounds; too few or too many models; no
            base; a result too large for ``dtype``. The message names the tensor and the model.

    Example:
        >>> a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
        >>> weights = ({"weight": 1.0}, {"weight": 3.0})
        >>> operands = Operands("w", ("a", "b"), (a, b), None, weights, {"normalize": True})
        >>> merge_tensor(METHODS["linear"], operands, torch.float32)
        tensor([2.5000, 5.0000])
    """
    check_models(method, len(operands.models), has_base=operands.base is not None)
    check_numbers(method, operands.name, operands.called, operands.parameters, operands.settings)
    operands = operands.in_order()
    like = operands.tensors[0] if operands.base is None else operands.base
    same = like.is_floating_point() or all(torch.equal(like, tensor) for tensor in operands.everything)
    if like.is_complex() and not same:
        raise BadInput(f"the tensor {operands.name!r} is complex and not the same in all models. Merge real ones.")
    if not like.is_floating_point():
        return like.clone()
    if not like.numel():
        return like.to(dtype, copy=True)
    merged, largest = torch.empty(like.numel(), dtype=dtype), torch.finfo(dtype).max
    with np.errstate(all="ignore"):
        measured = None if method.measure is None else method.measure(operands, threads)

    def work(piece: Operands) -> bool:
        """Whether the piece came out as numbers that the result's type can hold."""
        result = method.combine(piece, measured).view(-1)
        merged[piece.start : piece.start + len(result)] = result
        low, high = torch.aminmax(result)
        return -largest <= low.item() <= high.item() <= largest  # false for NaN

    if all(each_piece(work, operands.rows() if method.cut == "rows" else operands.flat(), threads)):
        return merged.view(like.shape)
    wide = [tensor.to(operands.dtype) for tensor in operands.everything]
    if torch.isinf(wide[-1]).any() and all(torch.equal(wide[-1], tensor) for tensor in wide):
        return like.to(dtype, copy=True)
    refuse_not_finite(operands)
    raise BadInput(
        f"the merged tensor {operands.name!r} has elements too large for {str(dtype).removeprefix('torch.')}. "
        "Choose smaller weights or a wider type."
    )


def check_models(method: Method, count: int, *, has_base: bool) -> None:
    """Refuses a number of models, or a base, that the method does not take.

    Args:
        method: the method.
        count: of models; the base is not counted.
        has_base: whether there is a base.

    Raises:
        BadInput: says what the method takes.
    """
    if not has_base and method.base == "required":
        raise BadInput(f"{method.name} needs a base model. Name one, or use a method that needs none, such as linear.")
    if has_base and method.base == "none":
        raise BadInput(f"{method.name} takes no base model. Leave it out, or give it as one of the models.")
    if not method.least <= count <= (method.most or count):
        wanted = f"{method.least}" if method.least == method.most else f"at least {method.least}"
        beside = " beside the base" if has_base else ""
        raise BadInput(f"{method.name} takes {wanted} model{'s' if method.least > 1 else ''}{beside}, not {count}.")


def check_numbers(
    method: Method,
    name: str,
    models: Sequence[str],
    parameters: Sequence[Mapping[str, float]],
    settings: Mapping[str, Any],
) -> None:
    """Refuses what a tensor cannot be merged with.

    Args:
        method: the method.
        name: of the tensor, for messages.
        models: what messages call them.
        parameters: of each model.
        settings: of the merge.

    Raises:
        BadInput: a number or word out of its limits; probabilities of DELLA that are none; weights that sum to zero, up
            to rounding, where they are normalised.
    """
    several = zip(models, parameters, strict=True)
    for owner, values in (*several, ("the merge", settings)):
        for key in (*method.parameters, *method.settings):
            wanted = method.should_be(key, values[key]) if key in values else None
            if wanted is not None:
                value = values[key] if isinstance(values[key], str) else f"{values[key]:g}"
                raise BadInput(f"{key} of {owner} is {value} at {name!r}. It has to be {wanted}.")
    if "epsilon" in method.parameters:
        for model, values in zip(models, parameters, strict=True):
            check_probabilities(values["density"], values["epsilon"], model)
    if method.normalizes(settings):
        weights = [values["weight"] for values in parameters]
        if abs(math.fsum(weights)) <= _NO_SUM * math.fsum(map(abs, weights)):
            setting = next((key for key in ("normalize", "normalize_weights") if key in settings), None)
            how = "Change them." if setting is None else f"Change them, or set {setting} to false."
            raise BadInput(f"the weights of {name!r} sum to zero, so they cannot be normalised. {how}")


_WEIGHT: Mapping[str, float | None] = {"weight": None}
_SPARSE: Mapping[str, float | None] = {"weight": None, "density": 1.0}
_SUM: Mapping[str, Any] = {"normalize": False, "lambda": 1.0, "int8_mask": False}
_MEAN: Mapping[str, Any] = {**_SUM, "normalize": True}
_RANDOM: Mapping[str, Any] = {"rescale": True}
_ELECTS: Mapping[str, Any] = {"consensus_method": "sum"}
_DENSITY: Mapping[str, Limits] = {"density": SHARE}
_CONSENSUS: Mapping[str, Limits] = {"consensus_method": ("sum", "count")}

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("linear", combine, "none", parameters=_WEIGHT, settings={"normalize": True}),
        Method("task_arithmetic", combine, parameters=_WEIGHT, settings=_SUM),
        Method(
            "ties",
            partial(combine, sparsify=keep_largest, elect=True),
            parameters=_SPARSE,
            settings={**_MEAN, **_ELECTS, "scope": "tensor"},
            limits={**_DENSITY, **_CONSENSUS, "scope": ("model", "tensor")},
            measure=least_kept,
        ),
        Method(
            "dare_linear",
            partial(combine, sparsify=keep_at_random),
            parameters=_SPARSE,
            settings={**_SUM, **_RANDOM},
            limits=_DENSITY,
        ),
        Method(
            "dare_ties",
            partial(combine, sparsify=keep_at_random, elect=True),
            parameters=_SPARSE,
            settings={**_SUM, **_RANDOM, **_ELECTS},
            limits={**_DENSITY, **_CONSENSUS},
        ),
        Method(
            "della",
            partial(combine, sparsify=keep_at_random_by_rank, elect=True),
            parameters={**_SPARSE, "epsilon": 0.15},
            settings={**_MEAN, **_RANDOM, **_ELECTS},
            limits={**_DENSITY, **_CONSENSUS, "epsilon": SHARE},
            cut="rows",
        ),
        Method(
            "della_linear",
            partial(combine, sparsify=keep_at_random_by_rank),
            parameters={**_SPARSE, "epsilon": 0.15},
            settings={**_SUM, **_RANDOM},
            limits={**_DENSITY, "epsilon": SHARE},
            cut="rows",
        ),
        Method(
            "breadcrumbs",
            partial(combine, sparsify=keep_middle),
            parameters={**_SPARSE, "gamma": 0.01},
            settings=_SUM,
            limits={**_DENSITY, "gamma": SHARE},
            measure=middle_kept,
        ),
        Method(
            "breadcrumbs_ties",
            partial(combine, sparsify=keep_middle, elect=True),
            parameters={**_SPARSE, "gamma": 0.01},
            settings={**_SUM, **_ELECTS},
            limits={**_DENSITY, **_CONSENSUS, "gamma": SHARE},
            measure=middle_kept,
        ),
        Method(
            "sce",
            select_calculate_erase,
            settings={"select_topk": 1.0, "int8_mask": False},
            limits={"select_topk": SHARE},
            measure=select_and_weigh,
        ),
        Method("slerp", weighted_sum, least=1, most=1, settings={"t": None}, measure=slerp),
        Method(
            "nuslerp",
            weighted_sum,
            "optional",
            least=2,
            most=2,
            parameters=_WEIGHT,
            settings={"nuslerp_flatten": True, "nuslerp_row_wise": False},
            measure=nuslerp,
        ),
        Method(
            "multislerp",
            weighted_sum,
            "optional",
            parameters=_WEIGHT,
            settings={"normalize_weights": True, "eps": 1e-8},
            limits={"eps": NOT_NEGATIVE},
            measure=multislerp,
        ),
        Method(
            "karcher",
            weighted_sum,
            "none",
            settings={"max_iter": 10, "tol": 1e-5},
            limits={"max_iter": NOT_NEGATIVE, "tol": NOT_NEGATIVE},
            measure=karcher,
        ),
        Method("model_stock", weighted_sum, least=2, settings={"filter_wise": False}, measure=model_stock),
        Method("nearswap", nearswap, least=1, most=1, settings={"t": None}, limits={"t": NOT_NEGATIVE}),
        Method("passthrough", passthrough, "none", least=1, most=1, parameters={"scale": 1.0}),
    )
}
"""Every method, by the name that recipes use."""
