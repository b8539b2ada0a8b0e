"""Which layer a tensor belongs to, read off its name: no table of architectures."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
# What stands before the first layer. Names outside every stack that hold none of these stand behind the last one.
_INPUT_SIDE = re.compile(r"emb|wte|wpe|shared|patch|stem|cls_token|^(\w+\.)*(conv|bn)1\.")

Stacks = Mapping[str, tuple[int, ...]]
"""Layer numbers by the name of the stack that they count, in order."""


def layer_of(name: str) -> tuple[str, int] | None:
    """The stack and the number of a tensor's layer: the first part of its name that is a number, and what precedes it.

    Example:
        >>> layer_of("model.layers.12.mlp.experts.3.w1"), layer_of("lm_head.weight"), layer_of("0.weight")
        (('model.layers', 12), None, ('', 0))
    """
    found = _NUMBER.search(name)
    return None if found is None else (name[: found.start()].removesuffix("."), int(found[0]))


def renumbered(name: str, number: int | str) -> str:
    """The same tensor's name in another layer of its stack.

    Example:
        >>> renumbered("h.3.attn.c_attn.weight", 12)
        'h.12.attn.c_attn.weight'
    """
    return _NUMBER.sub(str(number), name, count=1)


def find_stacks(names: Iterable[str]) -> Stacks:
    """Every stack of layers among the names of a model's tensors.

    Example:
        >>> find_stacks(["h.0.w", "h.1.w", "h.1.b", "head.w"])
        {'h': (0, 1)}
    """
    found: dict[str, set[int]] = defaultdict(set)
    for place in map(layer_of, names):
        if place is not None:
            found[place[0]].add(place[1])
    return {stack: tuple(sorted(numbers)) for stack, numbers in sorted(found.items())}


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside every stack feeds the first layer, as embeddings do, or follows the last, as heads do.

    Example:
        >>> [is_before_layers(name) for name in ("model.embed_tokens.weight", "wpe.weight", "conv1.weight", "fc.bias")]
        [True, True, True, False]
    """
    return _INPUT_SIDE.search(name) is not None


def depth_of(name: str, stacks: Stacks) -> float:
    """How deep a tensor lies: 0 in the first layer of its stack and before it, 1 in the last and behind it.

    The only layer of a stack is the last one.

    Example:
        >>> stacks = {"h": (0, 1, 2)}
        >>> [depth_of(name, stacks) for name in ("wte.weight", "h.0.w", "h.1.w", "h.2.w", "ln_f.weight")]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    place = layer_of(name)
    if place is None:
        return 0.0 if is_before_layers(name) else 1.0
    stack, number = place
    return stacks[stack].index(number) / (len(stacks[stack]) - 1) if len(stacks[stack]) > 1 else 1.0
