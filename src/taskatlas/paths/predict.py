"""What a network says about a probe: log-probabilities, a row a sample, or a row a token for a language model."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.probe.forward import Batch, batches
from taskatlas.probe.probe import Probe
from taskatlas.probe.quiet import quiet
from taskatlas.zoo.checkpoint import OpenedCheckpoint


@dataclass(frozen=True, eq=False)
class Prediction:
    """Log-probabilities with the names of their rows.

    Attributes:
        log_probs: (N, C) float32.
        ids: N.
        labels: (N,) true classes, or None; for tokens, the token that follows.
    """

    log_probs: Float[np.ndarray, "samples classes"]
    ids: tuple[str, ...]
    labels: np.ndarray | None


def predict(
    module: nn.Module,
    probe: Probe,
    *,
    prepare: Callable[[list[Any]], Any] | None = None,
    tokens: bool = False,
    batch_size: int = 64,
    who: str = "the model",
) -> Prediction:
    """Log-softmax of a network's logits on a probe; leaves its modes, statistics and random states as they were.

    The logits are the network's output, the ``logits`` of an output that has some, or the first of several outputs.

    Args:
        module: on its device, in any mode.
        probe: what it sees.
        prepare: raw samples -> a tensor, or a mapping for ``module(**batch)``; None: the probe's own way.
        tokens: a row for each token of each text and not for each sample: what a causal language model expects next.
            The samples are then the tokens that are no padding and are followed by one, the labels the tokens that
            follow; ``prepare`` gives ``input_ids`` and, where there is padding, ``attention_mask``.
        batch_size: samples a pass.
        who: the run, for messages.

    Raises:
        BadInput: the network cannot take the samples, gives no logits of one row a sample, or gives NaN (the message
            names the sample).

    Example:
        >>> net = nn.Linear(2, 3)
        >>> predict(net, Probe.from_arrays(np.eye(2), labels=[0, 2])).log_probs.shape
        (2, 3)
    """
    device = next((str(parameter.device) for parameter in module.parameters()), "cpu")
    if probe.kind == "words" and not tokens:
        raise BadInput("a probe of words has a label a word, but predictions are recorded a sample or a token.")
    rows, ids, labels = [], [], []
    with quiet(module):
        for batch in batches(OpenedCheckpoint(module, prepare), probe, who=who, batch_size=batch_size, device=device):
            found = _token_rows(batch, probe) if tokens else _sample_rows(batch, probe)
            for name, log_probs, label in found:
                if np.isnan(log_probs).any():
                    raise BadInput(f"{who} gives NaN for sample {name!r}. Did the training diverge?")
                rows.append(log_probs)
                ids.append(name)
                labels.append(label)
    if not rows:
        raise BadInput(f"no text of the probe has two tokens for {who}, so no token is followed by one.")
    given = labels if tokens else probe.labels
    return Prediction(np.stack(rows), tuple(ids), None if given is None else np.asarray(given, dtype=np.int64))


def check_labels_fit(labels: np.ndarray | None, classes: int, who: str) -> None:
    """Refuses a probe's labels that are no classes of the network.

    Raises:
        BadInput: a label is out of range.
    """
    if labels is not None and (labels.min() < 0 or labels.max() >= classes):
        raise BadInput(
            f"the probe has labels from {labels.min()} to {labels.max()}, and {who} predicts {classes} classes. Number "
            "the labels as the network's outputs, or record a probe without."
        )


def _sample_rows(batch: Batch, probe: Probe) -> Iterator[tuple[str, np.ndarray, int]]:
    logits = _logits(batch.output)
    if logits.ndim != 2 or len(logits) != len(batch.rows):
        raise BadInput(
            f"the network gives logits of the shape {tuple(logits.shape)} for {len(batch.rows)} samples, not one "
            "row of classes for each. For a language model say tokens=True."
        )
    for row, values in zip(batch.rows, _log_softmax(logits), strict=True):
        yield probe.ids[row], values, -1


def _token_rows(batch: Batch, probe: Probe) -> Iterator[tuple[str, np.ndarray, int]]:
    if not isinstance(batch.prepared, Mapping) or "input_ids" not in batch.prepared:
        raise BadInput("for predictions a token, prepare must give a mapping with input_ids, as tokenizers do.")
    inputs = batch.prepared["input_ids"].cpu()
    mask = batch.prepared.get("attention_mask")
    there = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask.cpu().bool()
    logits = _logits(batch.output)
    if logits.ndim != 3 or logits.shape[:2] != inputs.shape:
        raise BadInput(
            f"the network gives logits of the shape {tuple(logits.shape)} for tokens {tuple(inputs.shape)}, not one "
            "row of the vocabulary for each token."
        )
    for position, row in enumerate(batch.rows):
        followed = there[position, :-1] & there[position, 1:]
        for place, values in zip(
            followed.nonzero()[:, 0].tolist(), _log_softmax(logits[position, :-1][followed]), strict=True
        ):
            yield f"{probe.ids[row]}:{place}", values, int(inputs[position, place + 1])


def _logits(output: Any) -> Tensor:
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise BadInput(f"the network gives a {type(output).__name__} without logits. Let it return a tensor of logits.")
    return found


def _log_softmax(logits: Tensor) -> np.ndarray:
    """In float32, whatever the training's precision: half precision is too coarse for distances."""
    values: np.ndarray = torch.log_softmax(logits.float(), -1).cpu().numpy()
    return values
