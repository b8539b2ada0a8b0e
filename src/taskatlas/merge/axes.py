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
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from taskatlas.errors import TaskAtlasError

Kind = Literal["free", "fixed", "blank", "same", "product", "sum", "cases"]


class Mismatch(TaskAtlasError):
    """Two axes are divided in ways that do not fit; whoever joined them has to freeze both."""


class Axis:
    """One axis of a tensor, or a part of one. Compare what ``find`` gives, by identity."""

    __slots__ = ("kind", "over", "parts", "size", "where", "why")

    def __init__(
        self, size: int, kind: Kind = "free", parts: Sequence["Axis"] = (), why: str = "", where: str = ""
    ) -> None:
        self.size = size
        self.kind: Kind = kind
        self.parts = tuple(parts)  # of a product, a sum or cases; the one axis that "same" points to
        self.over: Axis | None = None  # the axis whose index chooses among cases
        self.why = why  # of a fixed axis
        self.where = where  # the source line that fixed it, where known

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


def fixed(size: int, why: str, where: str = "") -> Axis:
    """An axis whose positions stay where they are, with the reason and the source line that is it."""
    return Axis(size, "fixed", why=why, where=where)


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


def freeze(axis: Axis, why: str, where: str = "") -> None:
    """Nothing in it may move any more; a blank part has nothing that could."""
    axis = axis.find()
    for part in axis.parts:
        freeze(part, why, where)
    if axis.kind == "free" or (axis.kind == "sum" and not choosers(axis)):  # what cut a sum into parts matters no more
        axis.kind, axis.parts, axis.why, axis.where = "fixed", (), why, where


def join(a: Axis, b: Axis) -> Axis:
    """Makes two axes of one size move together; returns the one that says more.

    Raises:
        Mismatch: they are divided in ways that do not fit.
    """
    a, b = a.find(), b.find()
    if a is b or a.size == 1 or "blank" in (a.kind, b.kind):
        return b if a.kind == "blank" else a
    if a.size != b.size:
        raise Mismatch(f"axes of sizes {a.size} and {b.size} meet")
    meetings: tuple[tuple[Kind, Callable[[Axis, Axis], Axis]], ...] = (
        ("cases", _join_cases),
        ("free", _bind),
        ("fixed", _fix),
        ("sum", _join_sums),
        ("product", _join_products),
    )
    meet = next((kind, function) for kind, function in meetings if kind in (a.kind, b.kind))
    return meet[1](a, b) if a.kind == meet[0] else meet[1](b, a)


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
    if outer in (1, axis.size):
        return (blank(1), axis) if outer == 1 else (axis, blank(1))
    inner, rest = divmod(axis.size, outer)
    if rest:
        raise Mismatch(f"an axis of size {axis.size} cannot be divided by {outer}")
    match axis.kind:
        case "free":
            halves = free(outer), free(inner)
            axis.kind, axis.parts = "product", halves
        case "fixed":
            halves = fixed(outer, axis.why, axis.where), fixed(inner, axis.why, axis.where)
        case "blank":
            halves = blank(outer), blank(inner)
        case "cases":
            over, each = chooser(axis), [split(part, outer) for part in axis.parts]
            halves = cases(over, [upper for upper, _ in each]), cases(over, [lower for _, lower in each])
        case "sum" if len(parts := terms(axis)) == outer and all(part.size == inner for part in parts):
            position = fixed(outer, "its positions are told apart where a fused projection is unpacked")
            halves = position, cases(position, parts)
        case _:
            halves = _split_product(axis, outer)
    return halves


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The axis as a sum of parts of given sizes; parts of size 0 are left out.

    Raises:
        Mismatch: a boundary runs through the inside of a block.
    """
    axis, sizes = axis.find(), [size for size in sizes if size]
    if len(sizes) <= 1:
        return [axis]
    match axis.kind:
        case "free":
            parts = [free(size) for size in sizes]
            axis.kind, axis.parts = "sum", tuple(parts)
        case "fixed":
            parts = [fixed(size, axis.why, axis.where) for size in sizes]
        case "blank":
            parts = [blank(size) for size in sizes]
        case "product":
            parts = _cut_product(axis, sizes)
        case "sum":
            parts = _cut_sum(terms(axis), sizes)
        case _:
            raise Mismatch("one of several unpacked projections is cut")
    return parts


def cases(over: Axis, parts: Sequence[Axis]) -> Axis:
    """The axis that is another one for each index of ``over``."""
    axis = Axis(parts[0].size, "cases", parts)
    axis.over = over
    return axis


def chosen(axis: Axis, over: Axis, index: int) -> Axis:
    """The axis at one index of another: its case, where it has cases over that one."""
    axis = axis.find()
    if axis.kind == "cases" and chooser(axis) is over.find():
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
    return [part for axis in axes for part in _cases_in(axis) if id(chooser(part)) not in present]


def chooser(axis: Axis) -> Axis:
    """The axis whose index chooses among cases."""
    assert axis.over is not None
    return axis.over.find()


def choosers(axis: Axis) -> set[Axis]:
    """The axes that choose among cases in this one."""
    return {chooser(found) for found in _cases_in(axis)}


def chooses(position: Axis, parts: Sequence[Axis]) -> bool:
    """Whether cases among some parts are chosen by the index of a position."""
    return any(chooser(found) is position for part in parts for found in _cases_in(part))


def _cases_in(axis: Axis) -> Iterator[Axis]:
    axis = axis.find()
    if axis.kind == "cases":
        yield axis
    for part in axis.parts:
        yield from _cases_in(part)


def _without_blanks(axis: Axis) -> Axis:
    """The axis with free parts in place of blank ones: what a tensor that is not constant there has."""
    if axis.kind in ("product", "sum") and any(leaf.kind == "blank" for leaf in leaves(axis)):
        return Axis(axis.size, axis.kind, [_without_blanks(part.find()) for part in axis.parts])
    return free(axis.size) if axis.kind == "blank" else axis


def _join_cases(a: Axis, b: Axis) -> Axis:
    if b.kind == "cases" and chooser(a) is chooser(b):
        for part, other in zip(a.parts, b.parts, strict=True):
            join(part, other)
        return a
    merge_cases(a)
    return join(a.parts[0], b)


def _bind(a: Axis, b: Axis) -> Axis:
    for stray in stray_cases([b]):
        merge_cases(stray)
    a.become(_without_blanks(b))
    return a


def _fix(a: Axis, b: Axis) -> Axis:
    if b.kind == "fixed":
        b.become(a)
    else:
        freeze(b, a.why, a.where)
    return a


def _split_product(axis: Axis, outer: int) -> tuple[Axis, Axis]:
    first, *others = factors(axis)
    if outer % first.size == 0:
        middle, last = split(product(others), outer // first.size)
        return product([first, middle]), last
    if first.size % outer == 0 and others:
        upper, lower = split(first, outer)
        return upper, product([lower, *others])
    raise Mismatch(f"an axis of {' × '.join(str(f.size) for f in factors(axis))} is viewed as {outer} × …")


def _join_products(a: Axis, b: Axis) -> Axis:
    if terms(a) != [a] or terms(b) != [b]:
        return _join_sums(a, b)
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


def _join_sums(a: Axis, b: Axis) -> Axis:
    mine, theirs, joined = terms(a), terms(b), []
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
        if first.kind == "fixed" and chooses(first, rest):
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
