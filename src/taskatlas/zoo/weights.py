"""Weights as they lie on disk: which files they are made of, their tensors, their shapes.

Safetensors files and PyTorch's own are memory-mapped where their format allows, so that a tensor costs memory when it
is used and not before. A pickle is read with ``weights_only=True`` and never otherwise: opening a file runs no code of
it.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.store import digest, file_digest

_RUNNING_STATISTICS = ("running_mean", "running_var")  # as every normalisation layer calls them
# The names that Hugging Face libraries give to the weights in a model folder, in the order in which they prefer them.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin")
_SUFFIXES = (*_INDEX_SUFFIXES, ".safetensors", *_TORCH_SUFFIXES)

_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")  # under which training scripts put the weights

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_GIT_LFS_POINTER = b"version https://git-lfs"


def read_weights(place: Path | str) -> dict[str, Tensor]:
    """The tensors of a weights file, of a shard index with its shards, or of a Hugging Face model folder, on the CPU.

    Reads ``.safetensors``, ``.pt``, ``.pth``, ``.th`` and ``.bin``. Weights under ``"state_dict"``,
    ``"model_state_dict"`` or ``"model"`` are taken out; the prefixes ``module.`` (DataParallel) and ``_orig_mod.``
    (torch.compile) go where every name has them. Tensors may be memory-mapped: treat them as read-only.

    Returns:
        Names to tensors, in the order of the file.

    Raises:
        BadInput: a file is missing, damaged, needs code to be read, or holds anything but names and tensors; the
            message names the file and what to try.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"module.fc.weight": torch.ones(2, 3)}}, Path(folder) / "net.pt")
        ...     {name: tuple(tensor.shape) for name, tensor in read_weights(Path(folder) / "net.pt").items()}
        {'fc.weight': (2, 3)}
    """
    return _read(Path(place), headers_only=False)


def tensor_shapes(place: Path | str) -> dict[str, Tensor]:
    """The same names as ``read_weights``, each with a tensor on the ``meta`` device: shape and type without data.

    Only headers are read, whatever the size of the weights.

    Raises:
        BadInput: as ``read_weights``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"w": torch.ones(2, 3)}, Path(folder) / "net.pt")
        ...     tensor_shapes(Path(folder) / "net.pt")["w"].shape
        torch.Size([2, 3])
    """
    return _read(Path(place), headers_only=True)


def weights_files(place: Path) -> tuple[Path, ...]:
    """The files that ``read_weights`` reads for a place: one file, or an index followed by its shards.

    Raises:
        BadInput: the place is not there, or a folder without weights; an index is damaged or names a missing shard.
    """
    if place.is_dir():
        place = _weights_of_folder(place)
    elif not place.exists():
        raise BadInput(f"there are no weights at {place}. Is the path right?")
    if not place.name.endswith(_INDEX_SUFFIXES):
        return (place,)
    shards = tuple(place.parent / name for name in sorted(set(shard_index(place).values())))
    for shard in shards:
        if not shard.is_file():
            raise BadInput(
                f"{place} names the shard {shard.name}, which is not beside it. Copy or download that file too."
            )
    return (place, *shards)


def weights_name(file: Path) -> str | None:
    """The name of a file without the suffix that makes it a weights file or a shard index; None for any other file.

    Example:
        >>> weights_name(Path("run.1/resnet-v1.5.safetensors")), weights_name(Path("notes.txt"))
        ('resnet-v1.5', None)
    """
    suffix = next((suffix for suffix in _SUFFIXES if file.name.endswith(suffix)), None)
    return None if suffix is None else file.name.removesuffix(suffix)


def shard_index(file: Path) -> dict[str, str]:
    """A shard index: tensor names to the names of the files, beside the index, that hold them.

    Raises:
        BadInput: the file is no such index, or names a file outside its own folder.
    """
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(str(name), str(shard)) for name, shard in weight_map.items()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{file} is not a shard index ({first_line(error)}). Copy or download it again.") from error
    for name, shard in pairs:
        if not shard or shard == ".." or PurePosixPath(shard).name != shard or PureWindowsPath(shard).name != shard:
            raise BadInput(
                f"{file} places {name!r} in {shard!r}, which is not a file beside it. Name shards without folders."
            )
    return dict(pairs)


def files_digest(place: Path, also: Iterable[Path] = ()) -> str:
    """Digest of the content of a place's weights and of further files beside them, wherever the place lies.

    Raises:
        BadInput: a file cannot be read.
    """
    files = weights_files(place)
    if place.is_file() and len(files) == 1:
        return digest(file_digest(files[0]))
    return digest({file.name: file_digest(file) for file in (*files, *also)})


def parameter_count(tensors: Mapping[str, Tensor]) -> int:
    """The number of elements of all floating-point tensors but the running statistics of normalisation layers.

    Example:
        >>> parameter_count(torch.nn.BatchNorm1d(3).state_dict())
        6
    """
    return sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not name.endswith(_RUNNING_STATISTICS)
    )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of tensors' content: names, shapes, types and bytes; their order and device do not matter.

    Raises:
        BadInput: a tensor is sparse or quantised, so that it has no plain bytes.

    Example:
        >>> w = torch.ones(2, dtype=torch.bfloat16)
        >>> tensors_digest({"w": w}) == tensors_digest({"w": w.clone()}) != tensors_digest({"w": w.float()})
        True
    """
    return digest({name: _tensor_digest(name, tensor) for name, tensor in tensors.items()})


def wrapper_prefix(names: Iterable[str]) -> str:
    """What DataParallel and torch.compile put before every one of the names; often nothing.

    Example:
        >>> wrapper_prefix(["_orig_mod.module.a", "_orig_mod.module.b"]), wrapper_prefix(["module.a", "b"])
        ('_orig_mod.module.', '')
    """
    names, prefix = list(names), ""
    while names:
        longer = next((prefix + part for part in _WRAPPER_PREFIXES if _all_start(names, prefix + part)), None)
        if longer is None:
            break
        prefix = longer
    return prefix


def first_line(error: BaseException) -> str:
    r"""An error's type and the first line of its message, for the inside of a sentence.

    Example:
        >>> first_line(ValueError("no such layer.\nTraceback: ..."))
        'ValueError: no such layer'
    """
    lines = str(error).strip().splitlines() or [""]
    text = lines[0].strip().rstrip(".")[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _all_start(names: list[str], prefix: str) -> bool:
    return all(name.startswith(prefix) and name != prefix for name in names)


def _weights_of_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(
        f"the folder {folder} holds no model: none of {', '.join(FOLDER_FILES)} is in it. Name a weights file."
    )


def _read(place: Path, *, headers_only: bool) -> dict[str, Tensor]:
    first, *shards = weights_files(place)
    tensors = _read_shards(first, headers_only) if shards else _read_file(first, headers_only)
    if not tensors:
        raise BadInput(f"{first} holds no tensors. Is it the right file?")
    prefix = wrapper_prefix(tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _read_shards(index: Path, headers_only: bool) -> dict[str, Tensor]:
    weight_map = shard_index(index)
    shards = {shard: _read_file(index.parent / shard, headers_only) for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise BadInput(f"{index} places {name!r} in {shard}, which does not hold it. Copy or download both again.")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def _read_file(file: Path, headers_only: bool) -> dict[str, Tensor]:
    start = _first_bytes(file)
    if not start:
        raise BadInput(f"{file} is empty. Copy or download it again.")
    if start.startswith(_GIT_LFS_POINTER):
        raise BadInput(f"{file} is a pointer of Git LFS and not the weights themselves. Run: git lfs pull")
    if file.name.endswith(".safetensors"):
        return _read_safetensors(file, headers_only, start)
    if file.name.endswith(_TORCH_SUFFIXES):
        return _read_torch(file, headers_only, start)
    raise BadInput(f"{file} is not called like a weights file: name one that ends in {', '.join(_SUFFIXES[2:])}.")


def _first_bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(64)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror or error}.") from error


def _read_safetensors(file: Path, headers_only: bool, start: bytes) -> dict[str, Tensor]:
    # For "pt" the whole file is mapped as if to be changed, which needs as much memory to be free; headers do not.
    try:
        with safe_open(file, framework="np" if headers_only else "pt", device="cpu") as opened:
            read = _safetensors_header if headers_only else _safetensors_tensor
            return {name: read(opened, name) for name in opened.keys()}  # noqa: SIM118 (the file is no mapping)
    except (RuntimeError, OSError) as error:
        raise BadInput(
            f"cannot read {file} ({first_line(error)}). Is there enough memory, and may you read it?"
        ) from error
    except (SafetensorError, ValueError, KeyError) as error:
        hint = "Copy or download it again."
        if start.startswith((b"PK\x03\x04", b"\x80\x02")):
            hint = "It looks like a PyTorch file: rename it to end in .pt."
        raise BadInput(f"{file} is not a whole safetensors file ({first_line(error)}). {hint}") from error


def _safetensors_tensor(opened: Any, name: str) -> Tensor:
    tensor: Tensor = opened.get_tensor(name)
    return tensor


def _safetensors_header(opened: Any, name: str) -> Tensor:
    header = opened.get_slice(name)
    return torch.empty(header.get_shape(), dtype=_SAFETENSORS_DTYPES[header.get_dtype()], device="meta")


def _read_torch(file: Path, headers_only: bool, start: bytes) -> dict[str, Tensor]:
    mapped = zipfile.is_zipfile(file)  # the format before PyTorch 1.6 is no zip archive and cannot be memory-mapped
    skip = torch.serialization.skip_data() if headers_only and not mapped else nullcontext()
    try:
        with warnings.catch_warnings(), skip:
            warnings.simplefilter("ignore")
            content = torch.load(
                file,
                map_location="meta" if headers_only else "cpu",
                weights_only=True,
                mmap=mapped and not headers_only,
            )
    except Exception as error:  # a damaged pickle raises nearly anything
        raise BadInput(_why_unreadable(file, error, start)) from error
    return _named_tensors(file, content)


def _why_unreadable(file: Path, error: Exception, start: bytes) -> str:
    convert = (
        "If you trust it, load it where it was made and write its state_dict() with safetensors.torch.save_file "
        f"to {weights_name(file)}.safetensors."
    )
    refused = _REFUSED_GLOBAL.search(str(error))
    if refused:
        return f"{file} is a pickle that needs code to be read ({refused[1]}), so it was not opened. {convert}"
    if "TorchScript" in str(error):
        return f"{file} is a TorchScript archive, a program and not plain weights. {convert}"
    if isinstance(error, pickle.UnpicklingError) and start.startswith(b"\x80"):
        return f"{file} is a pickle that torch.save did not write, so it was not opened. {convert}"
    if start[8:9] == b"{":
        return f"{file} is not a PyTorch file. It looks like a safetensors file: rename it to end in .safetensors."
    return f"{file} is not a whole PyTorch file ({first_line(error)}). Copy or download it again."


def _named_tensors(file: Path, content: object) -> dict[str, Tensor]:
    for key in _WRAPPER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    advice = "Save the model's state_dict() alone."
    if not isinstance(content, Mapping):
        raise BadInput(f"{file} holds a {type(content).__name__}, not names and tensors. {advice}")
    for name, value in content.items():
        if not isinstance(name, str):
            raise BadInput(f"{file} has the key {name!r}, which is not a name. {advice}")
        if not isinstance(value, Tensor):
            raise BadInput(f"{file} has a {type(value).__name__} under {name!r}, not a tensor. {advice}")
    return {name: tensor.detach() for name, tensor in content.items()}


def _tensor_digest(name: str, tensor: Tensor) -> str:
    try:
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        content = plain.reshape(-1).view(torch.uint8).numpy()
    except (RuntimeError, NotImplementedError) as error:
        raise BadInput(
            f"the tensor {name!r} has no plain bytes to digest ({first_line(error)}). Make it dense first."
        ) from error
    return digest(str(plain.dtype), tuple(plain.shape), content)
