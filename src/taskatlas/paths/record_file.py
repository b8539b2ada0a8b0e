"""A record of a run that grows by one snapshot at a time, and is whole up to the last one whatever ends the run.

The file is a line of magic, the length of a header, the header (JSON: name, ids, labels, probe, classes), and then
snapshots: the step (float64), N·C log-probabilities (float32), and a checksum (CRC-32 of both). All little-endian.
Snapshots are blocks of one size: one that does not fit its checksum is left out, and those behind it hold. Writing and
checking take the memory of one snapshot, however many there are, and a record that is read stays on disk; only what is
whole in a damaged one is read into memory.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

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


@dataclass(frozen=True)
class RecordSurvey:
    """What the file of a record holds, found without writing to it.

    Attributes:
        header: of the record.
        start: byte at which its snapshots start.
        steps: of the whole snapshots, by their places among all of the file's blocks.
        damaged: how many blocks do not fit their checksum.
        cut: bytes behind the last block, of a snapshot that was cut short.
    """

    header: RecordHeader
    start: int
    steps: Mapping[int, float]
    damaged: int
    cut: int

    def snapshots(self, path: Path) -> np.ndarray:
        """All blocks of the file, damaged ones too, mapped into memory."""
        values = ("<f4", (len(self.header.ids), self.header.classes))
        layout = np.dtype([("step", "<f8"), ("log_probs", *values), ("checksum", "<u4")])
        count = len(self.steps) + self.damaged
        return np.memmap(path, dtype=layout, mode="r", offset=self.start, shape=(count,))["log_probs"]


def survey_record(path: Path) -> RecordSurvey:
    """Looks through a record and checks every snapshot.

    Raises:
        BadInput: the file is missing or no record.
    """
    header, start = read_header(path)
    blocks, cut = divmod(path.stat().st_size - start, header.snapshot_bytes)
    steps: dict[int, float] = {}
    with path.open("rb") as file:
        file.seek(start)
        for place in range(blocks):
            content = memoryview(file.read(header.snapshot_bytes))
            if struct.pack("<I", zlib.crc32(content[:-4])) == content[-4:]:
                (steps[place],) = struct.unpack("<d", content[:8])
    return RecordSurvey(header, start, steps, blocks - len(steps), cut)


def cut_to_whole_blocks(path: Path, survey: RecordSurvey) -> None:
    """Takes a snapshot that was cut short off the end, so that others can follow; damaged blocks stay.

    Raises:
        BadInput: the file cannot be written.
    """
    try:
        os.truncate(path, path.stat().st_size - survey.cut)
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror}. Give the record another place.") from error


def read_record(path: Path | str) -> Trajectory:
    """The run of a record, all its whole snapshots; the log-probabilities stay on disk, mapped into memory.

    Where snapshots are damaged, the others are read into memory, and the run's note says how many are missing.

    Raises:
        BadInput: the file is missing, no record, or has no whole snapshot.
    """
    return recover_record(Path(path))[0]


def recover_record(path: Path, names: Mapping[str, str] = MappingProxyType({})) -> tuple[Trajectory, RecordSurvey]:
    """``read_record``, and what else the file holds.

    Args:
        path: the record.
        names: what to call a run instead of what its file says, by that.

    Raises:
        BadInput: as ``read_record``.
    """
    survey = survey_record(path)
    header, places = survey.header, list(survey.steps)
    if not places:
        why = "All are damaged" if survey.damaged else "The run ended before its first one was written"
        raise BadInput(f"{path} holds no whole snapshot. {why}.")
    steps = np.array([*survey.steps.values()])
    whole = steps.astype(np.int64) if (steps == np.floor(steps)).all() else steps
    last = places[-1] + 1
    log_probs = survey.snapshots(path)[:last]
    log_probs = log_probs if last == len(places) else log_probs[places]
    note = f"{survey.damaged} of {len(places) + survey.damaged} snapshots are damaged and left out"
    name = names.get(header.name, header.name)
    return Trajectory(
        name, log_probs, whole, header.ids, header.labels, header.probe, note if survey.damaged else ""
    ), survey


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
            if type(header.classes) is not int or header.classes < 1 or not _are_texts(header.ids):
                raise ValueError("it names no classes or no samples")
            if not _are_texts([header.name]) or not isinstance(header.labels, list | None):
                raise ValueError("its name or its labels are none")
            return header, file.tell()
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}. Is the path right?") from error
    except BadInput:
        raise
    except Exception as error:  # a damaged header fails in many ways
        raise BadInput(f"{path} is no record that can be read ({error}). Its beginning is damaged.") from error


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(one, str) for one in values)
