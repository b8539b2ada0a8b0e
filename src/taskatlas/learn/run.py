"""A training as a folder: the network that was trained, its log, and a receipt; taken up again where it was left."""

import csv
import inspect
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_model
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.learn.pictures import Preparation
from taskatlas.learn.randomness import drawing_from
from taskatlas.learn.stream import Stream
from taskatlas.learn.streamed import Epoch, Hook, train_streamed
from taskatlas.probe.probe import Probe
from taskatlas.store import Receipt, atomic_write, digest, load_receipts, output_folder
from taskatlas.zoo.builders import build, builder_digest, builder_name, resolve_builder
from taskatlas.zoo.checkpoint import Checkpoint
from taskatlas.zoo.manifest import MANIFEST, write_manifest
from taskatlas.zoo.vision import build_vision, is_vision_builder

WEIGHTS, LOG, STATE = "weights.safetensors", "log.csv", "training.state"
_MADE_BY = "train"
_BUILT_IN = {
    "mlp": "taskatlas.learn:flat_mlp",
    "small_cnn": "taskatlas.learn:small_cnn",
    "resnet18": "taskatlas.learn:resnet18",
    "vit": "taskatlas.learn:vit",
}
_CLASSES, _CHANNELS = ("classes", "num_classes"), ("channels", "in_chans")  # what builders call their sizes


@dataclass(frozen=True, eq=False)
class Network:
    """A network to be trained, and all that it takes to build it again.

    Attributes:
        module: with weights drawn from the seed.
        prepare: how samples become its input.
        builder: its name, and
        arguments: what it was built with.
        function: the builder itself, where a function was given and no name.
    """

    module: nn.Module
    prepare: Callable[[list[Any]], Any] | None
    builder: str
    arguments: Mapping[str, Any]
    function: Callable[..., Any] | None = None

    @property
    def digest(self) -> str:
        """Digest of the builder and its arguments.

        Raises:
            BadInput: the source of the builder is not kept anywhere.
        """
        code = (
            digest(self.builder) if is_vision_builder(self.builder) else builder_digest(self.function or self.builder)
        )
        return digest("network", code, self.arguments, self._preparation)

    def checkpoint(self, name: str, weights: Path) -> Checkpoint:
        """The network with the weights that a training gave it, for a zoo.

        Raises:
            BadInput: it was built by a function that another process could not find.
        """
        if self.function is not None:
            builder_name(self.function)
        arguments = {"builder": self.builder, "arguments": dict(self.arguments), "preparation": self._preparation}
        return Checkpoint(name, weights=weights, builder="taskatlas.learn:trained", arguments=arguments)

    @property
    def _preparation(self) -> dict[str, Any] | None:
        """Fields of the preparation, where it is ours and not the builder's."""
        return asdict(self.prepare) if isinstance(self.prepare, Preparation) else None


def new_network(
    builder: str | Callable[..., Any], probe: Probe, classes: int, *, size: int | None = None, seed: int = 0
) -> Network:
    """A network with new weights for the samples of a probe.

    Args:
        builder: ``timm:NAME``, ``torchvision:NAME``, ``file.py:function``, ``module.path:function``, a function, or
            one of mlp, small_cnn, resnet18 and vit, which have no batch statistics. A function is handed the number of
            ``classes`` (or ``num_classes``), of ``channels`` (or ``in_chans``) and the ``shape`` of a sample where it
            has parameters of these names; what it returns beside the module prepares its samples.
        probe: images or arrays.
        classes: how many outputs.
        size: to what side images are brought; None: they are alike, and stay as they are.
        seed: of the weights.

    Raises:
        BadInput: there is no such builder, or it does not build a network.
        MissingExtra: its library is not installed.

    Example:
        >>> probe = Probe.from_arrays(np.zeros((5, 8, 8, 3), np.uint8), labels=range(5))
        >>> new_network("small_cnn", probe, 5).arguments
        {'classes': 5, 'channels': 3}
    """
    function = None if isinstance(builder, str) else builder
    name = _absolute(_BUILT_IN.get(builder, builder)) if isinstance(builder, str) else _name_of(builder)
    preparation, shape = None, np.shape(probe.inputs[0])
    if probe.kind == "image":
        preparation = Preparation(size, channels=int(shape[2]))
        shape = (shape[2], *((size, size) if size is not None else shape[:2]))
    arguments = _arguments(name, function, classes, shape)
    with drawing_from(seed):
        if is_vision_builder(name):
            return Network(build_vision(name, arguments, published=False)[0], preparation, name, arguments)
        module, prepare = build(function or name, arguments, None)
    return Network(module, prepare or preparation, name, arguments, function)


def trained(
    builder: str, arguments: Mapping[str, Any], preparation: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Callable[[list[Any]], Any] | None]:
    """The builder that a folder of ``train_to_folder`` names: a network as it was built for its training.

    Example:
        >>> module, prepare = trained("taskatlas.learn:small_cnn", {"channels": 3, "classes": 2}, {"size": 8})
        >>> prepare([np.zeros((20, 30, 3), np.uint8)]).shape
        torch.Size([1, 3, 8, 8])
    """
    if is_vision_builder(builder):
        module, prepare = build_vision(builder, arguments, published=False)
    else:
        module, prepare = build(builder, arguments, None)
    return module, prepare if preparation is None else Preparation(**preparation)


def train_to_folder(
    folder: Path,
    network: Network,
    stream: Stream,
    *,
    name: str,
    hook: Hook | None = None,
    written: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    sources: Sequence[Path] = (),
    workers: int = 0,
    device: str = "auto",
) -> list[Epoch]:
    """Trains a network and writes ``weights.safetensors``, ``log.csv``, ``zoo.yaml`` and a receipt.

    A training that was killed goes on from its last saved state; one that is finished is not done again.

    Args:
        folder: where all is written.
        network: what is trained, in place.
        stream: the batches and the recipe.
        name: of the checkpoint in ``zoo.yaml``.
        hook: as ``train_streamed``.
        written: files in the folder that the hook writes, for the receipt.
        inputs: digests of what else decides the result, and
        settings: plain values that do.
        sources: files that were read, so that ``check`` notices when they change.
        workers: processes that make batches.
        device: cpu, cuda or auto.

    Raises:
        BadInput: the folder holds another training, or cannot be written; and as ``train_streamed``.
        WorkFailed: as ``train_streamed``.
    """
    started = time.perf_counter()
    recipe = stream.recipe
    all_inputs = {"data": stream.digest, "network": network.digest, **(inputs or {})}
    built = {"builder": network.builder, "arguments": dict(network.arguments)}
    all_settings = {**asdict(recipe), **built, **(settings or {})}
    if _finished(folder, Receipt(_MADE_BY, all_inputs, all_settings, seed=recipe.seed)):
        return read_log(folder / LOG)
    state = folder / STATE
    rows = train_streamed(
        network.module, stream, hook=hook, state=state, workers=workers, device=device, description=name
    )
    with output_folder(
        folder,
        _MADE_BY,
        inputs=all_inputs,
        settings=all_settings,
        sources=[path for path in sources if path.is_file()],
        seed=recipe.seed,
        started=started,
    ) as staging:
        with atomic_write(staging / WEIGHTS) as weights:
            save_model(network.module, str(weights))
        _write_log(staging / LOG, rows)
        write_manifest(staging / MANIFEST, [network.checkpoint(name, staging / WEIGHTS)])
        for file in written:
            _staged(folder / file, staging / file)
    state.unlink(missing_ok=True)
    return rows


def read_log(path: Path) -> list[Epoch]:
    """The rows of a ``log.csv``.

    Raises:
        BadInput: the file is missing or no such log.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Epoch(int(row["epoch"]), int(row["step"]), *(float(row[field]) for field in Epoch._fields[2:]))
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no log of a training ({error}). Train again in another folder.") from error


def _write_log(path: Path, rows: Sequence[Epoch]) -> None:
    with atomic_write(path) as file, file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text)
        writer.writerow(Epoch._fields)
        writer.writerows([[repr(value) for value in row] for row in rows])


def _finished(folder: Path, wanted: Receipt) -> bool:
    """Whether the folder holds this training already.

    Raises:
        BadInput: it holds another one.
    """
    found = next((receipt for receipt in load_receipts(folder) if receipt.made_by == wanted.made_by), None)
    if found is not None and found.digest != wanted.digest:
        raise BadInput(f"{folder} holds another training. Give another --out, or remove that folder.")
    return found is not None and not found.verify(folder)


def _staged(source: Path, target: Path) -> None:
    """A file beside the new ones, so that the receipt counts it: a second name for it, or a copy where that fails."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _name_of(function: Callable[..., Any]) -> str:
    """The name under which another process finds a function; else, for what stays in this one, its own."""
    try:
        return _absolute(builder_name(function))
    except BadInput:
        return getattr(function, "__qualname__", repr(function))


def _arguments(name: str, function: Callable[..., Any] | None, classes: int, shape: tuple[int, ...]) -> dict[str, Any]:
    if is_vision_builder(name):
        colour = {} if shape[0] == 3 else {"in_chans": int(shape[0])}
        return {"num_classes": classes, **(colour if name.startswith("timm:") else {})}
    taken = inspect.signature(function or resolve_builder(name)).parameters
    channels = int(shape[0]) if shape else 1
    given = dict.fromkeys(_CLASSES, classes) | dict.fromkeys(_CHANNELS, channels) | {"shape": [int(n) for n in shape]}
    return {key: value for key, value in given.items() if key in taken}


def _absolute(builder: str) -> str:
    """A file is named from the root, so that the network can be built from any place."""
    where, _, function = builder.rpartition(":")
    return f"{Path(where).resolve()}:{function}" if where.endswith(".py") else builder
