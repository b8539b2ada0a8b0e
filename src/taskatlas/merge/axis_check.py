"""The self-check of axis groups: with every group permuted at random, the outputs must be what they were."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from taskatlas.errors import WorkFailed
from taskatlas.merge.axis_groups import AxisGroups, FrozenAxis, Group, Permutations, Site
from taskatlas.merge.axis_permute import reordered
from taskatlas.merge.axis_run import Call, Weights, watch

TOLERANCE = 1e-5  # relative to the largest value; rounding in float64 stays far below, also where parts run in float32
_SINGLE = 1e-3  # where the module cannot run in float64

Places = dict[tuple[str, int], Tensor]  # (place, axis) -> (2, positions), mean and mean square along all other axes


def check(groups: AxisGroups, call: Call, weights: Weights) -> AxisGroups:
    """The groups that pass. Those that do not are frozen, with the reason; taps that show something else are left out.

    Args:
        groups: to be checked.
        call: the network and an example.
        weights: random, so that a norm's ones or a zero bias hide nothing; taken to float64 where the network runs so.

    Raises:
        WorkFailed: groups pass one by one and not together.
    """
    looked = {(site.place, site.axis) for group in groups for site in group.taps if not site.is_operation}
    weights, tolerance, before, seen_before = _first_look(call, weights, looked)
    permutations = groups.random_permutations(seed=0)
    after, seen_after = _look(call, groups.permute(weights, permutations), looked)
    if not _same(before, after, tolerance):
        groups = _without(groups, _failing(groups, call, weights, before, tolerance))
        permutations = groups.random_permutations(seed=0)
        after, seen_after = _look(call, groups.permute(weights, permutations), looked)
        if not _same(before, after, tolerance):
            raise WorkFailed(
                "the axis groups of this network pass the self-check one by one and not together. "
                "Give its AxisGroups by hand, as a dictionary or JSON file."
            )
    true = {
        (place, axis)
        for (place, axis), statistics in seen_before.items()
        if _close(_moved(statistics, groups, permutations, place, axis), seen_after[place, axis], tolerance)
    }

    def shown(site: Site) -> bool:
        return site.is_operation or (site.place, site.axis) in true

    return replace(
        groups,
        groups=tuple(replace(group, taps=tuple(filter(shown, group.taps))) for group in groups),
    )


def _first_look(
    call: Call, weights: Weights, looked: set[tuple[str, int]]
) -> tuple[Weights, float, dict[str, Tensor], Places]:
    """Weights in float64 if the network runs with them, else as they are; with the tolerance and what is seen."""
    precise = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    try:
        return precise, TOLERANCE, *_look(call, precise, looked)
    except Exception:  # whatever a network raises when a part of it insists on its own precision
        return weights, _SINGLE, *_look(call, weights, looked)


def _look(call: Call, weights: Weights, looked: set[tuple[str, int]]) -> tuple[dict[str, Tensor], Places]:
    axes: dict[str, list[int]] = {}
    for place, axis in sorted(looked):
        axes.setdefault(place, []).append(axis)
    outputs, seen = watch(
        call, weights, lambda place, tensor: {axis: _statistics(tensor, axis) for axis in axes.get(place, ())}
    )
    return outputs, {(place, axis): found for place, here in seen.items() for axis, found in here.items()}


def _statistics(tensor: Tensor, axis: int) -> Tensor:
    rows = tensor.detach().double().movedim(axis, 0).flatten(1)
    return torch.stack([rows.mean(1), rows.square().mean(1)])


def _failing(
    groups: AxisGroups, call: Call, weights: Weights, before: Mapping[str, Tensor], tolerance: float
) -> list[Group]:
    """The groups that change the outputs when they move alone, found by halving those among which one does."""
    permutations = groups.random_permutations(seed=0)
    failing, suspects = [], [list(groups)]
    while suspects:
        some = suspects.pop()
        after = call.run(groups.permute(weights, {group.name: permutations[group.name] for group in some}))
        if _same(before, after, tolerance):
            continue
        if len(some) == 1:
            failing += some
        else:
            suspects += [some[: len(some) // 2], some[len(some) // 2 :]]
    return failing


def _without(groups: AxisGroups, failing: list[Group]) -> AxisGroups:
    names = {group.name for group in failing}
    why = "its group fails the self-check: permuting it changes the outputs"
    return replace(
        groups,
        groups=tuple(
            replace(group, within=None) if group.within is not None and group.within[0] in names else group
            for group in groups
            if group.name not in names
        ),
        frozen=(
            *groups.frozen,
            *(
                FrozenAxis(member.tensor, member.axis, member.layout.index().size, why)
                for group in failing
                for member in group.members
            ),
        ),
    )


def _moved(statistics: Tensor, groups: AxisGroups, permutations: Permutations, place: str, axis: int) -> Tensor:
    """What should be seen at a place once all groups have moved."""
    for group, site in sorted(groups.at(place), key=lambda found: groups.depth(found[0]), reverse=True):
        if site.axis == axis:
            order = reordered(statistics.shape[1], site.layout, permutations[group.name])
            statistics = statistics[:, torch.from_numpy(order)]
    return statistics


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor], tolerance: float) -> bool:
    return all(_close(before[name], after[name], tolerance) for name in before)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not a.is_floating_point():
        return bool((a == b).all())
    if not a.numel():
        return True
    both = torch.stack([a.detach().double(), b.detach().double()])
    finite = both.isfinite().all(0)  # a mask's infinities stay where they are
    if not bool((both[0][~finite] == both[1][~finite]).all()) or not bool(finite.any()):
        return bool((both[0][~finite] == both[1][~finite]).all())
    values = both[:, finite]
    return bool((values[0] - values[1]).abs().max() <= tolerance * values.abs().max().clamp_min(1e-30))
