"""A plan made of a recipe: models opened, tensors matched, parameters settled; little but headers is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from taskatlas.errors import BadInput
from taskatlas.merge.assembly import Slot, assemble, stacked_layers
from taskatlas.merge.folder import refuse_quantised
from taskatlas.merge.methods import Method, check_numbers
from taskatlas.merge.parameters import Scalar, Settings, first_value
from taskatlas.merge.plan import COPY, MergedSource, MergePlan, PlannedTensor, dtype_name
from taskatlas.merge.recipe import MergeRecipe, ModelEntry, OutputSlice, SourceSlice, path_of
from taskatlas.merge.references import References
from taskatlas.merge.shards import lay_out
from taskatlas.merge.sources import Source
from taskatlas.merge.ties import tied_slots
from taskatlas.zoo import Zoo

SHARD_SIZE = 5_000_000_000
_LISTED = 12  # tensors in a message

Entry = TypeVar("Entry", ModelEntry, SourceSlice)


def make_plan(
    recipe: MergeRecipe | str | Path,
    *,
    zoo: Zoo | str | Path | None = None,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
) -> MergePlan:
    """Works out a recipe: opens its models, reads the headers of their files, and which of their tensors are tied.

    Args:
        recipe: a recipe or its file. Models that are paths are looked for from the working folder, then from the
            recipe's.
        zoo: whose checkpoints the recipe may name, beside those of the zoo that it names itself; or where it is.
        seed: of random methods.
        shard_size: the most bytes of a file of the result; a larger tensor has one to itself.

    Raises:
        BadInput: the recipe is wrong, a model is unknown or damaged, or tensors differ in shape; the message names the
            field or lists the tensors.
    """
    return _plan(recipe, None if zoo is None else Zoo.open(zoo), seed, shard_size, ())


def _plan(
    recipe: MergeRecipe | str | Path, zoo: Zoo | None, seed: int, shard_size: int, above: tuple[Path, ...]
) -> MergePlan:
    """``above``: the files of the recipes that name this one as a model."""
    beside = None
    if not isinstance(recipe, MergeRecipe):
        file = Path(recipe)
        recipe, beside, above = MergeRecipe.load(file), file.parent, (*above, file.resolve())

    def open_recipe(reference: str, place: Path) -> Source:
        if place.resolve() in above:
            raise BadInput(f"{reference} is made of itself: it names a recipe that names it. Break the circle.")
        inner = _plan(place, zoo, seed, shard_size, above)
        return MergedSource(reference, place, inner, inner.sources[inner.config_from].folder)

    references = References(None, beside, recipe.base_model, open_recipe)
    references = replace(references, zoo=_zoo(recipe, zoo, references))
    sources: dict[str, Source] = {}
    for where, reference in _fields(recipe):
        try:
            sources[reference] = references.open(reference)
            refuse_quantised(sources[reference])
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from error
    spelt = _base_in_one_spelling(recipe, sources)
    tensors = _tensors(spelt, assemble(spelt, references.open), sources)
    _check_scope(tensors)
    layers = stacked_layers(spelt, references.open)
    return MergePlan(recipe, tensors, lay_out(tensors, shard_size), sources, seed, layers)


def _zoo(recipe: MergeRecipe, zoo: Zoo | None, references: References) -> Zoo | None:
    if recipe.zoo is None:
        return zoo
    try:
        named = Zoo.open(references.path(recipe.zoo) or recipe.zoo)
    except BadInput as error:
        raise BadInput(f"zoo: {error}") from error
    return named if zoo is None else Zoo.open({**named, **zoo})


def _base_in_one_spelling(recipe: MergeRecipe, sources: Mapping[str, Source]) -> MergeRecipe:
    """The recipe with a base that stands among the models called as it is called as the base.

    Raises:
        BadInput: without the base, too few models are left.
    """

    def spelt(entry: Entry, base: str | None) -> Entry:
        if base is None or not sources[base].files or sources[entry.model].identity != sources[base].identity:
            return entry
        return entry.model_copy(update={"model": base})

    models = recipe.models and tuple(spelt(entry, recipe.base_model) for entry in recipe.models)
    slices = recipe.slices and tuple(
        one.model_copy(
            update={"sources": tuple(spelt(entry, one.base_model or recipe.base_model) for entry in one.sources)}
        )
        for one in recipe.slices
    )
    if (models, slices) == (recipe.models, recipe.slices):
        return recipe
    return MergeRecipe.from_dict(recipe.model_copy(update={"models": models, "slices": slices}).model_dump())


def _fields(recipe: MergeRecipe) -> list[tuple[str, str]]:
    """Every place of a recipe that names a model, the base first, with what stands there."""
    fields = [] if recipe.base_model is None else [("base_model", recipe.base_model)]
    for number, one in enumerate(recipe.layers):
        if one.base_model is not None:
            fields.append((path_of("slices", number, "base_model"), one.base_model))
        fields += [
            (f"{_where(recipe, number, position)}.model", entry.model) for position, entry in enumerate(one.sources)
        ]
    chosen = recipe.tokenizer_from
    if chosen not in (None, "base", "union"):
        fields.append(("tokenizer_source" if recipe.tokenizer is None else "tokenizer.source", str(chosen)))
    return fields


def _where(recipe: MergeRecipe, number: int, position: int) -> str:
    if recipe.slices is None:
        return path_of("models", position)
    return path_of("slices", number, "sources", position)


def _tensors(recipe: MergeRecipe, slots: Sequence[Slot], sources: Mapping[str, Source]) -> tuple[PlannedTensor, ...]:
    planned: dict[str, PlannedTensor] = {}
    problems: list[str] = []
    everyone = {slot.name: _places(recipe, slot) for slot in slots}
    ties: dict[str, str] = {}
    for number in range(len(recipe.layers)):
        ties |= tied_slots([(slot, everyone[slot.name]) for slot in slots if slot.number == number], sources)
    for slot in slots:
        if slot.name in ties:
            continue
        one = recipe.layers[slot.number]
        base = one.base_model or recipe.base_model
        problem = _mismatch(everyone[slot.name], sources)
        if problem is None:
            planned[slot.name] = _planned(recipe, one, slot, sources)
        elif not recipe.common_only:
            problems.append(f"{slot.name} {problem}")
        elif base is not None and slot.base is not None:
            planned[slot.name] = _copied(slot.name, (base, slot.base), sources)
    for name, first in ties.items():
        if first in planned and all(its is not None for _, its in everyone[name]):
            planned[name] = replace(planned[first], name=name, tied_to=first)
    if not planned and all(sum(name is not None for name in (*slot.tensors, slot.base)) < 2 for slot in slots):
        names = [f"{model}: {next(iter(source.shapes))}" for model, source in sources.items()]
        raise BadInput(
            f"no two models have a tensor of one name ({'; '.join(names)}). Save them with the same class of model."
        )
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise BadInput(
            f"{len(problems)} tensors do not fit together: {'; '.join(problems[:_LISTED])}{more}. With a base_model "
            "and common_only: true, those that fit are merged and the others are the base's."
        )
    if all(tensor.method == COPY for tensor in planned.values()):
        raise BadInput("the models have no tensors of numbers in common, so there is nothing to merge. Are they alike?")
    return tuple(planned[slot.name] for slot in slots if slot.name in planned)


def _places(recipe: MergeRecipe, slot: Slot) -> list[tuple[str, str | None]]:
    """The slice's models and then its base, with what they call a tensor."""
    one = recipe.layers[slot.number]
    base = one.base_model or recipe.base_model
    found = [(entry.model, name) for entry, name in zip(one.sources, slot.tensors, strict=True)]
    return found if base is None else [*found, (base, slot.base)]


def _check_scope(tensors: Sequence[PlannedTensor]) -> None:
    """Where the largest elements of a whole model are kept, it has one density."""
    densities: dict[str, float] = {}
    for tensor in tensors:
        for label, own in zip(tensor.labels, tensor.parameters, strict=True) if tensor.whole_model else ():
            if densities.setdefault(label, own["density"]) != own["density"]:
                raise BadInput(
                    f"parameters.scope: a whole model is made sparse with one density, and {label} has several. "
                    "Write one number, or scope: tensor."
                )


def _mismatch(everyone: Sequence[tuple[str, str | None]], sources: Mapping[str, Source]) -> str | None:
    """Why tensors cannot be merged, for behind their name; None where they can."""
    lacking = [model for model, name in everyone if name is None]
    shapes = {model: sources[model].shapes[name] for model, name in everyone if name is not None}
    if lacking:
        return f"is in {' and '.join(shapes)} and not in {' and '.join(dict.fromkeys(lacking))}"
    first, *_ = shapes
    for model, like in shapes.items():
        if like.shape != shapes[first].shape:
            return f"is {tuple(shapes[first].shape)} in {first} and {tuple(like.shape)} in {model}"
        if like.is_floating_point() != shapes[first].is_floating_point():
            return f"is {dtype_name(shapes[first].dtype)} in {first} and {dtype_name(like.dtype)} in {model}"
    return None


def _planned(recipe: MergeRecipe, one: OutputSlice, slot: Slot, sources: Mapping[str, Source]) -> PlannedTensor:
    method = recipe.method
    base = one.base_model or recipe.base_model
    merged = [
        (position, entry, str(name))
        for position, (entry, name) in enumerate(zip(one.sources, slot.tensors, strict=True))
        if method.base == "none" or entry.model != base
    ]
    models = tuple((entry.model, name) for _, entry, name in merged)
    of_base = None if base is None or method.base == "none" else (base, str(slot.base))
    everyone = models if of_base is None else (*models, of_base)
    likes = [sources[model].shapes[name] for model, name in everyone]
    plain = likes[0].is_floating_point()
    if not plain and not likes[0].is_complex():
        return _copied(slot.name, of_base or min(models), sources)
    dtype = likes[-1].dtype
    if of_base is None:
        for like in likes:
            dtype = torch.promote_types(dtype, like.dtype)
    wanted = recipe.out_dtype or recipe.dtype
    parameters = tuple(
        _parameters(method, slot, (entry.parameters, one.parameters, recipe.parameters), where)
        for position, entry, _ in merged
        for where in [f"{_where(recipe, slot.number, position)}.parameters"]
    )
    levels = (one.parameters, recipe.parameters)
    settings = {
        key: _value(levels, key, default, method, slot, "parameters") for key, default in method.settings.items()
    }
    labels = _labels([entry for _, entry, _ in merged])
    check_numbers(method, slot.name, labels, parameters, settings)
    return PlannedTensor(
        slot.name,
        tuple(likes[0].shape),
        getattr(torch, wanted) if wanted is not None and plain else dtype,
        method.name,
        models,
        labels,
        of_base,
        parameters,
        settings,
    )


def _copied(name: str, place: tuple[str, str], sources: Mapping[str, Source]) -> PlannedTensor:
    like = sources[place[0]].shapes[place[1]]
    return PlannedTensor(name, tuple(like.shape), like.dtype, COPY, (place,), (place[0],), None, ({},), {})


def _labels(entries: Sequence[SourceSlice]) -> tuple[str, ...]:
    """A name for each model; the second of the same name is ``NAME#2``, in an order that follows what is said of it."""
    said = [
        (entry.model, json.dumps(entry.model_dump(mode="json"), sort_keys=True), n) for n, entry in enumerate(entries)
    ]
    order = sorted(said)
    labels = []
    for one in said:
        before = sum(other[0] == one[0] for other in order[: order.index(one)])
        labels.append(f"{one[0]}#{before + 1}" if before else one[0])
    return tuple(labels)


def _parameters(method: Method, slot: Slot, levels: Sequence[Settings], where: str) -> dict[str, float]:
    found = {}
    for key, default in method.parameters.items():
        value = _value(levels, key, default, method, slot, where)
        assert not isinstance(value, str)  # the recipe was checked
        found[key] = float(value)
    return found


def _value(levels: Sequence[Settings], key: str, default: Any, method: Method, slot: Slot, where: str) -> Scalar:
    value = first_value(levels, key, slot.name, slot.depth)
    if value is None:
        value = default
    if value is None:
        raise BadInput(f"{where}.{key}: {method.name} needs it, and nothing gives one for {slot.name}.")
    if isinstance(value, str):
        return value
    kind = type(default) if isinstance(default, bool | int) else float
    return kind(value)
