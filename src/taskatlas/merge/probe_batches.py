"""Unlabelled data as batches that networks take, to be passed over more than once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import Example
from taskatlas.merge.axis_run import first_tensor
from taskatlas.probe import Probe
from taskatlas.probe.forward import prepare_samples

Data = Probe | Tensor | Iterable[Example]
"""A probe; one tensor of samples; or batches: tensors, tuples of arguments, or mappings of keyword arguments."""


class ProbeBatches:
    """Batches of data, on a network's device and in its precision; those of a probe are prepared each time anew.

    Args:
        data: the samples. Batches that can be passed over only once are kept.
        network: where they go.
        prepare: of a probe: raw samples -> a tensor or a mapping; None: the probe's own way.
        batch_size: samples a batch, of a probe or a tensor.

    Raises:
        BadInput: there are no samples, or they are no tensors; when it is passed over: they hold NaN.

    Example:
        >>> batches = ProbeBatches(torch.zeros(5, 3, dtype=torch.float64), nn.Linear(3, 1), batch_size=2)
        >>> [(tuple(batch.shape), batch.dtype) for batch in batches]
        [((2, 3), torch.float32), ((2, 3), torch.float32), ((1, 3), torch.float32)]
        >>> [len(batch) for batch in batches.some(2)]
        [2]
    """

    def __init__(
        self,
        data: Data,
        network: nn.Module,
        *,
        prepare: Callable[[list[Any]], Any] | None = None,
        batch_size: int = 64,
    ) -> None:
        if batch_size < 1:
            raise BadInput(f"a batch of {batch_size} samples cannot be made; give a batch size of at least 1.")
        self._probe = data if isinstance(data, Probe) else None
        self._given: list[Example] = []
        if isinstance(data, Tensor):
            self._given = list(torch.split(data, batch_size))
        elif not isinstance(data, Probe):
            self._given = list(data)
        self._network = network
        self._prepare = prepare
        self._batch_size = batch_size
        if any(first_tensor([batch]) is None for batch in self._given):
            kind = type(self._given[0]).__name__
            raise BadInput(f"a batch is of type {kind} and has no tensor. Give tensors, or Probe.from_arrays(samples).")
        if not len(self):
            raise BadInput("there are no samples to compare the networks on.")

    def __len__(self) -> int:
        return len(self._given) if self._probe is None else -(-len(self._probe) // self._batch_size)

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(map(batch_length, self._given)) if self._probe is None else len(self._probe)

    def __iter__(self) -> Iterator[Example]:
        if self._probe is None:
            yield from map(self._moved, self._given)
            return
        for start in range(0, len(self._probe), self._batch_size):
            rows = range(start, min(start + self._batch_size, len(self._probe)))
            samples = [self._probe.inputs[row] for row in rows]
            yield self._moved(prepare_samples(self._prepare, self._probe, rows, samples, who="the networks"))

    def some(self, count: int) -> "ProbeBatches":
        """About ``count`` samples, from all over the data; at least a batch."""
        if self._probe is not None:
            rows = np.linspace(0, len(self._probe) - 1, min(count, len(self._probe))).round().astype(int)
            probe = self._probe.take(np.unique(rows))
            return ProbeBatches(probe, self._network, prepare=self._prepare, batch_size=self._batch_size)
        most = max(1, min(len(self._given), count // max(1, batch_length(self._given[0]))))
        chosen = np.unique(np.linspace(0, len(self._given) - 1, most).round().astype(int))
        return ProbeBatches([self._given[position] for position in chosen], self._network)

    def _moved(self, batch: Example) -> Example:
        first = next((value for value in self._network.parameters() if value.is_floating_point()), torch.zeros(0))

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point() and bool(value.isnan().any()):
                raise BadInput("the samples hold NaN. Leave those out, or fill in what is missing.")
            return value.to(first.device, first.dtype if value.is_floating_point() else None)

        found: Example = tree_map(moved, dict(batch) if isinstance(batch, Mapping) else batch)
        return found


def batch_length(batch: Example) -> int:
    """The number of samples in a batch: the first axis of its first tensor.

    Example:
        >>> batch_length({"input_ids": torch.zeros(3, 7)})
        3
    """
    values: Sequence[Any] = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    first = first_tensor(values)
    return 0 if first is None else len(first)


def first_samples(batch: Example, count: int) -> Example:
    """The first samples of a batch.

    Example:
        >>> first_samples({"input_ids": torch.zeros(3, 7)}, 2)["input_ids"].shape
        torch.Size([2, 7])
    """
    length = batch_length(batch)

    def cut(value: Any) -> Any:
        return value[:count] if isinstance(value, Tensor) and value.ndim and len(value) == length else value

    found: Example = tree_map(cut, batch)
    return found
