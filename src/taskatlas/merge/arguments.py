"""What a call of ``merge_models`` gives, checked and completed from the defaults of methods and papers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.methods import METHODS, Method
from taskatlas.merge.recipe import did_you_mean

Number = float | int | np.number[Any] | Tensor
PerModel = Number | np.ndarray | Sequence[Number] | Mapping[str, Number]
"""One number for all models, or one for each: in their order, or by their names."""

# Where the paper that describes a method says another thing than the defaults of recipes.
_PAPERS: Mapping[str, Mapping[str, Any]] = {
    "task_arithmetic": {"lambda": 0.3},
    "ties": {"density": 0.2, "scope": "model"},
}
SAID = {"weight": "weights", "lambda": "scale", "normalize_weights": "normalize"}
"""Names of recipes, and what ``merge_models`` calls them."""

_KEYS = {("passthrough", "lambda"): "scale", ("multislerp", "normalize"): "normalize_weights"}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        BadInput: there is none; the message suggests one.
    """
    if name not in METHODS:
        raise BadInput(f"there is no method {name!r}{did_you_mean(name, METHODS)}. Choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def complete(
    method: Method, given: Mapping[str, Any], labels: Sequence[str]
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Each model's parameters and the merge's settings, from what was given and the defaults.

    Args:
        method: whose they are.
        given: by the names of parameters and settings in the method's row; None where nothing was given.
        labels: the models', in order.

    Raises:
        BadInput: the method has no such setting, needs one that is not given, or cannot take its value.
    """
    given = {_KEYS.get((method.name, key), key): value for key, value in given.items() if value is not None}
    known = {**method.parameters, **method.settings}
    for key in given:
        if key not in known:
            said, takes = SAID.get(key, key), [SAID.get(other, other) for other in known if other != "int8_mask"]
            meant = did_you_mean(said, takes) or "."
            raise BadInput(f"{method.name} has no {said}{meant} It takes {', '.join(takes) or 'nothing else'}.")
    values = {**known, "weight": 1.0, **_PAPERS.get(method.name, {}), **given}
    for key in known:
        if values[key] is None or (key == "density" and key not in given and method.name not in _PAPERS):
            raise BadInput(f"{method.name} needs {key}. Give a number, such as {key}=0.5.")
    by_model = {key: _one_each(key, values[key], labels) for key in method.parameters}
    parameters = [{key: numbers[place] for key, numbers in by_model.items()} for place in range(len(labels))]
    return parameters, {key: _setting(method, key, values[key]) for key in method.settings}


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python has them.

    Example:
        >>> import numpy as np
        >>> plain(np.float32(0.5)), plain(np.ones(2)), plain("a")
        (0.5, [1.0, 1.0], 'a')
    """
    return value.tolist() if hasattr(value, "tolist") else value


def _one_each(key: str, value: Any, labels: Sequence[str]) -> list[float]:
    said, value = SAID.get(key, key), plain(value)
    if isinstance(value, Mapping):
        if set(value) != set(labels):
            differing = ", ".join(sorted(map(str, set(value) ^ set(labels))))
            raise BadInput(f"{said} are given by name, and the names are not those of the models: see {differing}.")
        value = [value[label] for label in labels]
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    several = [plain(number) for number in value] if is_list else [value] * len(labels)
    if len(several) != len(labels):
        raise BadInput(f"{len(several)} {said} for {len(labels)} models. Give one number, or one for each model.")
    for number in several:
        if not isinstance(number, int | float):
            raise BadInput(f"{said} is {number!r}. Give a number, or one for each model.")
    return [float(number) for number in several]


def _setting(method: Method, key: str, value: Any) -> Any:
    said, value, default = SAID.get(key, key), plain(value), method.settings[key]
    if isinstance(default, str):
        wanted = method.should_be(key, str(value))
        if wanted is not None:
            raise BadInput(f"{said} is {value!r}. Choose {wanted}.")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise BadInput(f"{said} is {value!r}. Choose True or False.")
    if not isinstance(default, bool | str) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise BadInput(f"{said} is {value!r}. Give a number.")
    return value
