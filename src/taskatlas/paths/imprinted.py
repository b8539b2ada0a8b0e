"""What a network trained on something else says about a probe: its features, imprinted with the probe's classes.

So runs come onto one label set and can be drawn together, whatever they were trained on: a part of the classes, other
classes, pairs of views without any labels, episodes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.paths.imprint import Similarity, imprint
from taskatlas.paths.predict import Prediction
from taskatlas.probe.forward import batches
from taskatlas.probe.pooling import pooled
from taskatlas.probe.probe import Probe
from taskatlas.probe.quiet import quiet
from taskatlas.probe.taps import Tap
from taskatlas.zoo.checkpoint import OpenedCheckpoint


def predict_imprinted(
    module: nn.Module,
    probe: Probe,
    *,
    prepare: Callable[[list[Any]], Any] | None = None,
    tap: str | None = None,
    temperature: float | int = 1,
    similarity: Similarity = "euclidean",
    held_out: bool = True,
    batch_size: int = 64,
    who: str = "the model",
) -> Prediction:
    """Log-probabilities of the probe's own classes, by the distance of a sample's features to each class's mean.

    As ``predict``, it leaves the network and the random states as they were, and a ``Recorder`` takes it for one:
    ``Recorder(probe, predict=predict_imprinted)``, or with settings through ``functools.partial``.

    Args:
        module: on its device, in any mode.
        probe: labelled samples, at least two of each class.
        prepare: raw samples -> a tensor, or a mapping for ``module(**batch)``; None: the probe's own way.
        tap: where features are read; None: the input of the linear layer that is called last.
        temperature: of ``imprint``, as are
        similarity: and
        held_out: which leaves each sample out of its own class's mean.
        batch_size: samples a pass.
        who: the run, for messages.

    Raises:
        BadInput: a probe without labels, a class with a single sample, no such tap, or features that are not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 7))
        >>> probe = Probe.from_arrays(10 * np.eye(2)[[0, 0, 1, 1]], labels=[0, 0, 1, 1])
        >>> predict_imprinted(net, probe, similarity="cosine").log_probs.argmax(1)
        array([0, 0, 1, 1])
    """
    if probe.labels is None or probe.kind == "words":
        raise BadInput("a probe that is imprinted has one label a sample; this one has not.")
    device = next((str(parameter.device) for parameter in module.parameters()), "cpu")
    with quiet(module), Tap(module, tap, who) as watched:
        passes = batches(OpenedCheckpoint(module, prepare), probe, who=who, batch_size=batch_size, device=device)
        features = torch.cat([pooled(watched.read(batch.output)).cpu() for batch in passes])
    if len(features) != len(probe):
        raise BadInput(f"{who} gives {len(features)} rows of features for {len(probe)} samples. Choose another tap.")
    classes = len(probe.class_names) if probe.class_names is not None else int(probe.labels.max()) + 1
    try:
        log_probs = imprint(
            features,
            probe.labels,
            classes=classes,
            temperature=temperature,
            similarity=similarity,
            held_out=held_out,
        )
    except BadInput as error:
        raise BadInput(f"{who}: {error}") from error
    return Prediction(log_probs.float().numpy(), probe.ids, probe.labels.astype(np.int64))
