"""What each ATen operation says about axes: one small function for each kind of operation.

A rule gets the ``Step`` it is about and the operation's arguments by their names in the ATen schema (``self`` is called
``input``), tensors as ``Traced``. It joins what moves together and returns the axes of its result; for an operation with
several results, a list of these. ``RULES`` says which operation follows which rule; the many elementwise ones are known
by their tag. What is not in the table freezes every axis it touches.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from taskatlas.merge.axes import (
    Axis,
    Mismatch,
    blank,
    chosen,
    cut,
    fixed,
    free,
    freeze,
    join,
    leaves,
    product,
    regroup,
    split,
    total,
)

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
        axis = fixed(size, f"its order matters in {self.name}")
        axis.where = self.where
        return axis

    def empty(self, size: int) -> Axis:
        """An axis of equal values; what is written into them later decides what it is."""
        return free(size) if self.refilled else blank(size)

    def stop(self, *axes: Axis) -> None:
        """The operation tells positions along these axes apart."""
        for axis in axes:
            freeze(axis, f"its order matters in {self.name}", self.where)

    def give_up(self, error: Mismatch, *axes: Axis) -> None:
        """Axes that do not fit the operation do not move."""
        for axis in axes:
            freeze(axis, f"{error} in {self.name}", self.where)


# Elementwise


def elementwise(step: Step, **arguments: Any) -> Result:
    """Broadcast from the right; axes that meet are joined. An assertion or a size has no axes."""
    tensors = [value for value in arguments.values() if isinstance(value, Traced)]
    return broadcast(step, *(tensor.axes for tensor in tensors))


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


def same(step: Step, input: Traced, **_: Any) -> Axes:
    """Other values or another type, in the same order."""
    return input.axes


def glu(step: Step, input: Traced, dim: int = -1, **_: Any) -> Axes:
    """The first half of an axis times a gate of the second."""
    axes = list(input.axes)
    halves = _cut(step, axes[dim], [axes[dim].size // 2] * 2)
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


def einsum(step: Step, equation: str, tensors: Sequence[Traced], **_: Any) -> Axes:
    """Letters in common are joined; those that the result lacks are summed over."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    if "." in equation or not output:
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
    """Weight (out, in / groups, kernel…): channels come in groups, block by block; a depthwise one has as many as units."""
    batch, channels, space = _image(input.axes, weight)
    step.stop(*space, *weight.axes[2:])
    group, inside = _split(step, channels, groups)
    out_group, _ = _split(step, weight.axes[0], groups)
    step.join(group, out_group)
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
    group, inside = _split(step, channels, groups)
    in_group, weight_inside = _split(step, weight.axes[0], groups)
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
    _, inside = _split(step, input.axes[1], num_groups)
    step.rigid.append(inside)
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


def reduction(step: Step, input: Traced, dim: Any = None, keepdim: bool = False, **_: Any) -> Result:
    """A mean, sum or maximum does not mind the order."""
    dims = _dims(dim, len(input.axes))
    kept = [
        (blank(1) if place in dims else axis) for place, axis in enumerate(input.axes) if keepdim or place not in dims
    ]
    return [tuple(kept)] * len(step.shapes) if len(step.shapes) > 1 else tuple(kept)


def extremum(step: Step, input: Traced, dim: Any = None, **arguments: Any) -> Result:
    """A reduction that also says where: the order matters. Without ``dim`` it is a plain one; of two tensors, elementwise."""
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


def permute(step: Step, input: Traced, dims: Sequence[int], **_: Any) -> Axes:
    """Axes in another order."""
    return tuple(input.axes[dim] for dim in dims)


def transpose(step: Step, input: Traced, dim0: int = 0, dim1: int = 1, **_: Any) -> Axes:
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


def repeat(step: Step, input: Traced, repeats: Sequence[int], **_: Any) -> Axes:
    """The tensor as tiles."""
    axes = (*(blank(1) for _ in range(len(repeats) - len(input.axes))), *input.axes)
    return tuple(product([blank(count), axis]) for count, axis in zip(repeats, axes, strict=True))


def repeat_interleave(step: Step, input: Traced, repeats: int, dim: int | None = None, **_: Any) -> Axes:
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
    parts = _cut(step, input.axes[dim], sizes)
    return [_replaced(input.axes, dim, part) for part in parts]


def slice_(
    step: Step, input: Traced, dim: int = 0, start: int | None = None, end: int | None = None, step_: int = 1, **_: Any
) -> Axes:
    """Part of an axis; with strides, an axis that stays."""
    axis = input.axes[dim]
    first, last, _ = slice(start, end).indices(axis.size)
    if step_ != 1:
        step.stop(axis)
        return _replaced(input.axes, dim, step.still(step.shapes[0][dim]))
    if last <= first:
        return _replaced(input.axes, dim, blank(0))
    parts = _cut(step, axis, [first, last - first, axis.size - last])
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
    *batch, channels, _, _ = input.axes
    channels, pixels = _split(step, channels, channels.size // upscale_factor**2)
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


def index(step: Step, input: Traced, indices: Sequence[Traced | None], **_: Any) -> Axes:
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


# Tensors from nothing, and what is not understood


def constant(step: Step, **_: Any) -> Axes:
    """Zeros, ones, one value: any order will do; where it is filled later, whatever is put in says."""
    return tuple(map(step.empty, step.shapes[0]))


def positions(step: Step, **_: Any) -> Axes:
    """Numbers that count."""
    return tuple(fixed(size, "its positions are counted") for size in step.shapes[0])


def unknown(step: Step, **arguments: Any) -> Result:
    """Every axis it touches stays; so do those of its results."""
    for axis in _all_axes(list(arguments.values())):
        freeze(axis, f"{step.name} is not understood", step.where)
    results = [tuple(fixed(size, f"{step.name} is not understood") for size in shape) for shape in step.shapes]
    return results if len(results) > 1 else (results[0] if results else ())


RULES: Mapping[Rule, str] = {
    same: """dropout clone contiguous alias detach to _to_copy type_as lift_fresh_copy feature_dropout alpha_dropout fill
        zero requires_grad float half double bfloat16 int long bool""",
    elementwise: """copy __and__ __or__ __xor__
        gelu hardswish where add sub mul div pow log_sigmoid floor_divide _weight_norm _assert_tensor_metadata""",
    glu: "glu",
    prelu: "prelu _prelu_kernel",
    linear: "linear",
    matmul: "matmul mm bmm mv dot",
    addmm: "addmm baddbmm addbmm",
    einsum: "einsum",
    convolution: "conv1d conv2d conv3d",
    transposed_convolution: "conv_transpose1d conv_transpose2d conv_transpose3d",
    attention: "scaled_dot_product_attention",
    batch_norm: "batch_norm instance_norm",
    group_norm: "group_norm",
    layer_norm: "layer_norm rms_norm _fused_rms_norm",
    softmax: "softmax log_softmax _softmax _log_softmax",
    reduction: "mean sum prod var std amax amin logsumexp norm linalg_vector_norm any all var_mean std_mean numel",
    extremum: "max min argmax argmin median mode",
    ordered: "sort topk argsort cumsum cumprod flip roll logcumsumexp cummax cummin",
    view: "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as ravel",
    permute: "permute",
    transpose: "transpose swapaxes swapdims t",
    matrix_transpose: "mT numpy_T adjoint",
    expand: "expand expand_as broadcast_to",
    repeat: "repeat tile",
    repeat_interleave: "repeat_interleave",
    concatenate: "cat concat concatenate",
    stack: "stack",
    pieces: "split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk",
    slice_: "slice narrow",
    select: "select",
    unbind: "unbind",
    pad: "pad constant_pad_nd",
    pixel_shuffle: "pixel_shuffle",
    pixel_unshuffle: "pixel_unshuffle",
    spatial: """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
        adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
        upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa""",
    embedding: "embedding",
    index: "index",
    look_up: "gather scatter scatter_add index_select index_add index_copy take_along_dim",
    positions: "arange linspace eye",
    constant: "zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty",
}
RULE_OF: Mapping[str, Rule] = {name: rule for rule, names in RULES.items() for name in names.split()}


def rule_of(operation: Any) -> Rule:
    """The rule of an ATen operation; in place or not makes no difference to axes."""
    name = str(operation).removeprefix("aten.").split(".")[0]
    if not name.endswith("__"):
        name = name.removesuffix("_")
    if name in RULE_OF:
        return RULE_OF[name]
    pointwise = isinstance(operation, torch._ops.OpOverload) and torch.Tag.pointwise in operation.tags
    return elementwise if pointwise else unknown


def _image(axes: Axes, weight: Traced) -> tuple[Axes, Axis, Axes]:
    """Batch axes (none or one), channels and space."""
    place = len(axes) - (len(weight.axes) - 2) - 1
    return axes[:place], axes[place], axes[place + 1 :]


def _per_channel(step: Step, axes: Axes, tensor: Traced) -> None:
    channels = axes[1] if len(axes) > 1 else axes[0]
    if len(tensor.axes) == 1 and tensor.axes[0].size == channels.size:
        step.join(channels, tensor.axes[0])


def _split(step: Step, axis: Axis, outer: int) -> tuple[Axis, Axis]:
    try:
        return split(axis, outer)
    except Mismatch as error:
        step.give_up(error, axis)
        return step.still(outer), step.still(axis.size // outer)


def _cut(step: Step, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    try:
        return cut(axis, sizes)
    except Mismatch as error:
        step.give_up(error, axis)
        return [step.still(size) for size in sizes if size]


def _dims(dim: Any, rank: int) -> set[int]:
    """Axes that are meant, counted from the front: one, several, or (None, empty) all."""
    if dim is None or dim == []:
        return set(range(rank))
    return {place % rank for place in (dim if isinstance(dim, Sequence) else [dim])} if rank else set()


def _without(axes: Axes, dim: int) -> Axes:
    place = dim % len(axes)
    return axes[:place] + axes[place + 1 :]


def _replaced(axes: Axes, dim: int, axis: Axis) -> Axes:
    place = dim % len(axes)
    return (*axes[:place], axis, *axes[place + 1 :])


def _restored(axes: Axes, dim: int) -> Axes:
    place = dim % (len(axes) + 1)
    return (*axes[:place], blank(1), *axes[place:])


def _all_axes(value: Any) -> list[Axis]:
    if isinstance(value, Traced):
        return list(value.axes)
    if isinstance(value, list | tuple):
        return [axis for item in value for axis in _all_axes(item)]
    return []
