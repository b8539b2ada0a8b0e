"""The laws of the room of merging: what every method must hold to that makes one tensor of several.

A method is one row: its function and what it declares. The check draws its tensors from a seed, tries every law that
the row declares, and raises an AssertionError that names the method, the law and the values that break it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from taskatlas.merge.methods import METHODS, merge_tensor
from taskatlas.merge.operands import Operands

Merge = Callable[[Mapping[str, Tensor], Tensor | None], Tensor]
"""(named tensors of one shape, the base's or None) -> one tensor of that shape and type."""

_SHAPE = (5, 8)


@dataclass(frozen=True)
class MergeLaws:
    """A method of merging and what it declares.

    All are pure, give the same bits whatever the order of models, and make of a model, merged with itself on itself as
    base, the model.

    Example:
        >>> def half_of_one(models, base):
        ...     return models[min(models)] / 2
        >>> check_merge(MergeLaws("half_of_one", half_of_one))
        Traceback (most recent call last):
            ...
        AssertionError: half_of_one breaks the law 'a model with itself' with seed 0: ...
    """

    name: str
    merge: Merge
    base: bool = False  # it is given one
    models: int = 3  # how many it is tried on
    idempotent: bool = True  # copies of one model make that model, also where the base is another
    neutral_base: bool = False  # a further model that equals the base changes nothing
    scaling: bool = True  # tensors and base times a number: the result times that number
    shift: bool = True  # a tensor added to all and to the base is added to the result
    element_order: bool = True  # the same elements in another order come out in that order
    tolerance: float = 1e-5


def check_merge(laws: MergeLaws, seed: int = 0) -> None:
    """Tries every law that a method declares on tensors drawn from ``seed``.

    Raises:
        AssertionError: a law is broken; names the method, the law, the seed and the values.

    Example:
        >>> for laws in MERGE_LAWS:
        ...     check_merge(laws, seed=1)
    """

    def broken(law: str, how: str) -> NoReturn:
        raise AssertionError(f"{laws.name} breaks the law {law!r} with seed {seed}: {how}")

    def same(law: str, found: Tensor, expected: Tensor, tolerance: float = laws.tolerance) -> None:
        off = (found - expected).abs().max().item()
        if not off <= tolerance * max(1.0, expected.abs().max().item()):  # NaN breaks every law
            broken(law, f"values differ by {off:.3g}")

    random = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(_SHAPE, generator=random)

    names = [f"model-{letter}" for letter in "cabd"[: laws.models]]
    base = draw()
    models = {name: base + 0.5 * draw() for name in names}
    anchor = base if laws.base else None
    before = [tensor.clone() for tensor in (*models.values(), base)]
    merged = laws.merge(models, anchor)

    if merged.shape != base.shape or merged.dtype != base.dtype:
        broken("a tensor like the models'", f"{merged.dtype} of shape {tuple(merged.shape)}")
    if any(not torch.equal(x, y) for x, y in zip((*models.values(), base), before, strict=True)):
        broken("leaves its input alone", "tensors were changed")
    if not torch.equal(laws.merge(models, anchor), merged):
        broken("deterministic", "a second call gives other bits")
    if not torch.equal(laws.merge(dict(reversed(models.items())), anchor), merged):
        broken("model order", "another order of models gives other bits")
    alone = models[names[0]]
    copies = dict.fromkeys(names, alone)
    same("a model with itself", laws.merge(copies, alone if laws.base else None), alone)
    if laws.idempotent:
        same("idempotent", laws.merge(copies, anchor), alone)
    if laws.neutral_base:
        same("neutral base", laws.merge({**models, "model-base": base}, anchor), merged)
    if laws.scaling:
        scaled = {name: 4 * tensor for name, tensor in models.items()}
        same("scaling", laws.merge(scaled, None if anchor is None else 4 * base), 4 * merged)
    if laws.shift:
        step = draw()
        moved = {name: tensor + step for name, tensor in models.items()}
        same("shift", laws.merge(moved, None if anchor is None else base + step), merged + step)
    if laws.element_order:
        order = torch.randperm(base.numel(), generator=random)

        def shuffled(tensor: Tensor) -> Tensor:
            return tensor.flatten()[order].view(_SHAPE)

        moved = {name: shuffled(tensor) for name, tensor in models.items()}
        same("element order", laws.merge(moved, None if anchor is None else shuffled(base)), shuffled(merged))


def _row(name: str, given: Mapping[str, Any] | None = None, **declared: Any) -> MergeLaws:
    """A method of ``taskatlas.merge``, with the same parameters for every model; a remark may follow its name."""
    method, given = METHODS[name.split(maxsplit=1)[0]], {"weight": 1.0, **(given or {})}
    parameters: dict[str, Any] = {key: given.get(key, default) for key, default in method.parameters.items()}
    settings = {key: given.get(key, default) for key, default in method.settings.items()}

    def merge(models: Mapping[str, Tensor], base: Tensor | None) -> Tensor:
        several = (parameters,) * len(models)
        operands = Operands("tensor", tuple(models), tuple(models.values()), base, several, settings, seed=3)
        return merge_tensor(method, operands, next(iter(models.values())).dtype)

    return MergeLaws(name, merge, **{"base": method.base == "required", **declared})


# A sum of task vectors makes no model of its copies, nor does a vector that lost elements; a model that equals the base
# adds nothing to a sum, but counts in a mean. Random draws and ranks in a row follow the elements' places.
_SUM: Mapping[str, Any] = {"idempotent": False, "neutral_base": True}
_RANDOM: Mapping[str, Any] = {**_SUM, "element_order": False}

MERGE_LAWS: tuple[MergeLaws, ...] = (
    _row("linear"),
    _row("task_arithmetic", **_SUM),
    _row("task_arithmetic (mean)", {"normalize": True}),
    _row("ties", {"density": 0.4}, **_SUM),
    _row("ties (dense)", neutral_base=True),
    _row("dare_linear", {"density": 0.4}, **_RANDOM),
    _row("dare_linear (dense mean)", {"normalize": True}),
    _row("dare_ties", {"density": 0.4}, **_RANDOM),
    _row("della", {"density": 0.5}, **_RANDOM),
    _row("della (dense)", neutral_base=True),
    _row("della_linear", {"density": 0.5}, **_RANDOM),
    _row("breadcrumbs", {"density": 0.5, "gamma": 0.1}, **_SUM),
    _row("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1}, **_SUM),
    _row("sce", neutral_base=True),
    _row("sce (half)", {"select_topk": 0.5}),
    _row("slerp", {"t": 0.3}, models=1, idempotent=False, shift=False),
    _row("nuslerp", models=2, shift=False),
    _row("nuslerp (of task vectors)", models=2, base=True),
    _row("nuslerp (of lines)", {"nuslerp_flatten": False}, models=2, base=True, element_order=False),
    _row("multislerp", shift=False),
    _row("multislerp (of task vectors)", base=True),
    _row("karcher", shift=False),
    _row("model_stock"),
    _row("model_stock (of lines)", {"filter_wise": True}, element_order=False),
    _row("nearswap", {"t": 0.2}, models=1, idempotent=False, scaling=False),
    _row("passthrough", models=1),
)
"""Every method of ``taskatlas.merge``, with what it declares."""
