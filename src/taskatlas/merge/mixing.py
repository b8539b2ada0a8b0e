"""Every sample through a network of its own, without making the networks: coefficients mixed layer by layer.

An affine layer is linear in its coefficients, y = x W₀ + Σ_i λ_i (x τ_i), so a batch passes through it at once with
each sample's own λ. Three forms of the same sum are used, whichever is cheapest. Outputs are mixed where a sample has
one or two positions. Where it has many (tokens, pixels), W₀ + Σ_i λ_i τ_i is formed for some rows at a time, for all
samples in one matrix product, and used at once. Low-rank updates stay factors. Nothing as large as a model is made.

Linear, convolution, embedding and normalisation layers are mixed so, and torch's self-attention where its weights over
positions are not asked for. Another module with weights of its own is run for one sample after the other, with that
sample's weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.func import functional_call
from torch.nn import functional as F

from taskatlas.errors import BadInput
from taskatlas.merge.exporting import slow_attention
from taskatlas.merge.low_rank import LowRankVectors, Vectors
from taskatlas.merge.task_vectors import TaskVectors

_FEW_POSITIONS = 2  # up to here mixing N outputs is cheaper than forming weights
_TOGETHER = 16  # samples whose weights are formed in one product
_WORKSPACE = 2**21  # elements of weights that are formed at a time, for these samples together: they stay in cache

_ONE_DNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # private to torch, and not in every build
_LARGE = 2**21  # multiplications for each thread, of one sample and some rows: from here on oneDNN is worth a call
_ROWS = 256  # of its products: fewer keep threads idle
_LARGE_WORKSPACE = 2**24  # elements of weights that are formed at a time for these products

_WEIGHTS = 2**23  # elements of weights that are formed at a time for modules that run one sample after the other

_ATTENTION = signature(nn.MultiheadAttention.forward)

_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


Argument = int | str
"""Of a call: its position, or its name."""


class CannotMix(BadInput):
    """A network whose samples cannot be told apart layer by layer; another engine has to run it."""


@dataclass(eq=False)
class Mixing:
    """Base and experts within a network that runs every sample with its own coefficients.

    Attributes:
        vectors: base and task vectors, where the network runs.
        coefficients: of the samples that are passing, (batch, N) or (batch, N, T).
        shared: module -> the arguments, by position or name, that are the same for all samples (positions, masks).
        called: names of modules whose weights took part.
    """

    vectors: Vectors
    coefficients: Float[Tensor, "batch N *T"]
    shared: Mapping[str, frozenset[Argument]] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    _spaces: list[Tensor] = field(default_factory=list, repr=False)

    def of_tensor(self, name: str) -> Float[Tensor, "batch N"]:
        """The coefficients of one tensor."""
        if self.coefficients.ndim == 2:
            return self.coefficients
        return self.coefficients[:, :, self._columns[self.standing(name)]]

    def has_samples(self, module: str, argument: Argument) -> bool:
        """Whether what a module is given as this argument has the samples on its first axis."""
        return argument not in self.shared.get(module, ())

    def standing(self, name: str) -> str:
        """The name under which a tensor stands among the vectors."""
        return self.vectors.ties.get(name, name)

    def moves(self, name: str) -> bool:
        """Whether a tensor has task vectors."""
        return self.standing(name) in self.vectors.places

    def each(self, name: str, own: Tensor | None) -> Tensor | None:
        """A tensor as every sample has it, (batch, ...); one axis of length 1 where all have the same, None for none.

        Args:
            name: of the tensor.
            own: what the network has, for a tensor without task vectors.
        """
        if own is None or not self.moves(name):
            return None if own is None else own[None]
        shape, coefficients = self.vectors.shapes[self.standing(name)], self.of_tensor(name)
        if isinstance(self.vectors, TaskVectors):
            place = self.vectors.places[self.standing(name)]
            return (_with_base(coefficients) @ self.vectors.matrix[:, place]).view(-1, *shape)
        factors = self.vectors.factors[self.standing(name)]
        updates = (factors.up * coefficients[:, None, factors.owner]) @ factors.down
        return (self._base(name).reshape(updates.shape[1:]) + updates).view(-1, *shape)

    def linear(self, x: Float[Tensor, "batch k i"], name: str, own: Tensor) -> Float[Tensor, "batch k o"]:
        """The product x W(λ)ᵀ with every sample's own W(λ)."""
        if not self.moves(name):
            return F.linear(x, own)
        weight, coefficients = self._base(name), self.of_tensor(name)
        if isinstance(self.vectors, LowRankVectors):
            factors = self.vectors.factors[self.standing(name)]
            inner = (x @ factors.down.T) * coefficients[:, None, factors.owner]
            return F.linear(x, weight) + inner @ factors.up.T
        place = self.vectors.places[self.standing(name)]
        if x.shape[1] <= _FEW_POSITIONS:
            mixed = F.linear(x, weight)
            for delta, scale in zip(self.vectors.deltas[:, place].view(-1, *weight.shape), coefficients.T, strict=True):
                mixed = mixed + F.linear(x * scale[:, None, None], delta)
            return mixed
        return self._by_forming(x, self.vectors.matrix[:, place], _with_base(coefficients))

    def rows(self, ids: Tensor, name: str, own: Tensor) -> Tensor:
        """Rows of an embedding, (batch, ..., d), each sample's from its own table."""
        if not self.moves(name):
            return own[ids]
        coefficients = self.of_tensor(name)
        if isinstance(self.vectors, LowRankVectors):
            factors = self.vectors.factors[self.standing(name)]
            scale = coefficients[:, factors.owner].view(len(ids), *[1] * (ids.ndim - 1), -1)
            return self._base(name)[ids] + (factors.up[ids] * scale) @ factors.down
        place = self.vectors.places[self.standing(name)]
        mixed = self._base(name)[ids]
        deltas = self.vectors.deltas[:, place].view(len(self.vectors.names), *own.shape)
        for delta, scale in zip(deltas, coefficients.T, strict=True):
            mixed = mixed + delta[ids] * scale.view(-1, *[1] * ids.ndim)
        return mixed

    def _base(self, name: str) -> Tensor:
        place = self.vectors.places[self.standing(name)]
        return self.vectors.base[place].view(self.vectors.shapes[self.standing(name)])

    def _by_forming(
        self,
        x: Float[Tensor, "batch k i"],
        matrix: Float[Tensor, "rows size"],
        coefficients: Float[Tensor, "batch rows"],
    ) -> Float[Tensor, "batch k o"]:
        """Some rows of the weights of some samples are formed at a time, and used at once."""
        inputs = x.shape[2]
        outputs = matrix.shape[1] // inputs
        mixed = x.new_empty(*x.shape[:2], outputs)
        few, large = min(len(x), _TOGETHER), _is_large(x, min(outputs, _ROWS))
        if large:
            rows, multiply, x = min(outputs, _ROWS), _multiply_one_by_one, _filled_up(x)
            few = min(few, max(1, _LARGE_WORKSPACE // (inputs * rows)))
        else:
            rows, multiply = min(outputs, max(1, _WORKSPACE // (inputs * few))), _multiply_together
        with self._workspace(few * rows * inputs, x) as space:
            for start in range(0, outputs, rows):
                stop = min(start + rows, outputs)
                piece = matrix[:, start * inputs : stop * inputs]
                for first in range(0, len(x), few):
                    part = slice(first, min(first + few, len(x)))
                    formed = space[: (part.stop - first) * piece.shape[1]].view(part.stop - first, -1)
                    torch.mm(coefficients[part], piece, out=formed)
                    multiply(x[part], formed.view(len(formed), -1, inputs), mixed[part, :, start:stop])
        return mixed

    @contextmanager
    def _workspace(self, size: int, x: Tensor) -> Iterator[Tensor]:
        """Memory for weights that are formed: layers share it, for the system takes a while to give new.

        A layer whose input is differentiated has its own, for its backward pass needs the weights again (torch refuses
        one whose parts wrote over each other's). What another thread uses, or what failed had in use, is not shared.
        """
        if _is_differentiated(x):
            yield self.vectors.base.new_empty(size)
            return
        try:
            space = self._spaces.pop()
        except IndexError:
            space = self.vectors.base.new_empty(0)
        if space.numel() < size:
            with torch.inference_mode(False):  # so that it may be used again outside of that mode
                space = self.vectors.base.new_empty(size)
        yield space
        self._spaces.append(space)

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.vectors.places)}

    @contextmanager
    def only(self, rows: slice) -> Iterator[None]:
        """While it lasts, some samples pass."""
        kept = self.coefficients
        self.coefficients = kept[rows]
        try:
            yield
        finally:
            self.coefficients = kept


@contextmanager
def mixed(network: nn.Module, mixing: Mixing) -> Iterator[None]:
    """While it lasts, a network computes with each sample's own coefficients; afterwards it is as it was.

    Raises:
        CannotMix: in a pass, where a module's input does not say which sample is which.
    """
    with ExitStack() as stack:
        stack.enter_context(slow_attention())  # the fast one would read weights behind the modules' backs
        for name, module in mixable(network, mixing.vectors).items():
            stack.enter_context(_forward(module, _mixed_forward(name, module, mixing)))
        yield


def mixable(network: nn.Module, vectors: Vectors) -> dict[str, nn.Module]:
    """The modules of a network whose own weights have task vectors, by name; an attention of torch's counts whole."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if any(isinstance(network.get_submodule(above), nn.MultiheadAttention) for above in _above(name)):
            continue
        whole = isinstance(module, nn.MultiheadAttention)
        weights = module.named_parameters(name, recurse=whole, remove_duplicate=False)
        if any(vectors.ties.get(weight, weight) in vectors.places for weight, _ in weights):
            found[name] = module
    return found


def shared_arguments(
    network: nn.Module, vectors: Vectors, run: Callable[[int], object]
) -> dict[str, frozenset[Argument]]:
    """What a pass gives to a module alike whatever the batch: positions, masks.

    Args:
        network: whose calls are watched.
        vectors: which modules matter.
        run: runs the network on a batch of so many samples.

    Returns:
        Module -> those of its arguments.

    Raises:
        CannotMix: an argument's first axis neither stays nor grows with the batch: samples stand on another axis.
    """
    sizes: dict[int, dict[tuple[str, Argument], set[int]]] = {2: {}, 3: {}}
    for batch, seen in sizes.items():
        with ExitStack() as stack:
            for name, module in mixable(network, vectors).items():

                def watch(_: nn.Module, args: Any, kwargs: Any, seen: Any = seen, name: str = name) -> None:
                    for argument, value in (*enumerate(args), *kwargs.items()):
                        if isinstance(value, Tensor) and value.ndim:
                            seen.setdefault((name, argument), set()).add(len(value))

                hook = module.register_forward_pre_hook(watch, with_kwargs=True)
                stack.callback(hook.remove)
            run(batch)
    shared: dict[str, set[Argument]] = {}
    for (name, argument), two in sizes[2].items():
        three = sizes[3].get((name, argument), set())
        if two == three:
            shared.setdefault(name, set()).add(argument)
        elif {size * 3 for size in two} != {size * 2 for size in three}:
            raise CannotMix(f"the inputs of {name!r} do not have the samples on their first axis")
    return {name: frozenset(arguments) for name, arguments in shared.items()}


def _with_base(coefficients: Float[Tensor, "batch N"]) -> Float[Tensor, "batch rows"]:
    """Coefficients of all rows of ``TaskVectors.matrix``: the base counts once."""
    return torch.cat([coefficients, torch.ones_like(coefficients[:, :1])], 1)


def _is_large(x: Float[Tensor, "batch k i"], rows: int) -> bool:
    """Whether oneDNN, which takes one sample at a time and gives no derivatives, gains more than its calls cost."""
    there = _ONE_DNN is not None and bool(torch.backends.mkldnn.enabled)
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and not _is_differentiated(x)
    return there and fits and x.shape[1] * x.shape[2] * rows >= _LARGE * torch.get_num_threads()


def _is_differentiated(x: Tensor) -> bool:
    """In either direction."""
    return x.requires_grad or unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _filled_up(x: Float[Tensor, "batch k i"]) -> Float[Tensor, "batch more i"]:
    """With positions of zeros, so that there are 16 lengths at most between a power of two and the next.

    oneDNN keeps the code that it makes for each length, .7 MB for each size of layer.
    """
    missing = -x.shape[1] % (1 << max(2, int(x.shape[1]).bit_length() - 5))
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def _multiply_together(
    x: Float[Tensor, "batch k i"], weights: Float[Tensor, "batch o i"], out: Float[Tensor, "batch k o"]
) -> None:
    out.copy_(torch.bmm(x, weights.transpose(1, 2)))


def _multiply_one_by_one(
    x: Float[Tensor, "batch more i"], weights: Float[Tensor, "batch o i"], out: Float[Tensor, "batch k o"]
) -> None:
    for sample, weight, its_own in zip(x, weights, out, strict=True):
        its_own.copy_(_ONE_DNN(sample, weight, None, "none", [], "")[: len(its_own)])


def _mixed_forward(name: str, module: nn.Module, mixing: Mixing) -> Callable[..., Any]:
    plain = module.forward
    prefix = f"{name}." if name else ""
    by_kind = _mixed_by(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        mixing.called.add(name)
        given: list[tuple[Argument, Any]] = [*enumerate(args), *kwargs.items()]
        if by_kind is not None and len(given) == 1:
            ((argument, x),) = given
            return by_kind(module, prefix, _with_samples(x, name, argument, mixing), mixing)
        if isinstance(module, nn.MultiheadAttention):
            call = _ATTENTION.bind(module, *args, **kwargs)
            call.apply_defaults()
            if _can_mix_attention(module, call.arguments):
                x = _with_samples(call.arguments["query"], name, 0 if args else "query", mixing)
                return _self_attention(module, prefix, x, call.arguments, mixing), None
        if not any(isinstance(x, Tensor) and x.ndim and mixing.has_samples(name, key) for key, x in given):
            raise CannotMix(
                f"{name!r} has weights of its own, and its inputs do not have the samples on their first axis"
            )
        return _one_by_one(module, name, plain, args, kwargs, mixing)

    return forward


def _with_samples(x: Tensor, name: str, argument: Argument, mixing: Mixing) -> Tensor:
    """The input with the samples on its first axis, or a multiple of them; what all share is repeated for each."""
    batch = len(mixing.coefficients)
    if not mixing.has_samples(name, argument) and x.shape[0] != 1:
        raise CannotMix(f"{name!r} gets an input of shape {tuple(x.shape)} that is the same for all samples")
    if x.shape[0] == 1:
        return x.expand(batch, *x.shape[1:])
    if x.shape[0] % batch:
        raise CannotMix(f"{name!r} gets an input of shape {tuple(x.shape)} for {batch} samples")
    return x


def _linear(module: Any, prefix: str, x: Tensor, mixing: Mixing) -> Tensor:
    batch = len(mixing.coefficients)
    found = mixing.linear(x.reshape(batch, -1, x.shape[-1]), f"{prefix}weight", module.weight)
    bias = mixing.each(f"{prefix}bias", module.bias)
    found = found if bias is None else found + bias[:, None]
    return found.view(*x.shape[:-1], -1)


def _can_mix_attention(module: nn.MultiheadAttention, given: Mapping[str, Any]) -> bool:
    """Whether queries, keys and values are three parts of one product, and nothing but the outputs is asked for."""
    plain = module.batch_first and module.in_proj_weight is not None and module.bias_k is None
    itself = given["query"] is given["key"] is given["value"] and given["query"].ndim == 3
    return plain and not module.add_zero_attn and itself and not given["need_weights"]


def _self_attention(
    module: nn.MultiheadAttention, prefix: str, x: Tensor, given: Mapping[str, Any], mixing: Mixing
) -> Tensor:
    batch, heads = len(mixing.coefficients), module.num_heads
    joined = mixing.linear(x.reshape(batch, -1, x.shape[-1]), f"{prefix}in_proj_weight", module.in_proj_weight)
    bias = mixing.each(f"{prefix}in_proj_bias", module.in_proj_bias)
    joined = joined if bias is None else joined + bias[:, None]
    q, k, v = joined.view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    mask = _attention_mask(given["attn_mask"], given["key_padding_mask"], heads, x)
    found = F.scaled_dot_product_attention(q, k, v, mask, module.dropout if module.training else 0.0)
    return _linear(module.out_proj, f"{prefix}out_proj.", found.transpose(1, 2).reshape(x.shape), mixing)


def _attention_mask(of_pairs: Tensor | None, of_keys: Tensor | None, heads: int, x: Tensor) -> Tensor | None:
    """Both masks as one that is added to the products of queries and keys, (samples or 1, heads or 1, L or 1, L)."""
    masks = []
    if of_pairs is not None:
        masks.append(of_pairs.view(-1, heads, *of_pairs.shape[1:]) if of_pairs.ndim == 3 else of_pairs[None, None])
    if of_keys is not None:
        masks.append(of_keys[:, None, None])
    added = [
        torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
        for mask in masks
    ]
    return sum(added[1:], added[0]) if added else None


def _convolution(module: Any, prefix: str, x: Tensor, mixing: Mixing) -> Tensor:
    """Samples become groups of one convolution."""
    batch = len(mixing.coefficients)
    weight = mixing.each(f"{prefix}weight", module.weight)
    bias = mixing.each(f"{prefix}bias", module.bias)
    assert weight is not None
    padding = module.padding
    if module.padding_mode != "zeros":
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    convolution, (channels, *space) = _CONVOLUTIONS[x.ndim], x.shape[1:]
    copies = len(x) // batch  # of the same sample: windows, frames
    grouped = x.view(batch, copies, channels, *space).transpose(0, 1).reshape(copies, batch * channels, *space)
    weights = weight.expand(batch, *weight.shape[1:]).flatten(0, 1)
    found = convolution(grouped, weights, None, module.stride, padding, module.dilation, batch * module.groups)
    found = found.view(copies, batch, -1, *found.shape[2:]).transpose(0, 1)
    found = found if bias is None else found + bias.view(-1, 1, bias.shape[-1], *[1] * len(space))
    return found.reshape(len(x), *found.shape[2:])


def _embedding(module: Any, prefix: str, x: Tensor, mixing: Mixing) -> Tensor:
    batch = len(mixing.coefficients)
    found = mixing.rows(x.reshape(batch, -1), f"{prefix}weight", module.weight)
    return found.view(*x.shape, -1)


def _layer_norm(module: Any, prefix: str, x: Tensor, mixing: Mixing) -> Tensor:
    shape = tuple(module.normalized_shape)
    return _scaled(F.layer_norm(x, shape, None, None, module.eps), module, prefix, mixing, shape, shape)


def _group_norm(module: Any, prefix: str, x: Tensor, mixing: Mixing) -> Tensor:
    plain = F.group_norm(x, module.num_groups, None, None, module.eps)
    return _scaled(plain, module, prefix, mixing, x.shape[1:], (x.shape[1], *[1] * (x.ndim - 2)))


def _batch_norm(module: Any, prefix: str, x: Tensor, mixing: Mixing) -> Tensor:
    if module.running_mean is None:
        raise CannotMix(f"{prefix.rstrip('.')!r} normalises each batch by itself, so its samples are not independent")
    plain = F.batch_norm(x, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
    return _scaled(plain, module, prefix, mixing, x.shape[1:], (x.shape[1], *[1] * (x.ndim - 2)))


def _scaled(
    x: Tensor, module: Any, prefix: str, mixing: Mixing, position: tuple[int, ...], scale: tuple[int, ...]
) -> Tensor:
    """Times each sample's weight and plus its bias, which have the shape ``scale`` beside one ``position`` of x."""
    weight, bias = mixing.each(f"{prefix}weight", module.weight), mixing.each(f"{prefix}bias", module.bias)
    found = x.reshape(len(mixing.coefficients), -1, *position)
    found = found if weight is None else found * weight.view(-1, 1, *scale)
    found = found if bias is None else found + bias.view(-1, 1, *scale)
    return found.view(x.shape)


def _one_by_one(module: nn.Module, name: str, plain: Callable[..., Any], args: Any, kwargs: Any, mixing: Mixing) -> Any:
    """A module that is not known: one sample after the other, each with its own weights."""
    batch, prefix = len(mixing.coefficients), f"{name}." if name else ""
    whole = isinstance(module, nn.MultiheadAttention)
    own = {key: value for key, value in module.named_parameters(recurse=whole) if mixing.moves(f"{prefix}{key}")}

    def of(row: int, argument: Argument, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 1:
            return value
        if not mixing.has_samples(name, argument):
            return value
        copies, rest = divmod(len(value), batch)
        if rest:
            raise CannotMix(f"{name!r} gets an input of shape {tuple(value.shape)} for {batch} samples")
        return value[row * copies : (row + 1) * copies]

    outputs = []
    together = max(1, _WEIGHTS // max(1, sum(value.numel() for value in own.values())))
    with _forward(module, plain):
        for start in range(0, batch, together):
            with mixing.only(slice(start, start + together)):
                formed = {key: mixing.each(f"{prefix}{key}", value) for key, value in own.items()}
            for row in range(start, min(start + together, batch)):
                weights = {key: value[row - start] for key, value in formed.items() if value is not None}
                its_args = tuple(of(row, position, value) for position, value in enumerate(args))
                its_kwargs = {key: of(row, key, value) for key, value in kwargs.items()}
                with mixing.only(slice(row, row + 1)):
                    outputs.append(functional_call(module, weights, its_args, its_kwargs))
    return _joined(outputs)


def _joined(outputs: list[Any]) -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(parts)) for parts in zip(*outputs, strict=True))
    if first is None:
        return None
    raise CannotMix(f"a module with weights of its own gives a {type(first).__name__}")


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def _mixed_by(module: nn.Module) -> "_ByKind | None":
    """How a module of a known kind is mixed; a subclass that computes something else is none."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return None
    kinds = (kind for kind in _KINDS if isinstance(module, kind) and type(module).forward is kind.forward)
    return next((_KINDS[kind] for kind in kinds), None)


def _above(name: str) -> list[str]:
    """Names of the modules that hold one, but the network itself."""
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(1, len(steps))]


_ByKind = Callable[[Any, str, Tensor, Mixing], Tensor]
_KINDS: Mapping[type[nn.Module], _ByKind] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}
