"""One operation of a graph, as a rule about axes sees it: what it can ask, and what it notes down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskatlas.merge.axes import Axis, Mismatch, blank, cut, fixed, free, freeze, join, leaves, split

Axes = tuple[Axis, ...]
Result = Axes | list[Axes]
Rule = Callable[..., Result]


@dataclass(frozen=True, eq=False)
class Traced:
    """A tensor, as rules see it."""

    axes: Axes


@dataclass(eq=False)
class Step:
    """One operation of the graph: what its rule can ask, and what it notes down."""

    name: str
    shapes: list[tuple[int, ...]]  # of its results
    where: str  # source line
    unpack: Callable[[Axis, Sequence[Axis]], None]  # lets axes that always come with a position depend on it
    refilled: bool = False  # the result is written into later
    summed: list[Axis] = field(default_factory=list)  # axes of weights and activations that it sums over
    rigid: list[Axis] = field(default_factory=list)  # axes along which a softmax or norm runs

    def join(self, a: Axis, b: Axis) -> Axis:
        """Joins two axes; where they do not fit, neither may move."""
        parts = [*leaves(a), *leaves(b)]
        if any(part.kind == "free" for part in parts):
            for part in parts:
                part.where = part.where or (self.where if part.kind == "fixed" else "")
        try:
            return join(a, b)
        except Mismatch as error:
            self.give_up(error, a, b)
            return self.still(a.size)

    def sum_over(self, a: Axis, b: Axis) -> None:
        """A contraction: both move together and are gone."""
        self.summed += [a, b]
        self.join(a, b)

    def still(self, size: int) -> Axis:
        """An axis of the result that does not move."""
        return fixed(size, f"its order matters in {self.name}", self.where)

    def empty(self, size: int) -> Axis:
        """An axis of equal values; what is written into them later decides what it is."""
        return free(size) if self.refilled else blank(size)

    def stop(self, *axes: Axis) -> None:
        """The operation tells positions along these axes apart."""
        for axis in axes:
            freeze(axis, f"its order matters in {self.name}", self.where)

    def split(self, axis: Axis, outer: int) -> tuple[Axis, Axis]:
        """The axis as blocks and their insides."""
        try:
            return split(axis, outer)
        except Mismatch as error:
            self.give_up(error, axis)
            return self.still(outer), self.still(axis.size // outer)

    def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """The axis as pieces laid end to end."""
        try:
            return cut(axis, sizes)
        except Mismatch as error:
            self.give_up(error, axis)
            return [self.still(size) for size in sizes if size]

    def give_up(self, error: Mismatch, *axes: Axis) -> None:
        """Axes that do not fit the operation do not move."""
        for axis in axes:
            freeze(axis, f"{error} in {self.name}", self.where)


def broadcast(step: Step, *tensors: Axes) -> Axes:
    """The axes that tensors have together."""
    axes: list[Axis] = [blank(1)] * max((len(tensor) for tensor in tensors), default=0)
    for tensor in tensors:
        for place, axis in enumerate(tensor, start=len(axes) - len(tensor)):
            if axes[place].size == 1:
                axes[place] = axis
            elif axis.size > 1:
                axes[place] = step.join(axes[place], axis)
    return tuple(axes)


def unknown(step: Step, **arguments: Any) -> Result:
    """Every axis it touches stays; so do those of its results."""
    for axis in _all_axes(list(arguments.values())):
        freeze(axis, f"{step.name} is not understood", step.where)
    results = [tuple(fixed(size, f"{step.name} is not understood") for size in shape) for shape in step.shapes]
    return results if len(results) > 1 else (results[0] if results else ())


def _all_axes(value: Any) -> list[Axis]:
    if isinstance(value, Traced):
        return list(value.axes)
    if isinstance(value, list | tuple):
        return [axis for item in value for axis in _all_axes(item)]
    return []
