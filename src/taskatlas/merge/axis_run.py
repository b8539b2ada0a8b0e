"""Running a module on an example with weights of one's choice, and looking at what its submodules take and give."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import Example
from taskatlas.merge.exporting import slow_attention

Seen = TypeVar("Seen")
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Call:
    """A module and the arguments of one forward pass."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: tuple[str, ...] | None  # the entries of its result that count; None: all

    @classmethod
    def of(cls, module: nn.Module, example: Example, outputs: Sequence[str] | None) -> "Call":
        """An example as arguments: a tensor, a tuple of arguments, or a mapping of keyword arguments."""
        keep = None if outputs is None else tuple(outputs)
        example = _in_precision_of(module.parameters(), example)
        if isinstance(example, Tensor):
            return cls(module, (example,), {}, keep)
        if isinstance(example, Mapping):
            return cls(module, (), dict(example), keep)
        return cls(module, tuple(example), {}, keep)

    def run(self, weights: Weights) -> dict[str, Tensor]:
        """The outputs that count, by name, with these weights; float inputs follow the weights' precision."""
        arguments, keywords = _in_precision_of(weights.values(), (self.arguments, self.keywords))
        own = {name: weights[name] for name, _ in [*self.module.named_parameters(), *self.module.named_buffers()]}
        with slow_attention():
            return self.named(functional_call(self.module, own, arguments, keywords))

    def named(self, result: Any) -> dict[str, Tensor]:
        """The tensors of a result that count, by name; a cache or another object is none.

        Raises:
            BadInput: there is none, or none of a name that was asked for.
        """
        found = _tensors(result, "")
        if self.outputs is None:
            kept = found
        else:
            missing = [name for name in self.outputs if name not in found]
            if missing:
                raise BadInput(f"the network gives no output {missing[0]!r}. It gives: {', '.join(found)}.")
            kept = {name: found[name] for name in self.outputs}
        if not kept:
            raise BadInput("the network's forward pass gives no tensor, so nothing says what has to stay the same.")
        return kept


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def generic_weights(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random weights in place of a module's, so that no zero, no one and no symmetry hides a mistake.

    Matrices and kernels are normal with variance 1 / fan-in; vectors are uniform in [0.5, 1.5], with any sign where
    they are parameters; tied weights stay tied, and buffers that the state dict leaves out are kept.
    """
    generator = torch.Generator().manual_seed(seed)
    own, kept = tensors_of(module), module.state_dict().keys()
    made: dict[int, Tensor] = {}  # by tensor, so that tied weights stay tied
    for name, tensor in own.items():
        if id(tensor) not in made:
            random = name in kept and tensor.is_floating_point()
            made[id(tensor)] = _generic(tensor, generator) if random else tensor.detach()
    return {name: made[id(tensor)] for name, tensor in own.items()}


def watch(
    call: Call, weights: Weights, look: Callable[[str, Tensor], Seen]
) -> tuple[dict[str, Tensor], dict[str, Seen]]:
    """Runs the module and looks at what every submodule takes (``name:input``) and gives (``name``).

    Returns:
        The outputs, and what ``look(place, tensor)`` said of every place; of a module that is called more than once, no
        place is told.
    """
    seen: dict[str, Seen] = {}
    times: Counter[str] = Counter()

    def note(place: str, tensor: Tensor) -> None:
        times[place] += 1
        seen[place] = look(place, tensor)

    names = [name for name, _ in call.module.named_modules() if name]
    with watching(call.module, [place for name in names for place in (f"{name}:input", name)], note):
        outputs = call.run(weights)
    return outputs, {place: what for place, what in seen.items() if times[place] == 1}


@contextmanager
def watching(module: nn.Module, places: Iterable[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While it lasts, ``note(place, tensor)`` is told what modules give (``layer2``) and take (``fc:input``)."""

    def told(place: str, value: Any) -> None:
        found = first_tensor(value)
        if found is not None:
            note(place, found)

    modules, hooks = dict(module.named_modules(remove_duplicate=False)), []
    for place in places:
        part = modules[place.removesuffix(":input")]
        if place.endswith(":input"):
            taken = partial(_taken, told, place)
            hooks.append(part.register_forward_pre_hook(taken, with_kwargs=True))
        else:
            hooks.append(part.register_forward_hook(partial(_given, told, place)))
    try:
        with slow_attention():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first within a tuple, list or mapping."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None


def _taken(
    told: Callable[[str, Any], None], place: str, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    told(place, [*arguments, *keywords.values()])


def _given(told: Callable[[str, Any], None], place: str, _: nn.Module, __: Any, output: Any) -> None:
    told(place, output)


def _in_precision_of(weights: Iterable[Tensor], values: Any) -> Any:
    """The values, floats among them in the precision of the first float weight."""
    precision = next((tensor.dtype for tensor in weights if tensor.is_floating_point()), None)
    return tree_map(
        lambda value: value.to(precision) if isinstance(value, Tensor) and value.is_floating_point() else value, values
    )


def _generic(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.dim() < 2:
        values = torch.rand(tensor.shape, generator=generator) + 0.5
        if isinstance(tensor, nn.Parameter):  # a running variance has to be positive, a bias should not
            values *= torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    else:
        values = torch.randn(tensor.shape, generator=generator) / max(tensor[0].numel(), 1) ** 0.5
    return values.to(tensor.device, tensor.dtype)


def _tensors(value: Any, name: str) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name or "output": value}
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, tuple | list):
        items = list(enumerate(value))
    return {
        inner: tensor
        for key, item in items
        for inner, tensor in _tensors(item, f"{name}.{key}" if name else str(key)).items()
    }
