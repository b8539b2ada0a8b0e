"""Rules of operations that move values without computing: shapes, parts and wholes, look-ups, constants."""

from collections.abc import Sequence
from typing import Any

from taskatlas.merge.axes import Axis, Mismatch, blank, chosen, fixed, freeze, product, regroup, total
from taskatlas.merge.axis_step import Axes, Result, Step, Traced, broadcast, unknown

# Shape


def view(step: Step, input: Traced, **_: Any) -> Axes:
    """The same values in order, with axes split and merged."""
    try:
        if 0 in step.shapes[0]:
            raise Mismatch("an empty tensor is viewed")
        return tuple(regroup(input.axes, step.shapes[0]))
    except Mismatch as error:
        step.give_up(error, *input.axes)
        return tuple(map(step.still, step.shapes[0]))


def permute(_step: Step, input: Traced, dims: Sequence[int], **_: Any) -> Axes:
    """Axes in another order."""
    return tuple(input.axes[dim] for dim in dims)


def transpose(_step: Step, input: Traced, dim0: int = 0, dim1: int = 1, **_: Any) -> Axes:
    """Two axes change places."""
    if len(input.axes) < 2:
        return input.axes
    axes = list(input.axes)
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return tuple(axes)


def matrix_transpose(step: Step, input: Traced, **_: Any) -> Axes:
    """The last two axes change places."""
    return transpose(step, input, -2, -1)


def expand(step: Step, input: Traced, **_: Any) -> Axes:
    """Axes of size 1 become longer, new ones appear in front; the tensor is constant along them."""
    shape = step.shapes[0]
    axes = (*(blank(1) for _ in range(len(shape) - len(input.axes))), *input.axes)
    return tuple(blank(size) if axis.size == 1 else axis for size, axis in zip(shape, axes, strict=True))


def repeat(_step: Step, input: Traced, repeats: Sequence[int], **_: Any) -> Axes:
    """The tensor as tiles."""
    axes = (*(blank(1) for _ in range(len(repeats) - len(input.axes))), *input.axes)
    return tuple(product([blank(count), axis]) for count, axis in zip(repeats, axes, strict=True))


def repeat_interleave(step: Step, input: Traced, repeats: int, dim: int | None = None, **_: Any) -> Result:
    """Every position of an axis several times in a row."""
    if dim is None or not isinstance(repeats, int):
        return unknown(step, input=input)
    axes = list(input.axes)
    axes[dim] = product([axes[dim], blank(repeats)])
    return tuple(axes)


# Parts and wholes


def concatenate(step: Step, tensors: Sequence[Traced], dim: int = 0, **_: Any) -> Axes:
    """Axes laid end to end."""
    rank = len(step.shapes[0])
    parts = [tensor.axes for tensor in tensors if len(tensor.axes) == rank]  # an empty vector may stand beside images
    axes = list(broadcast(step, *(_without(axes, dim) for axes in parts if axes[dim].size)))
    axes.insert(dim % rank, total([axes[dim] for axes in parts]))
    return tuple(axes)


def stack(step: Step, tensors: Sequence[Traced], dim: int = 0, **_: Any) -> Axes:
    """A new axis, whose positions are told apart."""
    axes = list(broadcast(step, *(tensor.axes for tensor in tensors)))
    axes.insert(dim % (len(axes) + 1), step.still(len(tensors)))
    return tuple(axes)


def pieces(step: Step, input: Traced, dim: int = 0, **_: Any) -> list[Axes]:
    """Split, chunk: an axis cut end to end, one result for each piece."""
    sizes = [shape[dim] for shape in step.shapes]
    if set(sizes) == {1}:
        return [_restored(axes, dim) for axes in unbind(step, input, dim)]
    parts = step.cut(input.axes[dim], sizes)
    return [_replaced(input.axes, dim, part) for part in parts]


def slice_(
    step: Step, input: Traced, dim: int = 0, start: int | None = None, end: int | None = None, step_: int = 1, **_: Any
) -> Axes:
    """Part of an axis; with strides, an axis that stays."""
    axis = input.axes[dim]
    first, last, by = slice(start, end, step_).indices(axis.size)
    if by != 1:
        step.stop(axis)
        return _replaced(input.axes, dim, step.still(step.shapes[0][dim]))
    if last <= first:
        return _replaced(input.axes, dim, blank(0))
    parts = step.cut(axis, [first, last - first, axis.size - last])
    return _replaced(input.axes, dim, parts[1 if first else 0])


def select(step: Step, input: Traced, dim: int, index: int, **_: Any) -> Axes:
    """One position of an axis: the axes that always come with it can be others at every position."""
    position, rest = input.axes[dim].find(), _without(input.axes, dim)
    step.unpack(position, rest)
    step.stop(position)
    return tuple(chosen(axis, position, index % position.size) for axis in rest)


def unbind(step: Step, input: Traced, dim: int = 0, **_: Any) -> list[Axes]:
    """Every position of an axis."""
    return [select(step, input, dim, index) for index in range(input.axes[dim].size)]


def pad(step: Step, input: Traced, pad: Sequence[int], mode: str = "constant", **_: Any) -> Axes:
    """Constant values before and after; the padding amounts are given from the last axis on."""
    axes = list(input.axes)
    for place, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        axis = axes[-place]
        if before == after == 0:
            continue
        if mode == "constant" and axis.find().kind != "fixed" and before >= 0 and after >= 0:
            axes[-place] = total([step.empty(before), axis, step.empty(after)])
        else:
            step.stop(axis)
            axes[-place] = step.still(axis.size + before + after)
    return tuple(axes)


def pixel_shuffle(step: Step, input: Traced, upscale_factor: int, **_: Any) -> Axes:
    """Channels (C · r · r) become C channels and r × r pixels."""
    batch, channels = input.axes[:-3], input.axes[-3]
    channels, pixels = step.split(channels, channels.size // upscale_factor**2)
    step.stop(pixels)
    return (*batch, channels, *map(step.still, step.shapes[0][-2:]))


def pixel_unshuffle(step: Step, input: Traced, downscale_factor: int, **_: Any) -> Axes:
    """C channels become C · r · r."""
    *batch, channels, height, width = input.axes
    step.stop(height, width)
    return (*batch, product([channels, step.still(downscale_factor**2)]), *map(step.still, step.shapes[0][-2:]))


def spatial(step: Step, input: Traced, **_: Any) -> Result:
    """Pooling and resizing: batch and channels stay as they are, the axes that change their size do not move."""
    changed = [(len(input.axes) - len(shape), shape) for shape in step.shapes]
    if any(missing for missing, _ in changed):
        return unknown(step, input=input)
    space = len(input.axes) - 2
    step.stop(*input.axes[-space:])
    results = [(*input.axes[:2], *map(step.still, shape[2:])) for shape in step.shapes]
    return results if len(results) > 1 else results[0]


# Look-ups


def embedding(step: Step, weight: Traced, indices: Traced, **_: Any) -> Axes:
    """Rows of a table."""
    freeze(weight.axes[0], "its rows are looked up by index", step.where)
    return (*indices.axes, weight.axes[1])


def index(step: Step, input: Traced, indices: Sequence[Traced | None], **_: Any) -> Result:
    """Advanced indexing: the indexed axes stay, the result has those of the indices in place of them."""
    places = [place for place, found in enumerate(indices) if found is not None]
    step.stop(*(input.axes[place] for place in places))
    found = broadcast(step, *(tensor.axes for tensor in indices if tensor is not None))
    kept = [axis for place, axis in enumerate(input.axes) if place not in places]
    side_by_side = places == list(range(places[0], places[-1] + 1))
    start = places[0] if side_by_side else 0
    axes = (*kept[:start], *found, *kept[start:])
    return axes if tuple(axis.size for axis in axes) == step.shapes[0] else unknown(step, input=input)


def look_up(step: Step, input: Traced, dim: int = 0, index: Any = None, src: Any = None, **_: Any) -> Axes:
    """Gather, scatter, index_select: one axis is looked up by index; the others go along where they are whole."""
    place, shape = dim % max(len(input.axes), 1), step.shapes[0]
    axes = []
    for other, axis in enumerate(input.axes):
        if other == place or axis.size != shape[other]:
            step.stop(axis)
            axes.append(step.still(shape[other]))
        else:
            axes.append(axis)
    for tensor in (index, src):
        if isinstance(tensor, Traced) and len(tensor.axes) == len(axes):
            for other, axis in enumerate(tensor.axes):
                if axis.size == axes[other].size:
                    step.join(axes[other], axis)
                else:
                    step.stop(axis, axes[other])
    return tuple(axes)


# Tensors from nothing


def constant(step: Step, **_: Any) -> Axes:
    """Zeros, ones, one value: any order will do; where it is filled later, whatever is put in says."""
    return tuple(map(step.empty, step.shapes[0]))


def positions(step: Step, **_: Any) -> Axes:
    """Numbers that count."""
    return tuple(fixed(size, "its positions are counted") for size in step.shapes[0])


def _without(axes: Axes, dim: int) -> Axes:
    place = dim % len(axes)
    return axes[:place] + axes[place + 1 :]


def _replaced(axes: Axes, dim: int, axis: Axis) -> Axes:
    place = dim % len(axes)
    return (*axes[:place], axis, *axes[place + 1 :])


def _restored(axes: Axes, dim: int) -> Axes:
    place = dim % (len(axes) + 1)
    return (*axes[:place], blank(1), *axes[place:])
