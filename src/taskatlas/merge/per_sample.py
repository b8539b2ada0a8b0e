"""Engines that run each sample of a batch with its own merging coefficients: exact all of them, chosen by size.

``merging``: one merged model for each different λ, whatever the network. ``mixing``: no merged model at all, see
``mixing.py``; before it is believed it is compared with merged models, on made-up coefficients that are far apart and
a batch as long as no other axis, so that samples which take each other's place are noticed. ``vmap``: some merged
models at once, for networks whose layers mixing does not know.

``ByCluster`` stands beside them for serving: it is not exact, and merges nothing once its few models are there.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import vmap

from taskatlas.errors import BadInput
from taskatlas.merge.clusters import Clusters
from taskatlas.merge.low_rank import Vectors
from taskatlas.merge.mixing import Argument, Mixing, mixable, mixed, shared_arguments
from taskatlas.merge.task_network import TaskNetwork
from taskatlas.merge.unlabelled import batch_length
from taskatlas.probe import quiet

Engine = Literal["auto", "mixing", "vmap", "merging"]

_FEW_MODELS = 2  # up to here merging is as fast as anything
_TRUSTED = 1e-4  # relative difference of logits below which mixing computes what a merged model does (float32 rounding)
_DIFFERENT = 3  # made-up coefficients on which that is seen
_ENTRIES_AT_ONCE = 2**26  # of merged models that vmap holds: 256 MB in float32


@dataclass(eq=False)
class PerSample:
    """Runs one task's network with each sample's own coefficients.

    Attributes:
        network: of the task.
        vectors: what is merged; on the network's device, or only ``merging`` can be used.
        engine: ``auto`` or one by name.
        chosen: what ``auto`` decided for the last batch, and why.

    Example:
        >>> from torch import nn
        >>> from taskatlas.merge.task_vectors import TaskVectors
        >>> _ = torch.manual_seed(0)
        >>> base, a = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> vectors = TaskVectors.of(base, {"a": a})
        >>> runs = PerSample(TaskNetwork.each({"a": base}, vectors)["a"], vectors)
        >>> x = torch.randn(4, 2)
        >>> logits = runs(runs.network.inputs(x), torch.tensor([[0.0], [1.0], [0.5], [1.0]]))
        >>> torch.allclose(logits[1], a(x)[1], atol=1e-6), runs.chosen
        (True, 'mixing: 3 different coefficients in 4 samples, all layers can be mixed')
    """

    network: TaskNetwork
    vectors: Vectors
    engine: Engine = "auto"
    chosen: str = ""
    _shared: Mapping[str, frozenset[Argument]] | None = field(default=None, repr=False)
    _refused: dict[str, str] = field(default_factory=dict, repr=False)

    def __call__(
        self, inputs: Mapping[str, Any], coefficients: Float[Tensor, "batch N *T"]
    ) -> Float[Tensor, "batch classes"]:
        """The logits of every sample.

        Args:
            inputs: from ``network.inputs``.
            coefficients: of every sample.

        Raises:
            BadInput: the network cannot take the batch, or the engine asked for cannot run it.
        """
        coefficients = coefficients.detach().to(self.vectors.base)
        _check_count(inputs, coefficients)
        with quiet(self.network.network):
            if self.engine == "merging":
                return self._by_merging(inputs, coefficients)
            if self.engine == "vmap":
                return self._by_vmap(inputs, coefficients)
            if self.engine == "mixing":
                with self.mixing(inputs, coefficients):
                    return self.network.logits(inputs, self._base_tensors)
            return self._by_what_is_best(inputs, coefficients)

    @contextmanager
    def mixing(self, inputs: Mapping[str, Any], coefficients: Float[Tensor, "batch N *T"]) -> Iterator[None]:
        """While it lasts, the network computes each sample of this batch with its own coefficients.

        Raises:
            BadInput: another number of coefficients than of samples, or samples that cannot be mixed.
        """
        _check_count(inputs, coefficients)
        self._check_mixing(inputs)
        if "mixing" in self._refused:
            raise BadInput(f"samples cannot be mixed: {self._refused['mixing']}. Choose engine='auto'.")
        with mixed(self.network.network, Mixing(self.vectors, coefficients, self._shared or {})):
            yield

    def _by_what_is_best(self, inputs: Mapping[str, Any], coefficients: Tensor) -> Tensor:
        different = len(torch.unique(coefficients, dim=0))
        found = f"{different} different coefficients in {len(coefficients)} samples"
        apart = self.vectors.base.device != self.network.device
        if different <= _FEW_MODELS or apart:
            self.chosen = f"merging: {found}" + ("; task vectors and network on different devices" if apart else "")
            return self._by_merging(inputs, coefficients)
        self._check_mixing(inputs)
        if "mixing" not in self._refused:
            self.chosen = f"mixing: {found}, all layers can be mixed"
            with self.mixing(inputs, coefficients):
                return self.network.logits(inputs, self._base_tensors)
        if "vmap" not in self._refused and 2 * self.vectors.base.numel() <= _ENTRIES_AT_ONCE:
            try:
                logits = self._by_vmap(inputs, coefficients)
                self.chosen = f"vmap: {found}; no mixing, for {self._refused['mixing']}"
                return logits
            except BadInput as error:
                self._refused["vmap"] = str(error)
        self.chosen = f"merging: {found}; no mixing, for {self._refused['mixing']}"
        return self._by_merging(inputs, coefficients)

    def _by_merging(self, inputs: Mapping[str, Any], coefficients: Tensor) -> Tensor:
        different, which = torch.unique(coefficients, dim=0, return_inverse=True)
        theta = torch.empty_like(self.vectors.base)

        def merged(position: int) -> Tensor:
            return self.vectors.merged(different[position], out=theta).to(self.network.device)

        return by_model(self.network, self.vectors, inputs, which, merged)

    def _by_vmap(self, inputs: Mapping[str, Any], coefficients: Tensor) -> Tensor:
        """Merged models and samples side by side; every sample is a batch of one."""
        chunk = max(1, _ENTRIES_AT_ONCE // self.vectors.base.numel())
        varying = {name: value for name, value in inputs.items() if _has_samples(value, len(coefficients))}
        constant = {name: value for name, value in inputs.items() if name not in varying}

        def one(tensors: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
            batch = {**constant, **{name: value[None] for name, value in sample.items()}}
            return self.network.logits(batch, tensors)[0]

        found = []
        for rows in torch.split(torch.arange(len(coefficients), device=coefficients.device), chunk):
            thetas = torch.stack([self.vectors.merged(wanted) for wanted in coefficients[rows]])
            stacked = {
                name: thetas[:, place].view(len(rows), *self.vectors.shapes[name])
                for name, place in self.vectors.places.items()
            }
            samples = {name: value[rows] for name, value in varying.items()}
            found.append(vmap(one)(_all_names(self.vectors, stacked), samples))
        return torch.cat(found)

    def _check_mixing(self, inputs: Mapping[str, Any]) -> None:
        """Once for each network: what modules are given for each sample, and whether mixing gives what merging does."""
        if self._shared is not None or "mixing" in self._refused:
            return
        given, module = batch_length(inputs), self.network.network

        def some(copies: int) -> dict[str, Any]:
            return _taken(inputs, torch.arange(copies, device=self.network.device) % given, given)

        wanted = _made_up(self.vectors, _unlike_any_axis(module, inputs))
        batch = some(len(wanted))
        try:
            self._shared = shared_arguments(
                module, self.vectors, lambda copies: self.network.logits(some(copies), self._base_tensors)
            )
            mixing = Mixing(self.vectors, wanted, self._shared)
            with mixed(module, mixing):
                found = self.network.logits(batch, self._base_tensors)
        except BadInput as error:
            self._refused["mixing"] = str(error).rstrip(".")
            return
        expected = self._by_merging(batch, wanted)
        apart = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not apart <= _TRUSTED:
            unused = sorted(set(mixable(module, self.vectors)) - mixing.called)
            why = f"{unused[0]!r} is used without being called" if unused else f"logits are {apart:.1g} apart"
            self._refused["mixing"] = f"it gives something else than a merged model does ({why})"

    @property
    def _base_tensors(self) -> dict[str, Tensor]:
        return _all_names(self.vectors, self.vectors.views(self.vectors.base))


@dataclass(eq=False)
class ByCluster:
    """Runs one task's network, each sample with the merged model of its cluster.

    Attributes:
        network: of the task.
        clusters: and their merged models.
        chosen: what was done for the last batch.
    """

    network: TaskNetwork
    clusters: Clusters
    chosen: str = ""

    def __call__(
        self, inputs: Mapping[str, Any], coefficients: Float[Tensor, "batch N *T"]
    ) -> Float[Tensor, "batch classes"]:
        """The logits of every sample; ``inputs`` are from ``network.inputs``.

        Raises:
            BadInput: the network cannot take the batch.
        """
        _check_count(inputs, coefficients)
        which, _ = self.clusters.assign(coefficients)
        self.chosen = f"clusters: {len(torch.unique(which))} of {len(self.clusters.centres)} merged models"
        vectors, device = self.clusters.vectors, self.network.device
        with quiet(self.network.network):
            return by_model(self.network, vectors, inputs, which, lambda number: self.clusters.merged(number, device))


def by_model(
    network: TaskNetwork,
    vectors: Vectors,
    inputs: Mapping[str, Any],
    which: Int64[Tensor, " batch"],
    merged: Callable[[int], Float[Tensor, " D"]],
) -> Float[Tensor, "batch classes"]:
    """The logits of a batch whose samples go through several merged models, one model after the other.

    Args:
        network: of the task.
        vectors: which tensors the models have.
        inputs: from ``network.inputs``.
        which: the model of every sample.
        merged: the model of a number, where the network runs.
    """
    which, logits = which.to(network.device), None
    for model in torch.unique(which).tolist():
        rows = (which == model).nonzero()[:, 0]
        tensors = _all_names(vectors, vectors.views(merged(model)))
        found = network.logits(_taken(inputs, rows, len(which)), tensors)
        logits = found.new_empty(len(which), found.shape[1]) if logits is None else logits
        logits[rows] = found
    assert logits is not None  # there is a sample
    return logits


def _check_count(inputs: Mapping[str, Any], coefficients: Tensor) -> None:
    if len(coefficients) != batch_length(inputs):
        raise BadInput(f"there are {len(coefficients)} coefficients for {batch_length(inputs)} samples.")


def _made_up(vectors: Vectors, count: int) -> Float[Tensor, "count N T"]:
    """Coefficients of so many samples, the first few unlike any other: they say which sample is which."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(_DIFFERENT, len(vectors.names), len(vectors.places), generator=generator)
    return drawn[torch.arange(count).clamp(max=_DIFFERENT - 1)].to(vectors.base)


def _unlike_any_axis(network: nn.Module, inputs: Mapping[str, Any]) -> int:
    """A batch size that divides no axis of a sample or of a weight, so that no axis passes for that of the samples."""
    samples = [value.shape[1:] for value in inputs.values() if isinstance(value, Tensor)]
    weights = [value.shape for value in (*network.parameters(), *network.buffers())]
    axes = {size for shape in (*samples, *weights) for size in shape if size}
    return next(size for size in count(_DIFFERENT) if all(axis % size for axis in axes))


def _all_names(vectors: Vectors, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, **{other: tensors[name] for other, name in vectors.ties.items() if name in tensors}}


def _taken(inputs: Mapping[str, Any], rows: Tensor, count: int) -> dict[str, Any]:
    """Some of the samples of a batch of ``count``."""
    return {name: value[rows] if _has_samples(value, count) else value for name, value in inputs.items()}


def _has_samples(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
