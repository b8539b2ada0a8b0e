"""Permuting the units of a network's groups in its state dict."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups, Layout, Member, Only, Order, Permutations


def permuted(groups: AxisGroups, state_dict: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
    """What ``AxisGroups.permute`` returns. However many groups an axis holds, it is copied once."""
    moved = dict(state_dict)
    for name, permutation in permutations.items():
        size = groups[name].size
        if not np.array_equal(np.sort(permutation), np.arange(size)):
            raise BadInput(f"the array for group {name!r} is no permutation of its {size} units.")
    orders: dict[tuple[str, int], Order] = {}
    for group in sorted((groups[name] for name in permutations), key=groups.depth, reverse=True):  # inner ones first
        for member in group.members:
            tensor = _tensor(groups, moved, member)
            order = reordered(tensor.shape[member.axis], member.layout, permutations[group.name])
            if member.only is not None:
                moved[member.tensor] = _moved_in_part(tensor, member.axis, order, member.only)
                continue
            before = orders.get((member.tensor, member.axis))
            orders[member.tensor, member.axis] = order if before is None else before[order]
    for (name, axis), order in orders.items():
        moved[name] = _in_order(moved[name], axis, order)
    return moved


def reordered(length: int, layout: Layout, permutation: Order) -> Order:
    """The order of an axis's positions once the units that are laid out on it have been permuted.

    Raises:
        BadInput: the layout does not fit the axis, or lays two units on one position.
    """
    if layout.end > length:
        raise BadInput(f"a group lays units out up to position {layout.end - 1}, but the axis has {length} positions.")
    positions, order = layout.index(), np.arange(length)
    if len(np.unique(positions)) < positions.size:
        raise BadInput(f"a group lays two units out on one position: {layout}.")
    order[positions] = positions[permutation]
    return order


def _moved_in_part(tensor: Tensor, axis: int, order: Order, only: Only) -> Tensor:
    other, *part = only
    rows = (slice(None),) * other + (slice(*part),)
    result = tensor.clone()
    result[rows] = _in_order(tensor[rows], axis, order)
    return result


def _in_order(tensor: Tensor, axis: int, order: Order) -> Tensor:
    index = torch.from_numpy(order).to(tensor.device)
    if axis < tensor.dim() - 1:
        return tensor.index_select(axis, index)
    return tensor.gather(axis, index.expand_as(tensor))  # along the last axis nearly three times as fast


def _tensor(groups: AxisGroups, state_dict: Mapping[str, Tensor], member: Member) -> Tensor:
    if member.tensor not in state_dict:
        raise BadInput(f"the state dict has no tensor {member.tensor!r}. Is it of the same architecture?")
    tensor, shape = state_dict[member.tensor], groups.shapes.get(member.tensor)
    if member.axis >= tensor.dim():
        raise BadInput(f"{member.tensor} has {tensor.dim()} axes, but the groups move axis {member.axis} of it.")
    if shape is not None and tuple(tensor.shape) != shape:
        raise BadInput(f"{member.tensor} has shape {tuple(tensor.shape)}, but the groups are for {shape}.")
    return tensor
