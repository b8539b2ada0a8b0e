"""What a merge that looks at data will read, hold and write: worked out from headers, before any network is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.data_recipe import DataRecipe
from taskatlas.merge.lora import adapter_file, is_adapter
from taskatlas.merge.sources import size_in_bytes
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.hugging_face import download_model
from taskatlas.zoo.weights import tensor_shapes

Shapes = Mapping[str, Tensor]


@dataclass(frozen=True)
class DataPlan:
    """The costs of a merge with data.

    Attributes:
        tensors: of all models that are written.
        bytes_read: of weights; samples are not counted.
        bytes_written: of models.
        peak_bytes: an estimate of the memory for weights and what is measured or learned of them; activations and
            samples come on top.
    """

    tensors: int
    bytes_read: int
    bytes_written: int
    peak_bytes: int

    @property
    def document(self) -> dict[str, int]:
        """As plain values, for JSON."""
        return asdict(self)


def plan_with_data(recipe: DataRecipe) -> DataPlan:
    """Looks at the headers of a recipe's models.

    Raises:
        BadInput: a model is missing or damaged; the message names it.
    """
    experts = {task: _shapes(checkpoint, f"the model of {task}") for task, checkpoint in recipe.experts().items()}
    others = {name: _shapes(checkpoint, f"the {name}") for name, checkpoint in recipe.others().items()}
    sizes = {name: _bytes(shapes) for name, shapes in {**others, **experts}.items()}
    adapters = {task for task, one in recipe.experts().items() if _is_adapter(one)}
    if adapters and recipe.merge_method != "data_adaptive":
        raise BadInput(f"{min(adapters)} is a LoRA adapter. Merge it into its base first, or use data_adaptive.")
    whole = {task: others["base"] if task in adapters else shapes for task, shapes in experts.items()}
    models = {**({"base": others["base"]} if "base" in others else {}), **whole}
    shared = _shared(models, recipe.own)
    apart = recipe.merge_method == "data_adaptive" or any(set(shapes) - set(shared) for shapes in whole.values())
    written = list(whole.values()) if apart else [next(iter(whole.values()))]
    elements = sum(like.numel() for like in shared.values() if like.is_floating_point())
    return DataPlan(
        tensors=sum(map(len, written)),
        bytes_read=sum(sizes.values()),
        bytes_written=sum(map(_bytes, written)),
        peak_bytes=sum(sizes.values())
        + _bytes(shared)
        + _worked_with(recipe, shared, elements, len(experts) - len(adapters)),
    )


def _worked_with(recipe: DataRecipe, shared: Shapes, elements: int, dense: int) -> int:
    """Bytes of float32 numbers beside the models themselves: what is measured of them, or what is learned with."""
    if recipe.merge_method == "regmean":
        widths = [like[0].numel() for like in shared.values() if like.ndim > 1]
        return 4 * len(recipe.models) * sum(width**2 for width in widths)
    if recipe.merge_method == "fisher":
        return 4 * len(recipe.models) * elements
    return 4 * (dense + 3) * elements  # task vectors; the base, the merged weights, their gradient


def _shared(models: Mapping[str, Shapes], own: tuple[str, ...]) -> Shapes:
    first, *rest = models.values()
    return {
        name: like
        for name, like in first.items()
        if all(name in other and other[name].shape == like.shape for other in rest)
        and not any(fnmatchcase(name, pattern) for pattern in own)
    }


def _shapes(checkpoint: Checkpoint, who: str) -> Shapes:
    try:
        if isinstance(checkpoint.weights, Path):
            place = checkpoint.weights
            return tensor_shapes(adapter_file(place) if _is_adapter(checkpoint) else place)
        if isinstance(checkpoint.weights, str):
            return tensor_shapes(download_model(checkpoint.weights))
    except BadInput as error:
        raise BadInput(f"{who}: {error}") from error
    module = checkpoint.module or checkpoint.open().module
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _is_adapter(checkpoint: Checkpoint) -> bool:
    return isinstance(checkpoint.weights, Path) and is_adapter(checkpoint.weights)


def _bytes(shapes: Shapes) -> int:
    return sum(map(size_in_bytes, shapes.values()))
