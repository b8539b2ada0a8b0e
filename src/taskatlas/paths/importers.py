"""Predictions that were written elsewhere: NumPy archives and HDF5 files of (snapshots, samples, classes)."""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from taskatlas.engine import track
from taskatlas.errors import BadInput, MissingExtra
from taskatlas.paths.pairwise import pieces
from taskatlas.paths.trajectory_file import write_run
from taskatlas.store import Store, file_digest

Kind = Literal["log_probs", "probs", "logits"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_RUN = "run.safetensors"


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
            found = _find(path, archive, predictions, kind)
            log_probs = np.empty(found.shape, dtype=np.float32)
            for (steps, samples), block in found.blocks():
                log_probs[steps, samples] = block
            return found.others | {"log_probs": log_probs}
    except BadInput:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise BadInput(
            f"{path} is no whole NumPy archive without pickles ({error}). Was its copying cut short?"
        ) from error


def hdf5_as_run(path: Path, predictions: str | None, kind: Kind | None, store: Store) -> Path:
    """The run's file in the store that holds what an HDF5 file does, converted block by block the first time.

    The file needs the data sets that ``read_npz`` expects.

    Raises:
        BadInput: no such file, no HDF5, or no predictions in it.
        MissingExtra: h5py is not installed.
    """
    h5py = _h5py()
    _check_there(path)

    def build(folder: Path) -> None:
        with h5py.File(path, "r") as file:
            sets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            if predictions is not None and isinstance(file.get(predictions), h5py.Dataset):
                sets[predictions] = file[predictions]
            found = _find(path, sets, predictions, kind)
            count = sum(1 for _ in pieces(found.shape))
            blocks = track((block for _, block in found.blocks()), f"reading {path.name}", total=count)
            write_run(folder / _RUN, blocks, found.shape, name=path.name, **found.others)

    try:
        inputs = {"file": file_digest(path)}
        return store.make("imported_run", inputs, {"predictions": predictions, "kind": kind}, build) / _RUN
    except OSError as error:
        raise BadInput(f"{path} is no whole HDF5 file ({error}). Was its copying cut short?") from error


def holds_predictions(path: Path, predictions: str | None = None) -> bool:
    """Whether a NumPy archive or an HDF5 file has what ``read_npz`` looks for; True too where it cannot be opened.

    Raises:
        MissingExtra: it is an HDF5 file, and h5py is not installed.
    """
    wanted = set(_KINDS) if predictions is None else {predictions}
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                return bool(wanted & {name.removesuffix(".npy") for name in archive.namelist()})
        except (OSError, zipfile.BadZipFile):
            return True
    try:
        with _h5py().File(path, "r") as file:
            return any(name in file for name in wanted)
    except OSError:
        return True


@dataclass(frozen=True)
class _Found:
    """Predictions somewhere, what they are, and what stands beside them."""

    source: Any  # (T, N, C), perhaps on disk
    kind: Kind
    where: str  # for messages
    others: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        snapshots, samples, classes = self.source.shape
        return int(snapshots), int(samples), int(classes)

    def blocks(self) -> Iterator[tuple[tuple[slice, slice], Float[np.ndarray, "steps samples classes"]]]:
        """Log-probabilities in float64, some snapshots or some samples of one at a time, in order."""
        for steps, samples in pieces(self.shape):
            values = np.asarray(self.source[steps, samples], dtype=np.float64)
            if self.kind == "probs" and (values < 0).any():
                step, sample, _ = np.argwhere(values < 0)[0] + (steps.start, samples.start, 0)
                raise BadInput(
                    f"{self.where}, snapshot {step}, sample {sample}: a probability is negative. What do these numbers "
                    "stand for? Say kind='log_probs' or 'logits' if they are no probabilities."
                )
            yield (steps, samples), _log_probs(values, self.kind)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", "io", "reading HDF5") from error
    return h5py


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise BadInput(f"there is no file {path}. Is the path right?")


def _find(path: Path, arrays: Mapping[str, Any], predictions: str | None, kind: Kind | None) -> _Found:
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
    if source.dtype == np.float16:
        raise BadInput(f"{name!r} in {path} is float16, too coarse for distances. Take the logits in float32.")
    if source.ndim != 3 or 0 in source.shape or source.dtype.kind not in "fiu":
        raise BadInput(
            f"{name!r} in {path} has the shape {source.shape} of {source.dtype}, not (snapshots, samples, classes) of "
            "numbers."
        )
    snapshots, samples, _ = source.shape
    others: dict[str, Any] = {
        "steps": np.asarray(arrays["steps"]) if "steps" in arrays else np.arange(snapshots),
        "ids": _texts(np.asarray(arrays["ids"])) if "ids" in arrays else [str(row) for row in range(samples)],
        "labels": np.asarray(arrays["labels"]) if "labels" in arrays else None,
    }
    for what, kinds in {"steps": "fiu", "labels": "iu"}.items():
        values = others[what]
        if values is not None and (values.dtype.kind not in kinds or values.ndim != 1):
            raise BadInput(f"{what} in {path} have the shape {values.shape} of {values.dtype}, not a row of numbers.")
    return _Found(source, kind, f"{name!r} in {path}", others)


def _log_probs(values: Float[np.ndarray, "*rows classes"], kind: Kind) -> Float[np.ndarray, "*rows classes"]:
    if kind == "log_probs":
        return values
    with np.errstate(divide="ignore", invalid="ignore"):  # what is no probability shows as NaN or a wrong sum later
        if kind == "probs":
            return np.log(values)
        shifted = values - values.max(-1, keepdims=True)
        return np.subtract(shifted, np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _texts(ids: np.ndarray) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else str(item) for item in ids.tolist()]
