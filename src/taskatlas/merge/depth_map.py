"""From the layers of one network to those of a deeper or shallower one: coefficients interpolated over relative depth.

A layer-wise hypernetwork has a coefficient for every tensor of the family that it was trained on. For another family
the coefficient of a tensor is interpolated, at its relative depth, between the two nearest layers' tensors of the same
role (``attention.self.query.weight``, say). A role that the first family does not have is interpolated between the two
tensors next to its place among all. No tensor is looked at: names and their order say it all.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.layers import Stacks, depth_of, find_stacks, layer_of


def depth_map(
    known: Sequence[str], wanted: Sequence[str], alive: Sequence[bool] | None = None
) -> Float[Tensor, "T T2"]:
    """The matrix M (T, T2) with coefficient of t' = Σ_t (coefficient of t) M[t, t']; its columns sum to 1.

    Args:
        known: names of the tensors that have coefficients, in the order of their network.
        wanted: names of those that are to have some.
        alive: which of the known have a coefficient that was learned; the others give nothing. None: all.

    Raises:
        BadInput: no tensors on one side.

    Example:
        >>> depth_map(["h.0.w", "h.1.w"], ["h.0.w", "h.1.w", "h.2.w"])
        tensor([[1.0000, 0.5000, 0.0000],
                [0.0000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    if not known or not wanted:
        raise BadInput("there are no tensors to carry coefficients between. Are these the right networks?")
    stacks, other_stacks = find_stacks(known), find_stacks(wanted)
    by_role: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    everywhere: list[tuple[float, int]] = []
    for row, name in enumerate(known):
        if alive is not None and any(alive) and not alive[row]:
            continue
        place = depth_of(name, stacks), row
        by_role[_role(name, stacks)].append(place)
        everywhere.append((row / max(1, len(known) - 1), row))
    found = np.zeros((len(known), len(wanted)))
    for column, name in enumerate(wanted):
        alike = by_role.get(_role(name, other_stacks))
        depth = depth_of(name, other_stacks) if alike else column / max(1, len(wanted) - 1)
        found[:, column] = _weights(depth, alike or everywhere, len(known))
    return torch.from_numpy(found)


def _role(name: str, stacks: Stacks) -> tuple[str, str]:
    """A tensor's stack and its name within a layer; outside every stack its whole name."""
    place = layer_of(name)
    if place is None or place[0] not in stacks:
        return "", name
    stack, number = place
    return stack, name.removeprefix(f"{stack}.").removeprefix(f"{number}.")


def _weights(depth: float, places: Sequence[tuple[float, int]], count: int) -> np.ndarray:
    """Linear interpolation at a depth; tensors that lie equally deep share."""
    rows_at: Mapping[float, list[int]] = defaultdict(list)
    for at, row in places:
        rows_at[at].append(row)
    depths = np.array(sorted(rows_at))
    found = np.zeros(count)
    right = int(np.searchsorted(depths, depth))
    left = max(0, right - 1)
    right = min(right, len(depths) - 1)
    gap = depths[right] - depths[left]
    share = 0.0 if gap == 0 else float(np.clip((depth - depths[left]) / gap, 0, 1))
    for at, weight in ((depths[left], 1 - share), (depths[right], share)):
        rows = rows_at[float(at)]
        found[rows] += weight / len(rows)
    return found
