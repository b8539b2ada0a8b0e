"""LoRA adapters as experts: a PEFT folder on a base, whose tensors are made dense one at a time, when they are read.

An adapted weight is W + s B A (Hu et al., 2022, equation 3) with s = alpha / r, or alpha / sqrt(r) for rank-stabilised
adapters; the sum is float32 whatever the base's type, so that an update is not lost in its rounding.
"""

import json
import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.sources import Source, files_identity, open_weights
from taskatlas.store import digest
from taskatlas.zoo.builders import some

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Settings under which an adapted weight is not W + s B A, with the values under which it is.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "lora_bias": (None, False),
    "layer_replication": (None, [], {}),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
    "velora_config": (None, {}),
    "monteclora_config": (None, {}),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),  # others change the base's weights too
}
_FACTOR = re.compile(r"(.*)\.(lora_(?:embedding_)?[AB])(?:\.weight)?")


@dataclass(frozen=True)
class _Update:
    """The names of an adapted tensor's factors: s up down, or its transpose."""

    down: str
    up: str
    scale: float
    transposed: bool


@dataclass(frozen=True, eq=False)
class AdaptedSource(Source):
    """A base with a LoRA adapter on it.

    Raises:
        BadInput: the adapter is of another kind, damaged, or does not fit the base.
    """

    name: str
    base: Source
    adapter: Path
    folder: Path | None = field(init=False)
    _factors: Source = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.base.folder)
        object.__setattr__(self, "_factors", _open_factors(self.adapter))
        _ = self._plan  # what does not fit is named now

    @cached_property
    def shapes(self) -> Mapping[str, Tensor]:
        """Of the base, and of tensors that the adapter brings whole."""
        return {**self.base.shapes, **{name: self._factors.shapes[key] for name, key in self._plan[1].items()}}

    @property
    def files(self) -> tuple[Path, ...]:
        """The base's and the adapter's."""
        return (*self.base.files, self.adapter / CONFIG, *self._factors.files)

    @property
    def identity(self) -> str:
        """Digest of the base's and of the adapter's files."""
        return digest(self.base.identity, files_identity((self.adapter / CONFIG, *self._factors.files)))

    def read(self, name: str) -> Tensor:
        """One tensor; of an adapted one the sum in float32 (float64 where the base has it), else as it is stored."""
        updates, whole = self._plan
        tensor = self._factors.read(whole[name]) if name in whole else self.base.read(name)
        if name not in updates:
            return tensor
        update = updates[name]
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        up, down = self._factors.read(update.up).to(dtype), self._factors.read(update.down).to(dtype)
        product = up.flatten(1) @ down.flatten(1)
        product = (product.T if update.transposed else product).reshape(tensor.shape)
        return torch.add(tensor.to(dtype), product, alpha=update.scale)

    def mark(self, name: str) -> Hashable:
        """The base's, of a tensor that the adapter leaves as it is."""
        return name if name in self._changed else self.base.mark(name)

    def tied(self, one: str, other: str) -> bool:
        """Whether they are in the base, and the adapter changes neither."""
        return not {one, other} & self._changed and self.base.tied(one, other)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Matrices (rows, r) and (r, columns) whose product is a tensor's update, its last axes flat; or None."""
        update = self._plan[0].get(name)
        if update is None:
            return None
        up, down = (self._factors.read(key).flatten(1) for key in (update.up, update.down))
        dtype = torch.promote_types(up.dtype, torch.float32)
        up, down = up.to(dtype) * update.scale, down.to(dtype)
        return (down.T, up.T) if update.transposed else (up, down)

    @property
    def whole(self) -> Mapping[str, str]:
        """Tensors that the adapter brings whole: the names of the base, and the keys of the adapter's file."""
        return self._plan[1]

    def nbytes(self, name: str) -> int:
        """Of the base's tensor and of the factors."""
        updates, whole = self._plan
        factors = [updates[name].up, updates[name].down] if name in updates else []
        dense = self._factors.nbytes(whole[name]) if name in whole else self.base.nbytes(name)
        return dense + sum(self._factors.nbytes(key) for key in factors)

    def held(self, name: str) -> int:
        """The base's tensor and the factors."""
        return self.nbytes(name) if name in self._plan[0] else 0

    def expect(self, name: str) -> None:
        """Asks the system to read ahead."""
        if name in self.base.shapes:
            self.base.expect(name)

    @cached_property
    def _changed(self) -> set[str]:
        updates, whole = self._plan
        return {*updates, *whole}

    @cached_property
    def _plan(self) -> tuple[Mapping[str, _Update], Mapping[str, str]]:
        """Updates by the name of the base's tensor, and the keys of tensors that the adapter brings whole."""
        config = _read_config(self.adapter)
        factors: dict[str, dict[str, str]] = {}
        whole: dict[str, str] = {}
        for key in self._factors.shapes:
            plain = key.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save", "")
            found = _FACTOR.fullmatch(plain)
            if found:
                factors.setdefault(found[1], {})[found[2]] = key
            elif "lora_" in plain or "_adapter" in plain or "token" in plain.rsplit(".", 1)[-1]:
                raise BadInput(f"{self.adapter} holds {key!r}, which no plain LoRA adapter has. {_ADVICE}")
            else:
                whole[self._base_name(plain) or plain] = key
        updates = {}
        for module, keys in factors.items():
            name = self._base_name(f"{module}.weight")
            if name is None:
                raise BadInput(
                    f"{self.adapter} adapts {module!r}, and {self.base.name} has no such layer. "
                    "Name the base that the adapter was trained on."
                )
            updates[name] = self._update(config, module, keys, name)
        return updates, whole

    def _base_name(self, name: str) -> str | None:
        """The base's name for a tensor; one of the two may stand in a larger model: ``bert.encoder``, ``encoder``."""
        if name in self.base.shapes:
            return name
        alike = [own for own in self.base.shapes if own.endswith(f".{name}") or name.endswith(f".{own}")]
        return alike[0] if len(alike) == 1 else None

    def _update(self, config: Mapping[str, Any], module: str, keys: Mapping[str, str], name: str) -> _Update:
        embedding = any("embedding" in kind for kind in keys)
        infix = "embedding_" if embedding else ""
        try:
            down, up = keys[f"lora_{infix}A"], keys[f"lora_{infix}B"]
        except KeyError as error:
            raise BadInput(f"{self.adapter} lacks {error} of {module!r}. Copy or download it again.") from error
        a, b = self._factors.shapes[down].shape, self._factors.shapes[up].shape
        shape = self.base.shapes[name].shape
        rows, columns, rank = b[0], math.prod(a[1:]), a[0]
        fits = {
            False: shape[0] == rows and shape.numel() == rows * columns,
            True: len(shape) == 2 and tuple(shape) == (columns, rows),
        }
        transposed = embedding or bool(config.get("fan_in_fan_out"))
        transposed = transposed if fits[transposed] else not transposed  # one flag stands for layers of both kinds
        if math.prod(b[1:]) != rank or not fits[transposed]:
            raise BadInput(
                f"{self.adapter} adapts {module!r} with factors of shapes {tuple(b)} and {tuple(a)}, and {name} of "
                f"{self.base.name} is {tuple(shape)}. Name the base that the adapter was trained on."
            )
        alpha = float(_of_module(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8)))
        return _Update(down, up, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), transposed)


_ADVICE = "Merge it into its base with peft's merge_and_unload first, and name the result."


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of_adapter(folder: Path) -> str | None:
    """What the adapter says it was trained on.

    Raises:
        BadInput: the adapter's configuration cannot be read.
    """
    base = _read_config(folder).get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def _read_config(folder: Path) -> Mapping[str, Any]:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"cannot read {file} ({error}). Copy or download it again.") from error
    if not isinstance(config, dict) or str(config.get("peft_type", "LORA")).upper() != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise BadInput(f"{folder} is an adapter of the kind {kind}, and only LoRA can be merged as it is. {_ADVICE}")
    other = [key for key, plain in _PLAIN.items() if key in config and config[key] not in plain]
    if other:
        settings = some([f"{key}: {config[key]}" for key in other])
        raise BadInput(f"{folder} is no plain LoRA adapter ({settings}). {_ADVICE}")
    return config


def _open_factors(folder: Path) -> Source:
    return open_weights(str(folder), adapter_file(folder))


def adapter_file(folder: Path) -> Path:
    """The file of an adapter's factors.

    Raises:
        BadInput: there is none.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"{folder} holds no adapter: none of {', '.join(_WEIGHTS)} is in it. Copy or download it again.")


def _of_module(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value whose pattern ends a module's name; the first of several."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)
