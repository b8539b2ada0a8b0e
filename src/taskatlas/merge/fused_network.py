"""A fusion from its folder as a checkpoint's network: one task's head, every sample with coefficients of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.data_recipe import DataRecipe
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.fused_model import FusedModel
from taskatlas.merge.opening import open_as_saved, open_experts
from taskatlas.merge.placement import Placement
from taskatlas.store import file_digest

Prepare = Callable[[list[Any]], Any]

_SIDES = ("network", "extractor")


class FusedNetwork(nn.Module):
    """Logits of samples that are merged for one by one, through a task's head.

    Args:
        fused: the fusion.
        task: whose head.
    """

    def __init__(self, fused: FusedModel, task: str) -> None:
        super().__init__()
        self.fused = fused
        self.task = task

    def forward(self, batch: Tensor | None = None, **parts: Tensor) -> Tensor:
        """Logits (batch, classes).

        Args:
            batch: what network and extractor both take.
            parts: what each of them takes, as ``both_prepared`` names it.
        """
        if batch is not None:
            return self.fused.answer(batch, self.fused.extractor(batch), self.task)
        sides = [_of_side(side, parts) for side in _SIDES]
        return self.fused.answer(sides[0], self.fused.extractor(sides[1]), self.task)


def open_task(folder: str, task: str, content: str) -> tuple[nn.Module, Prepare | None]:
    """The network of a task of a fusion, and how samples are prepared for it: a builder for ``zoo.yaml``.

    Args:
        folder: that ``taskatlas merge`` wrote; may have been moved since.
        task: whose head.
        content: digest of the folder's fusion, so that results of another one are not taken for its own.

    Raises:
        BadInput: the fusion has changed since, or what it was made of is not there any more.
    """
    file = Path(folder) / "fusion.safetensors"
    if not file.is_file() or file_digest(file) != content:
        raise BadInput(f"{file} is not the fusion that it was. Merge again into a new folder.")
    recipe = DataRecipe.load(Path(folder) / "recipe.yml")
    others = recipe.others()
    base = open_as_saved(others["base"])
    found = open_experts(recipe.experts(), base)
    experts = {name: one.expert for name, one in found.items()}
    try:
        placement, of_extractor = recipe.placed("cpu")
    except BadInput:  # it was learned on a machine with other devices
        placement, of_extractor = Placement(), "cpu"
    extractor = Extractor.of(others["extractor"], device=of_extractor)
    fused = DataAdaptive.load(file, base.module, experts, extractor, placement=placement)
    both = found[task].opened.prepare, others["extractor"].open().prepare
    return FusedNetwork(fused.fused_, task), None if both == (None, None) else both_prepared(*both)


def both_prepared(network: Prepare | None, extractor: Prepare | None) -> Prepare:
    """Samples as the network and as the extractor take them, side by side.

    Example:
        >>> import torch
        >>> prepare = both_prepared(lambda texts: {"ids": torch.tensor([[len(text)] for text in texts])},
        ...                         lambda texts: torch.ones(len(texts), 2))
        >>> prepare(["a", "bc"])
        {'network.ids': tensor([[1],
                [2]]), 'extractor.': tensor([[1., 1.],
                [1., 1.]])}
    """
    if network is None or extractor is None:
        raise BadInput("network and extractor have to prepare samples alike: both in their own way, or neither.")

    def prepare(samples: list[Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for side, own in zip(_SIDES, (network, extractor), strict=True):
            made = own(samples)
            parts = {"": made} if isinstance(made, Tensor) else made
            found |= {f"{side}.{name}": value for name, value in parts.items()}
        return found

    return prepare


def _of_side(side: str, parts: dict[str, Tensor]) -> Any:
    found = {name.partition(".")[2]: value for name, value in parts.items() if name.startswith(f"{side}.")}
    return found.get("", found)
