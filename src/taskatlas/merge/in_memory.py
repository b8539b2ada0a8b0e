"""Merge models in memory or on disk into one state dict."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.arguments import SAID, PerModel, complete, method_named
from taskatlas.merge.composition import model_thresholds
from taskatlas.merge.lora import is_adapter
from taskatlas.merge.methods import check_models, merge_tensor
from taskatlas.merge.operands import Operands, refuse_nan
from taskatlas.merge.state import Model, content_names, in_common, named_tensors
from taskatlas.zoo import Checkpoint


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
    for name in sorted(SAID.keys() & settings):
        raise BadInput(f"{name} is called {SAID[name]} here. Give {SAID[name]}=.")
    chosen = method_named(method)
    listed = _labelled(models)
    given = {"weight": weights, "density": density, "normalize": normalize, "lambda": scale, **settings}
    parameters, settings = complete(chosen, given, list(listed))
    if isinstance(base, str) and isinstance(models, Mapping):
        base = models.get(base, base)
    taking_part = {
        label: values
        for (label, model), values in zip(listed.items(), parameters, strict=True)
        if base is None or not _is_same(model, base)
    }
    check_models(chosen, len(taking_part), has_base=base is not None)
    for label in taking_part:
        _refuse_adapter(listed[label], label)
    states = {label: named_tensors(listed[label], label) for label in taking_part}
    base_tensors = None if base is None else named_tensors(base, "the base")
    first = next(iter(states))
    like, of = (states[first], first) if base_tensors is None else (base_tensors, "the base")
    common = in_common(like, of, states, common_only=common_only)
    names = tuple(states) if isinstance(models, Mapping) else _names(listed, states)
    operands = {
        name: Operands(
            name,
            names,
            tuple(tensors[its] for tensors, its in zip(states.values(), theirs, strict=True)),
            None if base_tensors is None else base_tensors[name],
            tuple(taking_part.values()),
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
    for name in common.kept:
        refuse_nan(name, of, like[name])
        merged[name] = like[name].clone()
    return {name: merged[common.aliases.get(name, name)] for name in like}


def _labelled(models: Any) -> dict[str, Model]:
    """The models by what messages call them."""
    several = "Give a list of models, or a mapping of names to models."
    if isinstance(models, Mapping):
        if any(isinstance(model, Tensor) for model in models.values()):
            raise BadInput(f"a single state dict was given. {several}")
        return dict(models)
    if isinstance(models, nn.Module | Checkpoint | Path | str):
        raise BadInput(f"a single {type(models).__name__} was given. {several}")
    labels = [
        model.name if isinstance(model, Checkpoint) else f"model {number}" for number, model in enumerate(models, 1)
    ]
    for label in labels:
        if labels.count(label) > 1:
            raise BadInput(f"two models are called {label}. Give a mapping of names to models.")
    return dict(zip(labels, models, strict=True))


def _refuse_adapter(model: Model, label: str) -> None:
    place = model.weights if isinstance(model, Checkpoint) else model
    if isinstance(place, Path | str) and is_adapter(Path(place)):
        raise BadInput(
            f"{label} is the LoRA adapter {place}, which is no model without its base. Merge by a recipe, which takes "
            "adapters as they are, or save the adapted model first (merge_and_unload)."
        )


def _is_same(model: Model, base: Model) -> bool:
    """Whether a model is the base itself; not one that is merely equal."""
    if isinstance(model, Path | str) and isinstance(base, Path | str):
        return Path(model).resolve() == Path(base).resolve()
    return model is base


def _names(listed: Mapping[str, Model], states: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, ...]:
    """What order and seeds follow where no names are given: those of checkpoints, else content."""
    contents = content_names(list(states.values()))
    return tuple(
        label if isinstance(listed[label], Checkpoint) else content
        for label, content in zip(states, contents, strict=True)
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
