"""Splits from files: our own, and the dictionaries of index pairs and class groups that others publish."""

import codecs
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.probe.samples import coded_labels
from taskatlas.tasks.split import PARTS, RESERVED, TEST, TRAIN, UNUSED, Split
from taskatlas.tasks.task import Task
from taskatlas.tasks.task_files import read_table

_NUMPY: list[Any] = [  # what arrays of indices in a pickle are made of; objects in them are not
    np.ndarray,
    np.dtype,
    *((np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *(type(np.dtype(f"{kind}{size}")) for kind in "iu" for size in (1, 2, 4, 8)),
    codecs.encode,
]
_PUBLISHED = (".torch", ".pt", ".pth", ".json")
_TRAIN_NAMES, _TEST_NAMES = ("train", "train_idx", "train_indices"), ("test", "test_idx", "test_indices", "val")


def read_split(path: Path) -> Split:
    """A split out of an ``.npz`` or ``.csv`` that ``Split.save`` wrote, or a CSV of ``image_id,partition``.

    Raises:
        BadInput: the file is missing, damaged, or holds no split.
    """
    return _read_npz(path) if path.suffix == ".npz" else _read_csv(path)


def open_split(said: str, data: Probe) -> Split:
    """A split as a person names it: a file of ours, or FILE or FILE:NAME of published ones, of the data's own classes.

    Raises:
        BadInput: the file holds no split, or it is unclear which of several is meant; and as the readers.
    """
    file, colon, name = (said, "", "") if Path(said).exists() else said.rpartition(":")
    path = Path(file) if colon else Path(said)
    if path.suffix not in _PUBLISHED:
        return read_split(Path(said))
    found = read_published_splits(path, Task.of_probe("classes", data))
    if (colon and name not in found) or (not colon and len(found) > 1):
        raise BadInput(
            f"{path} holds the splits {', '.join(list(found)[:8])}{', …' if len(found) > 8 else ''}; name one of them: "
            f"{path}:{next(iter(found))}."
        )
    return found[name] if colon else next(iter(found.values()))


def read_published_splits(path: Path | str, target: Task) -> dict[str, Split]:
    """Splits that were published as pairs of index arrays, read without running code.

    ``.torch``, ``.pt`` or ``.pth``: a dictionary of names (strings, numbers or tuples) to train and test positions, as
    a pair or under the names train and test, nested or not; lists, tensors or numpy arrays; ``.json``: the same.

    Args:
        path: the file.
        target: what is learned, on the samples that the positions count, in their order.

    Raises:
        BadInput: the file needs code to be read, or holds no such pairs, two of one name, or positions beyond the
            target's samples.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            with torch.serialization.safe_globals(_NUMPY):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}. Is the path right?") from error
    except Exception as error:  # torch and pickle raise whatever a damaged file provokes
        raise BadInput(
            f"{path} cannot be read without running code in it ({str(error).partition(chr(10))[0][:200]}). Save its "
            "index arrays as tensors in a dictionary, with torch.save."
        ) from error
    found = _pairs(content, ())
    names = [name for name, _ in found]
    if not found:
        raise BadInput(f"{path} holds no pairs of train and test positions.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"{path} holds two splits called {twice!r}; rename one.")
    return {name: _of_pair(name, pair, target, path) for name, pair in found}


def read_class_groups(path: Path | str, classes: int) -> list[tuple[int, ...]]:
    """Groups of classes out of an ``.npy``: a row of class numbers each, or of zeros and ones over the classes.

    Args:
        path: the file; pickles are refused.
        classes: how many classes the data has.

    Raises:
        BadInput: the file is no such array, or names a class that is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(Path(folder) / "groups.npy", np.array([[0, 1], [0, 2]]))
        ...     read_class_groups(Path(folder) / "groups.npy", 4)
        [(0, 1), (0, 2)]
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is no array that can be read without running code ({error}).") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "biu" or rows.ndim not in (1, 2) or not rows.size:
        raise BadInput(f"{path} holds no groups of classes: give whole numbers, a row a group.")
    rows = np.atleast_2d(rows)
    if rows.shape[1] == classes and rows.max() <= 1 and rows.min() >= 0:
        groups = [tuple(np.flatnonzero(row).tolist()) for row in rows]
    else:
        groups = [tuple(sorted(set(row.tolist()))) for row in rows]
    for group in groups:
        if not group or group[0] < 0 or group[-1] >= classes or len(group) == classes:
            raise BadInput(f"{path} has the group {list(group)}, which divides no {classes} classes.")
    return groups


def _read_npz(path: Path) -> Split:
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids, target = tuple(str(name) for name in archive["ids"]), archive["target"]
            manifest = json.loads(str(archive["manifest"]))
            parts = np.full(len(ids), UNUSED, dtype=np.int64)
            for part in (TRAIN, TEST, RESERVED):
                parts[archive[PARTS[part]]] = part
        return Split(str(manifest["name"]), ids, parts, target.astype(np.int64), dict(manifest["how"]))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise BadInput(f"there is no split {path}. Is the path right?") from error
    except Exception as error:  # a damaged archive fails in many ways
        raise BadInput(f"{path} holds no split that can be read ({error}). Run `taskatlas split` again.") from error


def _read_csv(path: Path) -> Split:
    table = read_table(path)
    names = table.column_names
    column = next((name for name in ("part", "partition", "split") if name in names), None)
    if column is None:
        raise BadInput(f"{path} has no column part, partition or split; it has {', '.join(names[:8])}.")
    first = next((name for name in ("id", "image_id") if name in names), names[0])
    ids = tuple(str(value) for value in table.column(first).to_pylist())
    numbers = {"0": TRAIN, "1": RESERVED, "2": TEST, "val": RESERVED, "validation": RESERVED}
    numbers |= {name: part for part, name in enumerate(PARTS)}
    said = [str(value) for value in table.column(column).to_pylist()]
    unknown = next((value for value in said if value not in numbers), None)
    if unknown is not None:
        raise BadInput(f"{path} has the part {unknown!r}; write train, test, reserved or unused, or 0, 1, 2.")
    target = np.zeros(len(ids), dtype=np.int64)
    if "target" in names:
        target = coded_labels(table.column("target").to_pylist(), f"targets in {path}")[0]
    parts = np.array([numbers[value] for value in said], dtype=np.int64)
    return Split(path.stem, ids, parts, target, {"made": "read", "file": path.name})


def _pairs(content: Any, name: tuple[str, ...]) -> list[tuple[str, tuple[Any, Any]]]:
    """Every pair of index arrays in nested dictionaries, by the joined keys."""
    if isinstance(content, Mapping):
        sides = [next((key for key in known if key in content), None) for known in (_TRAIN_NAMES, _TEST_NAMES)]
        if all(side is not None and _is_indices(content[side]) for side in sides):
            return [(" ".join(name) or "split", (content[sides[0]], content[sides[1]]))]
        return [pair for key, value in content.items() for pair in _pairs(value, (*name, _said(key)))]
    if isinstance(content, list | tuple) and len(content) == 2 and all(_is_indices(side) for side in content):
        return [(" ".join(name) or "split", (content[0], content[1]))]
    return []


def _said(key: Any) -> str:
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _is_indices(side: Any) -> bool:
    if isinstance(side, Tensor):
        return side.ndim == 1 and not side.is_floating_point()
    if isinstance(side, np.ndarray):
        return side.ndim == 1 and side.dtype.kind in "iu"
    return isinstance(side, Sequence) and not isinstance(side, str) and all(isinstance(one, int) for one in side)


def _of_pair(name: str, pair: tuple[Any, Any], target: Task, path: Path) -> Split:
    parts = np.full(len(target), UNUSED, dtype=np.int64)
    for part, side in zip((TRAIN, TEST), pair, strict=True):
        rows = np.asarray(side.numpy() if isinstance(side, Tensor) else side, dtype=np.int64)
        if not len(rows) or rows.min() < 0 or rows.max() >= len(target):
            raise BadInput(
                f"split {name!r} of {path} counts to {rows.max() if len(rows) else 'nothing'}, and the target has "
                f"{len(target)} samples. Is it of other data?"
            )
        if (parts[rows] != UNUSED).any():
            raise BadInput(f"split {name!r} of {path} trains and tests on the same sample.")
        parts[rows] = part
    return Split(name, target.ids, parts, target.labels, {"made": "read", "file": path.name, "name": name})
