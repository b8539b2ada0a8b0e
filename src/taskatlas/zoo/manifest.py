"""``zoo.yaml``: the file that names each checkpoint's weights, builder, arguments and task.

::

    builder: models.py:resnet          # for those that name none
    checkpoints:
      resnet20:
        weights: resnet20.safetensors  # relative to this file, or a hub id
        arguments: {depth: 20}         # text that starts with ./ is a path relative to this file
        task: cifar10
      roberta:
        weights: FacebookAI/roberta-base
        builder: transformers
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write
from taskatlas.zoo.builders import builder_name
from taskatlas.zoo.checkpoint import TRANSFORMERS, Checkpoint, is_hub_id
from taskatlas.zoo.yaml_file import read_yaml

MANIFEST = "zoo.yaml"
_HERE = "./"  # starts an argument that is a path seen from the manifest


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weights: str | None = None
    builder: str | None = None
    arguments: dict[str, JsonValue] = {}
    task: str | None = None


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    checkpoints: dict[str, _Entry]
    builder: str | None = None


def read_manifest(file: Path) -> list[Checkpoint]:
    """The checkpoints that a ``zoo.yaml`` names, in its order; no weights are read.

    Raises:
        BadInput: the file is missing, no YAML, or has a field that is unknown or wrong; weights that it names are not
            there. The message names the file and the field.
    """
    content = read_yaml(file)
    try:
        manifest = _Manifest.model_validate(content)
    except ValidationError as error:
        raise BadInput(f"{file}: {_first_problem(error)}") from error
    if not manifest.checkpoints:
        raise BadInput(f"{file}: checkpoints: there are none. Name at least one.")
    return [
        _checkpoint(file, name, entry, entry.builder or manifest.builder)
        for name, entry in manifest.checkpoints.items()
    ]


def write_manifest(file: Path, checkpoints: Iterable[Checkpoint]) -> None:
    """Writes a ``zoo.yaml``; paths under its folder are relative to it, others absolute. So are arguments: a ``Path``.

    Raises:
        BadInput: a builder cannot be named for another process, an argument is no plain value, or the file cannot be
            written.
    """
    folder = file.parent.resolve()
    content = {"checkpoints": {checkpoint.name: _fields(checkpoint, folder) for checkpoint in checkpoints}}
    try:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise BadInput(
            f"the zoo cannot be written to {file}: an argument of a builder is no plain value ({error})."
        ) from error
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _first_problem(error: ValidationError) -> str:
    # An unknown key comes first: where it was meant for a required one, that one's absence only repeats it.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the whole file"
    more = f" (There are {len(problems) - 1} more.)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _Manifest.model_fields if len(problem["loc"]) == 1 else _Entry.model_fields
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        advice = f"Did you mean {close[0]!r}?" if close else f"Keys are {', '.join(known)}."
        return f"{place}: there is no such key. {advice}{more}"
    return f"{place}: {problem['msg']}.{more}"


def _checkpoint(file: Path, name: str, entry: _Entry, builder: str | None) -> Checkpoint:
    weights = _location(file.parent, entry.weights, builder)
    try:
        arguments = {key: _argument_from(file.parent, value) for key, value in entry.arguments.items()}
        checkpoint = Checkpoint(name, weights, _builder_from(file.parent, builder), arguments, entry.task)
    except BadInput as error:
        raise BadInput(f"{file}: checkpoints: {error}") from error
    if isinstance(checkpoint.weights, Path) and not checkpoint.weights.exists():
        raise BadInput(
            f"{file}: checkpoints.{name}.weights: there is nothing at {checkpoint.weights}. Is the path right?"
        )
    if checkpoint.weights is None and checkpoint.builder is None:
        raise BadInput(f"{file}: checkpoints.{name}: it names neither weights nor a builder. Name one of them.")
    return checkpoint


def _location(folder: Path, weights: str | None, builder: str | None) -> Path | str | None:
    """A path seen from the manifest; a hub id where nothing lies there and transformers is to open it."""
    if weights is None:
        return None
    local = folder / Path(weights).expanduser()
    return weights if builder == TRANSFORMERS and not local.exists() and is_hub_id(weights) else local


def _builder_from(folder: Path, builder: str | None) -> str | None:
    where, _, name = (builder or "").rpartition(":")
    return f"{(folder / where).resolve()}:{name}" if where.endswith(".py") else builder


def _argument_from(folder: Path, value: Any) -> Any:
    return str((folder / value).resolve()) if isinstance(value, str) and value.startswith(_HERE) else value


def _argument_field(value: Any, folder: Path) -> Any:
    if not isinstance(value, Path):
        return value
    place = value.resolve()
    return f"{_HERE}{_from_folder(place, folder)}" if place.is_relative_to(folder) else str(place)


def _fields(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    weights = checkpoint.weights
    fields = {
        "weights": _from_folder(weights.resolve(), folder) if isinstance(weights, Path) else weights,
        "builder": None if checkpoint.builder is None else _builder_field(builder_name(checkpoint.builder), folder),
        "arguments": {key: _argument_field(value, folder) for key, value in checkpoint.arguments.items()} or None,
        "task": checkpoint.task,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _builder_field(builder: str, folder: Path) -> str:
    where, _, name = builder.rpartition(":")
    return f"{_from_folder(Path(where).resolve(), folder)}:{name}" if where.endswith(".py") else builder


def _from_folder(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
