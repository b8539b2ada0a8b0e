"""Zipping whole networks: align, merge, cut, calibrate; from modules and data to one module."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.aligning import NetworkAlignment, align
from taskatlas.merge.axis_groups import AxisGroups, Example, Stop
from taskatlas.merge.calibration import Remedy
from taskatlas.merge.group_statistics import GroupStatistics, gather
from taskatlas.merge.merging import Merging
from taskatlas.merge.network_graph import seen_at
from taskatlas.merge.probe_batches import Data, ProbeBatches, batch_length, first_samples
from taskatlas.merge.weight_matching import match_weights
from taskatlas.merge.zipped import Zipped
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.builders import some

Matching = Literal["zip", "permute", "cycle_consistent", "weight_matching", "identity"]
_DISAGREE = 0.2  # a correlation below which merged units are hardly the same


def zip_models(
    models: Sequence[nn.Module | Checkpoint],
    probe: Data,
    *,
    stop_at: str | None = None,
    method: Matching = "zip",
    a: float | int = 0.3,
    b: float | int = 0.125,
    calibration: Remedy | None = "least_squares",
    groups: AxisGroups | None = None,
    statistics: GroupStatistics | None = None,
    outputs: Sequence[str] | None = None,
    shares: Sequence[float | int] | None = None,
    prepare: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    seed: int = 0,
) -> Zipped:
    """Merges networks of one architecture that were trained apart, with unlabelled data and no training.

    Units that vary alike on the data are merged, layer by layer (Stoica et al., ZipIt!, ICLR 2024). Merged to the end,
    models have to share their outputs; up to a stop, each keeps the rest of itself as a head.

    Args:
        models: two or more. Up to a stop they may differ after it.
        probe: what to compare them on: some hundred samples, of all their tasks. None of it needs a label.
        stop_at: a place where one tensor cuts the network in two, such as ``layer2`` or ``fc:input``;
            ``AxisGroups.stops`` lists them.
        method: see ``match_features``; ``identity`` merges units where they stand.
        a: see ``match_features``.
        b: see ``match_features``.
        calibration: see ``calibration``; None: weights as they are merged, nothing else.
        groups: which axes move together; None: derived from the first model.
        statistics: what ``group_statistics`` said of these models, where they are zipped in several ways.
        outputs: for models that return a mapping, the entries that count.
        shares: how much each model counts where units are merged, beside the others; None: alike.
        prepare: raw samples -> what the models take; None: the way of the first model that has one.
        batch_size: samples a pass.
        device: where to compute.
        seed: of the samples that regressions are made of.

    Raises:
        BadInput: models that differ where they are merged (the message names tensors), a stop that is none (it lists
            those there are), a network that cannot be followed, activations that are NaN.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> one = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(100, 4)
        >>> zipped = zip_models([one, one], x)
        >>> zipped
        Zipped(model 0, model 1; to the end, 1 group aligned)
        >>> bool(torch.allclose(zipped.network(x), one(x), atol=1e-5))
        True
    """
    _check_choice("method", method, get_args(Matching))
    _check_choice("calibration", calibration, (*get_args(Remedy), None))
    if len(models) < 2:
        raise BadInput(f"{len(models)} model cannot be zipped; give two or more.")
    if shares is not None and (len(shares) != len(models) or min(shares) <= 0):
        raise BadInput(f"shares={list(shares)} of {len(models)} models: give each a number above 0.")
    networks, names, own_prepare = _opened(models, device)
    batches = ProbeBatches(probe, networks[0], prepare=prepare or own_prepare, batch_size=batch_size)
    example = first_samples(next(iter(batches)), 2)
    if not batch_length(example):
        raise BadInput("there are no samples to compare the networks on.")
    if batch_length(example) < 2:
        raise BadInput("networks are not compared on one sample. Give some hundred, in batches of two or more.")
    groups = AxisGroups.of(networks[0], example, outputs) if groups is None else groups
    stop = None if stop_at is None else groups.stop(stop_at)
    _check_alike(networks, names, stop)
    groups = groups if stop is None else _up_to(groups, stop, networks[0], example)
    aligned, notes = _align(networks, names, groups, batches, statistics, method, a, b, seed)
    merging = Merging(networks, names, groups, aligned, batches, example, outputs, calibration, seed, shares)
    with torch.no_grad():
        if stop is not None:
            return Zipped(merging.up_to(stop), names, stop.place, groups, aligned, notes, example)
        network = deepcopy(networks[0])
        network.load_state_dict(merging.to_the_end())
        return Zipped(network, names, None, groups, aligned, notes, example)


def group_statistics(
    models: Sequence[nn.Module | Checkpoint],
    probe: Data,
    groups: AxisGroups,
    *,
    prepare: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 64,
    device: str = "cpu",
) -> GroupStatistics:
    """How the units of models vary together on data, for ``zip_models`` in several ways.

    Args:
        models: see ``zip_models``.
        probe: see there.
        groups: of the models' architecture.
        prepare: see there.
        batch_size: see there.
        device: see there.

    Raises:
        BadInput: as ``zip_models``.
    """
    networks, names, own_prepare = _opened(models, device)
    batches = ProbeBatches(probe, networks[0], prepare=prepare or own_prepare, batch_size=batch_size)
    return gather(networks, groups, batches, names)


def _align(
    networks: Sequence[nn.Module],
    names: tuple[str, ...],
    groups: AxisGroups,
    batches: ProbeBatches,
    statistics: GroupStatistics | None,
    method: Matching,
    a: float | int,
    b: float | int,
    seed: int,
) -> tuple[NetworkAlignment, tuple[str, ...]]:
    """The alignment, and notes about it."""
    if method == "identity":
        return NetworkAlignment({}, {}), ()
    if method == "weight_matching":
        parameters = {name for name, _ in networks[0].named_parameters(remove_duplicate=False)}
        return match_weights([net.state_dict() for net in networks], groups, parameters, seed=seed), ()
    if statistics is None:
        statistics = gather(networks, groups, batches, names)
    aligned = align(groups, statistics, method, a=a, b=b)
    return aligned, _notes(groups, aligned, statistics.samples)


def _opened(
    models: Sequence[nn.Module | Checkpoint], device: str
) -> tuple[list[nn.Module], tuple[str, ...], Callable[[list[Any]], Any] | None]:
    """Networks in evaluation mode, their names, and how raw samples are prepared for them."""
    checkpoints = [
        model if isinstance(model, Checkpoint) else Checkpoint(f"model {position}", module=model)
        for position, model in enumerate(models)
    ]
    opened = [checkpoint.open(device) for checkpoint in checkpoints]
    prepare = next((one.prepare for one in opened if one.prepare is not None), None)
    return [one.module for one in opened], tuple(checkpoint.name for checkpoint in checkpoints), prepare


def _check_alike(networks: Sequence[nn.Module], names: Sequence[str], stop: Stop | None) -> None:
    """Refuses networks with other tensors than the first where they are merged."""
    wanted = {name: tuple(value.shape) for name, value in networks[0].state_dict().items()}
    for network, who in zip(networks[1:], names[1:], strict=True):
        found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        compared = [*wanted, *(name for name in found if name not in wanted)] if stop is None else stop.trunk
        unlike = [name for name in compared if wanted.get(name) != found.get(name)]
        if unlike:
            shapes = " and ".join(str(one.get(unlike[0], "none")) for one in (wanted, found))
            hint = "" if stop is not None else " Where only what comes last differs, merge up to a stop before it."
            raise BadInput(
                f"{names[0]} and {who} differ in {some(unlike)}: {unlike[0]} has shapes {shapes}. "
                f"Zip networks of one architecture and width.{hint}"
            )


def _up_to(groups: AxisGroups, stop: Stop, network: nn.Module, example: Example) -> AxisGroups:
    """The groups with units before a stop, as they can be seen until there."""
    places = list(seen_at(network, example, list(dict.fromkeys(site.place for group in groups for site in group.taps))))
    ends = [places.index(place) for place in (stop.place, *stop.aliases) if place in places]
    before = set(places[: min(ends) + 1] if ends else places) | {stop.place, *stop.aliases}
    kept = [
        replace(group, taps=tuple(site for site in group.taps if site.place in before))
        for group in groups
        if any(member.tensor in stop.trunk for member in group.members)
    ]
    return replace(groups, groups=tuple(kept))


def _notes(groups: AxisGroups, aligned: NetworkAlignment, samples: int) -> tuple[str, ...]:
    """What to know before relying on a merge."""
    notes = []
    widest = max((group.size for group in groups), default=0)
    if samples < widest:
        notes.append(f"{samples} samples are fewer than the {widest} units of the widest group. Give more.")
    unseen = [group.name for group in groups if group.name not in aligned.alignments]
    if unseen:
        notes.append(f"units that cannot be seen at any module are merged where they stand: {some(unseen)}.")
    apart = [name for name, reached in aligned.agreements.items() if reached < _DISAGREE]
    if apart:
        notes.append(
            f"the networks hardly agree in {len(apart)} of {len(aligned.agreements)} groups (correlation below "
            f"{_DISAGREE}): {some(apart)}. The merge may collapse there; were they trained at other rates or lengths?"
        )
    return tuple(notes)


def _check_choice(name: str, chosen: str | None, known: tuple[str | None, ...]) -> None:
    if chosen not in known:
        raise BadInput(f"{name}={chosen!r} is no way to zip. Choose one of: {', '.join(map(str, known))}.")
