"""The hypernetwork of data-adaptive fusion: two linear layers from an input's features to its merging coefficients.

λ = h(f(x)) with h = Linear(d, d) → ReLU → Linear(d, C) and the second layer zero but for its bias, so that learning
starts at task arithmetic (Tang et al., "Data-Adaptive Weight-Ensembling for Multi-Task Model Fusion", IJCV 2025). There
are C = N coefficients, one for each expert, or C = N T, one for each expert and tensor.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.zoo.weights import first_line, read_weights

Bound = Literal["none", "clamp", "softmax"]

_SMALLEST_DEVIATION = 1e-6  # a feature that varies less is a constant, and is only centred


class Hypernetwork(nn.Module):
    """Features (batch, d) to coefficients (batch, N) or (batch, N, T).

    Args:
        features: d.
        shape: (N,) or (N, T).
        initial: every coefficient before the first step and before the bound.
        bound: ``none``, as published; ``clamp`` to [0, 1]; ``softmax`` over the experts, which starts at their average.
        hidden: width of the first layer; None: d.
        seed: of the first layer.

    Example:
        >>> h = Hypernetwork(4, (2,))
        >>> h(torch.randn(1, 4)).detach()
        tensor([[0.3000, 0.3000]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        features: int,
        shape: tuple[int, ...],
        *,
        initial: float = 0.3,
        bound: Bound = "none",
        hidden: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if features < 1 or not shape or min(shape) < 1:
            raise BadInput(f"{features} features and coefficients of shape {shape} leave nothing to learn.")
        if bound not in get_args(Bound):
            raise BadInput(f"bound={bound!r} is none of {', '.join(get_args(Bound))}.")
        self.shape = shape
        self.bound = bound
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(int(seed))
            self.first = nn.Linear(features, hidden or features)
            self.second = nn.Linear(hidden or features, torch.Size(shape).numel())
        nn.init.zeros_(self.second.weight)
        nn.init.constant_(self.second.bias, initial)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch N *T"]:
        """The coefficients of every sample.

        Raises:
            BadInput: features of another width.
        """
        if features.shape[1] != self.first.in_features:
            raise BadInput(
                f"the extractor gives {features.shape[1]} features, and the hypernetwork takes "
                f"{self.first.in_features}. Was it trained with another extractor?"
            )
        hidden = torch.relu(self.first((features.to(self.mean) - self.mean) / self.scale))
        found = self.second(hidden).view(len(features), *self.shape)
        if self.bound == "clamp":
            return found.clamp(0, 1)
        return found.softmax(1) if self.bound == "softmax" else found

    def standardise(self, features: Float[Tensor, "n d"]) -> None:
        """From now on subtracts the mean of these features and divides by their standard deviation."""
        deviation, mean = torch.std_mean(features.double(), 0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(deviation.where(deviation > _SMALLEST_DEVIATION, torch.ones_like(deviation)))

    def remapped(
        self, experts: Sequence[int], tensors: Float[Tensor, "*N T T2"] | None = None, bound: Bound | None = None
    ) -> "Hypernetwork":
        """A copy with other outputs: experts picked and ordered, tensors mixed by a matrix; exact before the bound.

        Args:
            experts: which of the N, in the order wanted.
            tensors: coefficient of tensor t' = Σ_t (coefficient of tensor t) · tensors[t, t']; one matrix, or one for
                each of the experts wanted.
            bound: of the copy; None: the same.

        Example:
            >>> h = Hypernetwork(4, (2, 3))
            >>> h.remapped([1], torch.eye(3)[:, :2])(torch.randn(5, 4)).shape
            torch.Size([5, 1, 2])
        """
        d, hidden = self.first.in_features, self.first.out_features
        weight = self.second.weight.detach().view(*self.shape, hidden)[list(experts)]
        bias = self.second.bias.detach().view(self.shape)[list(experts)]
        if tensors is not None:
            mixing = tensors.to(weight).expand(len(weight), -1, -1)
            weight, bias = torch.einsum("nth,ntu->nuh", weight, mixing), torch.einsum("nt,ntu->nu", bias, mixing)
        other = Hypernetwork(d, tuple(bias.shape), bound=bound or self.bound, hidden=hidden).to(weight)
        other.first.load_state_dict(self.first.state_dict())
        with torch.no_grad():
            other.second.weight.copy_(weight.reshape(-1, hidden))
            other.second.bias.copy_(bias.reshape(-1))
            other.mean.copy_(self.mean)
            other.scale.copy_(self.scale)
        return other


def mean_coefficients(hypernetwork: Hypernetwork, features: Float[Tensor, "n d"]) -> Float[np.ndarray, "N *T"]:
    """The mean coefficients of some samples, in float64.

    Example:
        >>> mean_coefficients(Hypernetwork(4, (2,), initial=0.5), torch.randn(3, 4))
        array([0.5, 0.5])
    """
    with torch.no_grad():
        found: np.ndarray = hypernetwork(features.to(hypernetwork.mean)).double().mean(0).cpu().numpy()
    return found


def read_hypernetwork(path: Path | str, experts: int, bound: Bound = "none") -> Hypernetwork:
    """A published hypernetwork: an ``nn.Sequential`` of two linear layers, saved whole or as its tensors.

    Read without running code of the file: nothing but tensors and torch's own ``Sequential``, ``Linear`` and ``ReLU``
    is unpickled. Of N T outputs those of the first expert come first, as in the published layer-wise checkpoints.

    Args:
        path: ``.pt``, ``.pth``, ``.bin`` or ``.safetensors``.
        experts: N.
        bound: that it was trained with.

    Raises:
        BadInput: no such file, more in it than two linear layers, NaN, or outputs that do not divide among the experts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 6)), f"{folder}/h.pt")
        ...     read_hypernetwork(f"{folder}/h.pt", experts=2).shape
        (2, 3)
    """
    tensors = _plain_tensors(Path(path))
    weights = [name for name, value in tensors.items() if value.ndim == 2]
    biases = [name for name, value in tensors.items() if value.ndim == 1]
    if len(tensors) != 4 or [name.rpartition(".")[0] for name in weights] != [
        name.rpartition(".")[0] for name in biases
    ]:
        raise BadInput(f"{path} holds {', '.join(tensors) or 'nothing'}, and no two linear layers with their biases.")
    (first, second), (hidden, features) = (tensors[name] for name in weights), tensors[weights[0]].shape
    outputs = len(second)
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise BadInput(f"{path} holds NaN or infinite numbers. Is it whole?")
    if second.shape[1] != hidden or [len(tensors[name]) for name in biases] != [hidden, outputs]:
        raise BadInput(f"the layers in {path} do not fit each other: {tuple(first.shape)}, {tuple(second.shape)}.")
    if outputs % experts:
        raise BadInput(f"{path} has {outputs} coefficients, which do not divide among {experts} experts.")
    shape = (experts,) if outputs == experts else (experts, outputs // experts)
    found = Hypernetwork(features, shape, bound=bound, hidden=hidden)
    with torch.no_grad():
        for layer, weight, bias in zip((found.first, found.second), weights, biases, strict=True):
            layer.weight.copy_(tensors[weight])
            layer.bias.copy_(tensors[bias])
    return found


def published_hypernetwork(
    path: Path | str,
    order: tuple[Sequence[str], Sequence[str] | None],
    wanted: tuple[Sequence[str], Sequence[str] | None],
    bound: Bound = "none",
) -> Hypernetwork:
    """A published hypernetwork with its outputs in another order.

    Args:
        path: as ``read_hypernetwork``.
        order: the experts in the order of its outputs, and the tensors; no tensors where it is task-wise.
        wanted: the same experts and tensors, or some of the tensors, in the order wanted.
        bound: that it was trained with.

    Raises:
        BadInput: as ``read_hypernetwork``; other experts, another number of tensors, one that it does not have.
    """
    (experts, tensors), (wanted_experts, wanted_tensors) = order, wanted
    if sorted(experts) != sorted(wanted_experts):
        raise BadInput(f"the experts here are {', '.join(wanted_experts)}, and not {', '.join(experts)}.")
    found = read_hypernetwork(path, len(experts), bound)
    expected = (len(experts),) if tensors is None else (len(experts), len(tensors))
    missing = [name for name in wanted_tensors or () if name not in (tensors or ())]
    if found.shape != expected or missing:
        of_which = f"; {missing[0]!r} is not among them" if missing else ""
        raise BadInput(
            f"{path} has coefficients {found.shape}, and {expected} are expected{of_which}. "
            "Choose the other level, or name its tensors in its order: tensors=[...]."
        )
    rows = [list(experts).index(name) for name in wanted_experts]
    if tensors is None or wanted_tensors is None:
        return found.remapped(rows)
    same = [[float(name == own) for own in wanted_tensors] for name in tensors]
    return found.remapped(rows, torch.tensor(same))


def _plain_tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors, also those of a whole ``nn.Sequential``, in their order."""
    try:
        return dict(sorted(read_weights(path).items()))
    except BadInput as refused:
        if not path.is_file():
            raise
        allowed: list[Any] = [nn.Sequential, nn.Linear, nn.ReLU, set]
        try:
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling a damaged file may raise anything
            raise BadInput(f"cannot read {path}: {first_line(error)}.") from refused
        if not isinstance(found, nn.Sequential):
            raise refused
        return {
            f"{position}.{name}": value.detach()
            for position, part in enumerate(found)
            if isinstance(part, nn.Linear)
            for name, value in (("weight", part.weight), ("bias", part.bias))
            if isinstance(value, Tensor)
        }
