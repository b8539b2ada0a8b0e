"""The merged network's weights: W* = Σ_i M_i W_i U_i, for every axis of every tensor that a group moves.

An axis of units that a layer makes (role ``out``) is averaged over each merged unit's members, M; one that the next
layer sums over (``in``) is added up, U (Stoica et al., ICLR 2024, equation 4). With places in place of matrices both
are one operation: every slice of every model goes to the place of its unit and is added there. Then the sum is divided
by how many members met on the ``out`` axes. What no group moves is averaged over the models.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from taskatlas.merge.axis_groups import AxisGroups, Member
from taskatlas.merge.least_squares import Mix
from taskatlas.merge.linear_operations import along
from taskatlas.merge.matching import Alignment

StateDict = Mapping[str, Tensor]


def merged_weights(
    state_dicts: Sequence[StateDict],
    groups: AxisGroups,
    alignments: Mapping[str, Alignment],
    shares: Sequence[float | int] | None = None,
) -> dict[str, Tensor]:
    """One state dict of several, in the precision of the first.

    Args:
        state_dicts: of one architecture and width.
        groups: of that architecture.
        alignments: for some or all groups; the others stay where they are. Groups that have groups within them move
            first, and are permuted: the alignment of the inside of head 3 speaks of the head that stands at place 3
            then.
        shares: how much each model counts beside the others; None: alike.

    Example:
        >>> hidden = {"name": "hidden", "size": 2, "members": [{"tensor": "up", "axis": 0},
        ...           {"tensor": "down", "axis": 1, "role": "in"}]}
        >>> one = {"up": torch.tensor([[1.0], [2.0]]), "down": torch.tensor([[3.0, 4.0]])}
        >>> other = {"up": torch.tensor([[2.0], [1.0]]), "down": torch.tensor([[4.0, 3.0]])}
        >>> swapped = Alignment(np.array([[0, 1], [1, 0]]))
        >>> merged_weights([one, other], AxisGroups.from_dict({"groups": [hidden]}), {"hidden": swapped})
        {'up': tensor([[1.],
            [2.]]), 'down': tensor([[3., 4.]])}
    """
    members = _members(groups, alignments)
    return {
        name: _merged([state_dict[name] for state_dict in state_dicts], members.get(name, ()), _shares(shares))
        for name in state_dicts[0]
    }


def mean_of_parents(
    groups: AxisGroups, alignments: Mapping[str, Alignment], shares: Sequence[float | int] | None = None
) -> Mix:
    """What merged units should be: the mean of their members in the parents.

    Returns:
        A function of (the parents' values, a weight, one of its axes, an axis of the values): that axis of the values
        has the units that the axis of the weight makes.
    """
    members = _members(groups, alignments)

    def mix(values: Sequence[Tensor], name: str, axis: int, where: int) -> Tensor:
        first = values[0]
        total, counts = torch.zeros_like(first), first.new_zeros(first.shape[where])
        for model, (value, share) in enumerate(zip(values, _shares(shares), strict=False)):
            moved, count = value, torch.ones_like(counts)
            for member, alignment in members.get(name, ()):
                if member.axis == axis and member.only is None:
                    seen = replace(member, axis=where % first.ndim)
                    moved = moved_units(moved, seen, alignment.places[model])
                    count = moved_units(count, replace(seen, axis=0), alignment.places[model])
            total += share * moved
            counts += share * count
        return total / along(counts, first.ndim, where)

    return mix


def _members(groups: AxisGroups, alignments: Mapping[str, Alignment]) -> dict[str, list[tuple[Member, Alignment]]]:
    """By tensor what moves in it, outer groups first."""
    found: dict[str, list[tuple[Member, Alignment]]] = {}
    for group in sorted((group for group in groups if group.name in alignments), key=groups.depth):
        for member in group.members:
            found.setdefault(member.tensor, []).append((member, alignments[group.name]))
    return found


def _shares(shares: Sequence[float | int] | None) -> Iterable[float | int]:
    return repeat(1.0) if shares is None else shares


def _merged(
    tensors: Sequence[Tensor], members: Sequence[tuple[Member, Alignment]], shares: Iterable[float | int]
) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    counts = torch.zeros_like(total)
    for model, (tensor, share) in enumerate(zip(tensors, shares, strict=False)):
        value, count = tensor.detach().double(), torch.ones_like(total)
        for member, alignment in members:
            value = moved_units(value, member, alignment.places[model])
            if member.role != "in":
                count = moved_units(count, member, alignment.places[model])
        total += share * value
        counts += share * count
    return (total / counts).to(tensors[0].dtype)


def moved_units(tensor: Tensor, member: Member, places: Int[np.ndarray, " units"]) -> Tensor:
    """Every unit's slices added up at the unit's place, or left out at -1; positions outside the group stay."""
    part: list[slice] = [slice(None)] * tensor.ndim
    if member.only is not None:
        axis, *limits = member.only
        part[axis] = slice(*limits)
    positions, present = member.layout.index(), places >= 0
    sources, targets = (
        torch.from_numpy(chosen.ravel()).to(tensor.device)
        for chosen in (positions[present], positions[places[present]])
    )
    result = tensor.clone()
    region = result[tuple(part)]
    slices = region.index_select(member.axis, sources)
    region.index_fill_(member.axis, torch.from_numpy(positions.ravel()).to(tensor.device), 0)
    region.index_add_(member.axis, targets, slices)
    return result
