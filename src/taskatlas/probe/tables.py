"""Samples out of arrays' files and text files: .npy, .npz, lines, CSV and TSV, CoNLL columns."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from taskatlas.errors import BadInput
from taskatlas.probe.samples import Samples, coded_labels, read_labels

_TEXT_COLUMNS = ("text", "sentence")
_INPUT_NAMES = ("x", "inputs")
_LABEL_NAMES = ("y", "labels")


def read_npy(path: Path) -> Samples:
    """An array (n, ...) as a read-only memory map.

    Raises:
        BadInput: it is damaged, or holds pickled objects.
    """
    found = _load(path)
    if not isinstance(found, np.ndarray):
        raise BadInput(f"{path} is an archive of arrays and not one array. Rename it to end in .npz.")
    return Samples("array", found)


def read_npz(path: Path) -> Samples:
    """The array named x (or inputs), with y (or labels) and ids where they are there; or the only array.

    Raises:
        BadInput: it is damaged, holds pickled objects, or it is unclear which array is meant.
    """
    archive = _load(path)
    if isinstance(archive, np.ndarray):
        raise BadInput(f"{path} is one array and not an archive of them. Rename it to end in .npy.")
    with archive:
        names = list(archive.files)
        inputs = names[0] if len(names) == 1 else next((name for name in _INPUT_NAMES if name in names), None)
        if inputs is None:
            raise BadInput(f"{path} holds {', '.join(names) or 'no arrays'}; save the samples as x, their labels as y.")
        labels = next((name for name in _LABEL_NAMES if name in names), None)
        found = {name: _member(archive, name, path) for name in (inputs, labels, "ids") if name in names}
    coded = coded_labels(found[labels], f"labels in {path}") if labels else (None, None)
    ids = [str(name) for name in found["ids"]] if "ids" in found and inputs != "ids" else None
    return Samples("array", found[inputs], ids, *coded)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank.

    Raises:
        BadInput: it is not UTF-8.
    """
    return [line for _, line in _numbered_lines(path) if line.strip()]


def read_csv(path: Path, text: str | None, label: str | None, split: str | None) -> Samples:
    """Texts or rows of numbers out of a CSV or TSV file with a heading, quoted as spreadsheets do.

    Args:
        path: tabs separate the columns where it ends in .tsv, else commas do.
        text: the column of texts; None: text or sentence; where there is neither, all columns but those of labels and
            ids (and split) are numbers, a row a sample.
        label: the column of labels; None: label, where there is one.
        split: keep the rows with this value in the column split; None keeps all.

    Raises:
        BadInput: it is not such a table, or lacks a column.
    """
    delimiter = "\t" if path.suffix == ".tsv" else ","
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        names = pyarrow.csv.open_csv(path, parse_options=parse).schema.names
        as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), null_values=[])
        table = pyarrow.csv.read_csv(path, parse_options=parse, convert_options=as_text)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path} cannot be read as a table: {error}.") from error

    def column(name: str) -> list[str]:
        if names.count(name) != 1:
            raise BadInput(f"{path} has {names.count(name)} columns {name!r}; its columns are {', '.join(names)}.")
        return [str(entry) for entry in table[name].to_pylist()]

    if text is None:
        text = next((name for name in _TEXT_COLUMNS if name in names), None)
    if label is None and "label" in names:
        label = "label"
    if split is not None:
        splits = column("split")
        table = table.filter(pa.array([entry == split for entry in splits], pa.bool_()))
        if not len(table):
            raise BadInput(f"{path} has no split {split!r}; it has {', '.join(sorted(set(splits)))}.")
    ids = column("id") if "id" in names else None
    coded = read_labels(column(label), f"column {label} of {path}") if label else (None, None)
    if text is not None:
        return Samples("text", column(text), ids, *coded)
    others = ("id", label) if split is None else ("id", label, "split")
    numeric = [name for name in names if name not in others]
    return Samples("array", number_columns({name: column(name) for name in numeric}, path), ids, *coded)


def number_columns(columns: Mapping[str, Sequence[Any]], path: Path) -> np.ndarray:
    """Columns of numbers as rows, float32.

    Raises:
        BadInput: there are none, or one holds other things than numbers.
    """
    if not columns:
        raise BadInput(f"{path} has neither a column named {' or '.join(_TEXT_COLUMNS)} nor columns of numbers.")
    found = []
    for name, entries in columns.items():
        try:
            found.append(np.asarray(entries, dtype=np.float32))
        except (ValueError, TypeError) as error:
            raise BadInput(
                f"{path} has no column named {' or '.join(_TEXT_COLUMNS)}, and its column {name!r} holds other things "
                f"than numbers ({error}). Call a column of texts text, one of classes label, one of names id, and fill "
                "in what is missing."
            ) from error
    return np.stack(found, axis=1)


def read_conll(path: Path, column: int) -> Samples:
    """Sentences in columns separated by white space: a word a line, first its text, blank lines between sentences.

    Lines that start with -DOCSTART- are skipped, and so are lines that start with # where a sentence would begin; a #
    within a sentence is a word.

    Args:
        path: a UTF-8 file.
        column: which column holds the labels, counted from 0, or from -1 backwards.

    Raises:
        BadInput: a line lacks that column, or there is no sentence.
    """
    sentences: list[list[str]] = []
    labels: list[str] = []
    words: list[str] = []
    for number, line in _numbered_lines(path):
        fields = line.split()
        if not fields:
            if words:
                sentences.append(words)
                words = []
        elif fields[0] == "-DOCSTART-" or (fields[0].startswith("#") and not words):
            continue
        elif not (0 < column < len(fields) or -len(fields) < column < 0):
            raise BadInput(f"{path}, line {number}: {len(fields)} columns, so there is no label in column {column}.")
        else:
            words.append(fields[0])
            labels.append(fields[column])
    if words:
        sentences.append(words)
    return Samples("words", sentences, None, *coded_labels(labels))


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text ({error.reason}). Convert it to UTF-8.") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}.") from error


def _load(path: Path) -> "np.ndarray | np.lib.npyio.NpzFile":
    try:
        found: np.ndarray | np.lib.npyio.NpzFile = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    return found


def _member(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(archive[name])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BadInput:
    if any(said in str(error) for said in ("pickle", "Python objects")):
        return BadInput(
            f"{path} holds pickled Python objects, or no array at all; neither is read. "
            "Save plain numbers with numpy.save or numpy.savez."
        )
    return BadInput(f"{path} is damaged or no numpy file: {error}.")
