"""RegMean: the linear layers that come closest to what every model's own layer does with its own inputs.

For a linear layer y = xWᵀ the merge solves a least-squares problem in closed form,

    Wᵀ = (Σ c_i G̃_i)⁻¹ Σ c_i G̃_i W_iᵀ,    G_i = XᵢᵀXᵢ / n_i,    G̃ = α G + (1 − α) diag G,

where X_i are the inputs that model i's layer sees on its own data (Jin et al., "Dataless Knowledge Fusion by Merging
Weights of Language Models", ICLR 2023, equation 2 and section 4.2). Everything else is averaged. A convolution is a
linear layer on patches.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.aligned import Aligned
from taskatlas.merge.exporting import slow_attention
from taskatlas.merge.opening import open_as_saved
from taskatlas.merge.state import Model
from taskatlas.merge.unlabelled import Batch, Unlabelled, call, network_inputs
from taskatlas.probe import Probe, quiet
from taskatlas.store import Store, atomic_write, digest
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.weights import first_line, tensors_digest

_FORMAT = "taskatlas.layer_inputs/1"  # the one key of the metadata: of several, the order in the file would be random
_FILE = "inputs.safetensors"
_RIDGE = 1e-9  # of the mean of the diagonal; ten times as much until the matrix can be factored
_INPUT_FIRST = ("Conv1D",)  # transformers' linear layer whose weight is (inputs, outputs)


@dataclass(frozen=True, eq=False, repr=False)
class LayerInputs:
    """What the linear layers of one network see: for each layer's weight the Gram matrix of its inputs.

    Attributes:
        grams: weight's name -> XᵀX / n, (d, d), symmetric, float32 (float64 where the network is).
        rows: weight's name -> n: samples, or tokens that are no padding, or patches.
        input_first: weights that are stored as (inputs, outputs).

    Example:
        >>> layer_inputs(nn.Linear(2, 3), [torch.tensor([[1.0, 2.0], [3.0, 0.0]])]).grams["weight"]
        tensor([[5., 1.],
                [1., 2.]])
    """

    grams: Mapping[str, Tensor]
    rows: Mapping[str, int]
    input_first: frozenset[str]

    def __repr__(self) -> str:
        return f"LayerInputs({len(self.grams)} layers, up to {max(self.rows.values(), default=0):,} rows)"

    @property
    def digest(self) -> str:
        """Digest of matrices and counts."""
        return digest("layer_inputs", tensors_digest(self.grams), self.rows, self.input_first)

    def save(self, path: Path | str) -> None:
        """Writes one safetensors file.

        Raises:
            BadInput: the place cannot be written.
        """
        about = {"rows": dict(self.rows), "input_first": sorted(self.input_first)}
        with atomic_write(Path(path)) as file:
            save_file(dict(self.grams), file, metadata={_FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: Path | str) -> "LayerInputs":
        """Reads what ``save`` wrote; the matrices are memory-mapped.

        Raises:
            BadInput: the file is missing, cut short, or something else.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise BadInput(f"{path} holds no inputs of layers. Give a file that LayerInputs.save wrote.")
                about = json.loads(metadata[_FORMAT])
                grams = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return cls(grams, {name: int(about["rows"][name]) for name in grams}, frozenset(about["input_first"]))
        except FileNotFoundError as error:
            raise BadInput(f"there is no file {path}. Is the path right?") from error
        except (SafetensorError, OSError, LookupError, ValueError, TypeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{path} is not whole ({error}). Was its writing or copying cut short?") from error


def gram_matrices(
    checkpoint: Checkpoint,
    probe: Probe,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    store: Store | None = None,
) -> LayerInputs:
    """What the linear layers of a checkpoint see on a probe, computed once and kept in the store.

    Args:
        checkpoint: any network.
        probe: what it sees; its own data. Some hundred samples are enough: ``probe.take``.
        batch_size: samples a pass; changes nothing but rounding.
        device: ``cpu`` or ``cuda``.
        store: where the result is kept; None: the user's store.

    Raises:
        BadInput: as ``layer_inputs``.

    Example:
        >>> import numpy as np
        >>> gram_matrices(Checkpoint("net", module=nn.Linear(3, 2)), Probe.from_arrays(np.eye(3)))
        LayerInputs(1 layers, up to 3 rows)
    """

    def build(folder: Path) -> None:
        opened = open_as_saved(checkpoint, device)
        batches = Unlabelled(probe, prepare=opened.prepare, batch_size=batch_size, shuffle=False)
        layer_inputs(opened.module, batches, who=checkpoint.name).save(folder / _FILE)

    inputs = {"checkpoint": checkpoint.digest, "probe": probe.digest}
    return LayerInputs.load((store or Store.default()).make("gram_matrices", inputs, {}, build) / _FILE)


def layer_inputs(module: nn.Module, batches: Iterable[Batch], *, who: str = "the network") -> LayerInputs:
    """The Gram matrices of the inputs of every linear layer and convolution, streamed over batches.

    Axes before the last are rows. Tokens that a batch's ``attention_mask`` marks as padding are left out. A batch's
    products are formed in the network's precision (float32 at least) and added up in float64. Left out are layers whose
    weight some other layer shares, convolutions in groups or with other padding than zeros, and layers that no batch
    reaches: ``regmean`` averages those.

    Args:
        module: evaluated, and left as it was.
        batches: tensors, mappings or tuples that start with one; passed over once.
        who: the network, for messages.

    Raises:
        BadInput: no batches, a batch that the network cannot take, or inputs that are NaN or infinite; names the layer.
    """
    layers = _linear_layers(module)
    watcher = _Watcher()
    hooks = [
        layer.register_forward_pre_hook(watcher.hook(f"{name}.weight" if name else "weight"), with_kwargs=True)
        for name, layer in layers.items()
    ]
    seen = False
    try:
        with quiet(module), slow_attention():
            for batch in track(batches, who):
                inputs = network_inputs(batch, module)
                mask = inputs.get("attention_mask")
                watcher.start(mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None)
                try:
                    call(module, inputs)
                except Exception as error:  # the network's own code may raise anything
                    raise BadInput(f"{who} cannot take a batch: {first_line(error)}.") from error
                seen = True
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise BadInput(f"there are no batches to see the inputs of {who} on.")
    grams = {}
    for name, total in watcher.sums.items():
        if not bool(total.isfinite().all()):
            raise BadInput(f"the input of {name.removesuffix('.weight')} in {who} is NaN or infinite for these data.")
        grams[name] = (total / max(watcher.rows[name], 1)).to(watcher.precision[name]).cpu()
    input_first = {f"{name}.weight" if name else "weight" for name, layer in layers.items() if _is_input_first(layer)}
    return LayerInputs(grams, watcher.rows, frozenset(input_first & grams.keys()))


def regmean(
    models: Mapping[str, Model],
    inputs: Mapping[str, LayerInputs],
    *,
    off_diagonal: float = 0.9,
    weights: Mapping[str, float] | None = None,
    own: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Merges linear layers by least squares on their inputs, and averages everything else.

    A little is added to the diagonals, alike for every model, so that an input which is always zero gets the mean of
    the models' weights: 1e-9 of the mean of the summed diagonal, and ten times more until the matrix has a Cholesky
    factor. Sums are float64.

    Args:
        models: by name: modules, tensors by name, checkpoints, or paths of weights.
        inputs: model -> what its layers see, from ``gram_matrices`` or ``layer_inputs``. Layers that some model lacks
            there are averaged.
        off_diagonal: α, in [0, 1]: the factor of what is not on a Gram matrix's diagonal. The paper uses 0.9 for most
            models and 0.1 for T5.
        weights: model -> c_i; None: all alike.
        own: patterns of tensors that are left out, heads for instance.

    Returns:
        The merged tensors, in the types of the first model by name.

    Raises:
        BadInput: models of different tensors (listed), a model without inputs, Gram matrices of another size, weights
            that are negative or all zero.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(a.weight, 1.0), nn.init.constant_(b.weight, 5.0)
        >>> seen = {"a": layer_inputs(a, [torch.tensor([[3.0]])]), "b": layer_inputs(b, [torch.tensor([[1.0]])])}
        >>> regmean({"a": a, "b": b}, seen)  # (9 x 1 + 1 x 5) / 10
        {'weight': tensor([[1.4000]])}
    """
    if not 0 <= off_diagonal <= 1:
        raise BadInput(f"off_diagonal is {off_diagonal:g}; it is a factor in [0, 1].")
    shared = Aligned.of(models, weights=weights, own=own)
    missing = [name for name in shared.names if name not in inputs]
    if missing:
        raise BadInput(f"there are no inputs of {missing[0]!r}; give those of every model.")
    seen = [inputs[name] for name in shared.names]
    linear = set.intersection(*(set(its.grams) for its in seen))
    merged = {}
    for name, tensors in track(shared.items(), "merging", total=len(shared.tensors)):
        if name not in linear:
            merged[name] = shared.mean(name)
            continue
        first = tensors[0]
        flat = [_input_first(tensor, name in its.input_first) for tensor, its in zip(tensors, seen, strict=True)]
        grams = [its.grams[name] for its in seen]
        _check_sizes(name, shared.names, flat, grams)
        found = _least_squares(flat, grams, shared.shares, off_diagonal)
        back = found if name in seen[0].input_first else found.T
        merged[name] = back.reshape(first.shape).to(first.dtype)
    return merged


def _least_squares(
    weights: Sequence[Tensor], grams: Sequence[Tensor], shares: Sequence[float], off_diagonal: float
) -> Tensor:
    """(Σ c_i G̃_i)⁻¹ Σ c_i G̃_i W_i for weights (inputs, outputs), in float64."""
    width = len(grams[0])
    left = torch.zeros(width, width, dtype=torch.float64)
    right = torch.zeros_like(weights[0], dtype=torch.float64)
    mean = torch.zeros_like(right)
    for weight, gram, share in zip(weights, grams, shares, strict=True):
        shrunk = gram.double() * off_diagonal
        shrunk.diagonal().copy_(gram.diagonal())
        left.add_(shrunk, alpha=share)
        right.add_(shrunk @ weight.double(), alpha=share)
        mean.add_(weight.double(), alpha=share)
    ridge = _RIDGE * float(left.diagonal().mean())
    if ridge <= 0:  # no input was ever anything but zero
        return mean
    while True:
        factor, failed = torch.linalg.cholesky_ex(left + ridge * torch.eye(width, dtype=torch.float64))
        if not failed:
            return torch.cholesky_solve(right + ridge * mean, factor)
        ridge *= 10


class _Watcher:
    """Adds up XᵀX of what goes into layers."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.precision: dict[str, torch.dtype] = {}
        self._mask: Tensor | None = None
        self._latest: tuple[Any, Tensor, int] | None = None

    def start(self, mask: Tensor | None) -> None:
        """A new pass."""
        self._mask, self._latest = mask, None

    def hook(self, name: str) -> Any:
        """For the layer whose weight has this name."""

        def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            product, count = self._product(layer, x)
            self.sums[name] = (
                self.sums[name].add_(product) if name in self.sums else product.to(torch.float64, copy=True)
            )
            self.rows[name] = self.rows.get(name, 0) + count
            self.precision[name] = product.dtype

        return watch

    def _product(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, int]:
        """XᵀX and the number of rows.

        Layers that are given one tensor in turn, as projections to queries, keys and values are, share the product.
        """
        if isinstance(layer, nn.Conv2d):
            rows = _patches(layer, x)
            return rows.T @ rows, len(rows)
        if self._latest is None or self._latest[0] is not x:
            rows = _tokens(x, self._mask)
            self._latest = (x, rows.T @ rows, len(rows))
        return self._latest[1:]


def _tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    kept = x[mask.to(x.device)] if mask is not None and x.shape[:-1] == mask.shape else x
    return kept.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What each position of the output sees, (positions of all images, channels x height x width)."""
    assert not isinstance(layer.padding, str)
    pairs: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    found = F.unfold(x.to(torch.promote_types(x.dtype, torch.float32)), *pairs)
    return found.transpose(1, 2).reshape(-1, found.shape[1])


def _linear_layers(module: nn.Module) -> dict[str, nn.Module]:
    names = [id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False)]
    found = {name: part for name, part in module.named_modules() if _is_linear(part)}
    return {name: part for name, part in found.items() if names.count(id(part.weight)) == 1}


def _is_linear(part: nn.Module) -> bool:
    if isinstance(part, nn.Conv2d):
        return part.groups == 1 and part.padding_mode == "zeros" and not isinstance(part.padding, str)
    return isinstance(part, nn.Linear) or _is_input_first(part)


def _is_input_first(part: nn.Module) -> bool:
    return type(part).__name__ in _INPUT_FIRST and getattr(part, "weight", torch.empty(0)).ndim == 2


def _input_first(weight: Tensor, already: bool) -> Tensor:
    """A weight as a matrix (inputs, outputs); a convolution's as (channels x height x width, outputs)."""
    return weight if already else weight.flatten(1).T


def _check_sizes(name: str, models: Sequence[str], weights: Sequence[Tensor], grams: Sequence[Tensor]) -> None:
    for model, weight, gram in zip(models, weights, grams, strict=True):
        if gram.shape != (len(weight), len(weight)):
            raise BadInput(
                f"the inputs of {name} in {model} are {tuple(gram.shape)} and its weight takes {len(weight)}. "
                "Were they computed on this network?"
            )
        if not bool(gram.isfinite().all()):
            raise BadInput(f"the inputs of {name} in {model} are NaN or infinite. Compute them again.")
