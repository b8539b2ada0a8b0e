"""Predictions that were written elsewhere: NumPy archives and HDF5 files of (snapshots, samples, classes)."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from taskatlas.errors import BadInput, MissingExtra

Kind = Literal["log_probs", "probs", "logits"]
_KINDS: tuple[Kind, ...] = get_args(Kind)


def read_npz(path: Path, predictions: str | None = None, kind: Kind | None = None) -> dict[str, Any]:
    """The arrays of a run in a NumPy archive: ``log_probs``, ``steps``, ``ids`` and ``labels``.

    Predictions are the array that is named, or the one called ``log_probs``, ``probs`` or ``logits``. Steps and ids
    count from 0 where they are missing.

    Raises:
        BadInput: no such file, no archive, or no predictions in it.
    """
    _check_there(path)
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise BadInput(f"{path} holds one bare array. Save it as an archive: np.savez(path, log_probs=array).")
        with archive:
            return _run(path, {name: archive[name] for name in archive.files}, predictions, kind)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{path} is no whole NumPy archive without pickles ({error}). Was its copying cut short?"
        ) from error


def read_hdf5(path: Path, predictions: str | None = None, kind: Kind | None = None) -> dict[str, Any]:
    """As ``read_npz``, from the data sets of an HDF5 file; predictions are converted a snapshot at a time.

    Raises:
        BadInput: no such file, no HDF5, or no predictions in it.
        MissingExtra: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", "io", "reading HDF5") from error
    _check_there(path)
    try:
        with h5py.File(path, "r") as file:
            sets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            if predictions is not None and predictions in file:
                sets[predictions] = file[predictions]
            return _run(path, sets, predictions, kind)
    except OSError as error:
        raise BadInput(f"{path} is no whole HDF5 file ({error}). Was its copying cut short?") from error


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise BadInput(f"there is no file {path}. Is the path right?")


def _run(path: Path, arrays: Mapping[str, Any], predictions: str | None, kind: Kind | None) -> dict[str, Any]:
    name = predictions or next((known for known in _KINDS if known in arrays), None)
    if name is None or name not in arrays:
        raise BadInput(
            f"{path} has no {name or ' or '.join(_KINDS)}; it has {', '.join(sorted(arrays)) or 'nothing'}. "
            "Name the array with predictions= and say with kind= what it holds."
        )
    kind = kind or next((known for known in _KINDS if known == name), None)
    if kind not in _KINDS:
        raise BadInput(f"what does {name!r} in {path} hold? Say kind='log_probs', 'probs' or 'logits'.")
    source = arrays[name]
    if source.ndim != 3:
        raise BadInput(f"{name!r} in {path} has the shape {source.shape}, not (snapshots, samples, classes).")
    log_probs = np.empty(source.shape, dtype=np.float32)
    for position in range(len(source)):
        log_probs[position] = _log_probs(np.asarray(source[position], dtype=np.float64), kind)
    labels = arrays.get("labels")
    return {
        "log_probs": log_probs,
        "steps": np.asarray(arrays["steps"]) if "steps" in arrays else np.arange(len(source)),
        "ids": _texts(np.asarray(arrays["ids"])) if "ids" in arrays else [str(row) for row in range(source.shape[1])],
        "labels": None if labels is None else np.asarray(labels),
    }


def _log_probs(values: Float[np.ndarray, "samples classes"], kind: Kind) -> Float[np.ndarray, "samples classes"]:
    if kind == "log_probs":
        return values
    if kind == "logits":
        shifted = values - values.max(-1, keepdims=True)
        return np.subtract(shifted, np.log(np.exp(shifted).sum(-1, keepdims=True)))
    with np.errstate(divide="ignore", invalid="ignore"):  # what is no probability shows as NaN or a wrong sum later
        return np.log(values)


def _texts(ids: np.ndarray) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else str(item) for item in ids.tolist()]
