"""Checkpoints as a merge reads them: shapes at once, tensors one at a time, straight from the files they lie in."""

import json
import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.state import tied_names
from taskatlas.store import digest
from taskatlas.zoo.weights import (
    FOLDER_FILES,
    read_weights,
    shard_index,
    tensor_shapes,
    tensors_digest,
    weights_files,
    wrapper_prefix,
)

_FEW = 256  # elements that tell most tensors apart
_REOPEN_AFTER = 2**28  # bytes read through one mapping of a PyTorch file, whose pages stay until it is closed


class Source(ABC):
    """Named tensors that are read one at a time.

    Attributes:
        name: as the recipe calls it.
        folder: where its configuration and tokenizer lie, if it has any.
    """

    name: str
    folder: Path | None

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, Tensor]:
        """Every tensor on the ``meta`` device: shape and type without data."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Whatever is read."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Digest of what it is made of: files by place, size and time stamp, tensors in memory by content."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor; memory-mapped where the format allows, so treat it as read-only."""

    @abstractmethod
    def mark(self, name: str, /) -> Hashable:
        """Something that tied tensors share and most others do not, found out without reading the tensor whole."""

    @abstractmethod
    def tied(self, one: str, other: str, /) -> bool:
        """Whether two names stand for one tied tensor: one storage, or matrices that are equal copies."""

    @abstractmethod
    def nbytes(self, name: str, /) -> int:
        """The number of bytes that reading it takes."""

    @abstractmethod
    def held(self, name: str, /) -> int:
        """Bytes that are in memory beside the tensor while it is read: of what it is made of."""

    @abstractmethod
    def expect(self, name: str, /) -> None:
        """Says that a tensor will be read soon."""


@dataclass(frozen=True)
class Span:
    """Where a tensor's bytes lie in a file."""

    file: Path
    start: int
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size

    def read(self) -> Tensor:
        """The tensor, mapped into memory; unmapped when the last reference goes.

        Raises:
            BadInput: the file is gone or has become shorter.
        """
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        try:  # copy-on-write, for which torch needs no warning; nothing ever writes
            block = np.memmap(self.file, np.uint8, mode="c", offset=self.start, shape=(self.nbytes,))
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot read {self.file} ({error}). Did it change while it was read?") from error
        flat = torch.from_numpy(block)
        if self.start % self.dtype.itemsize:  # torch does not compute on numbers across word boundaries
            flat = flat.clone()
        return flat.view(self.dtype).reshape(self.shape)

    def expect(self) -> None:
        """Asks the system to read ahead."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                handle = os.open(self.file, os.O_RDONLY)
                try:
                    os.posix_fadvise(handle, self.start, self.nbytes, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(handle)


@dataclass(frozen=True, eq=False)
class SafetensorsSource(Source):
    """A safetensors file, or several with an index: each tensor is mapped by itself while it is used."""

    name: str
    weights: Path
    folder: Path | None

    @cached_property
    def shapes(self) -> Mapping[str, Tensor]:
        """Every tensor on the ``meta`` device; reading them proves that the files are whole."""
        return tensor_shapes(self.weights)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The file, or the index and its shards."""
        return weights_files(self.weights)

    @property
    def identity(self) -> str:
        """Digest of the files' places, sizes and time stamps."""
        return files_identity(self.files)

    @cached_property
    def spans(self) -> Mapping[str, Span]:
        """Where every tensor lies."""
        shapes = self.shapes
        first, *shards = self.files
        if shards:
            index = shard_index(first)
            headers = {shard: _header(first.parent / shard) for shard in set(index.values())}
            found = {name: headers[shard][name] for name, shard in index.items()}
        else:
            found = _header(first)
        prefix = wrapper_prefix(found)
        return {name: Span(*found[prefix + name], dtype=like.dtype, shape=like.shape) for name, like in shapes.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, mapped into memory."""
        return self.spans[name].read()

    def mark(self, name: str) -> Hashable:
        """A few elements of a matrix; the format has no shared storage."""
        return _mark(self.read(name), name)

    def tied(self, one: str, other: str) -> bool:
        """Whether they are matrices that are equal."""
        return _are_copies(self.read(one), self.read(other))

    def nbytes(self, name: str) -> int:
        """Size in the file."""
        return self.spans[name].nbytes

    def held(self, _name: str, /) -> int:
        """Nothing beside it."""
        return 0

    def expect(self, name: str) -> None:
        """Asks the system to read ahead."""
        self.spans[name].expect()


@dataclass(frozen=True, eq=False)
class TorchSource(Source):
    """A PyTorch file, or several with an index: mapped where its format allows, and mapped anew now and then."""

    name: str
    weights: Path
    folder: Path | None
    _open: dict[str, Any] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def shapes(self) -> Mapping[str, Tensor]:
        """Every tensor on the ``meta`` device."""
        return tensor_shapes(self.weights)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The file, or the index and its shards."""
        return weights_files(self.weights)

    @property
    def identity(self) -> str:
        """Digest of the files' places, sizes and time stamps."""
        return files_identity(self.files)

    def read(self, name: str) -> Tensor:
        """One tensor; a file of the format before PyTorch 1.6 is read whole, once."""
        with self._lock:
            if self._open.get("read", 0) > _REOPEN_AFTER and self._mapped:
                self._open.clear()
            tensor: Tensor = self._tensors()[name]
            self._open["read"] += self.nbytes(name)
            return tensor

    def mark(self, name: str) -> Hashable:
        """A few elements of a matrix, or the first name of its storage."""
        return _mark(self.read(name), self._storages.get(name, name))

    def tied(self, one: str, other: str) -> bool:
        """Whether they are one storage, or matrices that are equal."""
        names = self._storages
        return names.get(one, one) == names.get(other, other) or _are_copies(self.read(one), self.read(other))

    def nbytes(self, name: str) -> int:
        """Size of the tensor."""
        return size_in_bytes(self.shapes[name])

    def held(self, _name: str, /) -> int:
        """Nothing beside it."""
        return 0

    def expect(self, _name: str, /) -> None:
        """Nothing: where the tensor lies is torch's business."""

    def _tensors(self) -> Mapping[str, Tensor]:
        """All of them, mapped; within the lock."""
        if "tensors" not in self._open:
            self._open.update(tensors=read_weights(self.weights), read=0)
        tensors: Mapping[str, Tensor] = self._open["tensors"]
        return tensors

    @cached_property
    def _storages(self) -> Mapping[str, str]:
        with self._lock:
            return tied_names(self._tensors())

    @cached_property
    def _mapped(self) -> bool:
        return all(zipfile.is_zipfile(file) for file in self.files if file.suffix != ".json")


@dataclass(frozen=True, eq=False)
class MemorySource(Source):
    """Tensors in memory: a module of a zoo, or what a builder brings along."""

    name: str
    tensors: Mapping[str, Tensor]
    folder: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """None."""
        return ()

    @cached_property
    def shapes(self) -> Mapping[str, Tensor]:
        """Every tensor on the ``meta`` device."""
        return {name: torch.empty_like(tensor, device="meta") for name, tensor in self.tensors.items()}

    @cached_property
    def identity(self) -> str:
        """Digest of the tensors."""
        return tensors_digest(self.tensors)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return self.tensors[name].detach().cpu()

    def mark(self, name: str) -> Hashable:
        """A few elements of a matrix, or the first name of its storage."""
        return _mark(self.read(name), self._storages.get(name, name))

    def tied(self, one: str, other: str) -> bool:
        """Whether they are one storage, or matrices that are equal."""
        names = self._storages
        return names.get(one, one) == names.get(other, other) or _are_copies(self.read(one), self.read(other))

    def nbytes(self, _name: str, /) -> int:
        """Nothing is read from a disk."""
        return 0

    def held(self, _name: str, /) -> int:
        """Nothing beside it."""
        return 0

    def expect(self, _name: str, /) -> None:
        """Nothing: it is there."""

    @cached_property
    def _storages(self) -> Mapping[str, str]:
        return tied_names(self.tensors)


def open_weights(name: str, place: Path) -> Source:
    """A weights file, a shard index or a model folder as a source.

    Raises:
        BadInput: it is missing, damaged, or none of these.
    """
    first = weights_files(place)[0]
    beside = first.parent if first.name in FOLDER_FILES and (first.parent / "config.json").is_file() else None
    folder = place if place.is_dir() else beside
    is_safetensors = first.name.endswith((".safetensors", ".safetensors.index.json"))
    source: Source = (SafetensorsSource if is_safetensors else TorchSource)(name, first, folder)
    _ = source.shapes  # a damaged file is named now, not half-way through a merge
    return source


def files_identity(files: tuple[Path, ...]) -> str:
    """Digest of the places, sizes and time stamps of files: enough to say whether they are still the same.

    Raises:
        BadInput: one of them is gone.
    """
    try:
        stats = [(str(file.resolve()), file.stat()) for file in files]
    except OSError as error:
        raise BadInput(f"cannot read {error.filename}: {error.strerror}. Is the path right?") from error
    return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def size_in_bytes(tensor: Tensor) -> int:
    """The number of bytes of a tensor's elements."""
    return tensor.numel() * tensor.dtype.itemsize


def _mark(tensor: Tensor, name: str) -> Hashable:
    """The first elements of a matrix, its shape and type; of others the name.

    Vectors that are equal are no sign of a tie: norms and biases start alike.
    """
    if tensor.ndim < 2 or not tensor.numel() or not tensor.is_floating_point():
        return name
    few = tensor[0].reshape(-1)[:_FEW].clone()
    return tensor.shape, tensor.dtype, few.view(torch.uint8).numpy().tobytes()


def _are_copies(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.is_floating_point()
    return alike and one.ndim >= 2 and one.numel() > 0 and torch.equal(one, other)


def _header(file: Path) -> dict[str, tuple[Path, int, int]]:
    """File, start and length of every tensor; the file was found whole when its shapes were read."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: (file, 8 + length + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }
