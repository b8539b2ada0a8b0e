"""Opening a checkpoint as it was saved: a Hugging Face classifier with its head, which maps of features leave out."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.lora import is_adapter
from taskatlas.zoo import Checkpoint, OpenedCheckpoint
from taskatlas.zoo.checkpoint import TRANSFORMERS
from taskatlas.zoo.hugging_face import open_classifier as open_saved_classifier


def open_classifier(checkpoint: Checkpoint, device: str = "cpu") -> OpenedCheckpoint:
    """A checkpoint's network with its classification head.

    Raises:
        BadInput: as ``Checkpoint.open``, or it is a Hugging Face model that was saved without such a head.

    Example:
        >>> open_classifier(Checkpoint("net", module=torch.nn.Linear(2, 3))).module
        Linear(in_features=2, out_features=3, bias=True)
    """
    found = _with_head(checkpoint, device)
    if found is None:
        raise BadInput(
            f"{checkpoint.name} was saved without a classification head. Save the fine-tuned classifier with "
            "save_pretrained, or name a builder that returns one."
        )
    return found


def open_as_saved(checkpoint: Checkpoint, device: str = "cpu") -> OpenedCheckpoint:
    """A checkpoint's network under the names that its weights have in their file: with its head, where it has one.

    Raises:
        BadInput: as ``Checkpoint.open``.
    """
    return _with_head(checkpoint, device) or checkpoint.open(device)


class OpenedExpert(NamedTuple):
    """An expert as fusion takes it, and the network that runs its task.

    Attributes:
        expert: a module, or the folder of a LoRA adapter.
        opened: the network; of an adapter the base's.
    """

    expert: nn.Module | Path
    opened: OpenedCheckpoint


def open_experts(
    checkpoints: Mapping[str, Checkpoint], base: OpenedCheckpoint | None, device: str = "cpu"
) -> dict[str, OpenedExpert]:
    """Task -> its expert; LoRA adapters stay what they are.

    Args:
        checkpoints: task -> checkpoint; an adapter's weights are its folder.
        base: what adapters go with.
        device: where networks are.

    Raises:
        BadInput: as ``Checkpoint.open``; an adapter without a base.
    """
    found = {}
    for task, checkpoint in checkpoints.items():
        place = checkpoint.weights
        if isinstance(place, Path) and place.is_dir() and is_adapter(place):
            if base is None:
                raise BadInput(f"{place} is a LoRA adapter. Merge it into its base first, or use data_adaptive.")
            found[task] = OpenedExpert(place, base)
        else:
            opened = open_as_saved(checkpoint, device)
            found[task] = OpenedExpert(opened.module, opened)
    return found


def _with_head(checkpoint: Checkpoint, device: str) -> OpenedCheckpoint | None:
    if checkpoint.builder != TRANSFORMERS or checkpoint.weights is None:
        return checkpoint.open(device)
    with torch.random.fork_rng():  # a model's parts are initialised before its weights are loaded
        found = open_saved_classifier(checkpoint.weights)
    return None if found is None else OpenedCheckpoint(found[0].eval().to(device), found[1])
