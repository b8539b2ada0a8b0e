"""Unlabelled data as merging sees it: batches that a network takes, and the logits that it answers with."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.probe.forward import prepare_samples

Batch = Any
"""A tensor, a mapping that goes to the network by keyword, or a tuple that starts with one of these."""

LABELS = ("labels", "label")


class Unlabelled:
    """Batches of a probe as a network takes them, without the labels; may be passed over again and again.

    Where it shuffles, every pass draws a new order from torch's random state, as a ``DataLoader`` does.

    Args:
        probe: the samples.
        prepare: raw samples -> a tensor, or a mapping for ``module(**batch)``; None: the probe's own way.
        batch_size: samples a batch; the last may have fewer.
        shuffle: a new order in every pass.

    Example:
        >>> import numpy as np
        >>> batches = Unlabelled(Probe.from_arrays(np.eye(3)), batch_size=2)
        >>> [tuple(batch.shape) for batch in batches], len(batches)
        ([(2, 3), (1, 3)], 2)
    """

    def __init__(
        self,
        probe: Probe,
        *,
        prepare: Callable[[list[Any]], Any] | None = None,
        batch_size: int = 16,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1:
            raise BadInput(f"a batch of {batch_size} samples cannot be made; give a batch size of at least 1.")
        self.probe = probe
        self.prepare = prepare
        self.batch_size = batch_size
        self.shuffle = shuffle

    def __repr__(self) -> str:
        return f"Unlabelled({self.probe!r}, batches of {self.batch_size})"

    def __len__(self) -> int:
        return (len(self.probe) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return (batch for _, batch in self.with_rows())

    def with_rows(self) -> Iterator[tuple[list[int], Batch]]:
        """The batches of one pass, each with the positions of its samples in the probe."""
        n = len(self.probe)
        order = torch.randperm(n) if self.shuffle else torch.arange(n)
        for chosen in torch.split(order, self.batch_size):
            rows = chosen.tolist()
            samples = [self.probe.inputs[row] for row in rows]
            yield rows, prepare_samples(self.prepare, self.probe, rows, samples, who="the network")


def endless(batches: Iterable[Batch], who: str) -> Iterator[Batch]:
    """Batches for ever, each pass asked for anew, so that a loader shuffles again and nothing is kept.

    Raises:
        BadInput: there are none, or they can be passed over only once.

    Example:
        >>> from itertools import islice
        >>> list(islice(endless([1, 2], "a"), 5))
        [1, 2, 1, 2, 1]
    """
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise BadInput(
                f"the data of {who} give no batch, or give them only once. "
                "Give something that can be passed over again: a DataLoader, a list, or Unlabelled(probe)."
            )


def network_inputs(batch: Batch, module: nn.Module, precision: torch.dtype | None = None) -> dict[str, Any]:
    """A batch on the network's device and in its precision, by keyword; a plain tensor stands under ``""``.

    Labels that come along are left out.

    Args:
        batch: see ``Batch``.
        module: where the batch goes.
        precision: of floating-point inputs, in place of the network's own.

    Raises:
        BadInput: the batch is nothing that a network takes, or has no samples.

    Example:
        >>> network_inputs((torch.zeros(2, 3, dtype=torch.float64), [0, 1]), nn.Linear(3, 1))[""].dtype
        torch.float32
    """
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, Tensor):
        found: dict[str, Any] = {"": batch}
    elif isinstance(batch, Mapping) and any(isinstance(value, Tensor) for value in batch.values()):
        found = {str(name): value for name, value in batch.items() if name not in LABELS}
    else:
        raise BadInput(
            f"a batch is a {type(batch).__name__}; a network takes a tensor, or a mapping of names to tensors. "
            "Labels may follow it in a tuple."
        )
    device, own_precision = placed(module)
    precision = own_precision if precision is None else precision
    moved = {
        name: value.to(device, precision if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for name, value in found.items()
    }
    if batch_length(moved) == 0:
        raise BadInput("a batch has no samples. Give at least one in each.")
    return moved


def call(module: nn.Module, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Any:
    """What a network answers to ``network_inputs``, with these tensors in place of its own where some are given."""
    args, kwargs = ((inputs[""],), {}) if "" in inputs else ((), dict(inputs))
    return module(*args, **kwargs) if tensors is None else functional_call(module, dict(tensors), args, kwargs)


def batch_length(inputs: Mapping[str, Any]) -> int:
    """The number of samples in ``network_inputs``: the first axis of the first tensor that has one."""
    return next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim), 0)


def placed(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """A network's device and precision: those of its first floating-point parameter."""
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    return (torch.device("cpu"), torch.float32) if first is None else (first.device, first.dtype)


def logits_of(output: Any, count: int, who: str = "the network") -> Tensor:
    """The logits (batch, classes) in what a network answers: a tensor, its ``logits``, or the first of several.

    Raises:
        BadInput: there are none, or not one row a sample.

    Example:
        >>> logits_of({"logits": torch.zeros(2, 5)}, 2).shape
        torch.Size([2, 5])
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise BadInput(
            f"{who} gives a {type(output).__name__} without logits. Let it return a tensor of logits, or name its head."
        )
    if found.ndim != 2 or len(found) != count:
        raise BadInput(
            f"{who} gives outputs of shape {tuple(found.shape)} for {count} samples, not one row of logits for each. "
            "Does it lack its classification head?"
        )
    return found
