"""Reading groups off a trace: which free axes there are, where each lies in every tensor, and what lies within what.

Two questions are answered by looking at all tensors of the graph:

- *Does an axis depend on another?* The contents of a head always come with the head; so nothing says that the contents
  of all heads must be permuted alike, and every head gets a group of its own. An axis depends on those that come with
  it wherever it is met.
- *Are two axes one?* Parts of a sum that lie side by side wherever they are met, such as the channels before and after
  those that a zero-padded shortcut joins, can be permuted as one.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from taskatlas.merge.axes import Axis, chooser, choosers, chooses, factors, leaves
from taskatlas.merge.axis_groups import FrozenAxis, Group, Layout, Member, Only, Role, Site
from taskatlas.merge.axis_step import Axes
from taskatlas.merge.axis_trace import Trace

Term = tuple[int, tuple[tuple[Axis, int], ...]]  # start of a part; its leaves and their strides


@dataclass(frozen=True, eq=False)
class Spot:
    """One place where a free axis lies in a tensor."""

    leaf: Axis
    tensor: int  # which of all tensors
    axis: int
    start: int
    stride: int
    beside: tuple[tuple[Axis, int], ...]  # the other parts of the same axis with their strides
    across: tuple[tuple[Axis, int, int, int], ...]  # parts of the tensor's other axes, with axis, length, stride

    def company(self) -> set[Axis]:
        """What comes with it here."""
        return {leaf for leaf, _ in self.beside} | {leaf for leaf, *_ in self.across}

    def pattern(self) -> tuple[object, ...]:
        """How it lies here, but for where it starts."""
        return (self.tensor, self.axis, self.stride, self.beside, frozenset(self.company()))


@dataclass(frozen=True, eq=False)
class Bundle:
    """Free axes that are one group, or one for each index of the axes that they depend on."""

    leaves: tuple[Axis, ...]
    context: tuple[Axis, ...]  # outermost first
    stem: str  # of its name


def collect(
    trace: Trace, places: Mapping[str, Axes], twins: Mapping[str, Sequence[str]]
) -> tuple[list[Group], list[FrozenAxis]]:
    """Groups in the order of the parameters, outer ones before what is in them, and what does not move.

    Args:
        trace: of the network's graph.
        places: the axes of what can be seen at modules' inputs and outputs.
        twins: the other names of tied weights.
    """
    parameters, seen = list(trace.parameters), list(places)
    tensors: list[Axes] = [
        *(trace.parameters[name].axes for name in parameters),
        *places.values(),
        *(value.axes for value in trace.values.values()),
    ]
    spots: dict[Axis, list[Spot]] = defaultdict(list)
    for number, axes in enumerate(tensors):
        for spot in _spots(number, axes):
            spots[spot.leaf].append(spot)
    movable = [leaf for leaf, found in spots.items() if any(spot.tensor < len(parameters) for spot in found)]
    contexts = _contexts(movable, spots)
    rigid = {leaf for axis in trace.rigid for leaf in leaves(axis)}
    groups: list[Group] = []
    names: dict[tuple[Axis, tuple[int, ...]], str] = {}
    for bundle in _bundles(movable, spots, contexts, parameters):
        for index in itertools.product(*(range(axis.size) for axis in bundle.context)):
            chosen = dict(zip(bundle.context, index, strict=True))
            members: list[Member] = []
            taps: list[Site] = []
            for (number, axis), layout, only in _layouts(bundle, spots, chosen, len(parameters) + len(seen)):
                if number < len(parameters):
                    name = parameters[number]
                    role = _role(trace, name, axis)
                    members += [Member(twin, axis, layout, role, only) for twin in (name, *twins.get(name, ()))]
                elif only is None:
                    taps.append(Site(seen[number - len(parameters)], axis, layout))
            name = bundle.stem + (f"[{', '.join(map(str, index))}]" if index else "")
            for leaf in bundle.leaves:
                names[leaf, index] = name
            groups.append(
                Group(
                    name=name,
                    size=sum(leaf.size for leaf in bundle.leaves),
                    members=tuple(members),
                    taps=tuple(taps),
                    within=_within(bundle, contexts, chosen, names),
                    scalable=not rigid.intersection(bundle.leaves),
                )
            )
    return groups, _frozen(trace)


def spread(axis: Axis, indices: Mapping[int, int] | None = None) -> list[Term]:
    """The parts of an axis with their places: for each end-to-end part its start, and its (leaf, stride) pairs.

    Args:
        axis: the axis.
        indices: the index that is meant of axes that choose among cases, by ``id``.
    """
    axis, indices = axis.find(), indices or {}
    if axis.kind == "product":
        return _spread_product(factors(axis), indices)
    if axis.kind == "sum":
        starts, start = [], 0
        for part in axis.parts:
            starts += [(start + inner, places) for inner, places in spread(part, indices)]
            start += part.size
        return starts
    if axis.kind == "cases":
        return spread(axis.parts[indices.get(id(chooser(axis)), 0)], indices)
    return [(0, ((axis, 1),))] if axis.size > 1 else [(0, ())]


def _spread_product(parts: Sequence[Axis], indices: Mapping[int, int]) -> list[Term]:
    if not parts:
        return [(0, ())]
    first, rest = parts[0].find(), parts[1:]
    inner_size = math.prod(part.size for part in rest)
    if first.kind == "fixed" and chooses(first, rest):
        return [
            (index * inner_size + start, places)
            for index in range(first.size)
            for start, places in _spread_product(rest, {**indices, id(first): index})
        ]
    return [
        (outer * inner_size + inner, tuple((leaf, stride * inner_size) for leaf, stride in places) + others)
        for outer, places in spread(first, indices)
        for inner, others in _spread_product(rest, indices)
    ]


def _spots(number: int, axes: Axes) -> list[Spot]:
    """Every place of every free axis in one tensor."""
    found: dict[tuple[object, ...], Spot] = {}
    positions = {over for axis in axes for over in choosers(axis)}
    for index in itertools.product(*(range(position.size) for position in positions)):
        indices = {id(position): place for position, place in zip(positions, index, strict=True)}
        parts = [spread(axis, indices) for axis in axes]
        for axis, terms in enumerate(parts):
            across = tuple(
                (leaf, other, axes[other].size, stride)
                for other, part in enumerate(parts)
                if other != axis and len(part) == 1
                for leaf, stride in part[0][1]
            )
            for start, places in terms:
                for which, (leaf, stride) in enumerate(places):
                    if leaf.kind == "free":
                        beside = places[:which] + places[which + 1 :]
                        found.setdefault(
                            (leaf, axis, start, stride, beside, across),
                            Spot(leaf, number, axis, start, stride, beside, across),
                        )
    return list(found.values())


def _contexts(movable: Sequence[Axis], spots: Mapping[Axis, list[Spot]]) -> dict[Axis, tuple[Axis, ...]]:
    """The axes that each depends on, outermost first. Of two that always come together, the outer one leads."""
    company = {leaf: set.intersection(*(spot.company() for spot in spots[leaf])) - {leaf} for leaf in movable}
    leading = {
        leaf: [
            other
            for other in company[leaf]
            if other.kind != "blank" and (leaf not in company.get(other, ()) or _leads(other, spots[leaf][0]))
        ]
        for leaf in movable
    }
    return {
        leaf: tuple(sorted(others, key=lambda other: (len(leading.get(other, ())), _place(other, spots[leaf][0]))))
        for leaf, others in leading.items()
    }


def _place(leaf: Axis, spot: Spot) -> tuple[int, int]:
    """Where another axis stands in the tensor of a spot: its axis, and outer ones first."""
    for other, stride in spot.beside:
        if other is leaf:
            return spot.axis, -stride
    return next((axis, -stride) for other, axis, _, stride in spot.across if other is leaf)


def _leads(leaf: Axis, spot: Spot) -> bool:
    return _place(leaf, spot) < (spot.axis, -spot.stride)


def _bundles(
    movable: Sequence[Axis],
    spots: Mapping[Axis, list[Spot]],
    contexts: Mapping[Axis, tuple[Axis, ...]],
    parameters: Sequence[str],
) -> list[Bundle]:
    """Axes with one pattern wherever they lie are bundled; what others depend on, or depends on others, stays alone."""
    alone = {leaf for others in contexts.values() for leaf in others}
    alone |= {leaf for leaf in movable if contexts[leaf]}
    alike: dict[object, list[Axis]] = defaultdict(list)
    for leaf in movable:
        pattern = frozenset(Counter(spot.pattern() for spot in spots[leaf]).items())
        alike[leaf if leaf in alone else pattern].append(leaf)
    bundles: list[Bundle] = []
    taken: set[tuple[str, bool]] = set()
    for together in sorted(alike.values(), key=lambda those: len(contexts[those[0]])):
        context = contexts[together[0]]
        moved = [parameters[spot.tensor] for spot in spots[together[0]] if spot.tensor < len(parameters)]
        stems = [_stem(name) for name in sorted(moved, key=lambda name: not name.endswith("weight"))]
        stems += [f"{stems[0]}#{number}" for number in range(2, len(movable) + 2)]
        stem = next(stem for stem in stems if (stem, bool(context)) not in taken)
        taken.add((stem, bool(context)))
        bundles.append(Bundle(tuple(together), context, stem))
    first = {bundle: min(spots[leaf][0].tensor for leaf in bundle.leaves) for bundle in bundles}
    return sorted(bundles, key=lambda bundle: (first[bundle], len(bundle.context)))


def _stem(tensor: str) -> str:
    module, _, own = tensor.rpartition(".")
    return module if module and own in ("weight", "bias") else tensor


def _layouts(
    bundle: Bundle, spots: Mapping[Axis, list[Spot]], index: Mapping[Axis, int], tensors: int
) -> Iterator[tuple[tuple[int, int], Layout, Only | None]]:
    """A bundle's places in the first few tensors, at one index of its context: (tensor, axis), layout, ``only``."""
    by_place: dict[tuple[object, ...], list[list[Spot]]] = defaultdict(list)
    for leaf in bundle.leaves:
        here: dict[tuple[object, ...], list[Spot]] = defaultdict(list)
        for spot in spots[leaf]:
            if spot.tensor < tensors:
                here[spot.tensor, spot.axis, spot.stride, spot.beside].append(spot)
        for place, found in here.items():
            by_place[place].append(sorted(found, key=lambda spot: spot.start))
    for place in sorted(by_place, key=lambda place: place[:2]):
        for together in zip(*by_place[place], strict=True):
            spot = together[0]
            shift = sum(index[leaf] * stride for leaf, stride in spot.beside if leaf in index)
            units = tuple(
                (one.start + shift, one.start + shift + one.stride * one.leaf.size, one.stride) for one in together
            )
            copies = tuple((leaf.size, stride) for leaf, stride in spot.beside if leaf not in index)
            yield (spot.tensor, spot.axis), Layout(units, copies), _only(spot, index)


def _only(spot: Spot, index: Mapping[Axis, int]) -> Only | None:
    """The slice of another axis to which a spot is restricted by the axes it depends on."""
    beside = {leaf for leaf, _ in spot.beside}
    for leaf, axis, length, stride in spot.across:
        if leaf in index and leaf not in beside:
            start = index[leaf] * stride
            return (
                (axis, start, start + stride, 1) if leaf.size * stride == length else (axis, start, length, leaf.size)
            )
    return None


def _within(
    bundle: Bundle,
    contexts: Mapping[Axis, tuple[Axis, ...]],
    index: Mapping[Axis, int],
    names: Mapping[tuple[Axis, tuple[int, ...]], str],
) -> tuple[str, int] | None:
    """The innermost group that a group depends on, and which of its units; a fixed axis is no group."""
    for outer in reversed(bundle.context):
        if outer.kind == "free":
            name = names.get((outer, tuple(index[leaf] for leaf in contexts.get(outer, ()))))
            return None if name is None else (name, index[outer])
    return None


def _role(trace: Trace, name: str, axis: int) -> Role:
    sides = trace.sides.get((name, axis), set())
    return "both" if len(sides) > 1 else next(iter(sides), "out")


def _frozen(trace: Trace) -> list[FrozenAxis]:
    """What of every parameter's axes does not move, by reason."""
    counts: Counter[tuple[str, int, str, str]] = Counter()
    for name, traced in trace.parameters.items():
        for place, axis in enumerate(traced.axes):
            for _, parts in spread(axis):
                still = [leaf for leaf, _ in parts if leaf.kind == "fixed"]
                if still:
                    inside = "" if len(still) == len(parts) else "inside its units, "
                    size = math.prod(leaf.size for leaf in still)
                    counts[name, place, inside + still[0].why, still[0].where] += size
    return [FrozenAxis(name, axis, count, why, where) for (name, axis, why, where), count in counts.items()]
