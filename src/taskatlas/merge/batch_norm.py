"""BatchNorm's running statistics, estimated again: those of several networks do not mix as their weights do.

The statistics of a merged network are those of its own activations on data, and no function of its parents'
statistics alone. Here every BatchNorm layer sees a stream of batches once, normalises with the batch's own statistics
as in training, and keeps mean and variance of all that it saw, pooled exactly: a small last batch weighs what it is,
and the spread of the batches' means counts as variance (Chan, Golub and LeVeque, 1983, equation 2.1).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.unlabelled import Batch, call, network_inputs
from taskatlas.probe import quiet
from taskatlas.zoo.weights import first_line

_POOLED = 64  # batches of each task that statistics are pooled from


@dataclass(frozen=True, eq=False)
class Moments:
    """How many values a channel had, their mean, and the sum of their squared distances from it; float64.

    Example:
        >>> one, other = Moments.of(torch.tensor([[1.0], [3.0]])), Moments.of(torch.tensor([[5.0]]))
        >>> (one + other).mean, (one + other).variance
        (tensor([3.], dtype=torch.float64), tensor([4.], dtype=torch.float64))
    """

    count: int
    mean: Float[Tensor, " channels"]
    squares: Float[Tensor, " channels"]

    @classmethod
    def of(cls, x: Float[Tensor, "batch channels *space"]) -> "Moments":
        """Of one batch, over all axes but the channels."""
        over = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x.detach(), over, correction=0)
        count = x.numel() // x.shape[1]
        return cls(count, mean.double(), variance.double() * count)

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), squares)

    @property
    def variance(self) -> Float[Tensor, " channels"]:
        """Unbiased, as torch keeps it in ``running_var``."""
        return self.squares / max(self.count - 1, 1)


def reestimate_batch_norm(module: nn.Module, batches: Iterable[Batch], *, who: str = "the network") -> nn.Module:
    """Gives every BatchNorm layer of a network the pooled statistics of unlabelled data; changes nothing else.

    Weights, modes, momenta and counters stay. A network without BatchNorm stays as it is, and sees no data.

    Args:
        module: changed in place.
        batches: tensors, mappings or tuples that start with one; passed over once. More than one sample in each.
        who: the network, for messages.

    Returns:
        The same network.

    Raises:
        BadInput: no batches, a batch of one sample, or activations that are NaN or infinite; the layer is named, and
            no statistic has changed.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1, affine=False))
        >>> reestimate_batch_norm(net, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])[0].running_mean
        tensor([4.])
    """
    layers = batch_norms(module)
    if layers:
        found = batch_moments(module, batches, who=who)
        with torch.no_grad():
            for name, moments in found.items():
                _statistic(layers[name].running_mean).copy_(moments.mean)
                _statistic(layers[name].running_var).copy_(moments.variance)
    return module


def batch_moments(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    tensors: Mapping[str, Tensor] | None = None,
    who: str = "the network",
) -> dict[str, Moments]:
    """What every BatchNorm layer sees, while each normalises with the statistics of the batch; the network stays.

    Args:
        module: any network.
        batches: as ``reestimate_batch_norm``.
        tensors: in place of the network's own, by name.
        who: the network, for messages.

    Raises:
        BadInput: as ``reestimate_batch_norm``.
    """
    layers = batch_norms(module)
    seen: dict[str, Moments] = {}

    def watch(name: str) -> Any:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found = Moments.of(args[0])
            seen[name] = seen[name] + found if name in seen else found

        return keep

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with quiet(module), batch_statistics(module):
            for batch in track(batches, who):
                inputs = network_inputs(batch, module)
                try:
                    call(module, inputs, None if tensors is None else but_statistics(module, tensors))
                except Exception as error:  # the network's own code may raise anything
                    hint = " Give more than one sample a batch." if "more than 1 value" in str(error) else ""
                    raise BadInput(f"{who} cannot take a batch: {first_line(error)}.{hint}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise BadInput(f"there are no batches to estimate the statistics of {who} on.")
    for name, moments in seen.items():
        if not bool((moments.mean.isfinite() & moments.squares.isfinite()).all()):
            raise BadInput(f"the input of {name} in {who} is NaN or infinite for these data. Are its weights whole?")
    return seen


def pooled_statistics(
    networks: Mapping[str, nn.Module],
    data: Mapping[str, Iterable[Batch]],
    state: Mapping[str, Tensor],
    own: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """BatchNorm's statistics of one merged network, pooled over all tasks, up to 64 batches of each.

    Args:
        networks: task -> the network that runs it; networks without BatchNorm see no data.
        data: task -> its batches.
        state: the merged tensors.
        own: task -> tensors that its network has for itself.

    Returns:
        ``running_mean`` and ``running_var`` of the layers whose statistics are among the merged tensors.

    Raises:
        BadInput: as ``reestimate_batch_norm``.
    """
    pooled: dict[str, Moments] = {}
    for task, network in networks.items():
        if batch_norms(network):
            batches, tensors = islice(data[task], _POOLED), {**state, **own.get(task, {})}
            for name, moments in batch_moments(network, batches, tensors=tensors, who=f"task {task!r}").items():
                pooled[name] = pooled[name] + moments if name in pooled else moments
    found = {f"{name}.running_mean": moments.mean for name, moments in pooled.items()}
    found |= {f"{name}.running_var": moments.variance for name, moments in pooled.items()}
    return {name: value.to(state[name]) for name, value in found.items() if name in state}


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The layers that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """While it lasts, BatchNorm layers normalise with each batch's statistics; afterwards all is as it was."""
    layers = list(batch_norms(module).values())
    modes = [layer.training for layer in layers]
    kept = [{name: value.clone() for name, value in layer.named_buffers(recurse=False)} for layer in layers]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        with torch.no_grad():
            for layer, mode, buffers in zip(layers, modes, kept, strict=True):
                layer.training = mode
                for name, value in buffers.items():
                    _statistic(layer.get_buffer(name)).copy_(value)


def but_statistics(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what BatchNorm layers keep, which a pass under ``batch_statistics`` would write to."""
    kept = {f"{name}.{buffer}" for name, layer in batch_norms(module).items() for buffer, _ in layer.named_buffers()}
    return {name: value for name, value in tensors.items() if name not in kept}


def _statistic(buffer: Tensor | None) -> Tensor:
    assert buffer is not None  # batch_norms has looked
    return buffer
