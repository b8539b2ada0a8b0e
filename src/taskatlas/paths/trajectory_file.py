"""The file of a run: safetensors, written piece by piece, its predictions mapped into memory when it is read."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Real
from safetensors import SafetensorError, safe_open

from taskatlas.errors import BadInput
from taskatlas.store import atomic_write

FORMAT = "taskatlas.trajectory/1"


def write_run(
    path: Path,
    pieces: Iterable[Float[np.ndarray, "*_"]],
    shape: tuple[int, int, int],
    *,
    name: str,
    steps: Real[np.ndarray, " steps"],
    ids: Iterable[str],
    labels: Integer[np.ndarray, " samples"] | None = None,
    probe: str | None = None,
    note: str = "",
) -> None:
    """Writes a run whose predictions need not be in memory.

    Args:
        path: of the file.
        pieces: the log-probabilities in their order, cut wherever it suits, float32 or wider.
        shape: (T, N, C) of all pieces together.
        name: of the run, and the rest as in ``Trajectory``.
        steps: of the snapshots.
        ids: of the samples.
        labels: true classes.
        probe: digest of the probe.
        note: how the path was made.

    Raises:
        BadInput: the place cannot be written.
    """
    arrays = {"steps": steps.astype("<f8" if steps.dtype.kind == "f" else "<i8")}
    if labels is not None:
        arrays["labels"] = labels.astype("<i8")
    about = {"format": FORMAT, "name": name, "ids": json.dumps(list(ids)), "note": note}
    about |= {} if probe is None else {"probe": probe}
    header = _header(about, arrays, shape)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)
        before = file.tell()
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype="<f4").data)
        written = file.tell() - before
        if written != 4 * np.prod(shape, dtype=np.int64):
            raise ValueError(f"the pieces of run {name!r} hold {written} bytes, which are not those of {shape}")


def is_run(path: Path) -> bool:
    """Whether a safetensors file says that it is a run; other tensors, and what is no such file, are not."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                return False
            return bool(json.loads(file.read(length))["__metadata__"]["format"] == FORMAT)
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_run(path: Path) -> dict[str, Any]:
    """The fields of a run from its file; the log-probabilities stay on disk, mapped into memory.

    Raises:
        BadInput: the file is missing, cut short, or no trajectory.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise BadInput(f"{path} is no trajectory. Give a file that Trajectory.save wrote.")
            labels = file.get_tensor("labels") if "labels" in file.keys() else None  # noqa: SIM118 (no mapping)
            steps = file.get_tensor("steps")
        ids = json.loads(about["ids"])
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise ValueError("its ids are no list of texts")
        return {
            "name": about["name"],
            "log_probs": _mapped(path, "log_probs"),
            "steps": steps,
            "ids": ids,
            "labels": labels,
            "probe": about.get("probe"),
            "note": about.get("note", ""),
        }
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}. Is the path right?") from error
    except BadInput:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{path} is no whole trajectory ({error}). Was its writing or copying cut short?") from error


def _header(about: Mapping[str, str], arrays: Mapping[str, np.ndarray], shape: tuple[int, int, int]) -> bytes:
    """The header of a safetensors file, padded so that what follows is aligned."""
    sizes = [*((name, "F64" if a.dtype.kind == "f" else "I64", a.shape, a.nbytes) for name, a in arrays.items())]
    sizes.append(("log_probs", "F32", shape, 4 * int(np.prod(shape, dtype=np.int64))))
    entries: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, dtype, extent, size in sizes:
        entries[name] = {"dtype": dtype, "shape": list(extent), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)


def _mapped(path: Path, name: str) -> np.ndarray:
    """An array of a whole safetensors file, mapped into memory: a header's length, the header, then the bytes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[name]
    if entry["dtype"] != "F32":
        raise BadInput(f"{path} holds log-probabilities of type {entry['dtype']}, not F32. Save the trajectory again.")
    start = 8 + length + entry["data_offsets"][0]
    return np.memmap(path, dtype="<f4", mode="r", offset=start, shape=tuple(entry["shape"]))
