"""The merged network's weights: W* = Σ_i M_i W_i U_i, for every axis of every tensor that a group moves.

An axis of units that a layer makes (role ``out``) is averaged over each merged unit's members, M; one that the next
layer sums over (``in``) is added up, U (Stoica et al., ICLR 2024, equation 4). With places in place of matrices both
are one operation: every slice of every model goes to the place of its unit and is added there. Then the sum is divided
by how many members met on the ``out`` axes. What no group moves is averaged over the models.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from taskatlas.merge.aligning import has_groups_within
from taskatlas.merge.axis_groups import AxisGroups, Member
from taskatlas.merge.matching import Alignment

StateDict = Mapping[str, Tensor]


def merged_weights(
    state_dicts: Sequence[StateDict], groups: AxisGroups, alignments: Mapping[str, Alignment]
) -> dict[str, Tensor]:
    """One state dict of several, in the precision of the first.

    Args:
        state_dicts: of one architecture and width.
        groups: of that architecture.
        alignments: for some or all groups; the others stay where they are. Groups that have groups within them are
            moved first, so the alignment of head 3's inside speaks of what stands at place 3 then. Those are
            permutations.

    Example:
        >>> import numpy as np
        >>> hidden = {"name": "hidden", "size": 2, "members": [{"tensor": "up", "axis": 0},
        ...           {"tensor": "down", "axis": 1, "role": "in"}]}
        >>> one = {"up": torch.tensor([[1.0], [2.0]]), "down": torch.tensor([[3.0, 4.0]])}
        >>> other = {"up": torch.tensor([[2.0], [1.0]]), "down": torch.tensor([[4.0, 3.0]])}
        >>> swapped = Alignment(np.array([[0, 1], [1, 0]]))
        >>> merged_weights([one, other], AxisGroups.from_dict({"groups": [hidden]}), {"hidden": swapped})
        {'up': tensor([[1.],
            [2.]]), 'down': tensor([[3., 4.]])}
    """
    moved = [
        with_outer_groups_moved(state_dict, groups, alignments, model) for model, state_dict in enumerate(state_dicts)
    ]
    inner = [group for group in groups if group.name in alignments and not has_groups_within(group, groups)]
    members: dict[str, list[tuple[Member, Alignment]]] = {}
    for group in inner:
        for member in group.members:
            members.setdefault(member.tensor, []).append((member, alignments[group.name]))
    return {name: _merged([state[name] for state in moved], members.get(name, [])) for name in moved[0]}


def with_outer_groups_moved(
    state_dict: StateDict, groups: AxisGroups, alignments: Mapping[str, Alignment], model: int
) -> dict[str, Tensor]:
    """One model's weights with the units of groups that have groups within them at their merged places."""
    outer = sorted(
        (group for group in groups if group.name in alignments and has_groups_within(group, groups)), key=groups.depth
    )
    moved = dict(state_dict)
    for group in outer:
        moved = groups.permute(moved, {group.name: np.argsort(alignments[group.name].places[model])})
    return moved


def _merged(tensors: Sequence[Tensor], members: Sequence[tuple[Member, Alignment]]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    total = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    counts = torch.zeros_like(total)
    for model, tensor in enumerate(tensors):
        value, count = tensor.detach().double(), torch.ones_like(total)
        for member, alignment in members:
            value = _moved(value, member, alignment.places[model])
            if member.role != "in":
                count = _moved(count, member, alignment.places[model])
        total += value
        counts += count
    return (total / counts).to(tensors[0].dtype)


def _moved(tensor: Tensor, member: Member, places: Int[np.ndarray, " units"]) -> Tensor:
    """Every unit's slices added up at the unit's place; positions outside the group stay."""
    region = [slice(None)] * tensor.ndim
    if member.only is not None:
        axis, *part = member.only
        region[axis] = slice(*part)
    positions = member.layout.index()
    source = tensor[tuple(region)]
    result = source.clone()
    slices = source.index_select(member.axis, torch.from_numpy(positions.ravel()).to(tensor.device))
    where = torch.from_numpy(positions[places].ravel()).to(tensor.device)
    result.index_fill_(member.axis, torch.from_numpy(positions.ravel()).to(tensor.device), 0)
    result.index_add_(member.axis, where, slices)
    whole = tensor.clone()
    whole[tuple(region)] = result
    return whole
