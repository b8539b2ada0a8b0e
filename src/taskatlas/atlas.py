"""Workflows that join rooms."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge import in_order_of_the_first, zip_models
from taskatlas.merge.barrier import on_the_path
from taskatlas.merge.probe_batches import ProbeBatches
from taskatlas.paths import Recorder, Trajectory
from taskatlas.probe import Probe
from taskatlas.zoo import Checkpoint


def path_between(
    one: nn.Module | Checkpoint,
    other: nn.Module | Checkpoint,
    probe: Probe,
    *,
    align: Literal["permute", "weight_matching", "cycle_consistent"] | None = "weight_matching",
    points: int = 11,
    prepare: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    name: str | None = None,
) -> Trajectory:
    """What networks on the straight path between two predict: a run for a map in prediction space.

    The second network's units are first brought into the order of the first's; BatchNorm statistics are estimated again
    on the probe at every point between. ``InPCA().fit([path, run, ...])`` draws it beside the trainings.

    Args:
        one: at step 0.
        other: at step 100, of the same architecture.
        probe: to align on, and to predict.
        align: how units are matched (``zip_models``); None: the path between the networks as they are.
        points: how many, ends included.
        prepare: raw samples -> what the networks take; None: the way of the first one that has one.
        batch_size: samples a pass.
        device: where to compute.
        name: of the run; None: says how it was aligned.

    Raises:
        BadInput: fewer than two points, networks that differ, or as ``zip_models`` and ``Recorder``.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> one, other = (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)) for _ in range(2))
        >>> path_between(one, other, Probe.from_arrays(np.random.default_rng(0).normal(size=(20, 2))), points=5)
        Trajectory('aligned', 5 snapshots from step 0 to 100, 20 samples, 2 classes)
    """
    if points < 2:
        raise BadInput(f"a path has its two ends; give points=2 or more, not {points}.")
    opened = [(model if isinstance(model, Checkpoint) else Checkpoint("net", module=model)) for model in (one, other)]
    found = [checkpoint.open(device) for checkpoint in opened]
    first, second = (each.module for each in found)
    prepare = prepare or next((each.prepare for each in found if each.prepare is not None), None)
    if align is not None:
        zipped = zip_models(
            [first, second],
            probe,
            method=align,
            calibration=None,
            prepare=prepare,
            batch_size=batch_size,
            device=device,
        )
        second = in_order_of_the_first(second, zipped)
    batches = list(ProbeBatches(probe, first, prepare=prepare, batch_size=batch_size))
    record = Recorder(
        probe, name=name or ("as they are" if align is None else "aligned"), prepare=prepare, batch_size=batch_size
    )
    where = np.linspace(0, 1, points)
    for point, network in zip(where, on_the_path(first, second, where, batches), strict=True):
        record.record(network, round(100 * point))
    return record.trajectory()
