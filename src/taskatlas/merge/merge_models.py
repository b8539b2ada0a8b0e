"""Merge models in memory or on disk into one state dict."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.composition import model_thresholds
from taskatlas.merge.methods import METHODS, Method, merge_tensor
from taskatlas.merge.operands import Operands
from taskatlas.merge.recipe import did_you_mean
from taskatlas.merge.state import Model, content_names, in_common, named_tensors
from taskatlas.zoo import Checkpoint

PerModel = float | Sequence[float] | Mapping[str, float]
"""One number for all models, or one for each: in their order, or by their names."""

# Where the paper that describes a method says more than the defaults of recipes.
_PAPERS: Mapping[str, Mapping[str, Any]] = {
    "task_arithmetic": {"lambda": 0.3},
    "ties": {"density": 0.2, "scope": "model"},
}
_SAID = {"weight": "weights", "lambda": "scale", "normalize_weights": "normalize"}  # what this function calls them
_KEYS = {("passthrough", "lambda"): "scale", ("multislerp", "normalize"): "normalize_weights"}


def merge_models(
    models: Sequence[Model] | Mapping[str, Model],
    *,
    base: Model | None = None,
    method: str = "linear",
    weights: PerModel | None = None,
    density: PerModel | None = None,
    scale: float | None = None,
    normalize: bool | None = None,
    seed: int = 0,
    common_only: bool = False,
    **settings: Any,
) -> dict[str, Tensor]:
    """One state dict of several models, with the names, shapes and types of the base, or else of the first model.

    Sums are float32 (float64 for float64 weights) whatever the storage type, in an order that follows the models'
    names: mapping keys, names of checkpoints, else digests of content. So neither the result nor its random draws
    depend on the order of models. Integers, such as BatchNorm's counters, are copied. Tied tensors are merged once and
    stay tied. A model that is the base itself takes no part where the method takes a base. BatchNorm's running
    statistics are merged like weights; re-estimate them afterwards.

    Args:
        models: modules, state dicts, checkpoints of a zoo, or paths of weights; a mapping names them.
        base: the model from which the others were trained, or the key of one in the mapping; the task-vector methods,
            slerp and nearswap need it.
        method: linear, task_arithmetic, ties, dare_linear, dare_ties, della, della_linear, breadcrumbs,
            breadcrumbs_ties, sce, slerp, nuslerp, multislerp, karcher, model_stock, nearswap or passthrough.
        weights: of the models; 1 each where None.
        density: share of each task vector that is kept. TIES keeps 0.2 where None.
        scale: λ, by which the summed task vectors are multiplied: 0.3 for task arithmetic and 1 for the others where
            None. For passthrough the factor of the model.
        normalize: divide by the sum of weights; where None, as the method is published.
        seed: of the random methods.
        common_only: merge the tensors that all models have in the same shape as the base (else the first model), and
            copy that one's other tensors as they are; what only other models have is left out. Otherwise any
            difference in names or shapes is refused.
        settings: what else the method has, by the name that recipes use: ``t``, ``gamma``, ``epsilon``, ``rescale``,
            ``select_topk``, ``filter_wise``, ``max_iter`` and so on. ``scope`` of ties is ``model`` (the largest of
            all tensors together, as published) or ``tensor``.

    Returns:
        Names to tensors on the CPU, new ones; ``load_state_dict`` of the base's module takes it.

    Raises:
        BadInput: an unknown method or setting; models of different shapes, with a list of them; NaN, with tensor and
            model; weights that sum to zero and are to be normalised; no base where the method needs one.

    Example:
        >>> import torch
        >>> base, a, b = (nn.Linear(2, 1) for _ in range(3))
        >>> for model, value in ((base, 1.0), (a, 2.0), (b, 4.0)):
        ...     _ = nn.init.constant_(model.weight, value), nn.init.zeros_(model.bias)
        >>> merge_models([a, b])["weight"]
        tensor([[3., 3.]])
        >>> merge_models([a, b], base=base, method="task_arithmetic", scale=0.5)["weight"]
        tensor([[3., 3.]])
    """
    chosen = _method(method)
    listed = _listed(models)
    given = {"weight": weights, "density": density, "normalize": normalize, "lambda": scale, **settings}
    parameters, settings = _complete(chosen, given, [label for label, _ in listed])
    if isinstance(base, str) and isinstance(models, Mapping) and base in models:
        base = models[base]
    taking_part = [
        (label, model, values)
        for (label, model), values in zip(listed, parameters, strict=True)
        if base is None or not _is_same(model, base)
    ]
    states = {label: named_tensors(model, label) for label, model, _ in taking_part}
    base_tensors = None if base is None else named_tensors(base, "the base")
    if not states:
        raise BadInput("no model is left beside the base. Give one that differs from it.")
    like, of = (next(iter(states.values())), next(iter(states))) if base_tensors is None else (base_tensors, "the base")
    common = in_common(like, of, states, common_only=common_only)
    names = _names(taking_part, list(states.values()), named=isinstance(models, Mapping))

    operands = {
        name: Operands(
            name,
            names,
            tuple(tensors[its] for tensors, its in zip(states.values(), theirs, strict=True)),
            None if base_tensors is None else base_tensors[name],
            tuple(values for _, _, values in taking_part),
            settings,
            seed,
            labels=tuple(states),
        )
        for name, theirs in common.merged.items()
    }
    if settings.get("scope") == "model":
        operands = _with_thresholds(operands)
    merged = {
        name: merge_tensor(chosen, tensors, like[name].dtype) for name, tensors in track(operands.items(), "merging")
    }
    merged |= {name: like[name].clone() for name in common.kept}
    return {name: merged[common.aliases.get(name, name)] for name in like}


def _method(name: str) -> Method:
    if name not in METHODS:
        meant = did_you_mean(name, METHODS)
        raise BadInput(f"there is no method {name!r}{meant}. Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def _listed(models: Sequence[Model] | Mapping[str, Model]) -> list[tuple[str, Model]]:
    """The models with what messages call them."""
    if isinstance(models, Mapping):
        if any(isinstance(model, Tensor) for model in models.values()):
            raise BadInput("a single state dict was given. Give a list of models, or a mapping of names to models.")
        return list(models.items())
    if isinstance(models, str):
        raise BadInput(f"a single path was given ({models}). Give a list of models, or a mapping of names to models.")
    listed = [
        (model.name if isinstance(model, Checkpoint) else f"model {number}", model)
        for number, model in enumerate(models, start=1)
    ]
    labels = [label for label, _ in listed]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise BadInput(f"two models are called {twice[0]}. Give a mapping of names to models.")
    return listed


def _is_same(model: Model, base: Model) -> bool:
    """Whether a model is the base itself; not one that is merely equal."""
    if isinstance(model, Path | str) and isinstance(base, Path | str):
        return Path(model).resolve() == Path(base).resolve()
    return model is base


def _names(
    taking_part: Sequence[tuple[str, Model, Mapping[str, float]]],
    states: Sequence[Mapping[str, Tensor]],
    *,
    named: bool,
) -> tuple[str, ...]:
    """What order and seeds follow: names that were given, else content."""
    if named:
        return tuple(label for label, _, _ in taking_part)
    contents = content_names(states)
    return tuple(
        model.name if isinstance(model, Checkpoint) else content
        for (_, model, _), content in zip(taking_part, contents, strict=True)
    )


def _with_thresholds(operands: Mapping[str, Operands]) -> dict[str, Operands]:
    thresholds = model_thresholds(list(operands.values()))
    return {
        name: replace(
            tensors,
            parameters=tuple(
                {**values, "threshold": threshold}
                for values, threshold in zip(tensors.parameters, thresholds, strict=True)
            ),
        )
        for name, tensors in operands.items()
    }


def _complete(
    method: Method, given: Mapping[str, Any], labels: Sequence[str]
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Each model's parameters and the merge's settings, from what was given and the defaults."""
    given = {_KEYS.get((method.name, key), key): value for key, value in given.items() if value is not None}
    known = {**method.parameters, **method.settings}
    for key in given:
        if key not in known:
            said = _SAID.get(key, key)
            takes = ", ".join(_SAID.get(other, other) for other in known if other != "int8_mask") or "nothing else"
            raise BadInput(f"{method.name} has no {said}{did_you_mean(said, known)}. It takes {takes}.")
    values = {**known, "weight": 1.0, **_PAPERS.get(method.name, {}), **given}
    for key in known:
        if values[key] is None or (key == "density" and key not in given and method.name not in _PAPERS):
            raise BadInput(f"{method.name} needs {key}. Give a number, such as {key}=0.5.")
    by_model = {key: _one_each(key, values[key], labels) for key in method.parameters}
    parameters = [{key: numbers[place] for key, numbers in by_model.items()} for place in range(len(labels))]
    return parameters, {key: _setting(key, values[key], method.settings[key]) for key in method.settings}


def _one_each(key: str, value: Any, labels: Sequence[str]) -> list[float]:
    said = _SAID.get(key, key)
    if isinstance(value, Mapping):
        if set(value) != set(labels):
            differing = ", ".join(sorted(map(str, set(value) ^ set(labels))))
            raise BadInput(f"{said} are given by name, and the names are not those of the models: see {differing}.")
        value = [value[label] for label in labels]
    several = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * len(labels)
    if len(several) != len(labels):
        raise BadInput(f"{len(several)} {said} for {len(labels)} models. Give one number, or one for each model.")
    for number in several:
        if not isinstance(number, int | float):
            raise BadInput(f"{said} is {number!r}. Give a number, or one for each model.")
    return [float(number) for number in several]


def _setting(key: str, value: Any, default: Any) -> Any:
    said = _SAID.get(key, key)
    if key == "scope" and value not in ("model", "tensor"):
        raise BadInput(f"scope is {value!r}. Choose model or tensor.")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise BadInput(f"{said} is {value!r}. Choose True or False.")
    if not isinstance(default, bool | str) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise BadInput(f"{said} is {value!r}. Give a number.")
    return value
