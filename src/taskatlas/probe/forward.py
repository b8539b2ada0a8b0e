"""Showing a probe to a network, one batch at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from taskatlas.engine import track
from taskatlas.errors import BadInput, MissingExtra, WorkFailed
from taskatlas.probe.probe import Probe
from taskatlas.probe.samples import Kind


@runtime_checkable
class Opened(Protocol):
    """A network on its device and what prepares raw samples for it; ``zoo.OpenedCheckpoint`` is one."""

    @property
    def module(self) -> nn.Module:
        """In evaluation mode, its weights loaded."""

    @property
    def prepare(self) -> Callable[[list[Any]], Any] | None:
        """Raw samples -> a tensor, or a mapping that goes to the module by keyword; None: the probe's own way."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward pass."""

    rows: range  # positions in the probe
    samples: list[Any]
    prepared: Any  # what the samples became: a tensor or a mapping
    output: Any  # of the network


def batches(opened: Opened, probe: Probe, *, who: str, batch_size: int = 64, device: str = "cpu") -> Iterator[Batch]:
    """Forward passes over the probe, in its order, with a progress bar; holds one batch at a time.

    Run it within ``quiet``: a generator cannot keep modes for itself, they would leak into the caller between batches.

    Args:
        opened: the network; floating-point inputs are given its own precision.
        probe: what it sees.
        who: the checkpoint's name, for the bar and for messages.
        batch_size: samples a pass; it changes nothing but rounding.
        device: where the network is.

    Raises:
        BadInput: the samples cannot be prepared, or do not fit the network.
        WorkFailed: the device's memory is too small for a batch.
    """
    if batch_size < 1:
        raise BadInput(f"a batch of {batch_size} samples cannot be made; give a batch size of at least 1.")
    n = len(probe)
    precision = next((p.dtype for p in opened.module.parameters() if p.is_floating_point()), torch.float32)
    for start in track(range(0, n, batch_size), who, total=-(-n // batch_size)):
        rows = range(start, min(start + batch_size, n))
        samples = [probe.inputs[row] for row in rows]
        prepared = prepare_samples(opened.prepare, probe, rows, samples, who=who)
        with _told_of(who, probe, rows):
            output = _forward(opened.module, prepared, device, precision)
        yield Batch(rows, samples, prepared, output)


def prepare_samples(
    prepare: Callable[[list[Any]], Any] | None, probe: Probe, rows: Sequence[int], samples: list[Any], *, who: str
) -> Any:
    """Samples of a probe as a network takes them: a tensor, or a mapping that goes to it by keyword; on the CPU.

    Args:
        prepare: the network's own way; None: arrays and images as float32.
        probe: where the samples come from.
        rows: their positions in it.
        samples: what stands there.
        who: the checkpoint's name, for messages.

    Raises:
        BadInput: they cannot be prepared.

    Example:
        >>> probe = Probe.from_arrays(np.eye(2))
        >>> prepare_samples(None, probe, [1], [probe.inputs[1]], who="net")
        tensor([[0., 1.]])
    """
    with _told_of(who, probe, rows):
        if prepare is None:
            prepared: Any = _prepare_plainly(samples, probe.kind, [probe.ids[row] for row in rows])
        else:
            prepared = prepare(samples)
        _check_prepared(prepared, len(rows))
    return prepared


def chosen_device(device: str) -> str:
    """The device itself; ``auto`` is cuda where there is one, else cpu.

    Example:
        >>> chosen_device("cpu")
        'cpu'
    """
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _prepare_plainly(samples: list[Any], kind: Kind, ids: Sequence[str]) -> Tensor:
    """Arrays as float32; images as float32 (batch, channels, height, width) in [0, 1]."""
    match kind:
        case "array":
            return torch.from_numpy(np.stack(samples).astype(np.float32))
        case "image":
            for name, pixels in zip(ids, samples, strict=True):
                if pixels.shape != samples[0].shape:
                    raise BadInput(
                        f"image {name!r} has shape {pixels.shape} and image {ids[0]!r} has {samples[0].shape}. "
                        "Let the checkpoint's builder return (module, prepare), where prepare resizes them."
                    )
            return torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2).float() / 255
    raise BadInput(
        f"it has no tokenizer for a probe of {kind}. Let its builder return (module, prepare), "
        "where prepare turns a list of samples into tensors."
    )


def _check_prepared(prepared: Any, count: int) -> None:
    if isinstance(prepared, Tensor):
        lengths = {"tensor": len(prepared) if prepared.ndim else 0}
    elif isinstance(prepared, Mapping):
        tensors = {name: value for name, value in prepared.items() if isinstance(value, Tensor)}
        lengths = {name: len(value) if value.ndim else 0 for name, value in list(tensors.items())[:1]}
    else:
        raise BadInput(f"prepare returned a {type(prepared).__name__}; let it return a tensor or a mapping.")
    for name, length in lengths.items():
        if length != count:
            raise BadInput(f"prepare made {length} rows ({name}) of {count} samples; it must keep each, in order.")


def _forward(module: nn.Module, prepared: Any, device: str, precision: torch.dtype) -> Any:
    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, precision if value.is_floating_point() else None)

    if isinstance(prepared, Tensor):
        return module(moved(prepared))
    return module(**{name: moved(value) for name, value in prepared.items()})


@contextmanager
def _told_of(who: str, probe: Probe, rows: Sequence[int]) -> Iterator[None]:
    """Names the checkpoint and the samples where a builder's own code, or torch, fails on them."""
    ids = probe.ids
    samples = f"samples {ids[rows[0]]!r} to {ids[rows[-1]]!r} of the probe"
    try:
        yield
    except (MissingExtra, WorkFailed):
        raise
    except BadInput as error:
        raise BadInput(f"{who}, {samples}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise WorkFailed(f"{who}: no memory for a batch of {len(rows)}. Choose a smaller batch size.") from error
    except Exception as error:  # the network's own code may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"{who} cannot take {samples}: {type(error).__name__}: {reason}") from error
