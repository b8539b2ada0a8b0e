"""Image models by name from ``timm`` and ``torchvision``, with the preprocessing that was published with them."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskatlas.errors import BadInput, MissingExtra
from taskatlas.store import digest
from taskatlas.zoo.builders import Prepare
from taskatlas.zoo.weights import first_line, parameter_count

LIBRARIES = ("timm", "torchvision")


def is_vision_builder(builder: object) -> bool:
    """Whether a builder is ``timm:NAME`` or ``torchvision:NAME``.

    Example:
        >>> is_vision_builder("timm:resnet18"), is_vision_builder("models.py:resnet18")
        (True, False)
    """
    return isinstance(builder, str) and builder.partition(":")[0] in LIBRARIES


def build_vision(builder: str, arguments: Mapping[str, Any], *, published: bool) -> tuple[nn.Module, Prepare | None]:
    """The module that ``timm:NAME`` or ``torchvision:NAME`` stands for, and its preprocessing.

    Args:
        builder: library and name.
        arguments: go to the library's own function, by keyword.
        published: with the weights that the library publishes for the name, else with none that mean anything.

    Returns:
        The module, and a function from images (uint8 arrays of height x width x channels, or PIL images) to a batch of
        shape (images, 3, height, width); None in its place where the module takes other than three channels.

    Raises:
        BadInput: the library has no such model, or refuses the arguments.
        MissingExtra: the library is not installed.
    """
    library, name = _parts(builder)
    make = _build_timm if library == "timm" else _build_torchvision
    with _told_as_bad_input(builder):
        return make(name, dict(arguments), published)


def published_digest(builder: str) -> str:
    """Digest of what a library publishes under a name: where its weights lie and how images are prepared.

    Raises:
        BadInput: the library has no such model, or no weights for it.
        MissingExtra: the library is not installed.
    """
    library, name = _parts(builder)
    with _told_as_bad_input(builder):
        if library == "timm":
            settings = _timm(name).get_pretrained_cfg(name).to_dict()
            return digest(library, name, {key: str(value) for key, value in settings.items()})
        weights = _torchvision_weights(name)
        return digest(library, name, str(weights.url), str(weights.transforms()))


def vision_parameters(builder: str, arguments: Mapping[str, Any]) -> int:
    """The number of parameters of a named model; no weights are made or fetched.

    Raises:
        BadInput: the library has no such model, or refuses the arguments.
        MissingExtra: the library is not installed.
    """
    with torch.device("meta"):
        module, _ = build_vision(builder, arguments, published=False)
    return parameter_count(module.state_dict())


def _build_timm(name: str, arguments: dict[str, Any], published: bool) -> tuple[nn.Module, Prepare | None]:
    timm = _timm(name)
    module = timm.create_model(name, pretrained=published, **arguments)
    if arguments.get("in_chans", 3) != 3:  # nothing is published for images of other channels
        return module, None
    settings = timm.data.resolve_model_data_config(module)
    return module, partial(_prepare, timm.data.create_transform(**settings, is_training=False))


def _build_torchvision(name: str, arguments: dict[str, Any], published: bool) -> tuple[nn.Module, Prepare | None]:
    models = _torchvision_models(name)
    weights = _torchvision_weights(name)
    if published:
        # torchvision would unpickle the download as it comes: fetch it first, checked and read as plain tensors.
        torch.hub.load_state_dict_from_url(weights.url, map_location="cpu", check_hash=True, weights_only=True)
    module = models.get_model(name, weights=weights if published else None, **arguments)
    return module, partial(_prepare, weights.transforms())


def _prepare(transform: Callable[[Any], Tensor], images: list[Any]) -> Tensor:
    return torch.stack([transform(_as_picture(image)) for image in images])


def _as_picture(image: Any) -> Any:
    from PIL import Image

    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
    return image.convert("RGB")


def _parts(builder: str) -> tuple[str, str]:
    library, _, name = builder.partition(":")
    if library not in LIBRARIES or not name:
        raise BadInput(f"{builder!r} names no model. Write, for example, timm:resnet18 or torchvision:resnet18.")
    return library, name


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "vision", f"the builder timm:{name}") from error
    if not timm.is_model(name):
        raise BadInput(f"timm has no model {name!r}.{_meant(name, timm.list_models())}")
    return timm


def _torchvision_models(name: str) -> ModuleType:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtra("torchvision", "vision", f"the builder torchvision:{name}") from error
    if name not in models.list_models():
        raise BadInput(f"torchvision has no model {name!r}.{_meant(name, models.list_models())}")
    return models


def _torchvision_weights(name: str) -> Any:
    published = list(_torchvision_models(name).get_model_weights(name))
    if not published:
        raise BadInput(f"torchvision publishes no weights for {name!r}. Name a model that it does.")
    return _torchvision_models(name).get_model_weights(name).DEFAULT


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else " Look the name up in its list of models."


@contextmanager
def _told_as_bad_input(builder: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # unknown tags, arguments of the wrong type, a download that fails
        raise BadInput(f"{builder} cannot be built ({first_line(error)}). Check its name and arguments.") from error
