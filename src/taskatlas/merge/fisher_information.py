"""Fisher merging: an average in which every weight counts as much as its network's predictions depend on it.

The diagonal Fisher information is that of single samples, under the network's own predictive distribution,

    F = mean over samples x of  E_{y ~ p(y|x)} [ (∂ log p(y|x) / ∂θ)² ],

and the merge is Σ c_i F_i θ_i / Σ c_i F_i, element by element (Matena and Raffel, "Merging Models with Fisher-Weighted
Averaging", NeurIPS 2022, equations 2 and 4). The square of a gradient that was averaged over a batch is something
else, and much smaller.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import jacrev, vmap

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.aligned import Aligned
from taskatlas.merge.opening import open_classifier
from taskatlas.merge.state import Model
from taskatlas.merge.unlabelled import Batch, Unlabelled, batch_length, call, logits_of, network_inputs
from taskatlas.probe import Probe, quiet
from taskatlas.store import Store
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.weights import first_line

Labels = Literal["auto", "exact", "sampled"]

_FEW_CLASSES = 20  # up to here the expectation over labels is summed exactly
_JACOBIANS = 2**28  # bytes of gradients held at once where samples are worked on together
_FILE = "fisher.safetensors"


def fisher(
    checkpoint: Checkpoint,
    probe: Probe,
    *,
    samples: int = 256,
    labels: Labels = "auto",
    seed: int = 0,
    batch_size: int = 16,
    device: str = "cpu",
    store: Store | None = None,
) -> dict[str, Tensor]:
    """The diagonal Fisher information of a checkpoint on a probe, computed once and kept in the store.

    Args:
        checkpoint: a classifier: its network gives logits (batch, classes).
        probe: what it sees; labels are not used.
        samples: how many of the probe's samples, drawn by ``seed``; all where it has fewer.
        labels: as ``diagonal_fisher``.
        seed: of the samples, and of labels that are drawn.
        batch_size: samples a pass; changes nothing but rounding.
        device: ``cpu`` or ``cuda``.
        store: where the result is kept; None: the user's store.

    Returns:
        Each floating-point parameter's information, of its own shape, float32; memory-mapped.

    Raises:
        BadInput: as ``diagonal_fisher``.

    Example:
        >>> found = fisher(Checkpoint("net", module=nn.Linear(3, 2)), Probe.from_arrays(np.eye(3)))
        >>> {name: tuple(value.shape) for name, value in found.items()}
        {'bias': (2,), 'weight': (2, 3)}
    """

    def build(folder: Path) -> None:
        opened = open_classifier(checkpoint, device)
        rows = np.sort(np.random.default_rng(seed).permutation(len(probe))[:samples])
        shown = Unlabelled(probe.take(rows), prepare=opened.prepare, batch_size=batch_size, shuffle=False)
        how: dict[str, Any] = {"samples": samples, "labels": labels, "seed": seed, "who": checkpoint.name}
        found = diagonal_fisher(opened.module, shown, **how)
        save_file({name: value.cpu() for name, value in found.items()}, folder / _FILE)

    _check_settings(samples, labels)
    inputs = {"checkpoint": checkpoint.digest, "probe": probe.digest}
    settings = {"samples": samples, "labels": labels, "seed": seed}
    folder = (store or Store.default()).make("fisher", inputs, settings, build)
    try:
        stored: dict[str, Tensor] = load_file(folder / _FILE)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"the stored Fisher information in {folder} is damaged ({error}). Remove that folder."
        ) from error
    return dict(sorted(stored.items()))


def diagonal_fisher(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    samples: int = 256,
    labels: Labels = "auto",
    seed: int = 0,
    who: str = "the network",
) -> dict[str, Tensor]:
    """The diagonal Fisher information of a classifier, from the gradients of single samples.

    Samples go through ``torch.func.vmap`` together where the network's operations allow it and its gradients fit, and
    otherwise in turn, with the same result up to rounding. Memory: one set of gradients, or up to 256 MiB of them.

    Args:
        module: any network whose output is, or holds, logits (batch, classes); evaluated, and left as it was.
        batches: what it sees, without labels.
        samples: the first so many are used; all where there are fewer.
        labels: ``exact``: the expectation over y is summed over all classes; ``sampled``: one label is drawn for each
            sample, by ``seed`` and the sample's position; ``auto``: exact up to 20 classes.
        seed: of labels that are drawn.
        who: the network, for messages.

    Returns:
        For every floating-point parameter, under each of its names, the information, of its shape, in float32 (float64
        where the parameter is).

    Raises:
        BadInput: no samples, no logits, or logits that are NaN or infinite.

    Example:
        >>> net = nn.Linear(1, 2)
        >>> _ = nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
        >>> diagonal_fisher(net, [torch.tensor([[2.0]])])["weight"]  # p (1 - p) x²
        tensor([[1.],
                [1.]])
    """
    _check_settings(samples, labels)
    own = {name: p.detach() for name, p in module.named_parameters() if p.is_floating_point()}
    sums = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in own.items()}
    draw = torch.Generator().manual_seed(seed)
    seen, squares = 0, None
    with quiet(module):
        for batch in track(batches, who):
            inputs = _rows(network_inputs(batch, module), slice(samples - seen))
            count = batch_length(inputs)
            log_probs = _log_probs(module, inputs, count, who)
            chosen, weights = _chosen_labels(log_probs, labels, draw)
            chunk = _JACOBIANS // (4 * sum(p.numel() for p in own.values()) * (chosen.shape[1] + 1) or 1)
            if squares is None:
                first = _rows(inputs, slice(1)), chosen[:1], weights[:1]
                squares = _together if chunk > 1 and _vmap_takes(module, own, *first) else _in_turn
            for start in range(0, count, chunk if squares is _together else 1):
                part = slice(start, start + (chunk if squares is _together else 1))
                for name, added in squares(module, own, _rows(inputs, part), chosen[part], weights[part]):
                    sums[name].add_(added)
            seen += count
            if seen >= samples:
                break
    if not seen:
        raise BadInput(f"there are no samples to measure {who} on.")
    names = {id(p): name for name, p in module.named_parameters()}
    aliases = {name: names[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    return {name: sums[first] / seen for name, first in aliases.items() if first in sums}


def fisher_merge(
    models: Mapping[str, Model],
    fishers: Mapping[str, Mapping[str, Tensor]],
    *,
    weights: Mapping[str, float] | None = None,
    own: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Σ c_i F_i θ_i / Σ c_i F_i, element by element; where every c_i F_i is 0, the mean Σ c_i θ_i / Σ c_i.

    Tensors without Fisher information (buffers) are averaged, integers copied from the first model by name. Sums are
    float64.

    Args:
        models: by name: modules, tensors by name, checkpoints, or paths of weights.
        fishers: model -> its information, from ``fisher`` or ``diagonal_fisher``.
        weights: model -> c_i; None: all alike.
        own: patterns of tensors that are left out, heads for instance.

    Returns:
        The merged tensors, in the types of the first model by name.

    Raises:
        BadInput: models of different tensors (listed), a model without information, or with information of another
            shape or that is negative; weights that are negative or all zero.

    Example:
        >>> models = {"a": {"w": torch.tensor([1.0, 1.0])}, "b": {"w": torch.tensor([5.0, 5.0])}}
        >>> fisher_merge(models, {"a": {"w": torch.tensor([3.0, 0.0])}, "b": {"w": torch.tensor([1.0, 0.0])}})
        {'w': tensor([2., 3.])}
    """
    shared = Aligned.of(models, weights=weights, own=own)
    missing = [name for name in shared.names if name not in fishers]
    if missing:
        raise BadInput(f"there is no Fisher information of {missing[0]!r}; give that of every model.")
    known = [fishers[name] for name in shared.names]
    merged = {}
    for name, tensors in track(shared.items(), "merging", total=len(shared.tensors)):
        if not all(name in its for its in known):
            merged[name] = shared.mean(name)
            continue
        total, weighted = (torch.zeros(tensors[0].shape, dtype=torch.float64) for _ in range(2))
        for model, tensor, its, share in zip(shared.names, tensors, known, shared.shares, strict=True):
            _check_information(its[name], tensor, f"{name!r} of {model}")
            information = its[name].to(total) * share
            total += information
            weighted.addcmul_(information, tensor.to(total))
        weighted /= total
        merged[name] = torch.where(total > 0, weighted, shared.mean(name).to(total)).to(tensors[0].dtype)
    return merged


Squares = Iterator[tuple[str, Tensor]]


def _together(
    module: nn.Module, own: Mapping[str, Tensor], inputs: Mapping[str, Any], chosen: Tensor, weights: Tensor
) -> Squares:
    """Each parameter's weighted squared gradients, summed over samples (batch) and their labels (batch, labels)."""
    split = {name: value for name, value in inputs.items() if _is_split(value, len(chosen))}
    fixed = {name: value for name, value in inputs.items() if name not in split}

    def squares(sample: dict[str, Tensor], labels: Tensor, weight: Tensor) -> dict[str, Tensor]:
        alone = {**fixed, **{name: value[None] for name, value in sample.items()}}

        def log_probs(tensors: dict[str, Tensor]) -> Tensor:
            return _log_softmax(logits_of(call(module, alone, tensors), 1))[0, labels]

        rows = jacrev(log_probs)(dict(own))
        return {name: torch.tensordot(weight, row.to(weight.dtype).square(), 1) for name, row in rows.items()}

    yield from ((name, each.sum(0)) for name, each in vmap(squares)(split, chosen, weights).items())


def _in_turn(
    module: nn.Module, own: Mapping[str, Tensor], inputs: Mapping[str, Any], chosen: Tensor, weights: Tensor
) -> Squares:
    """The same for one sample, a backward pass a label."""
    leaves = {name: value.detach().requires_grad_() for name, value in own.items()}
    with torch.enable_grad():
        log_probs = _log_softmax(logits_of(call(module, inputs, leaves), 1))[0]
    one_hot = torch.eye(len(log_probs), dtype=log_probs.dtype, device=log_probs.device)
    for label, weight in zip(chosen[0].tolist(), weights[0].tolist(), strict=True):
        grads = torch.autograd.grad(
            log_probs, list(leaves.values()), one_hot[label], retain_graph=True, allow_unused=True
        )
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                yield name, weight * grad.to(_wide(grad)).square()


def _vmap_takes(module: nn.Module, own: Mapping[str, Tensor], *sample: Any) -> bool:
    """Whether the network's operations can be batched by vmap: found out by trying, for there is no other way."""
    try:
        list(_together(module, own, *sample))
    except Exception:  # vmap refuses in many ways, and the network's own code may raise anything
        return False
    return True


def _chosen_labels(log_probs: Tensor, labels: Labels, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """The labels of each sample that count and their weights, (batch, labels) both."""
    count, classes = log_probs.shape
    if labels == "exact" or (labels == "auto" and classes <= _FEW_CLASSES):
        return torch.arange(classes, device=log_probs.device).expand(count, classes), log_probs.exp()
    # One number a sample, so that a label depends on the sample's position and not on its batch.
    uniform = torch.rand(count, 1, generator=draw, dtype=torch.float64).to(log_probs.device)
    drawn = torch.searchsorted(log_probs.double().exp().cumsum(-1), uniform).clamp(max=classes - 1)
    return drawn, torch.ones_like(drawn, dtype=log_probs.dtype)


def _log_probs(module: nn.Module, inputs: Mapping[str, Any], count: int, who: str) -> Tensor:
    try:
        output = call(module, inputs)
    except Exception as error:  # the network's own code may raise anything
        raise BadInput(f"{who} cannot take a batch: {first_line(error)}.") from error
    log_probs = _log_softmax(logits_of(output, count, who))
    if not log_probs.isfinite().all():
        raise BadInput(f"{who} gives logits that are NaN or infinite. Is the checkpoint whole?")
    return log_probs


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(_wide(logits)), -1)


def _wide(tensor: Tensor) -> torch.dtype:
    """The precision in which to add up: float64 where the tensor has it, else float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _rows(inputs: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    count = batch_length(inputs)
    return {name: value[rows] if _is_split(value, count) else value for name, value in inputs.items()}


def _is_split(value: Any, count: int) -> bool:
    """Whether a value has a row a sample; settings and shared tensors have not."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == count


def _check_settings(samples: int, labels: str) -> None:
    if samples < 1:
        raise BadInput(f"{samples} samples measure nothing; give at least 1.")
    if labels not in get_args(Labels):
        raise BadInput(f"labels={labels!r} is not a way to take them. Choose one of: {', '.join(get_args(Labels))}.")


def _check_information(information: Tensor, weight: Tensor, what: str) -> None:
    if information.shape != weight.shape:
        raise BadInput(
            f"the Fisher information of {what} is {tuple(information.shape)} and the tensor {tuple(weight.shape)}. "
            "Was it computed on this network?"
        )
    if not bool((information >= 0).all()) or not bool(information.isfinite().all()):
        raise BadInput(f"the Fisher information of {what} is negative, NaN or infinite. Compute it again.")
