"""Models as named tensors: modules, state dicts, checkpoints and files, and what several of them have in common."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.store import digest
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.weights import read_weights, tensors_digest

Model = nn.Module | Mapping[str, Tensor] | Checkpoint | Path | str
"""A module, a state dict, a checkpoint, or the path of weights."""

_SAMPLE = 1024  # elements of a tensor that stand for it in a name
_LISTED = 8  # tensors that a message lists


@dataclass(frozen=True)
class Common:
    """What models have in common with the one whose names, shapes and types the result takes.

    Attributes:
        merged: for each tensor that all have, the name under which each model has it.
        kept: tensors that not all have in that shape.
        aliases: further names of tied tensors, with the first.
    """

    merged: Mapping[str, tuple[str, ...]]
    kept: tuple[str, ...]
    aliases: Mapping[str, str]


def named_tensors(model: Model, label: str) -> dict[str, Tensor]:
    """The tensors of a model, on the CPU; those of a file are memory-mapped, those of a module its own.

    Args:
        model: anything that has named tensors.
        label: what messages call it.

    Raises:
        BadInput: it cannot be read, or holds something that is not a dense tensor.
    """
    match model:
        case nn.Module():
            found: Mapping[str, object] = model.state_dict()
        case Checkpoint(module=nn.Module() as module):
            found = module.state_dict()
        case Checkpoint(weights=Path() as weights):
            found = read_weights(weights)
        case Checkpoint():
            found = model.open().module.state_dict()
        case Path() | str():
            found = read_weights(model)
        case _:
            found = model
    tensors = {}
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise BadInput(
                f"{label} has {name!r}, which is not a dense tensor with data. Give a state dict without it."
            )
        tensors[name] = value.detach().cpu()
    if not tensors:
        raise BadInput(f"{label} has no tensors. Is it the right model?")
    return tensors


def content_names(states: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """A name for each model from its content alone, the same only for the same content.

    A few elements of every tensor are read, and all of them where those do not tell two models apart.
    """
    samples = [_sample_digest(tensors) for tensors in states]
    names = []
    for tensors, sample in zip(states, samples, strict=True):
        alike = [other for other, name in zip(states, samples, strict=True) if name == sample]
        one = len(alike) == 1 or len({tensors_digest(other) for other in alike}) == 1
        names.append(sample if one else tensors_digest(tensors))
    return names


def in_common(
    like: Mapping[str, Tensor], label: str, states: Mapping[str, Mapping[str, Tensor]], *, common_only: bool
) -> Common:
    """Matches the tensors of several models with those of one, by name, tied ones once.

    Args:
        like: the one.
        label: what messages call it.
        states: the models, by what messages call them.
        common_only: let what does not match be kept, in place of refusing it.

    Raises:
        BadInput: names or shapes differ, with a list of them; nothing is common; names that are tied in ``like`` hold
            different values in a model.
    """
    aliases = tied_names(like)
    groups: dict[str, list[str]] = {name: [name] for name in like if name not in aliases}
    for alias, first in aliases.items():
        groups[first].append(alias)
    merged, problems = {}, []
    for name, group in groups.items():
        found = {model: _held_name(group, tensors, model) for model, tensors in states.items()}
        names = [its for model, its in found.items() if its is not None and _fits(states[model][its], like[name])]
        if len(names) == len(states):
            merged[name] = tuple(names)
            continue
        problems += [
            f"{model} has no {name}"
            if its is None
            else f"{name} is {_said(states[model][its])} in {model} and {_said(like[name])} in {label}"
            for model, its in found.items()
            if its is None or not _fits(states[model][its], like[name])
        ]
    for model, tensors in states.items():
        known = {_memory(tensors[name]) for name in tensors if name in like and tensors[name].numel()}
        more = [name for name, tensor in tensors.items() if name not in like and _memory(tensor) not in known]
        problems += [f"{label} has no {name}, which {model} has" for name in more]
    if problems and not common_only:
        others = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise BadInput(
            f"the models do not have the same tensors: {'; '.join(problems[:_LISTED])}{others}. Choose models of one "
            f"architecture, or merge what they share and keep the rest as it is in {label}: common_only=True."
        )
    if not any(like[name].is_floating_point() for name in merged):
        raise BadInput(f"the models have no tensor of numbers in common with {label}. Are they of one architecture?")
    return Common(merged, tuple(name for name in groups if name not in merged), aliases)


def tied_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the same memory as an earlier one, with the earlier one's name.

    Example:
        >>> embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        >>> head.weight = embedding.weight
        >>> tied_names(nn.Sequential(embedding, head).state_dict())
        {'1.weight': '0.weight'}
    """
    first: dict[Hashable, str] = {}
    return {
        name: first[_memory(tensor)]
        for name, tensor in tensors.items()
        if tensor.numel() and first.setdefault(_memory(tensor), name) != name
    }


def _held_name(names: Sequence[str], tensors: Mapping[str, Tensor], model: str) -> str | None:
    """The one of a tied tensor's names under which a model has it."""
    held = [name for name in names if name in tensors]
    for name in held[1:]:
        first, other = tensors[held[0]], tensors[name]
        if _memory(first) != _memory(other) and not torch.equal(first, other):
            raise BadInput(
                f"{held[0]} and {name} are one tied tensor in the result, but differ in {model}. "
                "Merge models that tie the same tensors."
            )
    return held[0] if held else None


def _memory(tensor: Tensor) -> Hashable:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _fits(tensor: Tensor, like: Tensor) -> bool:
    return tensor.shape == like.shape and tensor.is_floating_point() == like.is_floating_point()


def _said(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "a number"
    return shape if tensor.is_floating_point() else f"{shape} ({str(tensor.dtype).removeprefix('torch.')})"


def _sample_digest(tensors: Mapping[str, Tensor]) -> str:
    sample = {}
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1)
        few = flat[:: max(1, len(flat) // _SAMPLE)].contiguous()
        sample[name] = [str(tensor.dtype), tuple(tensor.shape), few.view(torch.uint8).numpy()]
    return digest(sample)
