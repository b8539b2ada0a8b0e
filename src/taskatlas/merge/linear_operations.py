"""Operations of a graph that are linear in a weight, the norms after them, and their inputs as rows of a regression."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from taskatlas.merge.patch_products import patch_products

aten = torch.ops.aten
_PIECE = 2**18  # numbers that are centred at a time: few enough for a cache
_PASSING = (aten.clone.default, aten.view.default, aten.reshape.default, aten._to_copy.default)


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A norm with running statistics; ``weight`` and ``bias`` are None where it has none."""

    node: Node
    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float

    @classmethod
    def at(cls, node: Node) -> "BatchNorm | None":
        """The norm at a node, if its tensors are the network's own and nothing else reads them."""
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            return None
        _, weight, bias, mean, variance, _, epsilon = node.args
        if not all(part is None or _own(part) for part in (weight, bias)) or not (_own(mean) and _own(variance)):
            return None
        return cls(node, _name(weight), _name(bias), str(_name(mean)), str(_name(variance)), float(str(epsilon)))

    def scale_and_shift(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What it does to every channel, float64."""
        scale = (tensors[self.variance].double() + self.epsilon).rsqrt()
        if self.weight is not None:
            scale = scale * tensors[self.weight].double()
        shift = -tensors[self.mean].double() * scale
        return scale, shift if self.bias is None else shift + tensors[self.bias].double()


@dataclass(frozen=True, eq=False)
class LinearOperation:
    """A convolution or a product with a weight that nothing else reads.

    Attributes:
        node: in the graph.
        weight: the weight's name.
        bias: the bias's name, if it has one.
        out_axis: the weight's axis of output channels.
        channel: the axis of the channels in what it gives.
        window: of a convolution: stride, padding and dilation.
        groups: of a convolution.
        norm: the BatchNorm that takes what it gives, if that goes nowhere else.
    """

    node: Node
    weight: str
    bias: str | None
    out_axis: int = 0
    channel: int = -1
    window: tuple[tuple[int, ...], ...] = ()
    groups: int = 1
    norm: BatchNorm | None = None

    @classmethod
    def at(cls, node: Node) -> "LinearOperation | None":
        """What stands at a node, if it is such an operation."""
        args: tuple[Any, ...] = node.args
        match node.target:
            case aten.linear.default:
                _, weight, bias = (*args, None)[:3]
                found: dict[str, Any] = {}
            case aten.addmm.default:
                bias, _, weight = args
                found = {"out_axis": 1}
            case aten.conv1d.default | aten.conv2d.default:
                axes = 1 if node.target is aten.conv1d.default else 2
                left_out: tuple[Any, ...] = (None, (1,), (0,), (1,), 1)[len(args) - 2 :]
                _, weight, bias, *window, groups = (*args, *left_out)
                spread = tuple(tuple(size) * (axes // len(size)) for size in window)
                found = {"channel": 1, "window": spread, "groups": groups}
            case _:
                return None
        if not _own(weight) or not (bias is None or _own(bias)) or node.kwargs:
            return None
        return cls(node, str(_name(weight)), _name(bias), norm=_norm_after(node), **found)

    @property
    def input(self) -> Node:
        """What it takes."""
        (taken,) = (source for source in self.node.all_input_nodes if source.target not in (self.weight, self.bias))
        return taken

    def other_summand(self) -> Node | None:
        """What the result is added to, norm included, if it goes nowhere else."""
        node = self.node
        if self.norm is not None:
            (node,) = self.norm.node.users
        while len(node.users) == 1:
            (user,) = node.users
            if user.target is aten.add.Tensor and not user.kwargs and len(user.all_input_nodes) == 2:
                return next(operand for operand in user.all_input_nodes if operand is not node)
            if user.target not in _PASSING:
                return None
            node = user
        return None

    def rows(self, x: Tensor, weight: Tensor) -> Float[Tensor, "groups rows inputs"]:
        """What the result is a linear function of, at every position, for each group of a convolution."""
        if not self.window:
            return x.reshape(1, -1, x.shape[-1])
        kernel, (stride, padding, dilation) = tuple(weight.shape[2:]), self.window
        if len(kernel) == 1:
            kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
        patches = F.unfold(as_images(x), kernel, dilation, padding, stride)
        return patches.reshape(len(x), self.groups, -1, patches.shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)

    @property
    def moves_by_one(self) -> bool:
        """Whether it is a convolution whose patches overlap as far as they can."""
        return bool(self.window) and {*self.window[0], *self.window[2]} == {1}

    def products(
        self, inputs: Sequence[Tensor], results: Sequence[Tensor], weight: Tensor
    ) -> tuple[Float[Tensor, "groups unknowns unknowns"], Float[Tensor, "groups unknowns outputs"]]:
        """XᵀX and XᵀY of all rows X, with a constant 1, of a convolution that moves by one."""
        height, width = (1, *weight.shape[2:])[-2:]
        above, beside = (0, *self.window[1])[-2:]
        taken, given = ([as_images(values) for values in batches] for batches in (inputs, results))
        return patch_products(taken, given, (height, width), (above, beside), self.groups)

    def columns(self, y: Tensor) -> Float[Tensor, "groups rows outputs"]:
        """A result in the order of ``rows``."""
        channels = y.shape[self.channel]
        return y.movedim(self.channel, -1).reshape(-1, self.groups, channels // self.groups).movedim(1, 0)

    def as_matrices(self, weight: Tensor) -> Float[Tensor, "groups inputs outputs"]:
        """The weight as it multiplies ``rows``."""
        if self.out_axis == 1:
            return weight.unsqueeze(0)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(1, 2)

    def as_weight(self, matrices: Float[Tensor, "groups inputs outputs"], shape: torch.Size) -> Tensor:
        """The inverse of ``as_matrices``."""
        return matrices[0] if self.out_axis == 1 else matrices.transpose(1, 2).reshape(shape)


def as_images(x: Tensor) -> Float[Tensor, "samples channels height width"]:
    """What a convolution along one axis takes or gives, as images of height 1; images as they are."""
    return x.unsqueeze(2) if x.ndim == 3 else x


def along(vector: Tensor, ndim: int, axis: int) -> Tensor:
    """Numbers for one axis, shaped so that they multiply tensors of ``ndim`` axes.

    Example:
        >>> along(torch.ones(3), 4, 1).shape
        torch.Size([1, 3, 1, 1])
    """
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def moments(values: Sequence[Tensor], channel: int) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and variance of every channel over all else in several batches, float64.

    Example:
        >>> moments([torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])], 1)[1].round(decimals=3)
        tensor([2.6670], dtype=torch.float64)
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for value in (value for value in values if value.numel()):
        for piece in torch.split(value.movedim(channel, 1), max(1, _PIECE * len(value) // value.numel())):
            part = piece.to(torch.promote_types(piece.dtype, torch.float32))
            axes = [0, *range(2, part.ndim)]
            centre = part.mean(axes, keepdim=True)
            more = part.numel() // part.shape[1]
            apart = centre.flatten().double() - mean
            squares = squares + (part - centre).square_().sum(axes).double()
            squares += apart.square() * (count * more / (count + more))
            mean = mean + apart * (more / (count + more))
            count += more
    return mean, squares / count


def _norm_after(node: Node) -> BatchNorm | None:
    users = list(node.users)
    norm = BatchNorm.at(users[0]) if len(users) == 1 else None
    return norm if norm is not None and len(norm.node.users) == 1 else None


def _own(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr" and len(node.users) == 1


def _name(node: Any) -> str | None:
    return None if node is None else str(node.target)
