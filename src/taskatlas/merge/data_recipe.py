"""Recipes of merges that look at data: unlabelled samples beside every model.

::

    merge_method: data_adaptive        # or adamerging, fisher, regmean
    base_model: base.safetensors       # fisher and regmean take none
    builder: nets.py:classifier        # how networks are made; Hugging Face folders need none
    models:
      - {model: digits.safetensors, data: digits.npz}
      - {model: letters.safetensors, data: letters.npz, task: letters}
    extractor: resnet.safetensors      # data_adaptive alone: what the features are of
    placement: {networks: [cuda:0, cuda:1], extractor: cuda:0}    # data_adaptive alone
    parameters: {level: layer, steps: 500}

Models, zoo and samples are paths, seen from the working folder or else from the recipe's; hub ids; models also names of
the zoo. Samples are whatever ``Probe.open`` reads, and their labels are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
import yaml
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from taskatlas.errors import BadInput
from taskatlas.merge.fusion_learning import Optimizer
from taskatlas.merge.hypernetwork import Bound
from taskatlas.merge.limits import ANY, NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SHARE, Limits, should_be
from taskatlas.merge.lora import is_adapter
from taskatlas.merge.per_sample import Engine
from taskatlas.merge.placement import Placement, check_device
from taskatlas.merge.recipe import Strict, did_you_mean, first_problem, path_of
from taskatlas.merge.task_vectors import Level
from taskatlas.probe import Probe
from taskatlas.store import digest
from taskatlas.zoo import Checkpoint, Zoo
from taskatlas.zoo.yaml_file import read_yaml

DataMethod = Literal["adamerging", "data_adaptive", "fisher", "regmean"]


class Parameter(NamedTuple):
    """A parameter's default, None where it may be left out, and the values that it may have."""

    default: Any
    limits: Limits = ANY


_AT_LEAST_1: Limits = (1.0, math.inf)
_BATCH = Parameter(16, _AT_LEAST_1)
_LEARNED: Mapping[str, Parameter] = {
    "steps": Parameter(500, _AT_LEAST_1),
    "learning_rate": Parameter(1e-3, POSITIVE),
    "initial": Parameter(0.3),
    "batch_size": _BATCH,
    "transductive": Parameter(False),
}
_SAMPLES: Mapping[str, Parameter] = {"samples": Parameter(256, _AT_LEAST_1), "batch_size": _BATCH}
DATA_METHODS: Mapping[str, Mapping[str, Parameter]] = {
    "adamerging": {
        "level": Parameter("layer", get_args(Level)),
        "density": Parameter(None, POSITIVE_SHARE),
        **_LEARNED,
    },
    "data_adaptive": {
        "level": Parameter("task", get_args(Level)),
        **_LEARNED,
        "steps": Parameter(1000, _AT_LEAST_1),
        "learning_rate": Parameter(1e-5, POSITIVE_SHARE),
        "bound": Parameter("none", get_args(Bound)),
        "standardise": Parameter(False),
        "diversity": Parameter(0.0, NOT_NEGATIVE),
        "collapse": Parameter(0.3, SHARE),
        "optimizer": Parameter("adam", get_args(Optimizer)),
        "engine": Parameter("auto", get_args(Engine)),
    },
    "fisher": _SAMPLES,
    "regmean": {**_SAMPLES, "off_diagonal": Parameter(0.9, SHARE)},
}
"""Methods that look at data, each with its parameters."""

_OPTIONAL = ("density", "collapse")  # may be null
_RESULTS = ("recipe.yml", "receipt.json", "fusion.safetensors", "per-sample.yaml", "zoo.yaml", "README.md")
_BASED = ("adamerging", "data_adaptive")
_Name = Annotated[str, Field(min_length=1)]


class DataEntry(Strict):
    """An expert and unlabelled samples of its task; the task is called like the model's file where it has no name."""

    model: _Name
    data: _Name
    task: _Name | None = None

    @property
    def name(self) -> str:
        """The task's."""
        return self.task or PurePath(self.model.partition("+")[2] or self.model).name.partition(".")[0]


class Devices(Strict):
    """Where the parts of a data-adaptive fusion are while it learns; what is left out is where ``--device`` says.

    Attributes:
        vectors: base and task vectors.
        hypernetwork: from features to coefficients.
        networks: tasks are dealt to these devices in turn.
        extractor: from samples to features.
    """

    vectors: _Name | None = None
    hypernetwork: _Name | None = None
    networks: tuple[_Name, ...] = ()
    extractor: _Name | None = None

    def by_field(self) -> Iterator[tuple[str, str]]:
        """Every device that is named, under its field."""
        for field in ("vectors", "hypernetwork", "extractor"):
            if getattr(self, field) is not None:
                yield path_of("placement", field), getattr(self, field)
        for number, device in enumerate(self.networks):
            yield path_of("placement", "networks", number), device


class DataRecipe(Strict):
    """What to merge, how, and with which samples.

    Attributes:
        merge_method: a name of ``DATA_METHODS``.
        models: the experts, each with samples of its task.
        base_model: what they were trained from; for ``adamerging`` and ``data_adaptive``.
        extractor: whose features decide coefficients; for ``data_adaptive``.
        placement: devices by part; for ``data_adaptive``.
        parameters: of the method.
        builder: for models that name none, as ``Zoo.open`` takes it.
        split: of tables with a column ``split``, only the rows with this value.
        own: patterns of tensors that stay each expert's own, beside heads for other numbers of classes.
        zoo: a folder, or ``zoo.yaml``, with checkpoints that may be named as models.
        name: for people.

    Example:
        >>> entries = [{"model": "a.pt", "data": "a.npz"}, {"model": "b.pt", "data": "b.npz"}]
        >>> DataRecipe.from_dict({"merge_method": "regmean", "models": entries})
        DataRecipe(regmean, 2 models: a, b)
    """

    merge_method: DataMethod
    models: Annotated[tuple[DataEntry, ...], Field(min_length=1)]
    base_model: _Name | None = None
    extractor: _Name | None = None
    placement: Devices | None = None
    parameters: dict[str, StrictBool | StrictInt | StrictFloat | StrictStr | None] = Field(default_factory=dict)
    builder: _Name | None = None
    split: _Name | None = None
    own: tuple[_Name, ...] = ()
    zoo: _Name | None = None
    name: str | None = None

    @classmethod
    def from_dict(cls, content: Any, beside: Path | None = None) -> DataRecipe:
        """A recipe from plain values.

        Args:
            content: as YAML or JSON give them.
            beside: a folder; what lies there is named by its whole path from now on.

        Raises:
            BadInput: a field is unknown, missing or wrong; the message names it.
        """
        try:
            recipe = cls.model_validate(content)
        except ValidationError as error:
            raise BadInput(first_problem(error, cls, {"models": DataEntry, "placement": Devices})) from error
        for problem in recipe._problems():
            raise BadInput(problem)
        return recipe._located(beside)

    @classmethod
    def load(cls, file: str | Path) -> DataRecipe:
        """A recipe from a YAML file.

        Raises:
            BadInput: the file cannot be read, is no YAML, or has a field that is wrong; the message names both.
        """
        file = Path(file)
        content = read_yaml(file)
        try:
            return cls.from_dict(content, file.parent)
        except BadInput as error:
            raise BadInput(f"{file}: {error}") from error

    def with_zoo(self, zoo: Zoo | str | Path | None) -> DataRecipe:
        """The same with another zoo in place of the one that it names; with None, itself.

        Raises:
            BadInput: the zoo is in memory.
        """
        if isinstance(zoo, Zoo):
            raise BadInput("a merge that looks at data is opened again from its folder. Name the zoo by its path.")
        return self if zoo is None else self.model_copy(update={"zoo": str(Path(zoo).resolve())})

    @property
    def text(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)

    @property
    def digest(self) -> str:
        """Digest of what the recipe says; not of the models and samples that it names."""
        return digest("data recipe", self.model_dump(mode="json"))

    @property
    def settings(self) -> dict[str, Any]:
        """Every parameter of the method."""
        defaults = {key: parameter.default for key, parameter in DATA_METHODS[self.merge_method].items()}
        return {**defaults, **self.parameters}

    def __repr__(self) -> str:
        count = len(self.models)
        return f"DataRecipe({self.merge_method}, {count} model{'s' if count > 1 else ''}: {', '.join(self.tasks)})"

    __str__ = __repr__

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the recipe's order."""
        return tuple(entry.name for entry in self.models)

    def experts(self) -> dict[str, Checkpoint]:
        """Task -> checkpoint; nothing of its weights is read.

        Raises:
            BadInput: there is no such model; the message names the field.
        """
        return {
            entry.name: self._checkpoint(entry.name, entry.model, path_of("models", number, "model"))
            for number, entry in enumerate(self.models)
        }

    def others(self) -> dict[str, Checkpoint]:
        """``base`` and ``extractor``, those that the method takes.

        Raises:
            BadInput: there is no such model; the message names the field.
        """
        named = {"base": ("base_model", self.base_model), "extractor": ("extractor", self.extractor)}
        return {
            name: self._checkpoint(name, model, field) for name, (field, model) in named.items() if model is not None
        }

    def placed(self, device: str) -> tuple[Placement, str]:
        """Where vectors, hypernetwork and networks are, and where the extractor is.

        Args:
            device: of what the recipe leaves open.

        Raises:
            BadInput: there is no such device here; the message names the field.
        """
        where = self.placement or Devices()
        for field, named in where.by_field():
            try:
                check_device(named)
            except BadInput as error:
                raise BadInput(f"{field}: {error}") from error
        return Placement(
            where.vectors or device, where.hypernetwork or device, where.networks
        ), where.extractor or device

    def data(self) -> dict[str, Probe]:
        """Task -> its samples.

        Raises:
            BadInput: they cannot be read; the message names the field.
        """
        found = {}
        for number, entry in enumerate(self.models):
            try:
                table = self.split is not None and Path(entry.data).suffix in (".csv", ".tsv")
                found[entry.name] = Probe.from_table(entry.data, split=self.split) if table else Probe.open(entry.data)
            except BadInput as error:
                raise BadInput(f"{path_of('models', number, 'data')}: {error}") from error
        return found

    def _checkpoint(self, name: str, reference: str, field: str) -> Checkpoint:
        try:
            if self.zoo is not None:
                zoo = Zoo.open(self.zoo, builder=self.builder)
                if reference in zoo:
                    return zoo[reference]
            if Path(reference).is_dir() and is_adapter(Path(reference)):
                return Checkpoint(name, Path(reference))
            return Zoo.open({name: reference}, builder=self.builder)[name]
        except BadInput as error:
            raise BadInput(f"{field}: {error}") from error

    def _located(self, beside: Path | None) -> DataRecipe:
        """With whole paths in place of what is seen from the working folder, or else from the recipe's."""

        def whole(name: str | None) -> str | None:
            roots = [Path(), *([] if beside is None else [beside])]
            places = (root / Path(name).expanduser() for root in roots if name is not None)
            return next((str(place.resolve()) for place in places if place.exists()), name)

        def builder(name: str | None) -> str | None:
            where, colon, function = (name or "").rpartition(":")
            return f"{whole(where)}{colon}{function}" if where.endswith(".py") else name

        entries = tuple(
            entry.model_copy(update={"model": whole(entry.model), "data": whole(entry.data), "task": entry.name})
            for entry in self.models
        )
        fields = {key: whole(getattr(self, key)) for key in ("base_model", "extractor", "zoo")}
        return self.model_copy(update={"models": entries, "builder": builder(self.builder), **fields})

    def _misplaced(self) -> Iterator[str]:
        if self.merge_method != "data_adaptive" and self.placement is not None:
            yield f"placement: {self.merge_method} takes none. Leave it out, and say --device."
        for field, device in (self.placement or Devices()).by_field():
            if not _is_device(device):
                yield f"{field}: {device!r} is no device. Write cpu, cuda, or cuda:1 for the second."

    def _problems(self) -> Iterator[str]:
        method, known = self.merge_method, DATA_METHODS[self.merge_method]
        if method in _BASED and self.base_model is None:
            yield f"base_model: {method} needs one. Name the model that the others were fine-tuned from."
        if method not in _BASED and self.base_model is not None:
            yield f"base_model: {method} takes none. Leave it out, or give it as one of the models."
        if (method == "data_adaptive") != (self.extractor is not None):
            needed = "data_adaptive needs one. Name a model whose features tell samples apart."
            yield f"extractor: {needed if self.extractor is None else f'{method} takes none. Leave it out.'}"
        yield from self._misplaced()
        repeated = next((name for name in self.tasks if self.tasks.count(name) > 1), None)
        if repeated is not None:
            yield f"models: two tasks are called {repeated!r}. Give each a name: task: ..."
        taken = next((name for name in self.tasks if name in _RESULTS or name.endswith(".png")), None)
        if taken is not None:
            yield f"models: a task is called {taken!r}, like a file of the result. Give it another name: task: ..."
        for key, value in self.parameters.items():
            if key not in known:
                yield (
                    f"parameters.{key}: {method} has no such parameter{did_you_mean(key, known) or '.'} "
                    f"It takes {', '.join(known)}."
                )
                return
            if value is None and key in _OPTIONAL:
                continue
            default, limits = known[key]
            kind = float if default is None else type(default)
            fits = isinstance(value, int | float) and not isinstance(value, bool) if kind is float else True
            if value is None or not fits or (kind is not float and type(value) is not kind):
                words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
                yield f"parameters.{key}: {value!r} is not {words[kind]}."
                return
            wanted = should_be(limits, value)
            if wanted is not None:
                yield f"parameters.{key}: {value!r} is out of bounds. It has to be {wanted}."


def _is_device(name: str) -> bool:
    """Whether it is called like a device, here or on another machine."""
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True
