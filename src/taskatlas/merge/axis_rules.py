"""Which ATen operation follows which rule about axes.

Elementwise operations, of which there are many, are known by their tag. What is not in the table freezes every axis
that it touches.
"""

from collections.abc import Mapping
from typing import Any

import torch

from taskatlas.merge.axis_arithmetic import (
    addmm,
    attention,
    batch_norm,
    convolution,
    einsum,
    elementwise,
    extremum,
    glu,
    group_norm,
    layer_norm,
    linear,
    matmul,
    ordered,
    prelu,
    reduction,
    same,
    softmax,
    transposed_convolution,
    truth,
)
from taskatlas.merge.axis_shapes import (
    concatenate,
    constant,
    embedding,
    expand,
    index,
    look_up,
    matrix_transpose,
    pad,
    permute,
    pieces,
    pixel_shuffle,
    pixel_unshuffle,
    positions,
    repeat,
    repeat_interleave,
    select,
    slice_,
    spatial,
    stack,
    transpose,
    unbind,
    view,
)
from taskatlas.merge.axis_step import Rule, unknown

RULES: Mapping[Rule, str] = {
    same: """dropout feature_dropout alpha_dropout clone contiguous alias detach to _to_copy type_as lift_fresh_copy
        fill zero requires_grad float half double bfloat16 int long bool""",
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
    reduction: "mean sum prod var std amax amin logsumexp norm linalg_vector_norm var_mean std_mean",
    truth: "any all numel",
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
    spatial: """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d
        upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa""",
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
