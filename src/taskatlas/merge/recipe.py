"""Recipes: what to merge and how, in the YAML that mergekit's users know.

::

    merge_method: ties
    base_model: base/
    models:
      - model: math/
        parameters: {weight: 0.6, density: [0.2, 0.5]}    # from the first layer to the last
      - model: base/+code-lora/
        parameters:
          weight:
            - {filter: mlp, value: 0.5}
            - {value: 0.3}
    dtype: bfloat16

Two keys are taskatlas's own: ``zoo``, a folder whose checkpoints ``model`` may name, and ``common_only``, which merges
the tensors that all models share and leaves the others to the base.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from taskatlas.errors import BadInput
from taskatlas.merge.methods import METHODS, Method
from taskatlas.merge.parameters import Scalar, Setting, read_setting, scalars, write_setting
from taskatlas.store import atomic_write, digest
from taskatlas.zoo.yaml_file import read_yaml

Dtype = Literal["float64", "float32", "float16", "bfloat16"]

Kind = Literal["weights", "data", "networks"]

KINDS: Mapping[str, Kind] = {
    "adamerging": "data",
    "data_adaptive": "data",
    "fisher": "data",
    "regmean": "data",
    "permute": "networks",
    "weight_matching": "networks",
    "zip": "networks",
}
"""Methods whose recipes are of another kind: with samples for each model, or of networks that were trained apart."""

# Keys of mergekit's that change what comes out and that nothing here does.
_NOT_HERE = frozenset(
    {"modules", "chat_template", "tokens", "pad_to_multiple_of", "input_model_parameters", "residual_weight"}
)
# Parameters of mergekit's that change how it works and not what comes out.
_WITHOUT_EFFECT = frozenset({"int8_mask"})


def _nothing_as_empty(content: object) -> object:
    """``parameters:`` with only a comment under it."""
    return {} if content is None else content


_Parameters = Annotated[
    dict[str, Annotated[Any, BeforeValidator(read_setting), PlainSerializer(write_setting)]],
    BeforeValidator(_nothing_as_empty),
]
_Name = Annotated[str, Field(min_length=1)]
_Place = tuple[str | int, ...]


class Strict(BaseModel):
    """A part of a recipe: no unknown keys, and nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(Strict):
    """A whole model and its parameters."""

    model: _Name
    parameters: _Parameters = {}


class SourceSlice(Strict):
    """A range of a model's layers, from the first number to before the second; None: the whole model."""

    model: _Name
    layer_range: tuple[Annotated[int, Field(ge=0, strict=True)], Annotated[int, Field(ge=0, strict=True)]] | None = None
    parameters: _Parameters = {}

    @field_validator("layer_range")
    @classmethod
    def _in_order(cls, layers: tuple[int, int] | None) -> tuple[int, int] | None:
        if layers is not None and layers[0] > layers[1]:
            raise ValueError(f"the range {list(layers)} ends before it starts")
        return layers


class OutputSlice(Strict):
    """Layers that follow those of the slice before, merged of one range from each source."""

    sources: Annotated[tuple[SourceSlice, ...], Field(min_length=1)]
    base_model: _Name | None = None
    parameters: _Parameters = {}


class TokenizerChoice(Strict):
    """Whose tokenizer the merged model gets: ``base``, ``union`` (where all are alike), or a model's."""

    source: _Name = "union"


class MergeRecipe(Strict):
    """What to merge and how.

    Attributes:
        merge_method: a name of ``METHODS``.
        models: whole models, or
        slices: ranges of layers, each laid on the one before.
        base_model: of which the others are fine-tunes, where the method takes one.
        parameters: for all models, and of the method.
        dtype: of the result; None: as the base, or else the models, have it. Sums are float32 whatever it says.
        out_dtype: of the result, where ``dtype`` is to be another for mergekit.
        tokenizer_source: whose tokenizer goes along.
        tokenizer: the same, in mergekit's newer words.
        name: for the model card.
        zoo: a folder, or ``zoo.yaml``, with checkpoints that may be named as models.
        common_only: merge the tensors that all models have in one shape; the base's others stay as they are.

    Raises:
        ValueError: a field is wrong; ``from_dict`` and ``load`` say the same as ``BadInput``.

    Example:
        >>> recipe = MergeRecipe.from_dict({"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}],
        ...                                 "parameters": {"weight": 0.5}})
        >>> recipe
        MergeRecipe(linear, 2 models)
        >>> MergeRecipe.from_dict({"merge_method": "linaer", "models": [{"model": "a"}]})
        Traceback (most recent call last):
        ...
        taskatlas.errors.BadInput: merge_method: there is no method 'linaer'; did you mean 'linear'? Methods are ...
    """

    merge_method: _Name
    models: Annotated[tuple[ModelEntry, ...], Field(min_length=1)] | None = None
    slices: Annotated[tuple[OutputSlice, ...], Field(min_length=1)] | None = None
    base_model: _Name | None = None
    parameters: _Parameters = {}
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: _Name | None = None
    tokenizer: TokenizerChoice | None = None
    name: str | None = None
    zoo: _Name | None = None
    common_only: bool = False

    @classmethod
    def from_dict(cls, content: Any) -> MergeRecipe:
        """A recipe from plain values, as YAML or JSON give them.

        Raises:
            BadInput: a field is unknown, missing or wrong; the message names it.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            method = content.get("merge_method") if isinstance(content, Mapping) else None
            unknown = isinstance(method, str) and method not in METHODS  # its own keys are unknown then, too
            problem = f"{_unknown_method(str(method))}." if unknown else first_problem(error, cls, _KNOWN)
            raise BadInput(problem) from error

    @classmethod
    def load(cls, file: str | Path) -> MergeRecipe:
        """A recipe from a YAML file.

        Raises:
            BadInput: the file cannot be read, is no YAML, or has a field that is wrong; the message names both.
        """
        content = read_yaml(Path(file))
        try:
            return cls.from_dict(content)
        except BadInput as error:
            raise BadInput(f"{file}: {error}") from error

    def save(self, file: str | Path) -> None:
        """Writes the recipe as YAML; comments of the file that it came from are not kept.

        Raises:
            BadInput: the file cannot be written.
        """
        with atomic_write(Path(file)) as temporary:
            temporary.write_text(self.text, encoding="utf-8")

    @property
    def text(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self._content(), sort_keys=False, allow_unicode=True)

    @property
    def digest(self) -> str:
        """Digest of what the recipe says; not of the models that it names."""
        return digest("recipe", self._content())

    @property
    def method(self) -> Method:
        """The row of ``METHODS`` that the recipe names."""
        return METHODS[self.merge_method]

    @property
    def tokenizer_from(self) -> str | None:
        """``base``, ``union``, a model, or None: the base's, or else the first model's."""
        chosen = self.tokenizer.source if self.tokenizer is not None else self.tokenizer_source
        return None if chosen is None else chosen.removeprefix("model:")

    @property
    def layers(self) -> tuple[OutputSlice, ...]:
        """The slices; whole models are one."""
        if self.slices is not None:
            return self.slices
        entries = self.models or ()
        return (
            OutputSlice(
                sources=tuple(SourceSlice(model=entry.model, parameters=entry.parameters) for entry in entries)
            ),
        )

    def __repr__(self) -> str:
        entries = len({source.model for one in self.layers for source in one.sources})
        how = "" if self.models is not None else ", in slices"
        base = "" if self.base_model is None else f" on {self.base_model}"
        return f"MergeRecipe({self.merge_method}, {entries} model{'s' if entries > 1 else ''}{base}{how})"

    __str__ = __repr__

    @model_validator(mode="after")
    def _holds_together(self) -> MergeRecipe:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_defaults=True)

    def _problems(self) -> Iterator[str]:
        if self.models is None and self.slices is None:
            yield "the recipe names no models. Write them under models, or under slices"
        if self.models is not None and self.slices is not None:
            yield "the recipe has both models and slices. Write one of the two"
        if self.merge_method not in METHODS:
            yield _unknown_method(self.merge_method)
            return
        if self.tokenizer is not None and self.tokenizer_source is not None:
            yield "tokenizer_source: tokenizer says it too. Write one of the two"
        if self.common_only and self.base_model is None:
            yield "common_only: the other tensors are the base's. Name a base_model"
        if self.tokenizer_from == "base" and self.base_model is None:
            yield "tokenizer: there is no base. Name a base_model, or whose tokenizer it shall be"
        yield from self._parameter_problems()
        yield from self._count_problems()

    def _parameter_problems(self) -> Iterator[str]:
        everywhere: list[tuple[_Place, Mapping[str, Setting]]] = [(("parameters",), self.parameters)]
        per_model: list[tuple[_Place, Mapping[str, Setting]]] = [
            (("models", number, "parameters"), entry.parameters) for number, entry in enumerate(self.models or ())
        ]
        for number, one in enumerate(self.slices or ()):
            everywhere.append((("slices", number, "parameters"), one.parameters))
            for position, source in enumerate(one.sources):
                per_model.append((("slices", number, "sources", position, "parameters"), source.parameters))
        for levels, for_one in ((everywhere, False), (per_model, True)):
            for where, parameters in levels:
                for key, setting in parameters.items():
                    problem = _parameter_problem(self.method, key, setting, for_one=for_one)
                    if problem:
                        yield f"{path_of(*where, key)}: {problem}"

    def _count_problems(self) -> Iterator[str]:
        method = self.method
        for number, one in enumerate(self.layers):
            base = one.base_model or self.base_model
            if method.base == "required" and base is None:
                yield f"base_model: {method.name} needs one. Name the model that the others were fine-tuned from"
            names = [source.model for source in one.sources]
            count = len(names) if method.base == "none" else sum(name != base for name in names)
            if count < method.least or (method.most is not None and count > method.most):
                where = path_of("slices", number, "sources") if self.models is None else "models"
                beside = "" if method.base == "none" or base is None else " beside the base"
                yield f"{where}: {method.name} merges {_how_many(method)}{beside}, and there are {count}"


def kind_of(file: Path) -> Kind:
    """What a recipe's file asks for; nothing but its method is looked at.

    Raises:
        BadInput: the file cannot be read, or is no YAML.
    """
    content = read_yaml(file)
    method = content.get("merge_method") if isinstance(content, Mapping) else None
    return KINDS.get(method, "weights") if isinstance(method, str) else "weights"


def path_of(*parts: str | int) -> str:
    """A place in a recipe, as people write it.

    Example:
        >>> path_of("models", 1, "parameters", "weight")
        'models[1].parameters.weight'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word, for the middle of a sentence; empty where none is near.

    Example:
        >>> did_you_mean("densty", ["density", "weight"])
        "; did you mean 'density'?"
    """
    close = difflib.get_close_matches(word, list(known), n=2)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _parameter_problem(method: Method, key: str, setting: Setting, *, for_one: bool) -> str | None:
    """What is wrong with a parameter; one that stands with a single model cannot be a setting of the whole merge."""
    if key in _WITHOUT_EFFECT:
        return None
    if key in method.settings and key not in method.parameters and for_one:
        return f"{method.name} has one {key} for all models. Write it under parameters of the slice or of the recipe"
    known = {**method.settings, **method.parameters}
    if key not in known:
        others = [other.name for other in METHODS.values() if key in other.parameters or key in other.settings]
        if others:
            return f"{method.name} has no such parameter ({others[0]} has). It takes {', '.join(known) or 'none'}"
        anywhere = {name for other in METHODS.values() for name in (*other.parameters, *other.settings)}
        meant = did_you_mean(key, known) or did_you_mean(key, sorted(anywhere))
        return "unknown key" + (meant or f". {method.name} takes {', '.join(known) or 'none'}")
    problems = (_value_problem(value, known[key]) or _limit_problem(method, key, value) for value in scalars(setting))
    return next(filter(None, problems), None)


def _limit_problem(method: Method, key: str, value: Scalar) -> str | None:
    wanted = method.should_be(key, value)
    return None if wanted is None else f"{value!r} is out of bounds. It has to be {wanted}"


def _value_problem(value: object, default: object) -> str | None:
    kinds: tuple[tuple[type | tuple[type, ...], Callable[[object], bool], str], ...] = (
        (bool, lambda v: isinstance(v, bool) or v in (0, 1), "true or false"),
        (str, lambda v: isinstance(v, str), "a word"),
        (int, lambda v: isinstance(v, int | float) and v == int(v), "a whole number"),
        (object, lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number"),
    )
    for kind, fits, said in kinds:
        if isinstance(default, kind):
            return None if fits(value) else f"{value!r} is not {said}"
    return None


def _how_many(method: Method) -> str:
    if method.most is None:
        return f"at least {method.least} models" if method.least > 1 else "at least one model"
    if method.least == method.most:
        return f"{method.most} models" if method.most > 1 else "one model"
    return f"{method.least} to {method.most} models"


_KNOWN: Mapping[str, type[BaseModel]] = {
    "models": ModelEntry,
    "slices": OutputSlice,
    "sources": SourceSlice,
    "tokenizer": TokenizerChoice,
}


def first_problem(error: ValidationError, whole: type[BaseModel], parts: Mapping[str, type[BaseModel]]) -> str:
    """What is wrong with a recipe, for people: the first problem, with its place.

    Args:
        error: what pydantic found.
        whole: the recipe's class.
        parts: the classes of what stands under keys of it.
    """
    # An unknown key comes first: where it was meant for a required one, that one's absence only repeats it.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem, place = problems[0], problems[0]["loc"]
    if problem["type"] == "extra_forbidden":
        parent = next((str(part) for part in reversed(place[:-1]) if part in parts), "")
        return f"{path_of(*place)}: {_unknown_key(str(place[-1]), parts.get(parent, whole))}"
    inner = problem.get("ctx", {}).get("error")
    message = str(inner) if inner is not None else problem["msg"]
    message += "" if message.endswith("?") else "."
    if not place:
        return message if inner is not None else "the recipe is no mapping of keys to values."
    return f"{path_of(*place)}{'' if message.startswith('[') else ': '}{message}"


def _unknown_method(method: str) -> str:
    known = (*METHODS, *KINDS)
    meant = did_you_mean(method, known) or "."
    return f"merge_method: there is no method {method!r}{meant} Methods are {', '.join(known)}"


def _unknown_key(key: str, owner: type[BaseModel]) -> str:
    if key in _NOT_HERE:
        return "taskatlas has nothing that does this. Remove the key, or use mergekit for this recipe."
    known = list(owner.model_fields)
    return "unknown key" + (did_you_mean(key, known) or f". Keys are {', '.join(known)}.")
