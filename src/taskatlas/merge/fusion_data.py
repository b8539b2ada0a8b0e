"""Unlabelled data as data-adaptive fusion sees it: batches with the features that decide their coefficients."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.unlabelled import Batch, Unlabelled, endless
from taskatlas.probe import Probe
from taskatlas.store import Store, digest

Data = Probe | Iterable[Batch]
"""A probe, ``Unlabelled(probe, prepare=...)``, or batches that can be passed over again."""

_SOME, _SOME_BATCHES = 4096, 64
_REMEMBERED = 2**26  # numbers: features of batches of a loader, which are kept in memory so as to be computed once


@dataclass(eq=False)
class Featured:
    """Batches of some data, each with its features.

    The features of a probe are computed once and kept in the store; those of other batches once for each sample, and
    kept in memory.

    Args:
        data: what to pass over.
        extractor: makes the features.
        who: the data, for messages.
        batch_size: of a probe.
        store: where features are kept; None: the user's store.

    Raises:
        BadInput: the extractor needs samples as they are, and there are only batches that another network takes.
    """

    data: Data
    extractor: Extractor
    who: str
    batch_size: int = 16
    store: Store | None = None
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _features: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.data, Probe):
            self.data = Unlabelled(self.data, batch_size=self.batch_size)
        if isinstance(self.data, Unlabelled):
            self._features = self.extractor.features(self.data.probe, self.store).values
        elif isinstance(self.data, Tensor | np.ndarray | Mapping | str) or not isinstance(self.data, Iterable):
            raise BadInput(
                f"{self.who} are a {type(self.data).__name__}; give a Probe, or batches of tensors in a list or loader."
            )
        elif self.extractor.needs_raw_samples:
            raise BadInput(
                f"the extractor prepares samples in its own way, and {self.who} come as batches for another network. "
                "Give a Probe, or Unlabelled(probe, prepare=...)."
            )

    def once(self) -> Iterator[tuple[Batch, Float[Tensor, "batch d"]]]:
        """One pass, a probe's in its own order.

        Raises:
            BadInput: there are no batches.
        """
        if isinstance(self.data, Unlabelled):
            in_order = Unlabelled(
                self.data.probe, prepare=self.data.prepare, batch_size=self.data.batch_size, shuffle=False
            )
            yield from self._of_rows(in_order)
            return
        empty = True
        for batch in self.data:  # type: ignore[union-attr]  # a probe has become Unlabelled
            empty = False
            yield batch, self.of(batch)
        if empty:
            raise BadInput(f"{self.who} give no batch. Give at least one.")

    def endlessly(self) -> Iterator[tuple[Batch, Float[Tensor, "batch d"]]]:
        """Pass after pass, each asked for anew.

        Raises:
            BadInput: there are no batches, or they can be passed over only once.
        """
        if isinstance(self.data, Unlabelled):
            while True:
                yield from self._of_rows(self.data)
        for batch in endless(self.data, self.who.removeprefix("the data of ")):  # type: ignore[arg-type]
            yield batch, self.of(batch)

    def some(self) -> Float[Tensor, "n d"]:
        """The features of some samples, spread evenly over a probe, or those of the first batches of other data."""
        if self._features is not None:
            rows = np.unique(np.linspace(0, len(self._features) - 1, _SOME).astype(int))
            return torch.from_numpy(np.array(self._features[rows]))
        return torch.cat([features for _, features in islice(self.once(), _SOME_BATCHES)])

    def of(self, batch: Batch) -> Float[Tensor, "batch d"]:
        """The features of a batch, remembered by the content of its samples."""
        names = _samples(batch)
        if names and all(name in self._known for name in names):
            return torch.stack([self._known[name] for name in names])
        features = self.extractor(batch).cpu()
        if (len(self._known) + len(names)) * features.shape[1] <= _REMEMBERED:
            self._known.update(zip(names, features, strict=True))
        return features

    def _of_rows(self, unlabelled: Unlabelled) -> Iterator[tuple[Batch, Tensor]]:
        for rows, batch in unlabelled.with_rows():
            yield batch, torch.from_numpy(np.array(self._features[rows]))


def _samples(batch: Batch) -> list[str]:
    """A digest for each sample of a batch."""
    found = batch[0] if isinstance(batch, tuple | list) and batch else batch
    parts = {"": found} if isinstance(found, Tensor) else dict(found) if isinstance(found, Mapping) else {}
    arrays = {name: _array(value) for name, value in parts.items() if isinstance(value, Tensor) and value.ndim}
    count = next((len(value) for value in arrays.values()), 0)
    return [digest({name: value[row] for name, value in arrays.items() if len(value) == count}) for row in range(count)]


def _array(value: Tensor) -> np.ndarray:
    plain = value.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
