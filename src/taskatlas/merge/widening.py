"""Networks of different widths, each as a network of the widest one's sizes that computes what it did.

A narrow network gets the units that it lacks: copies of its first unit, whose outgoing weights are 0. Where the next
layer adds up each unit by itself, that changes nothing, and every step of zipping finds networks of one kind, with one
graph. The units that were added are known, and never become part of a merged one. That nothing changes is checked on
the networks themselves.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.aligning import may_be_zipped
from taskatlas.merge.axis_groups import AxisGroups, Example, Layout, Stop
from taskatlas.merge.axis_run import Call, Weights, tensors_of, watching
from taskatlas.merge.network_graph import seen_at
from taskatlas.probe import quiet
from taskatlas.zoo.builders import some

STOP_BEFORE = " Where only what comes last differs, merge up to a stop before it."
_ROUNDING = 1e-3  # relative to the largest value: what another order of the same sums makes stays far below

Positions = Integer[np.ndarray, " _"]
Layouts = Sequence[tuple[Layout, Layout]]
"""Where groups lie along an axis of a narrow network and along the wide one's, outer groups first."""


@dataclass(frozen=True, eq=False)
class Widened:
    """Networks of one width.

    Attributes:
        networks: as they were where all widths are equal, else like the widest.
        groups: of them all.
        widest: the position of the widest.
        units: for groups in which networks differed, how many units each had: they are the first ones of the group.
        own_groups: what the groups were in each network before.
        foreign: names of tensors after a stop that are the widest network's in all, since others do not fit.
    """

    networks: Sequence[nn.Module]
    groups: AxisGroups
    widest: int = 0
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    own_groups: Sequence[AxisGroups] = ()
    foreign: frozenset[str] = frozenset()

    def own_positions(self, stop: Stop, model: int, shape: Sequence[int], own: Sequence[int]) -> dict[int, Positions]:
        """For each axis along which a model was widened at a stop, where its own positions are.

        Args:
            stop: where.
            model: which.
            shape: of the tensor there.
            own: of the model's own.

        Raises:
            BadInput: its units cannot be told there.
        """
        found = {}
        for axis, (length, own_length) in enumerate(zip(shape, own, strict=True)):
            if length != own_length:
                fitted = _fitted(_seen(self.own_groups[model], self.groups, stop, axis), own_length, length)
                if fitted is None:
                    raise BadInput(f"which units are seen at {stop.place!r} cannot be told. Choose another stop.")
                source, added = fitted
                own_places = np.setdiff1d(np.arange(length), added)
                found[axis] = own_places[np.argsort(source[own_places])]
        return found


def widest_of(networks: Sequence[nn.Module], names: Sequence[str], unlike: Sequence[str]) -> int:
    """The first network that is as large as any other along every axis of the tensors in which they differ.

    Raises:
        BadInput: none is.
    """
    shapes = [{name: tuple(network.state_dict()[name].shape) for name in unlike} for network in networks]
    largest = {name: tuple(map(max, *(shape[name] for shape in shapes))) for name in unlike}
    smaller = [[name for name in unlike if shape[name] != largest[name]] for shape in shapes]
    for position, found in enumerate(smaller):
        if not found:
            return position
    least = ", ".join(f"{who} is not in {found[0]}" for who, found in zip(names, smaller, strict=True))
    raise BadInput(
        f"no network is the widest everywhere: {least}. What is merged has the sizes of one of them. Zip networks of "
        "which one is as wide as the others in every layer."
    )


@torch.no_grad()
def check_one_code(
    networks: Sequence[nn.Module],
    names: Sequence[str],
    stop: Stop | None,
    example: Example,
    outputs: Sequence[str] | None,
) -> None:
    """Refuses networks of the same tensors that do other things with them: another number of heads, say.

    Each network's weights are run by the first one's code.

    Raises:
        BadInput: what comes out, or is seen at the stop, is not what the network itself computes.
    """
    code = tensors_of(networks[0])
    for network, who in zip(networks[1:], names[1:], strict=True):
        own = tensors_of(network)
        kept = networks[0].state_dict() if stop is None else stop.trunk  # without buffers that belong to the code
        moved = {name: own[name] for name in kept if name in own}
        wanted = _computed(network, own, stop, example, outputs)
        found = _computed(networks[0], {**code, **moved}, stop, example, outputs)
        broken = not all(bool(value.isfinite().all()) for value in wanted)  # which layer breaks it is said later
        if not broken and not _all_close(wanted, found):
            raise BadInput(
                f"{names[0]} and {who} have tensors of the same shapes and compute different things with them. Do they "
                "differ in the number of heads, in an activation or another setting? Merge those of one architecture."
            )


def widened(
    networks: Sequence[nn.Module],
    names: Sequence[str],
    widest: int,
    groups: AxisGroups,
    example: Example,
    outputs: Sequence[str] | None,
    stop: Stop | None,
) -> Widened:
    """Brings networks of one architecture to the width of the widest.

    Args:
        networks: left as they are.
        names: theirs, for messages.
        widest: the position of the widest.
        groups: of the widest.
        example: two samples.
        outputs: which entries of a mapping count.
        stop: up to where they are merged; None: to the end.

    Raises:
        BadInput: the networks differ otherwise than in units that the next layer adds up; the message names tensors.
    """
    wide = networks[widest]
    compared = set(wide.state_dict()) if stop is None else set(stop.trunk)
    result, own_groups, foreign = list[nn.Module](), list[AxisGroups](), set[str]()
    for network, who in zip(networks, names, strict=True):
        if _shapes(network) == _shapes(wide):
            own_groups.append(groups)
            result.append(network)
            continue
        own = AxisGroups.of(network, example, outputs)
        pair = _Pair(network, wide, own, groups, f"{names[widest]} and {who}")
        pair.check_units(compared)
        tensors = pair.tensors()
        pair.check_rest([name for name in compared if name not in tensors], "" if stop is not None else STOP_BEFORE)
        foreign |= wide.state_dict().keys() - tensors.keys()
        copy = deepcopy(wide)
        copy.load_state_dict(wide.state_dict() | tensors)
        own_groups.append(own)
        result.append(copy)
    found = Widened(result, groups, widest, _units(groups, own_groups, compared), own_groups, frozenset(foreign))
    for model, (network, who) in enumerate(zip(networks, names, strict=True)):
        if network is not result[model]:
            _check_same(found, model, network, stop, example, outputs, who)
    return found


def _units(
    groups: AxisGroups, own_groups: Sequence[AxisGroups], compared: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """For groups that are compared and differ in size, how many units each network has."""
    found = {
        group.name: tuple(own[group.name].size for own in own_groups)
        for group in groups
        if any(member.tensor in compared for member in group.members)
    }
    return {name: units for name, units in found.items() if len(set(units)) > 1}


@dataclass(frozen=True, eq=False)
class _Pair:
    """A narrow network and the widest one."""

    narrow: nn.Module
    wide: nn.Module
    own: AxisGroups
    groups: AxisGroups
    names: str  # for messages

    def check_units(self, compared: Collection[str]) -> None:
        """Refuses networks in which units that differ in number cannot be zipped, or move in other tensors."""
        known = {group.name: group for group in self.own}
        for group in self.groups:
            places = [(one.tensor, one.axis, one.role) for one in group.members if one.tensor in compared]
            if not places:
                continue
            other = known.get(group.name)
            theirs = () if other is None else other.members
            tensors = list(dict.fromkeys(tensor for tensor, *_ in places))
            if (
                other is None
                or [(one.tensor, one.axis, one.role) for one in theirs if one.tensor in compared] != places
            ):
                raise BadInput(
                    f"the units of {self.names} do not move in the same tensors: {some(tensors)}. Networks that are "
                    "zipped have one architecture."
                )
            alone = group.within is None and other.within is None
            if other.size != group.size and not (alone and may_be_zipped(group, self.groups)):
                raise BadInput(
                    f"{self._difference(tensors)} Widths may differ where the next layer adds up each unit by itself: "
                    "not along a norm or a softmax, and not in attention's heads, queries or keys."
                )

    def check_rest(self, left: Sequence[str], hint: str) -> None:
        """Refuses networks with tensors that differ where no units are."""
        if left:
            frozen = (axis.why for axis in self.groups.frozen if axis.tensor == left[0])
            reason = next((f" ({why})" for why in frozen), "")
            raise BadInput(
                f"{self._difference(sorted(left))} Only hidden units may differ in number, and none move there{reason}."
                f"{hint}"
            )

    def tensors(self) -> dict[str, Tensor]:
        """The narrow network's tensors in the wide one's shapes, as far as they fit."""
        state = self.narrow.state_dict()
        found = {
            name: self._widened(name, state[name], wide)
            for name, wide in self.wide.state_dict().items()
            if name in state and state[name].ndim == wide.ndim
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _widened(self, name: str, tensor: Tensor, wide: Tensor) -> Tensor | None:
        for axis, length in enumerate(wide.shape):
            layouts, summed = self._layouts(name, axis)
            fitted = _fitted(layouts, tensor.shape[axis], length)
            if fitted is None:
                return None
            source, added = (torch.from_numpy(positions).to(tensor.device) for positions in fitted)
            tensor = tensor.index_select(axis, source)
            if summed:
                tensor = tensor.index_fill(axis, added, 0)
        return tensor

    def _layouts(self, name: str, axis: int) -> tuple[Layouts, bool]:
        """The groups along one axis of a tensor, and whether the next layer sums over it."""
        known = {group.name: group for group in self.own}
        found, summed = list[tuple[Layout, Layout]](), False
        for group in sorted(self.groups, key=self.groups.depth):
            own, wide = (
                [one for one in members if (one.tensor, one.axis, one.only) == (name, axis, None)]
                for members in (known[group.name].members if group.name in known else (), group.members)
            )
            found += [(one.layout, other.layout) for one, other in zip(own, wide, strict=False)]
            summed |= any(one.role == "in" for one in wide)
        return found, summed

    def _difference(self, tensors: Sequence[str]) -> str:
        wide, narrow = _shapes(self.wide), _shapes(self.narrow)
        unlike = [name for name in tensors if wide.get(name) != narrow.get(name)]
        first = unlike[0]
        return f"{self.names} differ in {some(unlike)}: {first} has shapes {wide[first]} and {narrow.get(first)}."


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _fitted(layouts: Layouts, own_length: int, length: int) -> tuple[Positions, Positions] | None:
    """For each position of the wide axis the narrow one's whose values it takes, and the positions that are added.

    What no group moves stays in its order; None where there is not as much of it on both.
    """
    source, taken, added = np.full(length, -1), np.zeros(own_length, bool), np.zeros(length, bool)
    for own, wide in layouts:
        mine, theirs = own.index(), wide.index()
        if mine.shape[1] != theirs.shape[1] or len(mine) > len(theirs):
            return None
        source[theirs[: len(mine)]] = mine
        source[theirs[len(mine) :]] = mine[0]
        added[theirs[len(mine) :]] = True
        taken[mine] = True
    still, own_still = np.flatnonzero(source < 0), np.flatnonzero(~taken)
    if len(still) != len(own_still):
        return None
    source[still] = own_still
    return source, np.flatnonzero(added)


def _seen(own: AxisGroups, groups: AxisGroups, stop: Stop, axis: int) -> Layouts:
    """The groups along one axis of the tensor at a stop."""
    for place in (stop.place, *stop.aliases):
        mine, theirs = (
            {group.name: site.layout for group, site in one.at(place) if site.axis == axis} for one in (own, groups)
        )
        if theirs:
            return [
                (mine[group.name], theirs[group.name])
                for group in sorted(groups, key=groups.depth)
                if group.name in mine and group.name in theirs
            ]
    return []


@torch.no_grad()
def _check_same(
    found: Widened,
    model: int,
    network: nn.Module,
    stop: Stop | None,
    example: Example,
    outputs: Sequence[str] | None,
    who: str,
) -> None:
    """Refuses a network that computes something else once it is widened."""
    if stop is None:
        own, wide = ([*_outputs(one, example, outputs).values()] for one in (network, found.networks[model]))
    else:
        (first, second) = (seen_at(one, example, [stop.place])[stop.place] for one in (network, found.networks[model]))
        for axis, positions in found.own_positions(stop, model, second.shape, first.shape).items():
            second = second.index_select(axis, torch.from_numpy(positions).to(second.device))
        own, wide = [first], [second]
    if not _all_close(own, wide):
        raise BadInput(
            f"{who} computes something else once it is as wide as the widest network. Does its forward pass have "
            "numbers in it that depend on the width? Zip networks of one width."
        )


def _computed(
    network: nn.Module, weights: Weights, stop: Stop | None, example: Example, outputs: Sequence[str] | None
) -> list[Tensor]:
    """What comes out with these weights, or is seen at a stop."""
    seen: list[Tensor] = []
    call = Call.of(network, example, outputs if stop is None else None)
    places = [] if stop is None else [stop.place]
    with quiet(network), watching(network, places, lambda _, tensor: seen.append(tensor.detach().clone())):
        found = call.run(weights)
    return [*found.values()] if stop is None else seen


def _outputs(network: nn.Module, example: Example, outputs: Sequence[str] | None) -> dict[str, Tensor]:
    call = Call.of(network, example, outputs)
    with quiet(network):
        return call.named(network(*call.arguments, **call.keywords))


def _all_close(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    pairs = zip(ones, others, strict=False)
    return len(ones) == len(others) and all(a.shape == b.shape and _close(a, b) for a, b in pairs)


def _close(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point() or not one.numel():
        return bool((one == other).all())
    tolerance = max(_ROUNDING, 8 * torch.finfo(one.dtype).eps)
    return bool((one - other).abs().max() <= tolerance * one.abs().max())
