"""A merge worked out before it is done: every tensor of the result, what makes it, where it goes, what it costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from taskatlas.merge.composition import model_thresholds
from taskatlas.merge.methods import METHODS, merge_tensor
from taskatlas.merge.operands import Operands, refuse_nan, refuse_not_finite
from taskatlas.merge.recipe import MergeRecipe
from taskatlas.merge.shards import Shard
from taskatlas.merge.sources import Source, size_in_bytes
from taskatlas.store import digest

AHEAD = 2
"""Tensors that are merged before they can be written: long and short ones take turns."""

COPY = "copy"
"""What the plan says of tensors that are taken from one model as they are: integers, and what only the base has."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the result.

    Attributes:
        name: in the result.
        shape: of the result and of every operand.
        dtype: of the result.
        method: a name of ``METHODS``, or ``COPY``.
        models: the references of the models that are merged, and the tensor's name in each.
        labels: the same models under names of their own: a model that is listed twice has two.
        base: the same of the base; None where the method takes none.
        parameters: of each model.
        settings: of the method.
        tied_to: the tensor that this is another name for: merged as that one is, to the same bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    method: str
    models: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    base: tuple[str, str] | None
    parameters: tuple[Mapping[str, float], ...]
    settings: Mapping[str, Any]
    tied_to: str | None = None

    @property
    def nbytes(self) -> int:
        """Of the result."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def whole_model(self) -> bool:
        """Whether its largest elements are those of the whole model, which has to be looked through first."""
        return self.settings.get("scope") == "model"

    @property
    def measured(self) -> bool:
        """Whether it is looked through before the first tensor is merged."""
        return self.whole_model and self.tied_to is None

    @property
    def reads(self) -> tuple[tuple[str, str], ...]:
        """The references and names of all tensors that are read."""
        return self.models if self.base is None else (*self.models, self.base)


@dataclass(frozen=True, repr=False)
class MergePlan:
    """The resolved work of a recipe.

    Attributes:
        recipe: what it was made of.
        tensors: of the result, in the order of their names.
        shards: the files that they go into.
        sources: opened models by reference.
        seed: of random methods.
        layers: where layers are cut, the number in its source of each layer of the result.
    """

    recipe: MergeRecipe
    tensors: tuple[PlannedTensor, ...]
    shards: tuple[Shard, ...]
    sources: Mapping[str, Source]
    seed: int = 0
    layers: tuple[int, ...] | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes that the merge reads, each tensor as often as it is needed."""
        return self.bytes_read_for(())

    def bytes_read_for(self, kept: Collection[str]) -> int:
        """The same where shards of these names are there already."""
        if all(shard.name in kept for shard in self.shards):
            return 0
        there = {name for shard in self.shards if shard.name in kept for name in shard.tensors}
        return sum(
            self.sources[model].nbytes(name) * ((tensor.name not in there) + tensor.measured)
            for tensor in self.tensors
            for model, name in tensor.reads
        )

    @property
    def bytes_written(self) -> int:
        """Bytes of all shards."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def peak_bytes(self) -> int:
        """An estimate of the memory that tensors take at most: those of one step, and results on their way to the disk.

        Tensors in safetensors files are mapped, so the system can take their part back when it needs it.
        """
        largest = sorted(tensor.nbytes for tensor in self.tensors)[-(AHEAD + 1) :]
        return max((self.held(tensor) for tensor in self.tensors), default=0) + sum(largest)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, once."""
        return tuple(dict.fromkeys(file for source in self.sources.values() for file in source.files))

    @property
    def digest(self) -> str:
        """Digest of all that decides the bytes of the result: where it is the same, an unfinished merge goes on."""
        identities = {reference: source.identity for reference, source in self.sources.items()}
        shards = [(shard.name, shard.nbytes) for shard in self.shards]
        return digest("merge plan", self.recipe.digest, self.seed, identities, shards)

    @property
    def config_from(self) -> str:
        """The reference of the model whose configuration goes along: the base, or else the first."""
        first = self.recipe.layers[0]
        return self.recipe.base_model or first.base_model or first.sources[0].model

    @property
    def document(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return {
            "method": self.recipe.merge_method,
            "models": list(self.sources),
            "tensors": len(self.tensors),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "peak_bytes": self.peak_bytes,
            "shards": [{"file": one.name, "tensors": len(one.tensors), "bytes": one.nbytes} for one in self.shards],
            "work": [
                {
                    "tensor": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": dtype_name(tensor.dtype),
                    "shard": shard.name,
                    "method": tensor.method,
                    "models": [
                        {"model": model, "tensor": name, **parameters}
                        for (model, name), parameters in zip(tensor.models, tensor.parameters, strict=True)
                    ],
                    "base": None if tensor.base is None else {"model": tensor.base[0], "tensor": tensor.base[1]},
                    "settings": dict(tensor.settings),
                    "tied_to": tensor.tied_to,
                }
                for shard in self.shards
                for tensor in (self.by_name[name] for name in shard.tensors)
            ],
        }

    @cached_property
    def by_name(self) -> Mapping[str, PlannedTensor]:
        """The tensors by their names."""
        return {tensor.name: tensor for tensor in self.tensors}

    def __repr__(self) -> str:
        return (
            f"MergePlan({self.recipe.merge_method}, {len(self.tensors)} tensors in {len(self.shards)} "
            f"file{'s' if len(self.shards) > 1 else ''}, {self.bytes_read / 1e6:.1f} MB to read)"
        )

    def merge(self, tensor: PlannedTensor) -> Tensor:
        """One tensor of the result.

        Raises:
            BadInput: an operand holds NaN or infinite numbers, or can no longer be read.
        """
        if tensor.method == COPY:
            (model, name), *_ = tensor.models
            copied = self.sources[model].read(name)
            refuse_nan(name, model, copied)
            return copied.to(tensor.dtype, copy=True)
        operands = self.operands(tensor)
        if tensor.whole_model:
            thresholds = self.thresholds[tensor.labels]
            parameters = tuple(
                {**own, "threshold": threshold} for own, threshold in zip(operands.parameters, thresholds, strict=True)
            )
            operands = replace(operands, parameters=parameters)
        return merge_tensor(METHODS[tensor.method], operands, tensor.dtype)

    def operands(self, tensor: PlannedTensor) -> Operands:
        """What one tensor is merged of, mapped where its files allow."""
        tensors = tuple(self.sources[model].read(name) for model, name in tensor.models)
        base = None if tensor.base is None else self.sources[tensor.base[0]].read(tensor.base[1])
        name = tensor.tied_to or tensor.name  # which seeds what is random
        return Operands(name, tensor.labels, tensors, base, tensor.parameters, tensor.settings, self.seed)

    @cached_property
    def thresholds(self) -> Mapping[tuple[str, ...], list[float]]:
        """By the labels of the models: the magnitude that each keeps to, of all its tensors together.

        Where the scope is a model, all its tensors are looked through before the first is merged.

        Raises:
            BadInput: an operand holds NaN, or can no longer be read.
        """
        groups: dict[tuple[str, ...], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            if tensor.measured:
                groups.setdefault(tensor.labels, []).append(tensor)
        found = {labels: model_thresholds(_Mapped(self, group)) for labels, group in groups.items()}
        for labels, thresholds in found.items():
            for tensor in groups[labels] if any(map(math.isnan, thresholds)) else ():
                refuse_not_finite(self.operands(tensor))
        return found

    def held(self, tensor: PlannedTensor) -> int:
        """Bytes in memory while a tensor is merged: of its operands, of what one of them is made of, of the result."""
        sizes = sum(size_in_bytes(self.sources[model].shapes[name]) for model, name in tensor.reads)
        return tensor.nbytes + sizes + max(self.sources[model].held(name) for model, name in tensor.reads)


@dataclass(frozen=True, eq=False)
class _Mapped(Sequence[Operands]):
    """Operands that are mapped when they are asked for, so that no more than one tensor's are in memory."""

    plan: MergePlan
    tensors: Sequence[PlannedTensor]

    def __len__(self) -> int:
        return len(self.tensors)

    @overload
    def __getitem__(self, place: int, /) -> Operands: ...
    @overload
    def __getitem__(self, place: slice, /) -> Sequence[Operands]: ...
    def __getitem__(self, place: int | slice, /) -> Operands | Sequence[Operands]:
        if isinstance(place, slice):
            return _Mapped(self.plan, self.tensors[place])
        return self.plan.operands(self.tensors[place])


def dtype_name(dtype: torch.dtype) -> str:
    """A type as recipes call it.

    Example:
        >>> dtype_name(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, eq=False)
class MergedSource(Source):
    """The result of another recipe as a model: each tensor is merged when it is read."""

    name: str
    recipe: Path
    plan: MergePlan
    folder: Path | None

    @cached_property
    def shapes(self) -> Mapping[str, Tensor]:
        """Every tensor on the ``meta`` device."""
        return {one.name: torch.empty(one.shape, dtype=one.dtype, device="meta") for one in self.plan.tensors}

    @property
    def files(self) -> tuple[Path, ...]:
        """The recipe's, and everything that its models are made of."""
        return tuple(dict.fromkeys((self.recipe, *self.plan.files)))

    @property
    def identity(self) -> str:
        """The plan's."""
        return self.plan.digest

    def read(self, name: str) -> Tensor:
        """One tensor, merged."""
        return self.plan.merge(self.plan.by_name[name])

    def nbytes(self, name: str, /) -> int:
        """Of everything that it is made of."""
        return sum(self.plan.sources[model].nbytes(own) for model, own in self.plan.by_name[name].reads)

    def mark(self, name: str, /) -> Hashable:
        """The name of the tensor that it is tied to, or its own."""
        return self.plan.by_name[name].tied_to or name

    def tied(self, one: str, other: str, /) -> bool:
        """Whether the plan ties them."""
        return self.mark(one) == self.mark(other)

    def held(self, name: str, /) -> int:
        """What its own operands take."""
        tensor = self.plan.by_name[name]
        return self.plan.held(tensor) - tensor.nbytes

    def expect(self, name: str, /) -> None:
        """Asks the system to read ahead."""
        for model, own in self.plan.by_name[name].reads:
            self.plan.sources[model].expect(own)
