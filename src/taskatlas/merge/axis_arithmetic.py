"""Rules of operations that compute: elementwise, products, norms, reductions; one small function for each kind.

A rule gets the ``Step`` that it is about and the operation's arguments by their names in the ATen schema (``self`` is
called ``input``), tensors as ``Traced``. It joins what moves together and returns the axes of its result; for an
operation with several results, a list of these.
"""

from collections.abc import Sequence
from typing import Any

from taskatlas.merge.axes import Axis, blank, product
from taskatlas.merge.axis_step import Axes, Result, Step, Traced, broadcast, unknown

# Elementwise


def elementwise(step: Step, **arguments: Any) -> Result:
    """Broadcast from the right; axes that meet are joined. An assertion or a size has no axes."""
    tensors = [value for value in arguments.values() if isinstance(value, Traced)]
    return broadcast(step, *(tensor.axes for tensor in tensors))


def same(_step: Step, input: Traced, **_: Any) -> Axes:
    """Other values or another type, in the same order."""
    return input.axes


def glu(step: Step, input: Traced, dim: int = -1, **_: Any) -> Axes:
    """The first half of an axis times a gate of the second."""
    axes = list(input.axes)
    halves = step.cut(axes[dim], [axes[dim].size // 2] * 2)
    axes[dim] = step.join(*halves)
    return tuple(axes)


def prelu(step: Step, input: Traced, weight: Traced, **_: Any) -> Axes:
    """One slope for each channel, or for all."""
    _per_channel(step, input.axes, weight)
    return input.axes


# Products


def linear(step: Step, input: Traced, weight: Traced, bias: Traced | None = None) -> Axes:
    """Weight (out, in)."""
    step.sum_over(input.axes[-1], weight.axes[1])
    out = weight.axes[0] if bias is None else step.join(weight.axes[0], bias.axes[0])
    return (*input.axes[:-1], out)


def matmul(step: Step, input: Traced, **factors: Any) -> Axes:
    """(…, n, m) by (…, m, p), with the batch axes broadcast; vectors as torch takes them."""
    a, b = input.axes, next(factor.axes for factor in factors.values() if isinstance(factor, Traced))
    if len(b) == 1:
        step.sum_over(a[-1], b[0])
        return a[:-1]
    batch = broadcast(step, a[:-2], b[:-2])  # before what is summed over: contents of heads belong to their heads
    step.sum_over(a[-1], b[-2])
    return (*batch, *a[-2:-1], b[-1])


def addmm(step: Step, input: Traced, **factors: Any) -> Axes:
    """A matrix product plus a bias; Conv1D of GPT-2 keeps its weight as (in, out)."""
    first, second = (factor for factor in factors.values() if isinstance(factor, Traced))
    return broadcast(step, matmul(step, first, other=second), input.axes)


def einsum(step: Step, equation: str, tensors: Sequence[Traced], **_: Any) -> Result:
    """Letters in common are joined; those that the result lacks are summed over."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if "." in equation or not arrow:
        return unknown(step, tensors=tensors)
    axes: dict[str, Axis] = {}
    for letters, tensor in zip(inputs.split(","), tensors, strict=True):
        for letter, axis in zip(letters, tensor.axes, strict=True):
            if letter not in output:
                step.summed.append(axis)
            axes[letter] = step.join(axes[letter], axis) if letter in axes else axis
    return tuple(axes[letter] for letter in output)


def convolution(
    step: Step, input: Traced, weight: Traced, bias: Traced | None = None, groups: int = 1, **_: Any
) -> Axes:
    """Weight (out, in / groups, kernel…): channels come in groups, block by block; depthwise ones in groups of one."""
    batch, channels, space = _image(input.axes, weight)
    step.stop(*space, *weight.axes[2:])
    group, inside = step.split(channels, groups)
    step.join(group, step.split(weight.axes[0], groups)[0])
    step.sum_over(inside, weight.axes[1])
    if groups == 1:
        step.summed.append(channels)
    out = weight.axes[0] if bias is None else step.join(weight.axes[0], bias.axes[0])
    return (*batch, out, *map(step.still, step.shapes[0][len(batch) + 1 :]))


def transposed_convolution(
    step: Step, input: Traced, weight: Traced, bias: Traced | None = None, groups: int = 1, **_: Any
) -> Axes:
    """Weight (in, out / groups, kernel…)."""
    batch, channels, space = _image(input.axes, weight)
    step.stop(*space, *weight.axes[2:])
    group, inside = step.split(channels, groups)
    in_group, weight_inside = step.split(weight.axes[0], groups)
    group = step.join(group, in_group)
    step.sum_over(inside, weight_inside)
    out = product([group, weight.axes[1]])
    if bias is not None:
        out = step.join(out, bias.axes[0])
    return (*batch, out, *map(step.still, step.shapes[0][len(batch) + 1 :]))


def attention(
    step: Step,
    query: Traced,
    key: Traced,
    value: Traced,
    attn_mask: Traced | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Axes:
    """(…, heads, tokens, contents): query meets key over contents, key meets value over tokens; heads go along."""
    q, k, v = query.axes, key.axes, value.axes
    shared = broadcast(step, k[:-2], v[:-2])
    if enable_gqa and q[-3].size != shared[-1].size:  # query heads of one key-value head stand together
        shared = (*shared[:-1], product([shared[-1], blank(q[-3].size // shared[-1].size)]))
    batch = broadcast(step, q[:-2], shared)
    step.sum_over(q[-1], k[-1])
    tokens = step.join(k[-2], v[-2])
    step.rigid.append(tokens)
    if attn_mask is not None:
        broadcast(step, (*batch, q[-2], tokens), attn_mask.axes)
    return (*batch, q[-2], v[-1])


# Norms


def batch_norm(step: Step, input: Traced, **tensors: Any) -> Axes:
    """Weight, bias and running statistics, one for each channel."""
    for tensor in tensors.values():
        if isinstance(tensor, Traced):
            _per_channel(step, input.axes, tensor)
    return input.axes


def group_norm(step: Step, input: Traced, num_groups: int, weight: Any = None, bias: Any = None, **_: Any) -> Axes:
    """Channels in groups, block by block, each normalised by itself."""
    step.rigid.append(step.split(input.axes[1], num_groups)[1])
    return batch_norm(step, input, weight=weight, bias=bias)


def layer_norm(
    step: Step, input: Traced, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, **_: Any
) -> Axes:
    """Along the last axes; RMS norms too."""
    step.rigid += input.axes[-len(normalized_shape) :]
    return broadcast(step, input.axes, *(tensor.axes for tensor in (weight, bias) if tensor is not None))


def softmax(step: Step, input: Traced, dim: int, **_: Any) -> Axes:
    """Any order along the axis will do, but no rescaling."""
    step.rigid.append(input.axes[dim])
    return input.axes


# Reductions


def reduction(step: Step, input: Traced, dim: Any = None, keepdim: bool = False, **arguments: Any) -> Result:
    """A mean, sum or maximum does not mind the order, but every unit counts: a norm written by hand has one."""
    step.rigid += [input.axes[place] for place in _dims(dim, len(input.axes))]
    return truth(step, input, dim, keepdim, **arguments)


def truth(step: Step, input: Traced, dim: Any = None, keepdim: bool = False, **_: Any) -> Result:
    """Whether any, or all, are true, and how many there are: the axes that are left."""
    dims = _dims(dim, len(input.axes))
    kept = [
        (blank(1) if place in dims else axis) for place, axis in enumerate(input.axes) if keepdim or place not in dims
    ]
    return [tuple(kept)] * len(step.shapes) if len(step.shapes) > 1 else tuple(kept)


def extremum(step: Step, input: Traced, dim: Any = None, **arguments: Any) -> Result:
    """A reduction that also says where: the order matters. Without ``dim`` a plain one; of two tensors, elementwise."""
    if isinstance(arguments.get("other"), Traced):
        return elementwise(step, input=input, other=arguments["other"])
    if dim is not None or step.name.startswith("arg"):
        step.stop(*(input.axes[place] for place in _dims(dim, len(input.axes))))
    return reduction(step, input, dim, **arguments)


def ordered(step: Step, input: Traced, dim: int = -1, **_: Any) -> Result:
    """Sorting, accumulating, taking the largest: the order along one axis matters and stays."""
    place = dim % len(input.axes)
    step.stop(input.axes[place])
    results = [(*input.axes[:place], step.still(shape[place]), *input.axes[place + 1 :]) for shape in step.shapes]
    return results if len(results) > 1 else results[0]


def _image(axes: Axes, weight: Traced) -> tuple[Axes, Axis, Axes]:
    """Batch axes (none or one), channels and space."""
    place = len(axes) - (len(weight.axes) - 2) - 1
    return axes[:place], axes[place], axes[place + 1 :]


def _per_channel(step: Step, axes: Axes, tensor: Traced) -> None:
    channels = axes[1] if len(axes) > 1 else axes[0]
    if len(tensor.axes) == 1 and tensor.axes[0].size == channels.size:
        step.join(channels, tensor.axes[0])


def _dims(dim: Any, rank: int) -> set[int]:
    """Axes that are meant, counted from the front: one, several, or (None, empty) all."""
    if dim is None or dim == []:
        return set(range(rank))
    return {place % rank for place in (dim if isinstance(dim, Sequence) else [dim])} if rank else set()
