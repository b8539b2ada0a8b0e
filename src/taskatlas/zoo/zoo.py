"""A zoo: checkpoints under unique names, in a fixed order, none of them opened before it is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write, digest
from taskatlas.zoo.builders import Builder, builder_name
from taskatlas.zoo.checkpoint import TRANSFORMERS, Checkpoint, is_hub_id
from taskatlas.zoo.folder import find_checkpoints
from taskatlas.zoo.hugging_face import is_model_folder
from taskatlas.zoo.manifest import MANIFEST, read_manifest, write_manifest
from taskatlas.zoo.vision import is_vision_builder
from taskatlas.zoo.weights import weights_name


@dataclass(frozen=True, repr=False, eq=False)
class Zoo(Mapping[str, Checkpoint]):
    """Checkpoints by name, in a fixed order.

    Raises:
        BadInput: there are none, or two have one name.

    Example:
        >>> zoo = Zoo.open({"small": nn.Linear(2, 1), "large": nn.Linear(9, 1)})
        >>> zoo, zoo["large"].parameters
        (Zoo(2 checkpoints: small, large), 10)
    """

    checkpoints: tuple[Checkpoint, ...]

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise BadInput("a zoo without checkpoints has nothing to compare. Give at least one.")
        name, times = Counter(checkpoint.name for checkpoint in self.checkpoints).most_common(1)[0]
        if times > 1:
            alike = [repr(checkpoint) for checkpoint in self.checkpoints if checkpoint.name == name]
            raise BadInput(
                f"{times} checkpoints are called {name!r}: {' and '.join(alike[:2])}. Give them names: {{name: ...}}."
            )

    @classmethod
    def open(cls, source: str | Path | Mapping[str, Any] | Sequence[Any], *, builder: Builder | None = None) -> Zoo:
        """A zoo from wherever checkpoints are; nothing of their weights is read.

        Args:
            source: a folder (with a ``zoo.yaml``, or of weights files and Hugging Face model folders), a ``zoo.yaml``,
                a weights file, a list of hub ids, paths, ``timm:NAME``, ``torchvision:NAME`` or checkpoints, a mapping
                of names to modules or any of these, or a zoo.
            builder: for the checkpoints that name none.

        Raises:
            BadInput: the source does not exist, holds no checkpoints, or two would have one name.
        """
        match source:
            case Zoo():
                checkpoints = list(source.checkpoints)
            case str() | Path():
                checkpoints = _from_path(Path(source))
            case Mapping():
                checkpoints = [_member(value, str(name)) for name, value in source.items()]
            case Sequence():
                checkpoints = [_member(value, None) for value in source]
            case _:
                raise BadInput(f"a {type(source).__name__} is no zoo. Give a folder, a zoo.yaml, a list or a mapping.")
        if builder is not None:
            checkpoints = [c if c.builder is not None else replace(c, builder=builder) for c in checkpoints]
        return cls(tuple(checkpoints))

    @classmethod
    def load(cls, folder: str | Path) -> Zoo:
        """What ``save`` wrote.

        Raises:
            BadInput: the folder has no ``zoo.yaml``, or one with faults.
        """
        return cls(tuple(read_manifest(Path(folder) / MANIFEST)))

    def save(self, folder: str | Path) -> None:
        """Writes ``zoo.yaml``; weights stay where they are, those in memory are written beside it as safetensors.

        Raises:
            BadInput: a module in memory has no builder by which it could be opened again; the folder cannot be written.
        """
        folder = Path(folder)
        for checkpoint in self.checkpoints:
            if checkpoint.builder is not None:
                builder_name(checkpoint.builder)  # before anything is written
            elif checkpoint.module is not None:
                raise BadInput(
                    f"{checkpoint.name} is a module in memory without a builder, so no file could bring it back. "
                    "Give it one: Checkpoint(name, builder='file.py:function', module=module)."
                )
        write_manifest(folder / MANIFEST, [_on_disk(checkpoint, folder) for checkpoint in self.checkpoints])

    @property
    def digest(self) -> str:
        """Digest of the names and of each checkpoint's content; their order does not matter.

        Raises:
            BadInput: weights or a builder cannot be read.
        """
        return digest("zoo", {checkpoint.name: checkpoint.digest for checkpoint in self.checkpoints})

    def __getitem__(self, name: str) -> Checkpoint:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __repr__(self) -> str:
        names = list(self)
        shown = names if len(names) <= 6 else [*names[:4], "...", names[-1]]
        return f"Zoo({len(names)} checkpoint{'s' if len(names) > 1 else ''}: {', '.join(shown)})"

    @cached_property
    def _by_name(self) -> dict[str, Checkpoint]:
        return {checkpoint.name: checkpoint for checkpoint in self.checkpoints}


def _from_path(place: Path) -> list[Checkpoint]:
    if place.is_dir():
        manifest = place / MANIFEST
        return read_manifest(manifest) if manifest.is_file() else find_checkpoints(place)
    if not place.exists():
        raise BadInput(f"there is no zoo at {place}. Is the path right?{_hub_hint(str(place))}")
    return read_manifest(place) if place.suffix in (".yaml", ".yml") else [_member(place, None)]


def _hub_hint(name: str) -> str:
    """How a model on the hub becomes a zoo, from the command line too, where the name could be one."""
    if not is_hub_id(name):
        return ""
    entry = f"{{{name.rpartition('/')[2]}: {{weights: {name}, builder: transformers}}}}"
    return f" For a model on the Hugging Face hub give a file zoo.yaml with the line: checkpoints: {entry}"


def _member(value: object, name: str | None) -> Checkpoint:
    """One entry of a list (which has no name of its own yet) or of a mapping."""
    match value:
        case Checkpoint():
            return value if name is None else replace(value, name=name)
        case nn.Module() if name is not None:
            return Checkpoint(name, module=value)
        case nn.Module():
            raise BadInput(f"a {type(value).__name__} in a list has no name. Give a mapping: {{name: module}}.")
        case str() if is_vision_builder(value):
            return Checkpoint(name or value, builder=value)
        case str() if is_hub_id(value):
            return Checkpoint(name or value, value, TRANSFORMERS)
        case str() | Path():
            return _local(Path(value), name)
    raise BadInput(f"a {type(value).__name__} is no checkpoint. Give a path, a hub id, a module or a Checkpoint.")


def _local(place: Path, name: str | None) -> Checkpoint:
    if not place.exists():
        raise BadInput(f"there are no weights at {place}. Is the path right?")
    if place.is_dir():
        if not is_model_folder(place):
            raise BadInput(
                f"{place} is not a Hugging Face model folder. Open a folder of checkpoints by itself: Zoo.open."
            )
        return Checkpoint(name or place.resolve().name, place, TRANSFORMERS)
    stem = weights_name(place)
    if not stem:
        raise BadInput(
            f"{place} is not called like a weights file: name one that ends in .safetensors, .pt, .pth, .th or .bin."
        )
    return Checkpoint(name or stem, place)


def _on_disk(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint itself, or, for a module in memory, one that opens from the file that is written here."""
    if checkpoint.module is None:
        return checkpoint
    tensors: dict[str, Tensor] = {}
    for name, value in checkpoint.module.state_dict().items():
        if not isinstance(value, Tensor):
            raise BadInput(
                f"the module {checkpoint.name} has a {type(value).__name__} under {name!r}, which is no tensor."
            )
        tensors[name] = (
            value.detach().cpu().clone(memory_format=torch.contiguous_format)
        )  # safetensors shares no memory
    file = folder / f"{checkpoint.name}.safetensors"
    with atomic_write(file) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return replace(checkpoint, weights=file, module=None)
