"""Symbolic axes: what an axis is made of, found out by joining axes that have to move together.

An ``Axis`` starts as a free variable. Joining two axes makes them one; operations take axes apart:

- a *product* of axes, outermost first, where a view splits or merges them: a query's outputs are heads × contents;
- a *sum* of axes laid end to end, where tensors are concatenated or sliced: the channels of a skip connection;
- *cases*: axes that take another's index as an argument, where a fused projection is unpacked: the heads of query, key
  and value, which need not be the same.

Besides free ones there are *fixed* axes, whose positions must stay (inputs, classes, pixels), and *blank* ones, along
which a tensor is constant (padding, expansion), so that any order will do. A part is always smaller than the whole, so
joining ends. Labels for every single position would make each change of shape trivial, but could not say that query
heads move within their key-value head, or contents within each head apart; products can, and cost nothing with width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from taskatlas.errors import TaskAtlasError

Kind = Literal["free", "fixed", "blank", "same", "product", "sum", "cases"]


class Mismatch(TaskAtlasError):
    """Two axes are divided in ways that do not fit; whoever joined them has to freeze both."""


class Axis:
    """One axis of a tensor, or a part of one. Compare what ``find`` gives, by identity."""

    __slots__ = ("kind", "over", "parts", "size", "why")

    def __init__(self, size: int, kind: Kind = "free", parts: Sequence["Axis"] = (), why: str = "") -> None:
        self.size = size
        self.kind: Kind = kind
        self.parts = tuple(parts)  # of a product, a sum or cases; the one axis that "same" points to
        self.over: Axis | None = None  # the axis whose index chooses among cases
        self.why = why  # of a fixed axis

    def find(self) -> "Axis":
        """What this axis is by now."""
        axis = self
        while axis.kind == "same":
            axis = axis.parts[0]
        return axis

    def become(self, other: "Axis") -> None:
        """A free axis is from now on another one."""
        self.kind, self.parts = "same", (other,)


def free(size: int) -> Axis:
    """An axis that nothing is known about."""
    return Axis(size)


def fixed(size: int, why: str) -> Axis:
    """An axis whose positions stay where they are."""
    return Axis(size, "fixed", why=why)


def blank(size: int) -> Axis:
    """An axis along which the tensor is constant."""
    return Axis(size, "blank")


def product(parts: Sequence[Axis]) -> Axis:
    """The axis that a view makes of several, outermost first; parts of size 1 say nothing."""
    parts = [factor for part in parts for factor in factors(part)]
    if len(parts) == 1:
        return parts[0]
    size = math.prod(part.size for part in parts)
    if not parts:
        return blank(1)
    if all(part.kind == "blank" for part in parts):
        return blank(size)
    return Axis(size, "product", parts)


def total(parts: Sequence[Axis]) -> Axis:
    """The axis that concatenation makes of several."""
    parts = [term for part in parts if part.size for term in terms(part)]
    if not parts:
        return blank(0)
    return parts[0] if len(parts) == 1 else Axis(sum(part.size for part in parts), "sum", parts)


def factors(axis: Axis) -> list[Axis]:
    """The parts of a product, else the axis itself; size 1 has none."""
    axis = axis.find()
    if axis.size == 1:
        return []
    return [factor for part in axis.parts for factor in factors(part)] if axis.kind == "product" else [axis]


def terms(axis: Axis) -> list[Axis]:
    """The parts of a sum, else the axis itself; a product of a sum with others is a sum of products."""
    axis = axis.find()
    if axis.kind == "sum":
        return [term for part in axis.parts for term in terms(part)]
    if axis.kind == "product":
        first, *rest = factors(axis)
        if first.kind == "sum":
            return [product([term, *rest]) for term in terms(first)]
    return [axis]


def leaves(axis: Axis) -> Iterator[Axis]:
    """The free, fixed and blank axes that an axis is made of."""
    axis = axis.find()
    if axis.parts:
        for part in axis.parts:
            yield from leaves(part)
    else:
        yield axis


def freeze(axis: Axis, why: str) -> None:
    """Nothing in it may move any more; a blank part has nothing that could."""
    for leaf in leaves(axis):
        if leaf.kind == "free":
            leaf.kind, leaf.why = "fixed", why


def join(a: Axis, b: Axis) -> Axis:
    """Makes two axes of one size move together; returns the one that says more.

    Raises:
        Mismatch: they are divided in ways that do not fit.
    """
    a, b = a.find(), b.find()
    if a is b or a.size == 1 or b.kind == "blank":
        return a
    if a.size != b.size:
        raise Mismatch(f"axes of sizes {a.size} and {b.size} meet")
    match a.kind, b.kind:
        case "blank", _:
            return b
        case "cases", "cases" if _over(a) is _over(b):
            for part, other in zip(a.parts, b.parts, strict=True):
                join(part, other)
        case "cases", _:
            merge_cases(a)
            return join(a.parts[0], b)
        case _, "cases":
            return join(b, a)
        case "free", _:
            for stray in stray_cases([b]):
                merge_cases(stray)
            a.become(_without_blanks(b))
        case _, "free":
            return join(b, a)
        case "fixed", "fixed":
            b.become(a)
        case "fixed", _:
            freeze(b, a.why)
        case _, "fixed":
            freeze(a, b.why)
        case "product", "product" if terms(a) == [a] and terms(b) == [b]:
            return _join_products(a, b)
        case _:
            return _join_sums(terms(a), terms(b))
    return a


def merge_cases(axis: Axis) -> None:
    """All cases of an axis become the same: what chose among them is not there."""
    for part in axis.parts[1:]:
        join(axis.parts[0], part)


def split(axis: Axis, outer: int) -> tuple[Axis, Axis]:
    """The axis as a product of two, the outer one of a given size.

    Raises:
        Mismatch: it is divided in another way.
    """
    axis = axis.find()
    if outer == 1:
        return blank(1), axis
    if outer == axis.size:
        return axis, blank(1)
    inner, rest = divmod(axis.size, outer)
    if rest:
        raise Mismatch(f"an axis of size {axis.size} cannot be divided by {outer}")
    match axis.kind:
        case "free":
            axis.kind, axis.parts = "product", (free(outer), free(inner))
            return axis.parts[0], axis.parts[1]
        case "fixed":
            return fixed(outer, axis.why), fixed(inner, axis.why)
        case "blank":
            return blank(outer), blank(inner)
        case "cases":
            over, halves = _over(axis), [split(part, outer) for part in axis.parts]
            return cases(over, [upper for upper, _ in halves]), cases(over, [lower for _, lower in halves])
        case "sum" if len(parts := terms(axis)) == outer and all(part.size == inner for part in parts):
            position = fixed(outer, "its positions are told apart by an unpacked projection")
            return position, cases(position, parts)
    first, *others = factors(axis)
    if outer % first.size == 0:
        middle, last = split(product(others), outer // first.size)
        return product([first, middle]), last
    if first.size % outer == 0 and others:
        upper, lower = split(first, outer)
        return upper, product([lower, *others])
    raise Mismatch(f"an axis of {' × '.join(str(f.size) for f in factors(axis))} is viewed as {outer} × {inner}")


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The axis as a sum of parts of given sizes.

    Raises:
        Mismatch: a boundary runs through the inside of a block.
    """
    axis = axis.find()
    sizes = [size for size in sizes if size]
    if len(sizes) <= 1:
        return [axis]
    if axis.kind == "free":
        axis.kind, axis.parts = "sum", tuple(free(size) for size in sizes)
        return list(axis.parts)
    if axis.kind == "fixed":
        return [fixed(size, axis.why) for size in sizes]
    if axis.kind == "blank":
        return [blank(size) for size in sizes]
    if axis.kind == "product":
        return _cut_product(axis, sizes)
    if axis.kind == "cases":
        raise Mismatch("one of several unpacked projections is cut")
    return _cut_sum(terms(axis), sizes)


def cases(over: Axis, parts: Sequence[Axis]) -> Axis:
    """The axis that is another one for each index of ``over``."""
    axis = Axis(parts[0].size, "cases", parts)
    axis.over = over
    return axis


def chosen(axis: Axis, over: Axis, index: int) -> Axis:
    """The axis at one index of another: its case, where it has cases over that one."""
    axis = axis.find()
    if axis.kind == "cases" and _over(axis) is over.find():
        return chosen(axis.parts[index], over, index)
    if axis.kind == "product":
        return product([chosen(part, over, index) for part in axis.parts])
    if axis.kind == "sum":
        return total([chosen(part, over, index) for part in axis.parts])
    return axis


def regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """The axes that a view to ``sizes`` has.

    Raises:
        Mismatch: a new axis begins or ends within a part that cannot be divided there.
    """
    left = [factor for axis in axes for factor in factors(axis)]
    seen = []
    for size in sizes:
        parts: list[Axis] = []
        missing = size
        while missing > 1:
            part = left.pop(0)
            if missing % part.size:
                part, rest = split(part, math.gcd(missing, part.size))
                left.insert(0, rest)
                if part.size == 1:
                    raise Mismatch(f"a view takes {missing} out of an axis of {rest.size}")
            parts.append(part)
            missing //= part.size
        seen.append(product(parts))
    return seen


def stray_cases(axes: Sequence[Axis]) -> list[Axis]:
    """The cases among a tensor's axes whose index is none of the tensor's axes."""
    present = {id(leaf) for axis in axes for leaf in leaves(axis)}
    return [part for axis in axes for part in _cases_in(axis) if id(_over(part)) not in present]


def choosers(axis: Axis) -> set[Axis]:
    """The axes that choose among cases in this one."""
    return {_over(found) for found in _cases_in(axis)}


Term = tuple[int, tuple[tuple[Axis, int], ...]]


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
        return spread(axis.parts[indices.get(id(_over(axis)), 0)], indices)
    return [(0, ((axis, 1),))] if axis.size > 1 else [(0, ())]


def _spread_product(parts: Sequence[Axis], indices: Mapping[int, int]) -> list[Term]:
    if not parts:
        return [(0, ())]
    first, rest = parts[0].find(), parts[1:]
    inner_size = math.prod(part.size for part in rest)
    if first.kind == "fixed" and _chooses(first, rest):
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


def _chooses(position: Axis, parts: Sequence[Axis]) -> bool:
    return any(_over(found) is position for part in parts for found in _cases_in(part))


def _cases_in(axis: Axis) -> Iterator[Axis]:
    axis = axis.find()
    if axis.kind == "cases":
        yield axis
    for part in axis.parts:
        yield from _cases_in(part)


def _over(axis: Axis) -> Axis:
    """The axis whose index chooses among cases."""
    assert axis.over is not None
    return axis.over.find()


def _without_blanks(axis: Axis) -> Axis:
    """The axis with free parts in place of blank ones: what a tensor that is not constant there has."""
    if axis.kind in ("product", "sum") and any(leaf.kind == "blank" for leaf in leaves(axis)):
        return Axis(axis.size, axis.kind, [_without_blanks(part.find()) for part in axis.parts])
    return free(axis.size) if axis.kind == "blank" else axis


def _join_products(a: Axis, b: Axis) -> Axis:
    mine, theirs, joined = factors(a), factors(b), []
    while mine and theirs:
        first, second = mine.pop(0), theirs.pop(0)
        size = math.gcd(first.size, second.size)
        if size == 1:
            raise Mismatch(f"blocks of {first.size} meet blocks of {second.size}")
        (first, rest), (second, other) = split(first, size), split(second, size)
        mine[:0], theirs[:0] = factors(rest), factors(other)
        joined.append(join(first, second))
    return product(joined)


def _join_sums(mine: list[Axis], theirs: list[Axis]) -> Axis:
    joined = []
    while mine and theirs:
        first, second = mine.pop(0), theirs.pop(0)
        size = min(first.size, second.size)
        first, *rest = cut(first, [size, first.size - size])
        second, *other = cut(second, [size, second.size - size])
        mine[:0], theirs[:0] = rest, other
        joined.append(join(first, second))
    return total(joined)


def _cut_product(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    first, *rest = factors(axis)
    inner = axis.size // first.size
    if any(size % inner for size in sizes):
        raise Mismatch(f"blocks of {inner} are cut into pieces of {', '.join(str(size) for size in sizes)}")
    parts = cut(first, [size // inner for size in sizes])
    start, made = 0, []
    for part in parts:
        others = rest
        if first.kind == "fixed" and _chooses(first, rest):
            if part.size > 1:
                raise Mismatch("several unpacked projections are taken together")
            others = [chosen(other, first, start) for other in rest]
        made.append(product([part, *others]))
        start += part.size
    return made


def _cut_sum(parts: list[Axis], sizes: Sequence[int]) -> list[Axis]:
    made = []
    for size in sizes:
        taken: list[Axis] = []
        missing = size
        while missing:
            part = parts.pop(0)
            if part.size > missing:
                part, *rest = cut(part, [missing, part.size - missing])
                parts[:0] = rest
            taken.append(part)
            missing -= part.size
        made.append(total(taken))
    return made
