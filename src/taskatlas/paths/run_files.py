"""Runs from files of any kind, their labels and their groups: what ``trace`` is given."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from taskatlas.errors import BadInput
from taskatlas.paths.importers import Kind, holds_predictions
from taskatlas.paths.record_file import MAGIC, recover_record
from taskatlas.paths.simplex import check_labels
from taskatlas.paths.trajectory import Trajectory
from taskatlas.paths.trajectory_file import is_run

_Sort = Literal["run", "record", "npz", "hdf5"]
_UNNAMED = "run"  # what a recorder calls a run that was given no name


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run, the file it came from, and what there is to say about that."""

    run: Trajectory
    path: Path
    warning: str = ""


def open_runs(places: Sequence[Path], *, predictions: str | None = None, kind: Kind | None = None) -> list[OpenedRun]:
    """The runs in files and folders, in the order given and each once, those of a folder sorted by their paths.

    A file is a trajectory (``.safetensors``), a recorder's file, a NumPy archive or an HDF5 file, told apart by how it
    begins. In a folder, and in the folders in it, whatever is none of these is passed over. A run is called as its file
    says, or else like its file, with the folders before it where that is needed to tell two apart.

    Args:
        places: files and folders.
        predictions: the array that holds the predictions, where archives and HDF5 files call it by another name.
        kind: what that array holds.

    Raises:
        BadInput: a place that is not there, a file that is no run, a folder without any, or a run with faults.
    """
    files: dict[Path, _Sort] = {}
    for place in places:
        found = _runs_in(place, predictions) if place.is_dir() else {place: _sort_of(place)}
        known = {path.resolve() for path in files}
        files |= {path: sort for path, sort in found.items() if path.resolve() not in known}
    names = _file_names(list(files))
    return [_open(path, sort, names[path], predictions, kind) for path, sort in files.items()]


def read_labels(path: Path, ids: Sequence[str], classes: int) -> np.ndarray:
    """The true class of each sample.

    Args:
        path: ``.npy``, or ``.txt`` with a label a line, in the samples' order; ``.npz`` with ``labels`` and perhaps
            ``ids``; ``.csv`` with lines of id,label in any order, with or without a header.
        ids: of the samples.
        classes: how many there are.

    Raises:
        BadInput: the file cannot be read, has labels of another number or out of range, or none for a sample.
    """
    readers = {".npy": _npy_labels, ".npz": _npz_labels, ".txt": _txt_labels, ".csv": _csv_labels}
    if path.suffix not in readers:
        raise BadInput(f"{path} is no file of labels that can be read. Give {', '.join(readers)}.")
    try:
        found = readers[path.suffix](path)
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}. Is the path right?") from error
    except BadInput:
        raise
    except Exception as error:  # a broken file fails in many ways
        raise BadInput(f"{path} holds no labels that can be read ({error}).") from error
    try:
        return check_labels(_in_order(found, ids), len(ids), classes).numpy()
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def read_groups(path: Path, names: Sequence[str]) -> list[str]:
    """The group of each run from a CSV of run,group.

    Raises:
        BadInput: the file cannot be read, a line is not of that form, or a run has no group.
    """
    groups = _pairs(path, "run,group")
    groups = {name: group for name, group in groups.items() if (name, group) != ("run", "group")}
    missing = [name for name in names if name not in groups]
    if missing:
        known = ", ".join(list(groups)[:5]) or "nothing"
        raise BadInput(
            f"{path} has no group for run {missing[0]!r}; it names {known}. Write a line run,group for each."
        )
    return [groups[name] for name in names]


def read_steps(given: str) -> list[int] | dict[str, int]:
    """Training steps as ``trace_checkpoints`` takes them: numbers separated by commas, or a CSV file of name,step.

    Raises:
        BadInput: neither.

    Example:
        >>> read_steps("0, 10,20")
        [0, 10, 20]
    """
    parts = given.split(",")
    if all(_is_whole(part) for part in parts):
        return [int(part) for part in parts]
    path = Path(given)
    if not path.is_file():
        raise BadInput(f"{given!r} are no steps. Give whole numbers separated by commas, or a CSV of name,step.")
    steps = _pairs(path, "name,step")
    wrong = [name for position, name in enumerate(steps) if position and not _is_whole(steps[name])]
    if wrong:
        raise BadInput(f"{path} gives {wrong[0]!r} the step {steps[wrong[0]]!r}, which is no whole number.")
    return {name: int(step) for name, step in steps.items() if _is_whole(step)}  # the first line may be a header


def group_by(pattern: str, names: Sequence[str]) -> list[str]:
    """The group of each run: what a regular expression finds in its name, or its first group where it has one.

    Raises:
        BadInput: no regular expression, or a name in which it finds nothing.

    Example:
        >>> group_by("(.*)-seed", ["cats-seed0", "cats-seed1", "dogs-seed0"])
        ['cats', 'cats', 'dogs']
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise BadInput(f"{pattern!r} is no regular expression ({error}). Give, for example, '(.*)-seed'.") from error
    found = []
    for name in names:
        match = expression.search(name)
        group = "" if match is None else match.group(1 if expression.groups else 0) or ""
        if not group:
            raise BadInput(f"{pattern!r} finds nothing in the name of run {name!r}.")
        found.append(group)
    return found


def _runs_in(folder: Path, predictions: str | None) -> dict[Path, _Sort]:
    """What in a folder is a run, hidden files and archives without predictions passed over."""
    found: dict[Path, _Sort] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and (sort := _sort_or_none(path)) is not None:
            if sort in ("npz", "hdf5") and not holds_predictions(path, predictions):
                continue
            found[path] = sort
    if not found:
        raise BadInput(
            f"{folder} holds no runs. Give trajectories (.safetensors), recorders' files, .npz or .h5 with log_probs, "
            "probs or logits of (snapshots, samples, classes)."
        )
    return found


def _sort_of(path: Path) -> _Sort:
    if not path.exists():
        raise BadInput(f"there is no {path}. Is the path right?")
    sort = _sort_or_none(path)
    if sort is None:
        raise BadInput(
            f"{path} is no run: neither a trajectory (.safetensors) nor a recorder's file, a .npz or an HDF5 file. If "
            "it is one, its beginning is damaged."
        )
    return sort


def _sort_or_none(path: Path) -> _Sort | None:
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}.") from error
    if start == MAGIC:
        return "record"
    if start.startswith(b"\x89HDF\r\n\x1a\n") or path.suffix in (".h5", ".hdf5"):
        return "hdf5"
    if path.suffix == ".npz":
        return "npz"
    return "run" if path.suffix == ".safetensors" and is_run(path) else None


def _open(path: Path, sort: _Sort, name: str, predictions: str | None, kind: Kind | None) -> OpenedRun:
    if sort == "npz":
        return OpenedRun(Trajectory.from_npz(path, name=name, predictions=predictions, kind=kind), path)
    if sort == "hdf5":
        return OpenedRun(Trajectory.from_hdf5(path, name=name, predictions=predictions, kind=kind), path)
    if sort == "run":
        return OpenedRun(Trajectory.load(path, names={_UNNAMED: name}), path)
    run, survey = recover_record(path, {_UNNAMED: name})
    said = [f"{path}: {run.note}."] if survey.damaged else []
    if survey.cut:
        said.append(f"{path} was cut short: {len(run)} whole snapshots were read, {survey.cut} bytes were not.")
    return OpenedRun(run, path, " ".join(said))


def _file_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file: its stem, and for those that share one, the folders before it that tell them apart.

    Files that differ in their last extensions alone keep one name.
    """
    parts = {path: (*path.resolve().parts[1:-1], path.name.split(".")[0]) for path in files}
    alike: dict[str, list[Path]] = {}
    for path in files:
        alike.setdefault(parts[path][-1], []).append(path)
    names: dict[Path, str] = {}
    for group in alike.values():
        deepest = max(len(parts[path]) for path in group)
        for depth in range(1, deepest + 1):
            found = {path: "/".join(parts[path][-depth:]) for path in group}
            if len(set(found.values())) == len(group):
                break
        names |= found
    return names


def _npy_labels(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, allow_pickle=False))


def _npz_labels(path: Path) -> np.ndarray | dict[str, int]:
    with np.load(path, allow_pickle=False) as archive:
        name = next((name for name in ("labels", "y") if name in archive.files), None)
        if name is None:
            raise BadInput(f"{path} has no labels; it has {', '.join(archive.files) or 'nothing'}.")
        if "ids" not in archive.files:
            return np.asarray(archive[name])
        ids, labels = [str(one) for one in archive["ids"].tolist()], archive[name]
        if labels.dtype.kind not in "iu":
            return np.asarray(labels)  # which are refused
        twice = [one for one, times in Counter(ids).items() if times > 1]
        if twice:
            raise BadInput(f"{path} has two labels for sample {twice[0]!r}. Give each sample one.")
        return dict(zip(ids, labels.tolist(), strict=True))


def _txt_labels(path: Path) -> np.ndarray:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    found = [_label(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return np.array(found, dtype=np.int64)


def _csv_labels(path: Path) -> dict[str, int]:
    pairs = _pairs(path, "id,label")
    first = next(iter(pairs), None)
    if first is not None and not _is_whole(pairs[first]):
        del pairs[first]  # a header
    return {name: _label(path, None, text, name) for name, text in pairs.items()}


def _label(path: Path, line: int | None, text: str, name: str = "") -> int:
    if not _is_whole(text):
        where = f"line {line}" if line is not None else f"sample {name!r}"
        raise BadInput(f"{path}, {where}: {text.strip()!r} is no label. Labels are whole numbers from 0.")
    return int(text)


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"\s*-?[0-9]+\s*", text) is not None


def _pairs(path: Path, form: str) -> dict[str, str]:
    """The lines of a CSV of two columns."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {path}. Is the path right?") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read {path} ({error}). Give a CSV of {form}.") from error
    found: dict[str, str] = {}
    for line, row in enumerate(rows, start=1):
        if not row:
            continue
        if len(row) != 2:
            raise BadInput(f"line {line} of {path} is {','.join(row)!r}; write {form}.")
        name, value = row[0].strip(), row[1].strip()
        if name in found:
            raise BadInput(f"line {line} of {path} names {name!r} again. Give every name one line.")
        found[name] = value
    return found


def _in_order(labels: np.ndarray | Mapping[str, int], ids: Sequence[str]) -> np.ndarray:
    if isinstance(labels, np.ndarray):
        return labels
    missing = [name for name in ids if name not in labels]
    if missing:
        raise BadInput(f"there is no label for sample {missing[0]!r} ({len(missing)} of {len(ids)} are missing).")
    return np.array([labels[name] for name in ids])
