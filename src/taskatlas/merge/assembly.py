"""Which tensors of the models make each tensor of the result: of whole models, or of layers laid on layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from taskatlas.errors import BadInput
from taskatlas.merge.layers import Stacks, depth_of, find_stacks, is_before_layers, layer_of, renumbered
from taskatlas.merge.recipe import MergeRecipe, OutputSlice, path_of
from taskatlas.merge.sources import Source


@dataclass(frozen=True)
class Slot:
    """A tensor of the result, and what it is called in the models that it is made of.

    Attributes:
        name: in the result.
        depth: 0 in the first layer of the slice, 1 in its last.
        number: of the slice.
        tensors: names in the slice's sources, in their order; None where a source has no such tensor.
        base: name in the base; None without a base, or where it has no such tensor.
    """

    name: str
    depth: float
    number: int
    tensors: tuple[str | None, ...]
    base: str | None


def assemble(recipe: MergeRecipe, open_source: Callable[[str], Source]) -> list[Slot]:
    """The tensors of the result in the order of their names.

    Where layers are cut, every stack of layers is; what is in none comes from the first slice if it feeds the first
    layer, as embeddings do, and else from the last.

    Raises:
        BadInput: a model cannot be opened, or has no such layers; the message names the field.
    """
    cut = len(recipe.layers) > 1 or any(source.layer_range for source in recipe.layers[0].sources)
    slots: list[Slot] = []
    offset = 0
    for number, one in enumerate(recipe.layers):
        ranges = _ranges(recipe, number, one, open_source) if cut else None
        ends = (number == 0, number == len(recipe.layers) - 1)
        slots += _slice_slots(recipe, number, one, open_source, ranges, offset, ends)
        offset += ranges[0][1] - ranges[0][0] if ranges else 0
    return sorted(slots, key=lambda slot: slot.name)


def stacked_layers(recipe: MergeRecipe, open_source: Callable[[str], Source]) -> tuple[int, ...] | None:
    """The number, in the first source of its slice, of each layer of the result; None where layers stay as they are.

    Raises:
        BadInput: as ``assemble``.
    """
    if len(recipe.layers) == 1 and not any(source.layer_range for source in recipe.layers[0].sources):
        return None
    ranges = [_ranges(recipe, number, one, open_source)[0] for number, one in enumerate(recipe.layers)]
    return tuple(layer for start, stop in ranges for layer in range(start, stop))


def cut_stacks(source: Source) -> Mapping[str, int]:
    """The stacks that a range of layers cuts, with their number of layers: those numbered from 0 without a gap.

    Raises:
        BadInput: there are none, or they differ in length, so that it is open which is meant.
    """
    stacks = find_stacks(source.shapes)
    whole = {name: len(numbers) for name, numbers in stacks.items() if numbers == tuple(range(len(numbers)))}
    if not whole:
        raise BadInput(f"{source.name} has no numbered layers that could be cut. Merge whole models, under models.")
    if len(set(whole.values())) > 1:
        found = ", ".join(f"{name or 'the top'}: {length}" for name, length in whole.items())
        raise BadInput(
            f"{source.name} has stacks of layers of different lengths ({found}), so a range is ambiguous. "
            "Merge whole models, under models."
        )
    return whole


def _ranges(
    recipe: MergeRecipe, number: int, one: OutputSlice, open_source: Callable[[str], Source]
) -> list[tuple[int, int]]:
    """The layers of each source of a slice, and last those of its base, if it has one."""
    found: list[tuple[int, int]] = []
    for position, entry in enumerate(one.sources):
        where = path_of("slices", number, "sources", position, "layer_range")
        length = _length(open_source(entry.model), where)
        layers = entry.layer_range or (0, length)
        if layers[1] > length:
            raise BadInput(f"{where}: {entry.model} has {length} layers, so none up to {layers[1]}.")
        if found and layers[1] - layers[0] != found[0][1] - found[0][0]:
            raise BadInput(
                f"{where}: {layers[1] - layers[0]} layers cannot be merged with the {found[0][1] - found[0][0]} of "
                f"{one.sources[0].model}. Give the sources of a slice as many layers each."
            )
        found.append(layers)
    base = one.base_model or recipe.base_model
    if base is None:
        return found
    of_base = [layers for layers, entry in zip(found, one.sources, strict=True) if entry.model == base]
    if not of_base and len(set(found)) > 1:
        raise BadInput(
            f"{path_of('slices', number, 'sources')}: the ranges differ, so say which layers of the base {base} are "
            "meant: list it among the sources, with its layer_range."
        )
    return [*found, (of_base or found)[0]]


def _length(source: Source, where: str) -> int:
    try:
        return next(iter(cut_stacks(source).values()))
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def _slice_slots(
    recipe: MergeRecipe,
    number: int,
    one: OutputSlice,
    open_source: Callable[[str], Source],
    ranges: Sequence[tuple[int, int]] | None,
    offset: int,
    ends: tuple[bool, bool],
) -> list[Slot]:
    base = one.base_model or recipe.base_model
    sources = [open_source(entry.model) for entry in one.sources]
    everyone = sources if base is None else [*sources, open_source(base)]
    names = [
        _names(source, None if ranges is None else ranges[position], offset, ends)
        for position, source in enumerate(everyone)
    ]
    stacks: Stacks = find_stacks(name for source in everyone for name in source.shapes) if ranges is None else {}
    slots = []
    for name in dict.fromkeys(name for own in names for name in own):
        found = tuple(own.get(name) for own in names)
        of_base = None if base is None else found[-1]
        depth = depth_of(name, stacks) if ranges is None else _depth_in_slice(name, offset, ranges[0])
        slots.append(Slot(name, depth, number, found[: len(sources)], of_base))
    return slots


def _names(source: Source, layers: tuple[int, int] | None, offset: int, ends: tuple[bool, bool]) -> dict[str, str]:
    """The source's tensors by their names in the result."""
    if layers is None:
        return {name: name for name in source.shapes}
    stacks = cut_stacks(source)
    found = {}
    for name in source.shapes:
        place = layer_of(name)
        if place is None or place[0] not in stacks:
            if ends[0] if is_before_layers(name) else ends[1]:
                found[name] = name
        elif layers[0] <= place[1] < layers[1]:
            found[renumbered(name, offset + place[1] - layers[0])] = name
    return found


def _depth_in_slice(name: str, offset: int, layers: tuple[int, int]) -> float:
    place = layer_of(name)
    length = layers[1] - layers[0]
    if place is None or not 0 <= place[1] - offset < length:
        return 0.0 if is_before_layers(name) else 1.0
    return (place[1] - offset) / (length - 1) if length > 1 else 1.0
