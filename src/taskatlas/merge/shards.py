"""Safetensors files written from front to back: the sizes of all tensors are known before the first is there."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write

_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_CHUNK = 2**20  # bytes
INDEX = "model.safetensors.index.json"


@runtime_checkable
class Described(Protocol):
    """What has to be known of a tensor before it is written."""

    @property
    def name(self) -> str:
        """In the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""

    @property
    def nbytes(self) -> int:
        """Its length in the file."""


@dataclass(frozen=True)
class Shard:
    """A file of the result.

    Attributes:
        name: of the file.
        tensors: names, in the order in which they lie in it.
        header: what the file starts with.
        nbytes: of the whole file.
    """

    name: str
    tensors: tuple[str, ...]
    header: bytes
    nbytes: int


def lay_out(tensors: Sequence[Described], shard_size: int) -> tuple[Shard, ...]:
    """Divides tensors among files of at most ``shard_size`` bytes, a larger tensor alone in its own.

    Raises:
        BadInput: a tensor is of a type that safetensors files do not hold, or the size is not positive.
    """
    if shard_size < 1:
        raise BadInput(f"files of {shard_size} bytes hold nothing. Choose a shard size such as 5GB.")
    groups: list[list[Described]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return tuple(_shard(group, number, len(groups)) for number, group in enumerate(groups, 1))


def write_shard(path: Path, header: bytes, tensors: Iterable[Tensor]) -> str:
    """Writes a file's header and then its tensors as they come; the file appears whole or not at all.

    Returns:
        SHA-256 of the file.

    Raises:
        BadInput: the file cannot be written, or there is no space left.
    """
    content = hashlib.sha256(header)
    with atomic_write(path) as temporary, temporary.open("wb", buffering=0) as file:
        _write(file.fileno(), memoryview(header))
        for tensor in tensors:
            block = _bytes_of(tensor)
            for start in range(0, len(block), _CHUNK):  # short enough to be in the cache still when it is hashed
                chunk = block[start : start + _CHUNK]
                _write(file.fileno(), chunk)
                content.update(chunk)
    return content.hexdigest()


def write_index(path: Path, shards: Sequence[Shard], sizes: Mapping[str, int]) -> None:
    """Writes the file that says which shard holds which tensor.

    Args:
        path: of the index, beside the shards.
        shards: all files.
        sizes: bytes of each tensor.

    Raises:
        BadInput: the file cannot be written.
    """
    places = {name: shard.name for shard in shards for name in shard.tensors}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def parse_size(text: str) -> int:
    """A number of bytes as people write it.

    Raises:
        BadInput: it is none.

    Example:
        >>> parse_size("5GB"), parse_size("1.5 MiB"), parse_size("1000")
        (5000000000, 1572864, 1000)
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise BadInput(f"{text!r} is no size. Write, for example, 5GB, 500MB or 2GiB.")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


def _shard(group: Sequence[Described], number: int, count: int) -> Shard:
    # Longer elements first, as the format's own library does: every tensor then starts at a multiple of its elements.
    ordered = sorted(group, key=lambda tensor: -tensor.dtype.itemsize)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in ordered:
        if tensor.dtype not in _DTYPES:
            raise BadInput(f"the tensor {tensor.name!r} is of type {tensor.dtype}, which no safetensors file can hold.")
        offsets = [position, position + tensor.nbytes]
        entries[tensor.name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
    return Shard(name, tuple(tensor.name for tensor in ordered), header, len(header) + position)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(handle: int, block: memoryview) -> None:
    """All of a block: one call to the system may take less."""
    while block:
        block = block[os.write(handle, block) :]
