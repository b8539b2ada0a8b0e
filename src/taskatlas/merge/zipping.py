"""Zipping whole networks: align, merge, cut, calibrate; from modules and data to one module."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.aligning import NetworkAlignment, align
from taskatlas.merge.axis_groups import AxisGroups, Example, Stop
from taskatlas.merge.calibration import Remedy
from taskatlas.merge.covariance import constant_features
from taskatlas.merge.group_statistics import GroupStatistics, content_of, gather
from taskatlas.merge.matching import Method
from taskatlas.merge.merging import Merging
from taskatlas.merge.network_graph import NetworkGraph, needed_for, seen_at
from taskatlas.merge.probe_batches import Data, ProbeBatches, batch_length, first_samples
from taskatlas.merge.weight_matching import match_weights
from taskatlas.merge.widening import STOP_BEFORE, Widened, check_one_code, widened, widest_of
from taskatlas.merge.zipped import Zipped
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.builders import some

Matching = Literal["zip", "permute", "cycle_consistent", "weight_matching", "identity"]
_DISAGREE = 0.2  # an agreement below which merged units are hardly the same


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

    ``zip`` also takes models of different widths, where the next layer adds up each unit by itself. What they become
    has the sizes of the widest, which must be so everywhere.

    Args:
        models: two or more. Up to a stop they may differ after it.
        probe: what to compare them on: some hundred samples, of all their tasks. None of it needs a label.
        stop_at: a place where one tensor cuts the network in two, such as ``layer2`` or ``fc:input``;
            ``AxisGroups.stops`` lists them.
        method: see ``match_features``; ``identity`` merges units where they stand.
        a: see ``match_features``.
        b: see ``match_features``.
        calibration: see ``calibration``; None: weights as they are merged, nothing else.
        groups: which axes move together, in the widest model where widths differ; None: derived.
        statistics: what ``group_statistics`` said of these models, where they are zipped in several ways.
        outputs: for models that return a mapping, the entries that count.
        shares: how much each model counts where units are merged, beside the others; None: alike.
        prepare: raw samples -> what the models take; None: the way of the first model that has one.
        batch_size: samples a pass.
        device: where to compute.
        seed: of the samples that regressions are made of.

    Raises:
        BadInput: models that differ where they are merged (the message names tensors), a stop that is none (it lists
            those there are), a network that cannot be followed, groups that are not the models' or change what they
            compute, statistics of other models, weights or activations that are NaN, samples on which nothing varies.

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
    if shares is not None and (len(shares) != len(models) or not all(0 < share < math.inf for share in shares)):
        raise BadInput(
            f"shares={list(shares)} of {len(models)} models: give each a number above 0, and none that is infinite."
        )
    networks, names, own_prepare = _opened(models, device)
    _check_whole(networks, names)
    batches = ProbeBatches(probe, networks[0], prepare=prepare or own_prepare, batch_size=batch_size)
    example = first_samples(next(iter(batches)), 2)
    if not batch_length(example):
        raise BadInput("there are no samples to compare the networks on.")
    if batch_length(example) < 2:
        raise BadInput("networks are not compared on one sample. Give some hundred, in batches of two or more.")
    given, groups = groups, AxisGroups.of(networks[0], example, outputs) if groups is None else groups
    stop = None if stop_at is None else groups.stop(stop_at)
    unlike = _unlike(networks, names, stop, method)
    widest = widest_of(networks, names, unlike)
    if given is not None:
        _check_fit(given, networks[widest], names[widest], None if stop is None else stop.trunk)
        groups = _checked(given, networks[widest], names[widest], example, outputs)
    elif widest:
        groups = AxisGroups.of(networks[widest], example, outputs)
    even = Widened(networks, groups)
    if unlike:
        even = widened(networks, names, widest, groups, example, outputs, stop)
    else:
        check_one_code(networks, names, stop, example, outputs)
    groups = groups if stop is None else _up_to(groups, stop, even.networks[0], example)
    aligned, notes = _align(even, names, groups, batches, statistics, method, a, b, calibration, seed)
    merging = Merging(networks, even, names, groups, aligned, batches, example, outputs, calibration, seed, shares)
    with torch.no_grad():
        if stop is not None:
            return Zipped(merging.up_to(stop), names, stop.place, groups, aligned, notes, example)
        network = deepcopy(even.networks[0])
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
        groups: of the models' architecture; of the widest.
        prepare: see there.
        batch_size: see there.
        device: see there.

    Raises:
        BadInput: as ``zip_models``.
    """
    networks, names, own_prepare = _opened(models, device)
    _check_whole(networks, names)
    batches = ProbeBatches(probe, networks[0], prepare=prepare or own_prepare, batch_size=batch_size)
    moved = {member.tensor for group in groups for member in group.members}
    unlike = [name for name in _unlike(networks, names, None, "zip") if name in moved]
    widest = widest_of(networks, names, unlike)
    _check_fit(groups, networks[widest], names[widest], None)
    if unlike:
        example = first_samples(next(iter(batches)), 2)
        networks = list(widened(networks, names, widest, groups, example, None, None).networks)
    return gather(networks, groups, batches, names)


def _align(
    even: Widened,
    names: tuple[str, ...],
    groups: AxisGroups,
    batches: ProbeBatches,
    statistics: GroupStatistics | None,
    method: Matching,
    a: float | int,
    b: float | int,
    calibration: Remedy | None,
    seed: int,
) -> tuple[NetworkAlignment, tuple[str, ...]]:
    """The alignment, and notes about it: what to know before relying on the merge."""
    networks = even.networks
    aligned, chance, notes = NetworkAlignment({}, {}), dict[str, float](), list[str]()
    if method not in ("identity", "weight_matching"):
        if statistics is None:
            statistics = gather(networks, groups, batches, names)
        else:
            _check_of(statistics, networks, names)
        notes += _silent_units(groups, statistics, even.units)
        aligned = align(groups, statistics, cast("Method", method), a=a, b=b, units=even.units)
        seen = [group for group in groups if group.name in statistics.rows]
        chance = {group.name: _best_by_chance(group.size, statistics.rows[group.name]) for group in seen}
    unseen = [group.name for group in groups if group.name not in aligned.alignments]
    if method == "weight_matching" or (method != "identity" and unseen):
        states = [network.state_dict() for network in networks]
        parameters = _alike(networks) - even.foreign
        ragged = [name for name in unseen if name in even.units]
        if ragged:
            raise BadInput(
                f"nothing shows the units of {some(ragged)}, and the networks have different numbers of them. They can "
                "only be matched by their weights, one to one: zip networks of one width."
            )
        matched = match_weights(states, groups, parameters, seed=seed, given=aligned.alignments)
        for group in (group for group in groups if group.name in matched.alignments):
            numbers = sum(
                states[0][member.tensor].numel() / states[0][member.tensor].shape[member.axis]
                for member in group.members
                if member.tensor in parameters
            )
            chance[group.name] = _best_by_chance(group.size, numbers)
        if method != "weight_matching":
            notes.append(f"units that nothing shows on data were matched by their weights: {some(unseen)}.")
        aligned = NetworkAlignment(
            {**aligned.alignments, **matched.alignments}, {**aligned.agreements, **matched.agreements}
        )
    widest = max((group.size for group in groups), default=0)
    by_data = method not in ("identity", "weight_matching") or calibration in ("least_squares", "repair")
    if by_data and batches.samples < widest:
        notes.insert(0, f"{batches.samples} samples are fewer than the {widest} units of the widest group. Give more.")
    return aligned, (*notes, *_disagreements(aligned.agreements, chance))


def _opened(
    models: Sequence[nn.Module | Checkpoint], device: str
) -> tuple[list[nn.Module], tuple[str, ...], Callable[[list[Any]], Any] | None]:
    """Networks in evaluation mode, their names, and how raw samples are prepared for them.

    Raises:
        BadInput: something is no model, or two models have one name.
    """
    for model in models:
        if not isinstance(model, nn.Module | Checkpoint):
            raise BadInput(
                f"a {type(model).__name__} is no model. Give modules or checkpoints: Zoo.open(...).values()."
            )
    checkpoints = [
        model if isinstance(model, Checkpoint) else Checkpoint(f"model {position}", module=model)
        for position, model in enumerate(models)
    ]
    twice = [name for name, times in Counter(one.name for one in checkpoints).items() if times > 1]
    if twice:
        raise BadInput(f"two models are called {twice[0]!r}. Give each a name of its own: Checkpoint(name, ...).")
    opened = [checkpoint.open(device) for checkpoint in checkpoints]
    prepare = next((one.prepare for one in opened if one.prepare is not None), None)
    return [one.module for one in opened], tuple(checkpoint.name for checkpoint in checkpoints), prepare


def _unlike(networks: Sequence[nn.Module], names: Sequence[str], stop: Stop | None, method: Matching) -> list[str]:
    """The tensors whose sizes are not those of the first network, where they are merged.

    Raises:
        BadInput: networks have other tensors than the first, or sizes that the method is not for.
    """
    wanted = {name: tuple(value.shape) for name, value in networks[0].state_dict().items()}
    everywhere: dict[str, None] = {}
    for network, who in zip(networks[1:], names[1:], strict=True):
        found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        compared = [*wanted, *(name for name in found if name not in wanted)] if stop is None else stop.trunk
        unlike = [name for name in compared if wanted.get(name) != found.get(name)]
        others = [name for name in unlike if len(wanted.get(name, ())) != len(found.get(name, ()))]
        if others or (unlike and method != "zip"):
            first = (others or unlike)[0]
            shapes = " and ".join(str(one.get(first, "none")) for one in (wanted, found))
            rule = "have one architecture" if others else f"by {method} have equal widths; zip also takes others"
            raise BadInput(
                f"{names[0]} and {who} differ in {some(others or unlike)}: {first} has shapes {shapes}. "
                f"Networks that are zipped {rule}.{'' if stop is not None else STOP_BEFORE}"
            )
        everywhere |= dict.fromkeys(unlike)
    return list(everywhere)


def _check_whole(networks: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Refuses weights that are NaN or infinite, and other tensors that are NaN."""
    for network, who in zip(networks, names, strict=True):
        broken = [name for name, value in network.named_parameters() if not bool(value.isfinite().all())]
        broken += [name for name, value in network.named_buffers() if bool(value.isnan().any())]
        if broken:
            raise BadInput(f"the tensor {broken[0]!r} of {who} holds NaN or infinite numbers. Is it whole?")


def _check_fit(groups: AxisGroups, network: nn.Module, who: str, compared: Collection[str] | None) -> None:
    """Refuses groups of a network with other tensors; ``compared`` are those that are looked at, None: all."""
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for name in sorted({member.tensor for group in groups for member in group.members}):
        known = groups.shapes.get(name, own.get(name))
        if (compared is None or name in compared) and (known is None or known != own.get(name)):
            raise BadInput(
                f"the axis groups are not those of {who}: {name} has shape {own.get(name, 'none')} there, and "
                f"{known or 'another'} in the groups. Derive them from it: AxisGroups.of(network, example)."
            )


def _checked(
    groups: AxisGroups, network: nn.Module, who: str, example: Example, outputs: Sequence[str] | None
) -> AxisGroups:
    """Groups that were given, once they have passed the self-check on the network itself."""
    found = groups.checked(network, example, outputs)
    passed = {group.name for group in found}
    failed = [group.name for group in groups if group.name not in passed]
    if failed:
        raise BadInput(
            f"the axis groups change what {who} computes: permuting {some(failed)} does. Is an axis missing in them? "
            "AxisGroups.checked(network, example) gives those that are right."
        )
    return found


def _check_of(statistics: GroupStatistics, networks: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Refuses statistics of other networks."""
    if statistics.models != len(networks):
        raise BadInput(f"the statistics are those of {statistics.models} models, and there are {len(networks)}.")
    for network, who, content in zip(networks, names, statistics.contents, strict=True):
        if content_of(network) != content:
            raise BadInput(f"the statistics are not those of {who}. Gather them anew: group_statistics(models, ...).")


def _alike(networks: Sequence[nn.Module]) -> set[str]:
    """The parameters that have the same shape in all networks."""
    every = [
        {name: value.shape for name, value in network.named_parameters(remove_duplicate=False)} for network in networks
    ]
    return {name for name, shape in every[0].items() if all(one.get(name) == shape for one in every)}


def _up_to(groups: AxisGroups, stop: Stop, network: nn.Module, example: Example) -> AxisGroups:
    """The groups with units before a stop, as they can be seen until there."""
    sites = dict.fromkeys(site for group in groups for site in group.taps)
    places = list(seen_at(network, example, list(dict.fromkeys(s.place for s in sites if not s.is_operation))))
    ends = [places.index(place) for place in (stop.place, *stop.aliases) if place in places]
    before = set(places[: min(ends) + 1] if ends else places) | {stop.place, *stop.aliases}
    if any(site.is_operation for site in sites):
        graph = NetworkGraph.of(network, example)
        trunk = needed_for([graph.node_at(network, example, stop.place)])
        before |= {name for name, node in graph.operations().items() if node in trunk}
    kept = [
        replace(group, taps=tuple(site for site in group.taps if site.place in before))
        for group in groups
        if any(member.tensor in stop.trunk for member in group.members)
    ]
    return replace(groups, groups=tuple(kept))


def _silent_units(groups: AxisGroups, statistics: GroupStatistics, units: Mapping[str, Sequence[int]]) -> list[str]:
    """A note where units never vary; ``units`` are how many each network has, where they differ.

    Raises:
        BadInput: none does.
    """
    silent = total = 0
    for group in groups:
        sites = [site for site in statistics.covariances.get(group.name, {}) if site in group.taps]
        if sites:
            variances = (np.diagonal(statistics.covariances[group.name][site]) for site in sites)
            still = [constant_features(one).reshape(statistics.models, group.size, -1).all(2) for one in variances]
            counts = units.get(group.name, (group.size,) * statistics.models)
            own = np.arange(group.size) < np.array(counts)[:, None]
            silent += int((np.logical_and.reduce(still) & own).sum())
            total += sum(counts)
    if total and silent == total:
        raise BadInput("no unit of the networks varies on these samples. Are the samples all the same?")
    if not silent:
        return []
    return [
        f"{silent} of {total} units never vary on these samples, so that nothing tells which belong together; they are "
        "joined by their position."
    ]


def _best_by_chance(units: int, numbers: float | int) -> float:
    """The largest of as many cosines of random vectors of so many numbers, about: the best partner of a unit."""
    return math.sqrt(2 * math.log(units) / numbers)


def _disagreements(agreements: Mapping[str, float], chance: Mapping[str, float]) -> list[str]:
    """A note where merged units hardly agree: their correlations, or the cosines of their weights."""
    apart = [name for name, reached in agreements.items() if reached < max(_DISAGREE, chance.get(name, 0.0))]
    if not apart:
        return []
    return [
        f"the networks hardly agree in {len(apart)} of {len(agreements)} groups (below {_DISAGREE}, or no better than "
        f"by chance): {some(apart)}. The merge may collapse there; were they trained at other rates or lengths?"
    ]


def _check_choice(name: str, chosen: str | None, known: tuple[str | None, ...]) -> None:
    if chosen not in known:
        raise BadInput(f"{name}={chosen!r} is no way to zip. Choose one of: {', '.join(map(str, known))}.")
