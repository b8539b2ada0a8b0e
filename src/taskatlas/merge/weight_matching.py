"""Weight matching: permutations that bring networks close in weight space, with no data (Ainsworth et al., ICLR 2023).

Group after group, with all others held, the units of a model are assigned to the first model's so that the inner
product of all weights is as large as it can be; round after round, until no unit moves. Heads are compared by the best
that any order of their contents could reach.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from taskatlas.engine import track
from taskatlas.merge.aligning import NetworkAlignment, has_groups_within
from taskatlas.merge.axis_groups import AxisGroups, Group, Member
from taskatlas.merge.matching import Alignment
from taskatlas.merge.merged_weights import moved_units

StateDict = Mapping[str, Tensor]
_ROUNDS = 100  # every one but the last moves units closer; a dozen is usual


def match_weights(
    state_dicts: Sequence[StateDict],
    groups: AxisGroups,
    parameters: Collection[str],
    *,
    seed: int = 0,
    given: Mapping[str, Alignment] | None = None,
) -> NetworkAlignment:
    """Permutations of every model's units to the first model's.

    Args:
        state_dicts: of one architecture and width.
        groups: of that architecture.
        parameters: names of the tensors that were learned; running statistics say nothing here.
        seed: of the order in which groups are visited.
        given: groups that are aligned already; the others are matched to stand beside them.

    Returns:
        Alignments, and for each group the mean cosine between the weights of units that were brought together.

    Example:
        >>> hidden = {"name": "hidden", "size": 2, "members": [{"tensor": "up", "axis": 0},
        ...           {"tensor": "down", "axis": 1, "role": "in"}]}
        >>> one = {"up": torch.tensor([[1.0], [2.0]]), "down": torch.tensor([[3.0, 4.0]])}
        >>> other = {"up": torch.tensor([[2.0], [1.0]]), "down": torch.tensor([[4.0, 3.0]])}
        >>> found = match_weights([one, other], AxisGroups.from_dict({"groups": [hidden]}), {"up", "down"})
        >>> found.alignments["hidden"].places
        array([[0, 1],
               [1, 0]])
    """
    movers = [_Mover(state, groups, set(parameters)) for state in state_dicts]
    for model, mover in enumerate(movers):
        mover.stand(given or {}, model)
    for mover in track(movers[1:], "matching weights"):
        _settle(mover, movers[0], np.random.default_rng(seed))
    alignments = {
        group.name: Alignment(np.stack([mover.places[group.name] for mover in movers])) for group in movers[0].groups
    }
    agreements = {
        group.name: float(np.mean([np.diagonal(_cosines(movers[0], mover, group)).mean() for mover in movers[1:]]))
        for group in movers[0].groups
    }
    return NetworkAlignment(alignments, agreements)


class _Mover:
    """A model whose units move: its weights as they stand, and where each unit has come to."""

    def __init__(self, state_dict: StateDict, groups: AxisGroups, parameters: set[str]) -> None:
        self.axis_groups = groups
        self.weights = {name: tensor.detach().double() for name, tensor in state_dict.items() if name in parameters}
        self.groups = [group for group in groups if self.members(group)]
        self.places = {group.name: np.arange(group.size) for group in self.groups}

    def members(self, group: Group) -> list[Member]:
        """Where the group lies in what was learned."""
        return [member for member in group.members if member.tensor in self.weights]

    def stand(self, given: Mapping[str, Alignment], model: int) -> None:
        """Puts units where alignments have them; those groups do not move any more."""
        for group in sorted((group for group in self.axis_groups if group.name in given), key=self.axis_groups.depth):
            for member in self.members(group):
                moved = moved_units(self.weights[member.tensor], member, given[group.name].places[model])
                self.weights[member.tensor] = moved
        self.groups = [group for group in self.groups if group.name not in given]

    def units(self, member: Member) -> Float[Tensor, "units copies rest"]:
        """The slices of every unit in one tensor."""
        tensor = self.weights[member.tensor]
        if member.only is not None:
            axis, *part = member.only
            tensor = tensor.movedim(axis, 0)[slice(*part)].movedim(0, axis)
        positions = member.layout.index()
        slices = tensor.index_select(member.axis, torch.from_numpy(positions.ravel()).to(tensor.device))
        return slices.movedim(member.axis, 0).reshape(*positions.shape, -1)

    def move(self, group: Group, to: Int[np.ndarray, " units"]) -> None:
        """Unit u goes to place ``to[u]``, and takes with it what lies within it."""
        for member in self.members(group):
            self.weights[member.tensor] = moved_units(self.weights[member.tensor], member, to)
        self.places[group.name] = to[self.places[group.name]]
        inside = [self._inside(group, unit) for unit in range(group.size)]
        before = dict(self.places)
        for unit, place in enumerate(to):
            for old, new in zip(inside[unit], inside[place], strict=True):
                self.places.update(self._carried(old, new, before))

    def _inside(self, group: Group, unit: int) -> list[Group]:
        return [other for other in self.groups if other.within == (group.name, unit)]

    def _carried(self, old: Group, new: Group, before: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {new.name: before[old.name]}
        for unit in range(old.size):
            for one, other in zip(self._inside(old, unit), self._inside(new, unit), strict=True):
                found |= self._carried(one, other, before)
        return found


def _settle(mover: _Mover, target: _Mover, generator: np.random.Generator) -> None:
    """Assigns every group in turn until none moves."""
    for _ in range(_ROUNDS):
        moved = False
        for position in generator.permutation(len(mover.groups)):
            group = mover.groups[position]
            likeness = _likeness(target, mover, group)
            to = linear_sum_assignment(likeness.T, maximize=True)[1]
            gain = likeness[to, np.arange(group.size)].sum() - np.trace(likeness)
            if gain > 1e-9 * np.abs(likeness).sum():
                mover.move(group, to)
                moved = True
        if not moved:
            return


def _likeness(target: _Mover, mover: _Mover, group: Group) -> Float[np.ndarray, "target own"]:
    """Inner products of the weights of every two units."""
    total = np.zeros((group.size, group.size))
    for member in mover.members(group):
        one, other = target.units(member), mover.units(member)
        if not has_groups_within(group, mover.axis_groups):
            total += (one.flatten(1) @ other.flatten(1).T).cpu().numpy()
            continue
        products = torch.einsum("ucr,vdr->uvcd", one, other).cpu().numpy()
        for u, v in np.ndindex(total.shape):
            rows, columns = linear_sum_assignment(products[u, v], maximize=True)
            total[u, v] += products[u, v][rows, columns].sum()
    return total


def _cosines(target: _Mover, mover: _Mover, group: Group) -> Float[np.ndarray, "target own"]:
    likeness = _likeness(target, mover, group)
    own = np.diagonal(_likeness(mover, mover, group))
    theirs = np.diagonal(_likeness(target, target, group))
    scale = np.sqrt(np.outer(theirs, own))
    return np.divide(likeness, scale, out=np.zeros_like(likeness), where=scale > 0)
