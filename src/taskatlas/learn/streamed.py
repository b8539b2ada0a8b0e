"""One network trained from a stream of any length, in steps that an interruption does not change.

Every step is a function of the weights, the optimiser's state and the step's number: batches follow from the number
(see ``stream``), and so does what is random within the network, because each step seeds it anew. So a run that was
killed goes on from its last saved state to the same weights, byte for byte on the same machine, as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskatlas.engine import track
from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn.stream import Stream, batches
from taskatlas.probe.forward import chosen_device
from taskatlas.store import atomic_write, digest

Hook = Callable[[nn.Module, int], object]

_SAVE_SECONDS = 300.0  # between two savings of the state; at the end of an epoch it is saved anyway


class Epoch(NamedTuple):
    """How an epoch went, as a row of the log."""

    epoch: int  # from 1 on
    step: int  # steps done at its end
    learning_rate: float  # of its last step
    loss: float  # mean in nats while it trained
    accuracy: float  # of the predictions while it trained, from 0 to 1


def train_streamed(
    module: nn.Module,
    stream: Stream,
    *,
    hook: Hook | None = None,
    state: Path | None = None,
    workers: int = 0,
    device: str = "auto",
    description: str = "training",
) -> list[Epoch]:
    """Trains a classifier in place, from labelled samples that are read batch by batch.

    Stochastic gradient descent with the cross-entropy of the recipe. Torch's own random state and the modes of the
    network stay as they are.

    Args:
        module: maps a batch to (batch, classes) logits, or to something with ``logits``.
        stream: the batches, with their recipe.
        hook: called with the network, as it trains, and the number of steps done, before the first step and after
            each: a ``paths.Recorder``, for example. A training that goes on repeats no call that is behind its saved
            state.
        state: where the training is saved, at its start, every five minutes and at the end of each epoch, and where it
            goes on from.
        workers: processes that make batches; changes no result.
        device: cpu, cuda or auto.
        description: beside the progress bar.

    Returns:
        A row for each epoch.

    Raises:
        BadInput: a label that the network has no output for, a network that cannot take the samples, or a state that
            is damaged or of another training.
        WorkFailed: the loss is NaN or infinite, the device's memory is too small, or a worker died.

    Example:
        >>> from taskatlas.learn import Recipe
        >>> from taskatlas.probe import Probe
        >>> probe = Probe.from_arrays([[0.0], [1.0], [2.0], [3.0]], labels=[0, 0, 1, 1])
        >>> stream = Stream(probe, Recipe(epochs=200, batch_size=4))
        >>> train_streamed(nn.Linear(1, 2), stream)[-1].accuracy
        1.0
    """
    place = chosen_device(device)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise BadInput("the network has no parameter to train.")
    module.to(place)
    recipe = stream.recipe
    optimizer = torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    sums = torch.zeros(2, dtype=torch.float64, device=place)  # of an epoch: loss, right predictions
    rows: list[Epoch] = []
    key = _key(module, stream)
    done = 0
    if state is not None and state.is_file():
        done = _restore(state, key, module, optimizer, sums, rows)
    elif state is not None:  # from here on another training is refused, which would share what the hook writes
        _save(state, key, 0, module, optimizer, sums, rows)
    saved = time.monotonic()
    with _as_it_was(module, place):
        if not done and hook is not None:
            hook(module, 0)
        ahead = batches(stream, done, workers=workers, pinned=place.startswith("cuda"))
        for prepared, labels in track(ahead, description, total=len(stream) - done):
            rate = recipe.learning_rate_at(done, len(stream))
            _step(module, optimizer, stream, prepared, labels.to(place, non_blocking=True), rate, done, sums)
            done += 1
            ended = done % stream.steps_per_epoch == 0
            if ended:
                rows.append(_epoch(done, rate, sums, stream))
            if hook is not None:
                hook(module, done)
            if state is not None and (ended or time.monotonic() - saved > _SAVE_SECONDS):
                _check_finite(sums, done, stream)
                _save(state, key, done, module, optimizer, sums, rows)
                saved = time.monotonic()
    optimizer.zero_grad()
    return rows


def _step(
    module: nn.Module,
    optimizer: torch.optim.SGD,
    stream: Stream,
    prepared: Any,
    labels: Tensor,
    rate: float,
    step: int,
    sums: Tensor,
) -> None:
    recipe, place = stream.recipe, labels.device
    seed = int(digest(recipe.seed, step)[:15], 16)
    torch.default_generator.manual_seed(seed)
    if place.type == "cuda":
        torch.cuda.manual_seed(seed)
    module.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    with _told_of(stream, step):
        with torch.autocast(place.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            output = module(stream.inputs(prepared, str(place)))
            logits = getattr(output, "logits", output)
            _check_logits(logits, labels)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    sums += torch.stack([loss.detach().double() * len(labels), (logits.argmax(1) == labels).sum().double()])


def _epoch(done: int, rate: float, sums: Tensor, stream: Stream) -> Epoch:
    _check_finite(sums, done, stream)
    seen = min(stream.steps_per_epoch * stream.recipe.batch_size, len(stream.probe))
    loss, right = (sums / seen).tolist()
    sums.zero_()
    return Epoch(done // stream.steps_per_epoch, done, rate, loss, right)


def _check_logits(logits: Any, labels: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadInput(f"the network gives {given} for {len(labels)} samples, not a row of logits for each.")
    highest = int(labels.max())
    if logits.shape[1] <= highest:
        raise BadInput(f"a sample is of class {highest}, but the network gives {logits.shape[1]} outputs.")


def _check_finite(sums: Tensor, done: int, stream: Stream) -> None:
    if not math.isfinite(float(sums[0])):
        epoch = (done - 1) // stream.steps_per_epoch + 1
        raise WorkFailed(
            f"the loss became NaN or infinite in epoch {epoch} of {stream.recipe.epochs}. Try a learning rate below "
            f"{stream.recipe.learning_rate:g}, or a longer warm-up."
        )


@contextmanager
def _as_it_was(module: nn.Module, place: str) -> Iterator[None]:
    """Afterwards modes and random states are as before; meanwhile kernels are those that always add up alike."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with (
            torch.random.fork_rng([place] if place.startswith("cuda") else []),
            torch.backends.cudnn.flags(deterministic=True, benchmark=False),
        ):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _told_of(stream: Stream, step: int) -> Iterator[None]:
    """Says in a sentence what a network could not do with its samples."""
    try:
        yield
    except (BadInput, WorkFailed):
        raise
    except torch.OutOfMemoryError as error:
        raise WorkFailed(
            f"no memory for a batch of {stream.recipe.batch_size}. Choose a smaller batch size."
        ) from error
    except Exception as error:  # the network's own code may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"the network cannot take the samples of step {step}: {type(error).__name__}: {reason}"
        ) from error


def _key(module: nn.Module, stream: Stream) -> str:
    """Names a training: its samples, its recipe and the shapes of the network."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return digest("training", stream.digest, shapes)


def _save(
    file: Path,
    key: str,
    done: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    sums: Tensor,
    rows: list[Epoch],
) -> None:
    content = {
        "key": key,
        "done": done,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "sums": sums,
        "rows": [tuple(row) for row in rows],
    }
    with atomic_write(file) as temporary:
        torch.save(content, temporary)


def _restore(
    file: Path,
    key: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    sums: Tensor,
    rows: list[Epoch],
) -> int:
    """Brings a training back to where it was saved; the number of steps done."""
    try:
        content = torch.load(file, map_location=sums.device, weights_only=True)
        found = content["key"]
    except Exception as error:  # torch and pickle raise whatever a damaged file provokes
        raise BadInput(f"the state of the training in {file} is damaged. Remove it to begin anew.") from error
    if found != key:
        raise BadInput(
            f"{file} is the state of another training: other samples, network or settings. Give another place, or "
            "remove it to begin anew."
        )
    module.load_state_dict(content["module"])
    optimizer.load_state_dict(content["optimizer"])
    sums.copy_(content["sums"])
    rows.extend(Epoch(*row) for row in content["rows"])
    return int(content["done"])
