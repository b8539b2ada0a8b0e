"""What the arguments of a data-adaptive fusion may be."""

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.fusion_learning import Optimizer
from taskatlas.merge.hypernetwork import Bound
from taskatlas.merge.low_rank import LowRankVectors
from taskatlas.merge.per_sample import Engine
from taskatlas.merge.placement import Placement
from taskatlas.merge.task_vectors import Level, TaskVectors
from taskatlas.store import Store
from taskatlas.zoo import Checkpoint

_WORDS = {"level": Level, "bound": Bound, "optimizer": Optimizer, "engine": Engine}
_NUMBERS: Mapping[str, tuple[type, Callable[[Any], bool], str]] = {
    "steps": (Integral, lambda value: value >= 1, "a whole number of at least 1"),
    "batch_size": (Integral, lambda value: value >= 1, "a whole number of at least 1"),
    "seed": (Integral, lambda value: value >= 0, "a whole number of at least 0"),
    "learning_rate": (Real, lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "initial": (Real, math.isfinite, "a finite number"),
    "diversity": (Real, lambda value: 0 <= value < math.inf, "a finite number of at least 0"),
    "collapse": (Real, lambda value: 0 < value < 1, "a number between 0 and 1, or None"),
}
_OPTIONAL: Mapping[str, tuple[type, str]] = {
    "heads": (Mapping, "task -> head"),
    "placement": (Placement, "a Placement"),
    "store": (Store, "a Store"),
}


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuses arguments of ``DataAdaptive`` that nothing can be made of.

    Raises:
        BadInput: names the argument, and says what it may be.
    """
    for name, known in _WORDS.items():
        if given[name] not in get_args(known):
            raise BadInput(f"{name}={given[name]!r} is none of {', '.join(get_args(known))}.")
    for name, (kind, fits, wanted) in _NUMBERS.items():
        value = given[name]
        if name == "collapse" and value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
            raise BadInput(f"{name}={value!r} is not {wanted}.")
    for name, (kind, wanted) in _OPTIONAL.items():
        if given[name] is not None and not isinstance(given[name], kind):
            raise BadInput(f"{name} is a {type(given[name]).__name__}; give {wanted}, or None.")
    own = given["own"]
    if isinstance(own, str) or not isinstance(own, Iterable) or not all(isinstance(one, str) for one in own):
        raise BadInput(f"own={own!r} is no list of patterns. Write own=['classifier.*'].")
    if not isinstance(given["base"], nn.Module | Mapping | Checkpoint | Path | str):
        raise BadInput(f"the base is a {type(given['base']).__name__}; give a network, or its tensors by name.")
    if not isinstance(given["experts"], Mapping | TaskVectors | LowRankVectors):
        raise BadInput(f"the experts are a {type(given['experts']).__name__}; give them by task: {{'cars': network}}.")
