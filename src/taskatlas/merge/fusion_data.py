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
from taskatlas.merge.kept_features import KeptFeatures
from taskatlas.merge.unlabelled import Batch, Unlabelled, endless
from taskatlas.probe import Probe

Data = Probe | Iterable[Batch]
"""A probe, ``Unlabelled(probe, prepare=...)``, or batches that can be passed over again."""

_SOME, _SOME_BATCHES = 4096, 64


@dataclass(eq=False)
class Featured:
    """Batches of some data, each with its features, which are computed once for each sample and kept in the store.

    Args:
        data: what to pass over.
        kept: makes the features, or has them.
        who: the data, for messages.
        batch_size: of a probe.
        passing: whether batches come this once, so that nothing is kept of them.

    Raises:
        BadInput: the extractor needs samples as they are, and there are only batches that another network takes.
    """

    data: Data
    kept: KeptFeatures
    who: str
    batch_size: int = 16
    passing: bool = False
    _features: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.data, Probe):
            self.data = Unlabelled(self.data, batch_size=self.batch_size)
        if isinstance(self.data, Unlabelled):
            self._features = self.kept.extractor.features(self.data.probe, self.kept.store).values
        elif isinstance(self.data, Tensor | np.ndarray | Mapping | str) or not isinstance(self.data, Iterable):
            raise BadInput(
                f"{self.who} are a {type(self.data).__name__}; give a Probe, or batches of tensors in a list or loader."
            )
        elif self.kept.extractor.needs_raw_samples:
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
        for batch, features in self._featured(self.data):  # type: ignore[arg-type]  # a probe has become Unlabelled
            empty = False
            yield batch, features
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
        yield from self._featured(endless(self.data, self.who.removeprefix("the data of ")))  # type: ignore[arg-type]

    def some(self) -> Float[Tensor, "n d"]:
        """The features of some samples, spread evenly over a probe, or those of the first batches of other data."""
        if self._features is not None:
            rows = np.unique(np.linspace(0, len(self._features) - 1, _SOME).astype(int))
            return torch.from_numpy(np.array(self._features[rows]))
        return torch.cat([features for _, features in islice(self.once(), _SOME_BATCHES)])

    def _featured(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        if self.passing:
            yield from ((batch, self.kept.extractor(batch).cpu()) for batch in batches)
            return
        try:
            yield from ((batch, self.kept.of(batch)) for batch in batches)
        finally:
            self.kept.write()

    def _of_rows(self, unlabelled: Unlabelled) -> Iterator[tuple[Batch, Tensor]]:
        for rows, batch in unlabelled.with_rows():
            yield batch, torch.from_numpy(np.array(self._features[rows]))
