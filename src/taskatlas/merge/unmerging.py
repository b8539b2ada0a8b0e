"""Taking merged units apart at a stop: each model's own tensor, from the one tensor that all heads are given."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from taskatlas.merge.axis_groups import AxisGroups, Stop
from taskatlas.merge.least_squares import ROWS, normal_equations, ridge, some_rows
from taskatlas.merge.matching import Alignment
from taskatlas.merge.zipped_network import Regroup, Unmix

Places = dict[int, Int[np.ndarray, " positions"]]
"""For some axes of a tensor the position of the merged axis that each position takes."""


def own_places(
    groups: AxisGroups, alignments: Mapping[str, Alignment], stop: Stop, model: int, shape: Sequence[int]
) -> Places:
    """Where a model's own units are to be found in the merged tensor at a stop.

    Args:
        groups: of the networks.
        alignments: of the networks.
        stop: where.
        model: whose units.
        shape: of the tensor there.
    """
    seen = next((here for place in (stop.place, *stop.aliases) if (here := groups.at(place))), [])
    found: Places = {}
    for group, site in sorted(seen, key=lambda both: groups.depth(both[0])):
        if group.name in alignments:
            positions = site.layout.index()
            step = np.arange(shape[site.axis])
            step[positions] = positions[alignments[group.name].places[model]]
            found[site.axis] = step[found.get(site.axis, np.arange(shape[site.axis]))]
    return found


def regroup(places: Places) -> Regroup:
    """Every unit of the model is the merged unit that it became part of."""
    return Regroup({axis: torch.from_numpy(index) for axis, index in places.items()})


def unmix(
    places: Places, merged: Sequence[Tensor], own: Sequence[Tensor], *, generator: torch.Generator
) -> Regroup | Unmix:
    """The linear map that makes the model's own tensor of the merged one, by ridge regression towards ``regroup``.

    Where units of two axes move, or none, it is ``regroup``.

    Args:
        places: of the model's units in the merged tensor.
        merged: the merged tensor, batch by batch.
        own: the model's own.
        generator: chooses the rows of the regression, where there are more than it needs.
    """
    start = regroup(places).to(own[0].device)
    if len(places) != 1:
        return start
    ((axis, index),) = places.items()
    unit = torch.eye(merged[0].shape[axis], dtype=torch.float64, device=own[0].device)[torch.from_numpy(index)]
    quota = -(-ROWS * (len(index) + 1) // len(merged))
    parts = [
        some_rows(_as_rows(x, axis), _as_rows(y - start(x), axis), quota, generator)
        for x, y in zip(merged, own, strict=True)
    ]
    change = ridge(*normal_equations(parts, shifted=True), shifted=True)[0]
    weight = unit.to(change.device) + change[:-1].T
    return Unmix(axis, weight.to(merged[0].dtype), change[-1].to(merged[0].dtype))


def _as_rows(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, -1).reshape(1, -1, tensor.shape[axis])
