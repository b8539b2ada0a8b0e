"""The stream of batches of a training: batch s is a function of the data, the recipe and s, and of nothing else.

So it does not matter how many workers make batches, where a training was interrupted, or in which order the samples
were given: they are taken by their ids. Images are decoded when their batch is made; no more than a few batches are in
memory at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn.pictures import Preparation, stacked, varied
from taskatlas.learn.recipe import Recipe
from taskatlas.probe.probe import Probe
from taskatlas.store import digest

_ORDER, _PIXELS = 0, 1  # what a random generator is for


class Stream:
    """The batches of a training, by step: (inputs, labels).

    Inputs are uint8 images (batch, channels, height, width) at the size that the preparation names, for its
    ``normalised`` to finish on the device; float32 arrays for a probe of arrays; or what the user's own ``prepare``
    makes of a list of samples.

    Args:
        probe: labelled images or arrays.
        recipe: of the training.
        preparation: how images become inputs: a ``Preparation``, or a function of a list of images.

    Raises:
        BadInput: samples without labels or with a negative one, or other than images and arrays.

    Example:
        >>> from taskatlas.probe import Probe
        >>> probe = Probe.from_arrays(np.eye(6), labels=range(6))
        >>> stream = Stream(probe, Recipe(epochs=2, batch_size=2))
        >>> len(stream), stream[4][1]
        (6, tensor([5, 3]))
    """

    def __init__(self, probe: Probe, recipe: Recipe, preparation: Callable[[list[Any]], Any] | None = None) -> None:
        if probe.labels is None or probe.kind not in ("image", "array"):
            what = "no labels" if probe.labels is None else f"samples of the kind {probe.kind}"
            raise BadInput(f"the data has {what}; a network learns from labelled images or arrays.")
        if int(probe.labels.min()) < 0:
            raise BadInput(f"a sample has the label {int(probe.labels.min())}; classes are numbered from 0 on.")
        self.recipe = recipe
        self.preparation = preparation
        if preparation is None and probe.kind == "image":
            self.preparation = Preparation(channels=int(np.shape(probe.inputs[0])[2]))
        self.probe = probe
        self.steps_per_epoch = recipe.steps_per_epoch(len(probe))
        self._rows = _by_id(probe)
        self._labels = probe.labels.astype(np.int64)
        self._ordered: tuple[int, np.ndarray] = (-1, self._rows)

    def __len__(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    def __getitem__(self, step: int) -> tuple[Any, Tensor]:
        """The batch of a step, counted from 0.

        Raises:
            BadInput: an image is damaged, or images differ in size and none was named.
        """
        epoch, batch = divmod(range(len(self))[step], self.steps_per_epoch)
        size = self.recipe.batch_size
        places = self._order(epoch)[batch * size : (batch + 1) * size]
        rows = self._rows[places]
        samples = [self._sample(epoch, int(place), int(row)) for place, row in zip(places, rows, strict=True)]
        return self._together(samples), torch.from_numpy(self._labels[rows])

    @property
    def digest(self) -> str:
        """Digest of the recipe, and of the samples by their ids and labels: no sample is read."""
        preparation = repr(self.preparation) if isinstance(self.preparation, Preparation) else None
        return digest("stream", asdict(self.recipe), identity(self.probe), preparation)

    def inputs(self, prepared: Any, device: str) -> Any:
        """A batch's inputs on the device, ready for the network."""
        if isinstance(prepared, dict):
            return {name: self.inputs(value, device) for name, value in prepared.items()}
        moved = prepared.to(device, non_blocking=True) if isinstance(prepared, Tensor) else prepared
        return self.preparation.normalised(moved) if isinstance(self.preparation, Preparation) else moved

    def _order(self, epoch: int) -> np.ndarray:
        if self._ordered[0] != epoch:
            random = np.random.default_rng([_ORDER, self.recipe.seed, epoch])
            self._ordered = epoch, random.permutation(len(self._rows))
        return self._ordered[1]

    def _sample(self, epoch: int, place: int, row: int) -> Any:
        sample = self.probe.inputs[row]
        if self.probe.kind == "array":
            return sample
        recipe, size = self.recipe, None
        if isinstance(self.preparation, Preparation):
            size = self.preparation.size
            if recipe.crop != "resized":
                sample = self.preparation.fitted(sample)
        if recipe.crop == "none" and not recipe.flip:
            return sample
        return varied(
            sample, recipe.crop, recipe.flip, size, np.random.default_rng([_PIXELS, recipe.seed, epoch, place])
        )

    def _together(self, samples: list[Any]) -> Any:
        if isinstance(self.preparation, Preparation):
            return stacked(samples)
        if self.preparation is None:
            return torch.from_numpy(np.stack(samples).astype(np.float32))
        return self.preparation([np.array(sample) for sample in samples])  # of their own, and writable


def batches(stream: Stream, first: int = 0, *, workers: int = 0, pinned: bool = False) -> Iterator[tuple[Any, Tensor]]:
    """The batches of a stream from a step on, made ahead by worker processes where there are some.

    Args:
        stream: what they are made of.
        first: the step to begin with.
        workers: processes that make batches; 0: this one does, when it needs them.
        pinned: in memory from which copies to a GPU do not wait.

    Raises:
        BadInput: as ``Stream``.
        WorkFailed: a worker died.
    """
    loader: DataLoader[Any] = DataLoader(
        _Safely(stream),  # type: ignore[arg-type]  # torch asks for no more than __getitem__
        batch_size=None,
        sampler=range(first, len(stream)),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pinned,
        generator=torch.Generator(),  # else the loader draws from the global one
    )
    found = iter(loader)
    while True:
        try:
            batch = next(found)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkFailed(
                f"a worker that makes batches died ({str(error).partition(chr(10))[0]}). Run again, with fewer workers "
                "if memory ran out."
            ) from error
        if isinstance(batch, BadInput):
            raise batch
        yield batch


def identity(probe: Probe) -> str:
    """Digest of which samples a probe has and what they are labelled: of ids and labels, without reading a sample."""
    order = _by_id(probe)
    labels = None if probe.labels is None else probe.labels[order].astype("<i8")
    return digest(probe.kind, [probe.ids[row] for row in order], labels, probe.class_names)


def _by_id(probe: Probe) -> np.ndarray:
    """Rows in the order of their ids."""
    return np.array(sorted(range(len(probe)), key=probe.ids.__getitem__))


class _Safely:
    """Hands a foreseen error back as a value, which arrives from another process as it was."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream)

    def __getitem__(self, step: int) -> Any:
        try:
            return self._stream[step]
        except BadInput as error:
            return BadInput(str(error))


def _as_it_is(batch: Any) -> Any:
    return batch
