"""The numbers of a recipe: scalars, gradients over layers, values for tensors that a filter names; which one holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Gradient:
    """Values spread evenly over the depth of a model, interpolated between."""

    values: tuple[float, ...]

    def at(self, depth: float) -> float:
        """The value at a depth between 0 and 1.

        Example:
            >>> [Gradient((0.0, 0.5, 0.3)).at(depth) for depth in (0.0, 0.25, 0.75, 1.0)]
            [0.0, 0.25, 0.4, 0.3]
        """
        if len(self.values) == 1:
            return self.values[0]
        place = depth * (len(self.values) - 1)
        left = min(int(place), len(self.values) - 2)
        part = place - left
        return (1 - part) * self.values[left] + part * self.values[left + 1]


@dataclass(frozen=True)
class Filtered:
    """A value for the tensors whose names contain a text; for all where that is None."""

    value: Scalar | Gradient
    filter: str | None = None

    def matches(self, name: str) -> bool:
        """Whether the value is meant for a tensor."""
        return self.filter in (None, "*") or str(self.filter) in name


Setting = Scalar | Gradient | tuple[Filtered, ...]
Settings = Mapping[str, Setting]


def read_setting(content: object) -> Setting:
    """What a recipe says of one parameter: a scalar, a list of numbers, or a list of values with filters.

    Raises:
        ValueError: it is none of them; the message says where within it.

    Example:
        >>> read_setting([0, 1]), read_setting([{"filter": "mlp", "value": 0.5}, {"value": 0}])[0]
        (Gradient(values=(0.0, 1.0)), Filtered(value=0.5, filter='mlp'))
    """
    if isinstance(content, Gradient):
        return content
    if not isinstance(content, list | tuple):
        return _scalar(content, "")
    if not content:
        raise ValueError("the list is empty. Give numbers for a gradient, or values with filters")
    if any(isinstance(item, Mapping | Filtered) for item in content):
        return tuple(_filtered(item, f"[{position}]") for position, item in enumerate(content))
    return _gradient(content, "")


def write_setting(setting: Setting) -> object:
    """The plain value that ``read_setting`` reads back."""
    match setting:
        case Gradient():
            return list(setting.values)
        case tuple():
            return [
                {"value": write_setting(one.value)} | ({} if one.filter is None else {"filter": one.filter})
                for one in setting
            ]
        case _:
            return setting


def value_at(setting: Setting, name: str, depth: float) -> Scalar | None:
    """The value for one tensor: of filters the first that matches; None where none does.

    Example:
        >>> setting = read_setting([{"filter": "mlp", "value": [0, 1]}, {"filter": "norm", "value": 0.5}])
        >>> value_at(setting, "h.3.mlp.w", 0.25), value_at(setting, "h.3.norm", 0.25), value_at(setting, "wte", 0.0)
        (0.25, 0.5, None)
    """
    if isinstance(setting, tuple):
        setting = next((one.value for one in setting if one.matches(name)), ())
    if isinstance(setting, tuple):
        return None
    return setting.at(depth) if isinstance(setting, Gradient) else setting


def first_value(levels: Sequence[Settings], key: str, name: str, depth: float) -> Scalar | None:
    """The value of a parameter for one tensor from the first level that has one for it; None where none has."""
    for level in levels:
        if key in level:
            value = value_at(level[key], name, depth)
            if value is not None:
                return value
    return None


def scalars(setting: Setting) -> list[Scalar]:
    """Every value that a setting can take at the ends of its gradients."""
    match setting:
        case Gradient():
            return list(setting.values)
        case tuple():
            return [value for one in setting for value in scalars(one.value)]
        case _:
            return [setting]


def _filtered(content: object, where: str) -> Filtered:
    if isinstance(content, Filtered):
        return content
    if not isinstance(content, Mapping) or "value" not in content:
        raise ValueError(f"{where}: {content!r} is no value with a filter. Write {{filter: TEXT, value: NUMBER}}")
    unknown = [key for key in content if key not in ("filter", "value")]
    if unknown:
        raise ValueError(f"{where}.{unknown[0]}: unknown key. Keys are filter and value")
    text, value = content.get("filter"), content["value"]
    if not (text is None or (isinstance(text, str) and text)):
        raise ValueError(f"{where}.filter: {text!r} is no text. Write a part of the meant tensors' names")
    if isinstance(value, Gradient):
        return Filtered(value, text)
    place = f"{where}.value"
    return Filtered(_gradient(value, place) if isinstance(value, list | tuple) else _scalar(value, place), text)


def _gradient(content: Sequence[object], where: str) -> Gradient:
    values = [_scalar(item, f"{where}[{position}]") for position, item in enumerate(content)]
    for position, value in enumerate(values):
        if isinstance(value, bool | str):
            raise ValueError(f"{where}[{position}]: {value!r} is no number, and a gradient is a list of numbers")
    if not values:
        raise ValueError(f"{where}: the list is empty. Give numbers for a gradient")
    return Gradient(tuple(float(value) for value in values))


def _scalar(content: object, where: str) -> Scalar:
    prefix = f"{where}: " if where else ""
    if isinstance(content, str):
        try:
            content = float(content)  # YAML takes 1e-4 for a text
        except ValueError:
            return str(content)
    if not isinstance(content, bool | int | float):
        raise ValueError(f"{prefix}{content!r} is neither a number nor a list of numbers")
    if isinstance(content, float) and not math.isfinite(content):
        raise ValueError(f"{prefix}{content!r} is no finite number")
    return content
