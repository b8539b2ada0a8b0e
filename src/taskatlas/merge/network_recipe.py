"""Recipes for networks that were trained apart: which units belong together is found on data, so they name a probe.

::

    merge_method: zip                 # or permute, weight_matching
    models: [{model: even.pt}, {model: odd.pt}]
    builder: nets.py:resnet           # unless the models' folder or zoo says it
    probe: photos/                    # unlabelled samples of all tasks
    a: 0.3
    b: 0.125
    stop_at: layer2                   # left out: merged to the end
    reset_statistics: true            # left out: layers are fitted by least squares
    groups: groups.json               # only for networks that cannot be followed
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.calibration import Remedy
from taskatlas.merge.recipe import did_you_mean
from taskatlas.probe import Probe
from taskatlas.store import atomic_write
from taskatlas.zoo import Checkpoint, Zoo
from taskatlas.zoo.yaml_file import read_yaml

NetworkMethod = Literal["zip", "permute", "weight_matching"]
_Name = Annotated[str, Field(min_length=1)]


class NetworkEntry(BaseModel):
    """A model: a checkpoint of the zoo, a weights file, or a Hugging Face model folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: _Name


class NetworkRecipe(BaseModel):
    """What to merge and how.

    Attributes:
        merge_method: ``zip``, ``permute`` or ``weight_matching``.
        models: two or more, of one architecture.
        probe: unlabelled samples of all their tasks, as ``Probe.open`` takes them.
        samples: how many of them, from all over the probe; None: all.
        a: of zip, see ``match_features``.
        b: of zip.
        stop_at: up to where they are merged; None: to the end. ``taskatlas zip-points`` lists the places.
        reset_statistics: True: BatchNorm statistics are estimated again, and nothing else is calibrated; False: nothing
            is; None: as ``calibration`` says.
        calibration: ``least_squares``, ``repair`` or ``reset``; in place of ``reset_statistics``.
        groups: a JSON file of axis groups (``AxisGroups.save``), for networks that cannot be followed; None: they are
            derived.
        builder: for models that name none.
        zoo: a folder, or ``zoo.yaml``, whose checkpoints may be named as models.
        outputs: for models that return a mapping, the entries that count.
        name: for the model card.

    Example:
        >>> NetworkRecipe.from_dict({"merge_method": "zip", "models": [{"model": "a.pt"}], "probe": "x.npz"})
        Traceback (most recent call last):
        ...
        taskatlas.errors.BadInput: models: name two or more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    merge_method: NetworkMethod
    models: Annotated[tuple[NetworkEntry, ...], Field(min_length=2)]
    probe: _Name
    samples: Annotated[int, Field(ge=2)] | None = None
    a: Annotated[float, Field(ge=0, le=1)] = 0.3
    b: Annotated[float, Field(ge=0, le=1)] = 0.125
    stop_at: _Name | None = None
    reset_statistics: bool | None = None
    calibration: Remedy = "least_squares"
    groups: _Name | None = None
    builder: _Name | None = None
    zoo: _Name | None = None
    outputs: tuple[_Name, ...] | None = None
    name: str | None = None

    @classmethod
    def from_dict(cls, content: Any) -> "NetworkRecipe":
        """A recipe from plain values, as YAML or JSON give them.

        Raises:
            BadInput: a field is unknown, missing or wrong; the message names it.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise BadInput(_first_problem(error)) from error

    @classmethod
    def load(cls, file: str | Path) -> "NetworkRecipe":
        """A recipe from a YAML file.

        Raises:
            BadInput: the file cannot be read, is no YAML, or has a field that is wrong; the message names both.
        """
        try:
            return cls.from_dict(read_yaml(Path(file)))
        except BadInput as error:
            raise BadInput(str(error) if str(file) in str(error) else f"{file}: {error}") from error

    def save(self, file: str | Path) -> None:
        """Writes the recipe as YAML.

        Raises:
            BadInput: the file cannot be written.
        """
        with atomic_write(Path(file)) as temporary:
            temporary.write_text(self.text, encoding="utf-8")

    @property
    def text(self) -> str:
        """The recipe as YAML."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    @property
    def remedy(self) -> Remedy | None:
        """What is done once units are merged."""
        if self.reset_statistics is None:
            return self.calibration
        return "reset" if self.reset_statistics else None

    @model_validator(mode="after")
    def _says_once(self) -> "NetworkRecipe":
        if {"calibration", "reset_statistics"} <= self.model_fields_set:
            raise ValueError("calibration and reset_statistics both say what is done once units are merged; give one")
        return self

    def __repr__(self) -> str:
        until = "" if self.stop_at is None else f" up to {self.stop_at}"
        return f"NetworkRecipe({self.merge_method}, {len(self.models)} models{until})"

    __str__ = __repr__


@dataclass(frozen=True)
class NamedNetworks:
    """What a recipe's words stand for.

    Attributes:
        checkpoints: the models, by names of their own.
        probe: the samples.
        groups: which axes move together, if the recipe says it.
    """

    checkpoints: tuple[Checkpoint, ...]
    probe: Probe
    groups: AxisGroups | None = None

    @classmethod
    def of(cls, recipe: NetworkRecipe, *, zoo: Zoo | None = None, beside: Path | None = None) -> "NamedNetworks":
        """Looks up models and samples: in the zoo, from the working folder, else from the recipe's.

        Raises:
            BadInput: something is not there, or cannot be opened.
        """
        if recipe.zoo is not None:
            named = Zoo.open(_place(recipe.zoo, beside))
            zoo = named if zoo is None else Zoo.open({**named, **zoo})
        builder = recipe.builder
        if builder is not None and (colon := builder.find(".py:")) > 0:
            builder = f"{_place(builder[: colon + 3], beside)}{builder[colon + 3 :]}"
        found = []
        for position, entry in enumerate(recipe.models):
            if zoo is not None and entry.model in zoo:
                found.append(zoo[entry.model])
                continue
            try:
                (checkpoint,) = Zoo.open([str(_place(entry.model, beside))], builder=builder).checkpoints
            except BadInput as error:
                raise BadInput(f"models[{position}].model: {error}") from error
            found.append(checkpoint)
        names = [checkpoint.name for checkpoint in found]
        if len(set(names)) < len(names):
            found = [
                Checkpoint(entry.model.replace("/", "-").strip("-."), one.weights, one.builder, one.arguments)
                for entry, one in zip(recipe.models, found, strict=True)
            ]
        probe = Probe.open(_place(recipe.probe, beside))
        if recipe.samples is not None and recipe.samples < len(probe):
            probe = probe.take(np.linspace(0, len(probe) - 1, recipe.samples).round().astype(int))
        groups = None if recipe.groups is None else AxisGroups.load(_place(recipe.groups, beside))
        return cls(tuple(found), probe, groups)


def _place(name: str, beside: Path | None) -> Path:
    """A path as it is seen from the working folder, or else from the recipe's."""
    place = Path(name).expanduser()
    if not place.exists() and beside is not None and (beside / place).exists():
        return beside / place
    return place


def _first_problem(error: ValidationError) -> str:
    problem = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(NetworkRecipe.model_fields)
        meant = did_you_mean(str(problem["loc"][-1]), known) or f". Keys are {', '.join(known)}."
        return f"{where}: unknown key{meant}"
    if where == "models" and problem["type"] == "too_short":
        return "models: name two or more."
    if where:
        return f"{where}: {problem['msg']}."
    said = problem.get("ctx", {}).get("error")
    return "the recipe is no mapping of keys to values." if said is None else f"{said}."
