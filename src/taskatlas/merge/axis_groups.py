"""Which axes of which parameters move together in a network: the types, and permuting a state dict by them.

A network's hidden units have no order of their own. Where a linear layer's outputs are permuted, the next layer's
inputs must follow, with every norm, bias and shortcut between them; all of these axes form one ``Group``. Merging
networks that were trained apart means mapping the units of one network onto those of another, group by group
(Ainsworth et al., ICLR 2023; Stoica et al., ICLR 2024).

How to apply a map to a group, in full:

- A group has ``size`` units. Each ``Member`` is one axis of one tensor of the state dict, and its ``layout.index()`` is
  an integer array (size, copies): row u lists the positions of unit u along that axis. A plain axis has one copy and
  positions 0 … size − 1; a flattened image repeats every channel h·w times; a head occupies head_dim positions.
  Column c of all rows is a whole set of units in order, so a map acts on each column alike, and on no position outside
  of it. One axis may hold a group several times, as several members: the heads of a fused query, key and value.
- ``role`` says which side of a map an axis needs where merging is no permutation: ``out`` axes carry the units that a
  layer makes (rows of weights, biases, norms, embeddings) and are merged by M (size, n · size); ``in`` axes are summed
  over by the next layer and multiplied by the unmerge matrix U (n · size, size); a tied weight can do ``both``.
- ``only``, rarely given, restricts a member to a slice of another axis of its tensor: (axis, start, stop, step).
- ``within = (outer, unit)`` marks the inside of one block of another group: what may move inside of head 3, say. Move
  inner groups first, at the places that their layouts name, then the outer group, which carries whole blocks along.
  Or move the outer group, then look at the inner ones anew: both ways give every arrangement that there is.
- A ``Site`` says where the units can be seen: ``place`` is a module's name (its output) or ``name:input``, as for
  ``taskatlas.probe`` taps; ``axis`` and ``layout`` are those of that activation. A residual stream has many sites.
  Units that no module takes or gives, as in a fused attention, are seen at operations of the graph: ``linear#2``.
- ``scalable`` is False where a softmax or a norm runs along the axis: units can be permuted, not rescaled one by one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write, digest

Role = Literal["out", "in", "both"]
Example = Tensor | Sequence[Any] | Mapping[str, Any]
OPERATION = "#"  # in the name of a place that is an operation
Only = tuple[int, int, int, int]  # a slice of another axis: (axis, start, stop, step)
Order = Integer[np.ndarray, " _"]
Permutations = Mapping[str, Order]


@dataclass(frozen=True)
class Layout:
    """Where the units of a group lie along an axis.

    Args:
        units: ranges (start, stop, step) laid end to end: the first position of every unit, in the units' order.
        copies: (count, stride) pairs: every unit is also found at each combination of these strides from there.

    Example:
        >>> Layout(((0, 12, 4),), copies=((4, 1),)).index().tolist()  # three heads of four
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    """

    units: tuple[tuple[int, int, int], ...]
    copies: tuple[tuple[int, int], ...] = ()

    @classmethod
    def plain(cls, size: int) -> "Layout":
        """The whole axis, unit after unit."""
        return cls(((0, size, 1),))

    def __post_init__(self) -> None:
        if any(start < 0 or stop <= start or step < 1 for start, stop, step in self.units) or not self.units:
            raise BadInput(
                f"{self.units} lays out no units; give ranges [start, stop, step] that go up from 0 or more."
            )
        if any(count < 1 or stride < 1 for count, stride in self.copies):
            raise BadInput(f"{self.copies} are no copies; give pairs [count, stride] of 1 or more.")

    def __len__(self) -> int:
        return sum(len(range(*unit)) for unit in self.units)

    @property
    def end(self) -> int:
        """One more than the last position."""
        return max(range(*unit)[-1] for unit in self.units) + sum((n - 1) * stride for n, stride in self.copies) + 1

    def index(self) -> Integer[np.ndarray, "size copies"]:
        """Positions along the axis: row u those of unit u."""
        positions = np.concatenate([np.arange(*unit) for unit in self.units])[:, None]
        for count, stride in self.copies:
            positions = (positions[:, :, None] + stride * np.arange(count)).reshape(len(positions), -1)
        return positions


@dataclass(frozen=True)
class Member:
    """One axis of one tensor that a group moves."""

    tensor: str  # as in the state dict
    axis: int
    layout: Layout
    role: Role = "out"
    only: Only | None = None


@dataclass(frozen=True)
class Site:
    """An activation in which the units of a group can be seen."""

    place: str  # a module's name for its output, name:input for its input; the first tensor where there are several
    axis: int
    layout: Layout

    @property
    def is_operation(self) -> bool:
        """Whether the place is no module's but an operation of the graph: ``linear#2`` is its third linear one."""
        return OPERATION in self.place


@dataclass(frozen=True)
class Group:
    """Axes that move together."""

    name: str
    size: int
    members: tuple[Member, ...]
    taps: tuple[Site, ...] = ()
    within: tuple[str, int] | None = None  # (name of the outer group, its unit)
    scalable: bool = True

    def __repr__(self) -> str:
        return f"Group({self.name}, {self.size} units, {len(self.members)} axes, {len(self.taps)} taps)"


@dataclass(frozen=True)
class FrozenAxis:
    """Positions along an axis that stay where they are, and why."""

    tensor: str
    axis: int
    positions: int  # how many
    why: str
    where: str = ""  # source line, where known


@dataclass(frozen=True)
class Stop:
    """A place where one tensor cuts the network in two: a trunk may be merged up to there and the rest kept apart.

    The units that have to be unmerged there are those of the groups that have a tap at ``place``, see
    ``AxisGroups.at``.
    """

    place: str
    aliases: tuple[str, ...]  # other places that hold the same tensor
    trunk: tuple[str, ...]  # tensors of the state dict that are read before it
    rest: tuple[str, ...]  # and after it; a tied weight can be in both


@dataclass(frozen=True, eq=False)
class AxisGroups:
    """Which axes of which parameters move together in one network.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> groups = AxisGroups.of(net, torch.zeros(1, 4))
        >>> groups
        AxisGroups(1 group, 3 units in all, 3 of 6 axes move)
        >>> moved = groups.permute(net.state_dict(), {"0": np.array([2, 0, 1])})
        >>> bool((moved["0.bias"] == net[0].bias[[2, 0, 1]]).all())
        True
    """

    groups: tuple[Group, ...]
    frozen: tuple[FrozenAxis, ...] = ()
    stops: tuple[Stop, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the tensors, where known

    def __post_init__(self) -> None:
        by_name = {group.name: group for group in self.groups}
        if len(by_name) < len(self.groups):
            raise BadInput("two axis groups have the same name. Give every group a name of its own.")
        for group in self.groups:
            _check_group(group, by_name, self.shapes)

    @classmethod
    def of(cls, module: nn.Module, example: Example, outputs: Sequence[str] | None = None) -> "AxisGroups":
        """Derives the groups of any module from one forward pass, and checks them on the module itself.

        ``torch.export`` gives the graph; union-find over (tensor, axis) through its operations gives the groups; a
        random permutation of all of them, in a network of the same kind with random weights, must leave the outputs
        unchanged. What fails, or meets an operation that is not understood, is frozen and reported in ``frozen``.

        Args:
            module: any network; it is left as it was.
            example: a tensor, a tuple of arguments or a mapping of keyword arguments for one forward pass.
            outputs: for a network that returns a mapping, the entries that have to stay as they are; None keeps all.

        Raises:
            BadInput: the forward pass cannot be followed (data-dependent control flow, an example that does not fit).
        """
        from taskatlas.merge.axis_export import derive

        return derive(module, example, outputs)

    def checked(self, module: nn.Module, example: Example, outputs: Sequence[str] | None = None) -> "AxisGroups":
        """These groups, given by hand, after the self-check that ``of`` makes: what fails it is frozen.

        Raises:
            BadInput: the example does not fit the module, or the groups do not fit its tensors.
        """
        from taskatlas.merge.axis_export import recheck

        return recheck(self, module, example, outputs)

    def __repr__(self) -> str:
        moving = {(member.tensor, member.axis) for group in self.groups for member in group.members}
        axes = sum(len(shape) for shape in self.shapes.values())
        return (
            f"AxisGroups({len(self.groups)} {'group' if len(self.groups) == 1 else 'groups'}, "
            f"{sum(group.size for group in self.groups)} units in all, {len(moving)} of {axes} axes move)"
        )

    def __str__(self) -> str:
        from taskatlas.merge.axis_table import table

        return table(self)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise BadInput(f"there is no axis group {name!r}. There are: {_listed([group.name for group in self.groups])}.")

    @property
    def digest(self) -> str:
        """Digest of the groups and of the shapes they are for."""
        values = self.to_dict()
        return digest(values["groups"], values["shapes"])

    def at(self, place: str) -> list[tuple[Group, Site]]:
        """The groups that can be seen at a place, with the axis and layout that they have there."""
        return [(group, site) for group in self.groups for site in group.taps if site.place == place]

    def stop(self, place: str) -> Stop:
        """The legal stop at a place.

        Raises:
            BadInput: the network is not cut there by a single tensor; the message lists where it is.
        """
        for stop in self.stops:
            if place == stop.place or place in stop.aliases:
                return stop
        legal = _listed([stop.place for stop in self.stops])
        raise BadInput(f"{place!r} is no legal stop: no single tensor cuts the network there. Choose one of: {legal}.")

    def random_permutations(self, seed: int) -> dict[str, Order]:
        """A random permutation for every group, none of them (where size > 1) the identity."""
        generator = np.random.default_rng(seed)
        return {group.name: _moving_permutation(group.size, generator) for group in self.groups}

    def permute(self, state_dict: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
        """The same function with its units in another order.

        Args:
            state_dict: weights of a network of this architecture and width.
            permutations: for some or all groups, an array (size,): entry i is the unit that moves to place i.

        Returns:
            A new state dict; tensors that no group moves are shared with the old one.

        Raises:
            BadInput: an unknown group, an array that is no permutation, a tensor that is missing or of another shape.
        """
        from taskatlas.merge.axis_permute import permuted

        return permuted(self, state_dict, permutations)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the JSON file has them."""
        from taskatlas.merge.axis_file import as_plain

        return as_plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AxisGroups":
        """Groups given by hand, or read from JSON; a member needs ``tensor`` and ``axis``, the rest has defaults.

        ``checked`` tells whether they are right.

        Raises:
            BadInput: a key is missing or a value is of another type.

        Example:
            >>> hidden = {"name": "hidden", "size": 8, "members": [{"tensor": "up.weight", "axis": 0},
            ...           {"tensor": "down.weight", "axis": 1, "role": "in"}]}
            >>> AxisGroups.from_dict({"groups": [hidden]})["hidden"]
            Group(hidden, 8 units, 2 axes, 0 taps)
        """
        from taskatlas.merge.axis_file import from_plain

        return from_plain(values)

    def save(self, path: Path | str) -> None:
        """Writes JSON.

        Raises:
            BadInput: the place cannot be written.
        """
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "AxisGroups":
        """Reads what ``save`` or a person wrote.

        Raises:
            BadInput: the file is missing, damaged or holds no axis groups.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot read axis groups from {path} ({error}). Give a JSON file.") from error
        try:
            return cls.from_dict(values)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    def depth(self, group: Group) -> int:
        """How many groups a group lies within."""
        return 0 if group.within is None else 1 + self.depth(self[group.within[0]])


def _moving_permutation(size: int, generator: np.random.Generator) -> Order:
    """A random order, rolled by one place where chance gave the identity."""
    order = generator.permutation(size)
    return np.roll(order, 1) if np.array_equal(order, np.arange(size)) else order


def _check_group(group: Group, by_name: Mapping[str, Group], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for member in group.members:
        shape = shapes.get(member.tensor)
        if len(member.layout) != group.size:
            raise BadInput(
                f"group {group.name!r} has {group.size} units, but {member.tensor} axis {member.axis} lays out "
                f"{len(member.layout)}."
            )
        if member.axis < 0 or (shape is not None and member.axis >= len(shape)):
            raise BadInput(f"group {group.name!r}: {member.tensor} has no axis {member.axis}; count from 0.")
        if shape is not None and member.layout.end > shape[member.axis]:
            raise BadInput(
                f"group {group.name!r} reaches position {member.layout.end - 1} of {member.tensor} axis {member.axis}, "
                f"which has {shape[member.axis]}."
            )
        if member.role not in ("out", "in", "both"):
            raise BadInput(f"group {group.name!r}: the role of {member.tensor} is {member.role!r}; out, in or both.")
    outer, passed = group, {group.name}
    while outer.within is not None:
        name, unit = outer.within
        if name not in by_name or not 0 <= unit < by_name[name].size:
            raise BadInput(f"group {outer.name!r} lies within unit {unit} of {name!r}, which is not there.")
        if name in passed:
            raise BadInput(f"group {group.name!r} lies within itself.")
        outer = by_name[name]
        passed.add(name)


def _listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
