"""How the units of several networks vary together: covariances for every axis group, in one pass over the data.

All networks see a batch, and what modules take and give is read at every place where a group can be seen. Each place
has a covariance of its own; they are added up once each has become a correlation, so that a residual stream is matched
by all its places alike, whatever their scale. Places that hold the same tensor count once, and what a norm takes is
left out where it can be seen what the norm gives: the two differ by little more than scale.

Where two groups can be seen in one tensor (a mixer's tokens and channels), the other group's axis is no axis of
samples: its order is not the same in all networks. Such places count only for a group that has no others, and as means
over that axis.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups, Example, Site
from taskatlas.merge.axis_run import Call, first_tensor
from taskatlas.merge.covariance import Covariance, as_samples
from taskatlas.merge.network_graph import seen_at
from taskatlas.probe import quiet

Seen = dict[tuple[str, Site], Tensor]
Wanted = dict[tuple[str, Site], tuple[int, ...]]  # for each group and site the axes along which other groups move


@dataclass(frozen=True, eq=False)
class GroupStatistics:
    """Covariances of the units of n networks.

    Attributes:
        models: n.
        samples: how many samples the networks saw.
        covariances: for every outermost group and each site where it is seen (n·p, n·p). Without groups within it, p
            is its number of units, and copies of a unit count as samples; else the positions it has at the site, unit
            after unit.
    """

    models: int
    samples: int
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
    pooled: dict[tuple[str, Site], Covariance] = {}
    samples = 0
    for batch in track(batches, "reading features"):
        if not pooled:
            places = _telling_places(networks[0], groups, batch)
            wanted = _wanted(groups, places)
            pooled = {key: Covariance() for key in wanted}
        seen = [_features(network, batch, wanted, outer) for network in networks]
        for (name, site), covariance in pooled.items():
            _pool(covariance, [values[name, site] for values in seen], site, names)
        samples += _length(batch)
    if not samples:
        raise BadInput("there are no samples to compare the networks on.")
    covariances: dict[str, dict[Site, np.ndarray]] = {group.name: {} for group in groups if group.within is None}
    for (name, site), covariance in pooled.items():
        covariances[name][site] = covariance.covariance
    return GroupStatistics(len(networks), samples, covariances)


def _features(network: nn.Module, batch: Example, wanted: Wanted, outer: set[str]) -> Seen:
    """What one network makes of a batch, at every site of every group."""
    mask = _token_mask(batch)
    call = Call.of(network, batch, None)
    with quiet(network), _Watched(network, wanted, outer, mask) as watched:
        network(*call.arguments, **call.keywords)
    return watched.values


class _Watched:
    """Reads what a network computes at some places as it comes, before a later operation can write over it."""

    def __init__(self, network: nn.Module, wanted: Wanted, outer: set[str], mask: Tensor | None) -> None:
        self.values: Seen = {}
        self._network = network
        self._outer = outer
        self._mask = mask
        self._wanted: dict[str, list[tuple[str, Site, tuple[int, ...]]]] = {}
        for (name, site), others in wanted.items():
            self._wanted.setdefault(site.place, []).append((name, site, others))
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "_Watched":
        modules = dict(self._network.named_modules(remove_duplicate=False))
        for place in self._wanted:
            module = modules[place.removesuffix(":input")]
            if place.endswith(":input"):
                self._hooks.append(module.register_forward_pre_hook(self._taken(place), with_kwargs=True))
            else:
                self._hooks.append(module.register_forward_hook(self._given(place)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _taken(self, place: str) -> Callable[..., None]:
        return lambda _, arguments, keywords: self._keep(place, first_tensor([*arguments, *keywords.values()]))

    def _given(self, place: str) -> Callable[..., None]:
        return lambda _, __, output: self._keep(place, first_tensor(output))

    def _keep(self, place: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            for name, site, others in self._wanted[place]:
                values = tensor.mean(others, keepdim=True) if others else tensor
                self.values[name, site] = _read(values, site, name in self._outer, self._mask)


def _wanted(groups: AxisGroups, places: set[str]) -> Wanted:
    """The sites to read: at telling places, and where no other group moves, as far as there are such."""
    axes: dict[str, set[int]] = {}
    for group in groups:
        for site in group.taps:
            axes.setdefault(site.place, set()).add(site.axis)
    found: Wanted = {}
    for group in groups:
        if group.within is None:
            others = {site: tuple(sorted(axes[site.place] - {site.axis})) for site in group.taps}
            telling = [site for site in group.taps if site.place in places] or list(group.taps)
            alone = [site for site in telling if not others[site]]
            found |= {(group.name, site): others[site] for site in alone or telling}
    return found


def _telling_places(network: nn.Module, groups: AxisGroups, batch: Example) -> set[str]:
    """Of all places that show one tensor the first, and of what a norm takes and gives only what it gives."""
    places = dict.fromkeys(site.place for group in groups for site in group.taps)
    few = tree_map(lambda value: value[:2] if isinstance(value, Tensor) and value.ndim else value, batch)
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
    """What is seen at a site as (samples, positions), where ``whole``, or (samples, units)."""
    axis = site.axis
    if mask is not None and tensor.shape[:2] == mask.shape and axis >= 2:
        tensor, axis = tensor[mask], axis - 1
    positions = torch.from_numpy(site.layout.index()).to(tensor.device)
    units, copies = positions.shape
    if whole or copies == 1:
        return as_samples(tensor.index_select(axis, positions.flatten()), axis)
    laid_out = tensor.index_select(axis, positions.flatten()).movedim(axis, -1)
    return as_samples(laid_out.reshape(*laid_out.shape[:-1], units, copies), -2)


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


def _token_mask(batch: Example) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _length(batch: Example) -> int:
    values: Any = [batch] if isinstance(batch, Tensor) else batch.values() if isinstance(batch, Mapping) else batch
    first = first_tensor(list(values))
    return 0 if first is None else len(first)
