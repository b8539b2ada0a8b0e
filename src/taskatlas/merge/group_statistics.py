"""How the units of several networks vary together: covariances for every axis group, in one pass over the data.

All networks see a batch, and what modules take and give is read at every place where a group can be seen. Each place
has a covariance of its own; they are added up once each has become a correlation, so that a residual stream is matched
by all its places alike, whatever their scale. Places that hold the same tensor count once, and what a norm takes is
left out where it can be seen what the norm gives: the two differ by little more than scale.

A place may show nothing of a unit but rounding: GELU turns -6 into less than the rounding of -6. The unit counts as
constant there, and is matched by the places where it does vary.

Where two groups can be seen in one tensor (a mixer's tokens and channels), the other group's axis is no axis of
samples: its order is not the same in all networks. Such places count only for a group that has no others, and as means
over that axis.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups, Example, Site
from taskatlas.merge.axis_run import Call, watching
from taskatlas.merge.covariance import Covariance
from taskatlas.merge.network_graph import NetworkGraph, seen_at, tensors_of_graph, values_at
from taskatlas.merge.probe_batches import first_samples
from taskatlas.probe import quiet
from taskatlas.zoo.weights import tensors_digest

Seen = dict[tuple[str, Site], Tensor]
Wanted = dict[tuple[str, Site], tuple[int, ...]]  # for each group and site the axes along which other groups move


@dataclass(frozen=True, eq=False)
class GroupStatistics:
    """Covariances of the units of n networks.

    Attributes:
        models: n.
        contents: digests of their tensors.
        rows: by group, how many rows its covariances are made of; pixels and tokens count.
        covariances: for every outermost group and each site where it is seen (n·p, n·p). Without groups within it, p
            is its number of units, and copies of a unit count as samples; else the positions it has at the site, unit
            after unit.
    """

    models: int
    contents: tuple[str, ...]
    rows: Mapping[str, int]
    covariances: Mapping[str, Mapping[Site, Float[np.ndarray, "positions _"]]]


def gather(
    networks: Sequence[nn.Module], groups: AxisGroups, batches: Iterable[Example], names: Sequence[str]
) -> GroupStatistics:
    """Passes over the data once.

    Args:
        networks: of one architecture.
        groups: theirs.
        batches: each a tensor, a tuple of arguments or a mapping of keyword arguments, on the networks' device. Tokens
            that an ``attention_mask`` hides are left out.
        names: of the networks, for messages.

    Raises:
        BadInput: there are no batches, or activations are NaN or infinite; the message names network and place.
    """
    outer = {group.within[0] for group in groups if group.within is not None}
    wanted: Wanted = {}
    graph: NetworkGraph | None = None
    pooled: dict[tuple[str, Site], Covariance] = {}
    for batch in track(batches, "reading features"):
        if not pooled:
            few = first_samples(batch, 2)
            wanted = _wanted(groups, _telling_places(networks[0], groups, few))
            graph = NetworkGraph.of(networks[0], few) if any(site.is_operation for _, site in wanted) else None
            pooled = {key: Covariance() for key in wanted}
        seen = [_features(network, batch, wanted, outer, graph) for network in networks]
        for (name, site), covariance in pooled.items():
            _pool(covariance, [values[name, site] for values in seen], site, names)
    sites: dict[str, dict[Site, Covariance]] = {group.name: {} for group in groups if group.within is None}
    for (name, site), covariance in pooled.items():
        sites[name][site] = covariance
    rows = {name: max(one.count for one in seen.values()) for name, seen in sites.items() if seen}
    covariances = {name: _above_rounding(seen, whole=name in outer) for name, seen in sites.items()}
    return GroupStatistics(len(networks), tuple(map(content_of, networks)), rows, covariances)


def content_of(network: nn.Module) -> str:
    """Digest of a network's tensors."""
    return tensors_digest({name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)})


def _features(network: nn.Module, batch: Example, wanted: Wanted, outer: set[str], graph: NetworkGraph | None) -> Seen:
    """What one network makes of a batch, at every site of every group; read before a later operation can write there.

    Args:
        network: one of them.
        batch: as it takes it.
        wanted: the sites.
        outer: groups with groups within them.
        graph: of all networks, for sites that are operations.
    """
    mask, values = _token_mask(batch), Seen()
    at: dict[str, list[tuple[str, Site, tuple[int, ...]]]] = {}
    for (name, site), others in wanted.items():
        at.setdefault(site.place, []).append((name, site, others))

    def keep(place: str, tensor: Tensor) -> None:
        for name, site, others in at[place]:
            spread = tensor.mean(others, keepdim=True) if others else tensor
            values[name, site] = _read(spread, site, name in outer, mask)

    operations = list(dict.fromkeys(site.place for _, site in wanted if site.is_operation))
    call = Call.of(network, batch, None)
    with quiet(network):
        with watching(network, [place for place in at if place not in operations], keep):
            network(*call.arguments, **call.keywords)
        if graph is not None:
            for place, tensor in values_at(graph, tensors_of_graph(graph, network), batch, operations):
                keep(place, tensor)
    return values


def _wanted(groups: AxisGroups, places: set[str]) -> Wanted:
    """The sites to read: at telling places, and where no other group moves, as far as there are such.

    Units with groups within them, such as heads, are read where what is within them lies along their own axis. On an
    axis of its own its order is another one in every unit, which no site can say.
    """
    axes: dict[str, set[int]] = {}
    inside: dict[str, set[tuple[str, int]]] = {}
    for group in groups:
        for site in group.taps:
            axes.setdefault(site.place, set()).add(site.axis)
            if group.within is not None:
                inside.setdefault(group.within[0], set()).add((site.place, site.axis))
    found: Wanted = {}
    for group in groups:
        if group.within is None:
            others = {site: tuple(sorted(axes[site.place] - {site.axis})) for site in group.taps}
            within = inside.get(group.name)
            shown = [site for site in group.taps if within is None or (site.place, site.axis) in within]
            telling = [site for site in shown if site.place in places] or shown
            alone = [site for site in telling if not others[site]]
            found |= {(group.name, site): others[site] for site in alone or telling}
    return found


def _telling_places(network: nn.Module, groups: AxisGroups, few: Example) -> set[str]:
    """Of all places that show one tensor the first, and of what a norm takes and gives only what it gives."""
    places = dict.fromkeys(site.place for group in groups for site in group.taps if not site.is_operation)
    contents = {place: _content(tensor) for place, tensor in seen_at(network, few, list(places)).items()}
    before_norms = {contents.get(f"{norm}:input") for norm in _norms(groups)}
    first: dict[str, str] = {}
    for place, content in contents.items():
        if content not in before_norms:
            first.setdefault(content, place)
    return set(first.values())


def _norms(groups: AxisGroups) -> set[str]:
    """Modules that scale every unit by a number of its own: all their tensors have one axis."""
    axes: dict[str, set[int]] = {}
    for name, shape in groups.shapes.items():
        axes.setdefault(name.rpartition(".")[0], set()).add(len(shape))
    return {name for name, found in axes.items() if found <= {0, 1}}


def _content(tensor: Tensor) -> str:
    values = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {hashlib.blake2b(values).hexdigest()}"


def _read(tensor: Tensor, site: Site, whole: bool, mask: Tensor | None) -> Tensor:
    """What is seen at a site, copied, as (samples, positions), where ``whole``, or (samples, units)."""
    axis = site.axis
    if mask is not None and tensor.shape[:2] == mask.shape and axis >= 2:
        tensor, axis = tensor[mask], axis - 1
    positions, along = site.layout.index(), tensor.movedim(axis, 0)
    if np.array_equal(positions.ravel(), np.arange(len(along))):
        read = along.clone(memory_format=torch.contiguous_format)
    else:
        read = along[torch.from_numpy(positions.ravel()).to(tensor.device)]
    return read.reshape(positions.size if whole else len(positions), -1).T


def _pool(covariance: Covariance, features: list[Tensor], site: Site, names: Sequence[str]) -> None:
    try:
        covariance.update(*features)
    except BadInput as error:
        for name, values in zip(names, features, strict=True):
            if not bool(values.isfinite().all()):
                raise BadInput(
                    f"{name} gives NaN or infinite values at {site.place!r}. Are its weights whole?"
                ) from error
        raise


def _above_rounding(seen: Mapping[Site, Covariance], whole: bool) -> dict[Site, np.ndarray]:
    """A group's covariances by site, each without the units that show nothing but rounding there.

    What is computed from a value is as uncertain as that value's rounding, so a unit is as large everywhere as where it
    is largest. Where ``whole``, sites may show different positions of the units: each goes by its own sizes.
    """
    if whole or not seen:
        return {site: covariance.covariance for site, covariance in seen.items()}
    sizes = np.maximum.reduce([covariance.sizes for covariance in seen.values()])
    return {site: covariance.above_rounding(sizes) for site, covariance in seen.items()}


def _token_mask(batch: Example) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
