"""A checkpoint: named weights and how to make a module of them, opened when it is needed."""

import copy
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.store import digest
from taskatlas.zoo.builders import Builder, Prepare, build, builder_digest, code_of_classes, load_weights
from taskatlas.zoo.hugging_face import hub_commit, hub_parameters, model_digest, open_model
from taskatlas.zoo.vision import build_vision, is_vision_builder, published_digest, vision_parameters
from taskatlas.zoo.weights import (
    files_digest,
    parameter_count,
    read_weights,
    tensor_shapes,
    tensors_digest,
    weights_name,
)

TRANSFORMERS = "transformers"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def is_hub_id(text: str) -> bool:
    """A string that could be a hub id and is no path: nothing lies there, and it is not called like weights.

    Example:
        >>> is_hub_id("google-bert/bert-base-uncased"), is_hub_id("runs/3/model.pt")
        (True, False)
    """
    return _HUB_ID.fullmatch(text) is not None and weights_name(Path(text)) is None and not Path(text).exists()


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A module in evaluation mode with its weights, and how raw inputs are prepared for it.

    ``prepare`` takes a list of raw inputs (strings, lists of words, images as uint8 arrays of height x width x
    channels) and returns, on the CPU, a tensor for ``module(batch)`` or a mapping for ``module(**batch)``. None: the
    checkpoint says nothing about it.
    """

    module: nn.Module
    prepare: Prepare | None


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """Named weights and how to build the module that they belong to.

    Attributes:
        name: unique in a zoo; parts may be joined by ``/``, as in a path or a hub id.
        weights: a file, a folder, a hub id (a string that is no path), or None for what the builder itself brings.
        builder: ``transformers``, ``timm:NAME``, ``torchvision:NAME``, ``module.path:function``, ``file.py:function``,
            a Python function, or None where the checkpoint is only listed.
        arguments: go to the builder by keyword.
        task: what it was trained for.
        module: a module in memory, in place of weights.

    Raises:
        BadInput: the name is empty or would lead out of a folder.

    Example:
        >>> checkpoint = Checkpoint("tiny", module=nn.Linear(3, 2))
        >>> checkpoint.parameters, checkpoint.open().module.training
        (8, False)
    """

    name: str
    weights: Path | str | None = None
    builder: Builder | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    task: str | None = None
    module: nn.Module | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "arguments", dict(self.arguments))
        if isinstance(self.weights, str) and not is_hub_id(self.weights):
            object.__setattr__(self, "weights", Path(self.weights))

    def __repr__(self) -> str:
        parts = [f"{key}={str(getattr(self, key))!r}" for key in ("weights", "task") if getattr(self, key) is not None]
        if self.builder is not None:
            parts.append(f"builder={getattr(self.builder, '__qualname__', self.builder)!r}")
        if self.module is not None:
            parts.append(f"module={type(self.module).__name__}")
        return f"Checkpoint({', '.join([repr(self.name), *parts])})"

    def open(self, device: str = "cpu") -> OpenedCheckpoint:
        """Builds the module, loads its weights and moves it to the device.

        Parts that a file leaves open are initialised alike every time, and the random states of Python, NumPy and
        torch stay as they are. A module in memory is opened as it is where it evaluates on the device already, else as
        a copy.

        Raises:
            BadInput: there is no builder, no such device, or builder and weights do not go together.
            MissingExtra: the builder needs a package that is not installed.
        """
        place = _device(device)
        with _settled_randomness():
            if self.module is not None:
                return OpenedCheckpoint(_ready(self.module, place, self.name), None)
            module, prepare = self._build()
        return OpenedCheckpoint(module.eval().to(place), prepare)

    @property
    def digest(self) -> str:
        """Digest of the weights' content, the builder with its source, and the arguments; not of names and places.

        Raises:
            BadInput: the weights or the builder cannot be read; an argument is no plain value.
        """
        if self.module is not None:
            architecture = _ADDRESS.sub("", repr(self.module)), code_of_classes(self.module)
            return digest("module", architecture, tensors_digest(_tensors(self.module)))
        try:
            arguments = digest(self.arguments)
        except TypeError as error:
            raise BadInput(
                f"the arguments of {self.name} are no plain values ({error}). Give numbers and strings."
            ) from error
        return digest("checkpoint", self._weights_digest(), self._builder_digest(), arguments)

    @property
    def parameters(self) -> int:
        """The number of elements of all floating-point tensors but running statistics; no weights are read for it.

        Raises:
            BadInput: the weights or the builder cannot be read.
        """
        if self.module is not None:
            tensors = _tensors(self.module)
        elif isinstance(self.weights, str):
            return hub_parameters(self.weights)
        elif self.weights is not None:
            tensors = tensor_shapes(self.weights)
        elif is_vision_builder(self.builder):
            return vision_parameters(str(self.builder), self.arguments)
        else:
            tensors = _tensors(self.open().module)
        return parameter_count(tensors)

    def _build(self) -> tuple[nn.Module, Prepare | None]:
        builder = self.builder
        if builder is None:
            raise BadInput(
                f"{self.name} has weights ({self.weights}) but no builder to make a module for them. "
                "Name one with --builder file.py:function, or for each checkpoint in a zoo.yaml."
            )
        if builder == TRANSFORMERS:
            return open_model(self._transformers_source())
        tensors = None if self.weights is None else read_weights(self._local_weights())
        made = (
            build_vision(str(builder), self.arguments, published=tensors is None)
            if is_vision_builder(builder)
            else build(builder, self.arguments, tensors)
        )
        if tensors is not None:
            load_weights(made[0], tensors, f"{self.weights}, opened with {getattr(builder, '__qualname__', builder)},")
        return made

    def _transformers_source(self) -> Path | str:
        if self.weights is None:
            raise BadInput(f"{self.name} names no weights for transformers. Give a model folder or a hub id.")
        if self.arguments:
            raise BadInput(
                f"{self.name} has arguments, which transformers does not take: the model's config.json has them."
            )
        return self.weights

    def _local_weights(self) -> Path:
        if isinstance(self.weights, Path):
            return self.weights
        raise BadInput(
            f"there is no file or folder {self.weights!r} with the weights of {self.name}. "
            "Check the path, or use the builder transformers for a hub id."
        )

    def _weights_digest(self) -> str:
        if self.builder == TRANSFORMERS:
            return model_digest(self._transformers_source())
        if isinstance(self.weights, str):
            return hub_commit(self.weights) if self.builder is None else files_digest(self._local_weights())
        if self.weights is not None:
            return files_digest(self.weights)
        return published_digest(str(self.builder)) if is_vision_builder(self.builder) else ""

    def _builder_digest(self) -> str:
        if self.builder is None or self.builder == TRANSFORMERS or is_vision_builder(self.builder):
            return digest(self.builder)
        return builder_digest(self.builder)


def _check_name(name: str) -> None:
    parts = name.split("/")
    if not name or any(part != part.strip() or part in ("", ".", "..") for part in parts):
        raise BadInput(f"{name!r} is not a name for a checkpoint. Write a word, or words joined by single slashes.")
    if "\\" in name or PureWindowsPath(name).drive or not name.isprintable():
        raise BadInput(
            f"the name {name!r} has a backslash, a drive or a sign that cannot be printed. Write it without."
        )


def _device(device: str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"there is no device {device!r} here. Choose cpu, or cuda where a GPU is installed.") from error


def _ready(module: nn.Module, place: torch.device, name: str) -> nn.Module:
    """The module itself where nothing has to change: one that the user holds is never changed under their hands."""
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.device == place for tensor in tensors) and not any(part.training for part in module.modules()):
        return module
    try:
        return copy.deepcopy(module).eval().to(place)
    except (RuntimeError, TypeError) as error:
        raise BadInput(
            f"the module {name} cannot be copied ({error}). Give it in evaluation mode, on {place}."
        ) from error


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


@contextmanager
def _settled_randomness() -> Iterator[None]:
    """The same random numbers inside every time; outside, as if nothing had been drawn."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)  # torch.manual_seed would also seed GPUs that are not in use yet
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
