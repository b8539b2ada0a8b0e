"""A record of a run that grows by one snapshot at a time, and is whole up to the last one whatever ends the run.

The file is a line of magic, the length of a header, the header (JSON: name, ids, labels, probe, classes), and then
snapshots: the step (float64), N·C log-probabilities (float32), and a checksum (CRC-32 of both). All little-endian.
A snapshot that is cut short or does not fit its checksum ends the record; what came before it holds. Writing and
checking take the memory of one snapshot, however many there are, and a record that is read stays on disk.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from jaxtyping import Float

from taskatlas.errors import BadInput
from taskatlas.paths.trajectory import Trajectory
from taskatlas.store import atomic_write

MAGIC = b"taskatlas record 1\n"


@dataclass(frozen=True)
class RecordHeader:
    """What all snapshots of a record have in common."""

    name: str
    ids: Sequence[str]
    classes: int
    labels: Sequence[int] | None = None
    probe: str | None = None

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of one snapshot in the file."""
        return 8 + 4 * len(self.ids) * self.classes + 4


def start_record(path: Path, header: RecordHeader) -> None:
    """Writes a record without snapshots.

    Raises:
        BadInput: the place cannot be written.
    """
    text = json.dumps(asdict(header)).encode()
    text += b" " * (-(len(MAGIC) + 8 + len(text)) % 8)  # snapshots start where numbers of 8 bytes do
    with atomic_write(path) as file:
        file.write_bytes(MAGIC + struct.pack("<Q", len(text)) + text)


def append_snapshot(path: Path, step: float, log_probs: Float[np.ndarray, "samples classes"]) -> None:
    """Adds a snapshot to the end and sees it onto the disk.

    Raises:
        BadInput: the file cannot be written; what it held before still holds.
    """
    head, values = struct.pack("<d", step), np.ascontiguousarray(log_probs, dtype="<f4").data
    size = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("ab") as file:
            file.write(head)
            file.write(values)
            file.write(struct.pack("<I", zlib.crc32(values, zlib.crc32(head))))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):  # a snapshot after half a one would never be found
            os.truncate(path, size)
        raise BadInput(f"cannot write to {path}: {error.strerror}. The snapshots before this one are whole.") from error


def resume_record(path: Path) -> tuple[RecordHeader, list[float]]:
    """The header of a record and the steps of its whole snapshots; what lies behind these is cut off.

    Raises:
        BadInput: the file is no record, or cannot be written.
    """
    header, start = read_header(path)
    with path.open("rb") as file:
        steps = [step for step, _ in _snapshots(file, header, start)]
    try:
        os.truncate(path, start + len(steps) * header.snapshot_bytes)
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror}. Give the record another place.") from error
    return header, steps


def read_record(path: Path | str) -> Trajectory:
    """The run of a record, up to its last whole snapshot; the log-probabilities stay on disk, mapped into memory.

    Raises:
        BadInput: the file is missing, no record, or has no whole snapshot.
    """
    return recover_record(Path(path))[0]


def recover_record(path: Path, names: Mapping[str, str] = MappingProxyType({})) -> tuple[Trajectory, int]:
    """``read_record``, and how many bytes follow the last whole snapshot: above 0 where the run was cut off.

    Args:
        path: the record.
        names: what to call a run instead of what its file says, by that.

    Raises:
        BadInput: as ``read_record``.
    """
    header, start = read_header(path)
    with path.open("rb") as file:
        steps = np.array([step for step, _ in _snapshots(file, header, start)])
    if not len(steps):
        raise BadInput(f"{path} holds no whole snapshot. The run ended before its first one was written.")
    values = ("<f4", (len(header.ids), header.classes))
    layout = np.dtype([("step", "<f8"), ("log_probs", *values), ("checksum", "<u4")])
    snapshots = np.memmap(path, dtype=layout, mode="r", offset=start, shape=(len(steps),))
    whole = steps.astype(np.int64) if (steps == np.floor(steps)).all() else steps
    found = Trajectory(
        names.get(header.name, header.name), snapshots["log_probs"], whole, header.ids, header.labels, header.probe
    )
    return found, path.stat().st_size - start - len(steps) * header.snapshot_bytes


def read_header(path: Path) -> tuple[RecordHeader, int]:
    """The header of a record and where its snapshots start.

    Raises:
        BadInput: the file is missing or no record.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise BadInput(f"{path} is no record of a run. Give a file that a Recorder wrote.")
            (length,) = struct.unpack("<Q", file.read(8))
            header = RecordHeader(**json.loads(file.read(length)))
            if type(header.classes) is not int or header.classes < 1 or not isinstance(header.ids, list):
                raise ValueError("it names no classes or no samples")
            return header, file.tell()
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}. Is the path right?") from error
    except (OSError, struct.error, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is no record that can be read ({error}). Its beginning is damaged.") from error


def _snapshots(file: BinaryIO, header: RecordHeader, start: int) -> Iterator[tuple[float, np.ndarray]]:
    whole = max(0, os.fstat(file.fileno()).st_size - start) // header.snapshot_bytes
    file.seek(start)
    for _ in range(whole):
        content = memoryview(file.read(header.snapshot_bytes))
        body, (checksum,) = content[:-4], struct.unpack("<I", content[-4:])
        if zlib.crc32(body) != checksum:
            return
        values = np.frombuffer(body, dtype="<f4", offset=8).reshape(len(header.ids), header.classes)
        yield struct.unpack("<d", body[:8])[0], values
