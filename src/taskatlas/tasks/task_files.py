"""Task files: a CSV with the samples' ids and a column a task."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from taskatlas.errors import BadInput
from taskatlas.probe.samples import coded_labels
from taskatlas.store import atomic_write
from taskatlas.tasks.task import Task

TASKS, CERTAINTY = "tasks.csv", "certainty.csv"
_IDS = ("id", "image_id", "ids", "filename", "file", "path", "")


def write_tasks(path: Path | str, tasks: Sequence[Task]) -> None:
    """Writes tasks on the same samples as one CSV: ``id``, then a column a task, which ``read_tasks`` reads.

    Raises:
        BadInput: no tasks, two of one name, tasks of other samples, or a place that cannot be written.
    """
    if not tasks:
        raise BadInput("there are no tasks to write.")
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise BadInput(f"two tasks are called {next(n for n in names if names.count(n) > 1)!r}; rename one.")
    _write(Path(path), names, tasks[0].ids, [task.on(tasks[0].ids).tolist() for task in tasks])


def write_certainty(path: Path | str, tasks: Sequence[Task]) -> None:
    """Writes how sure each task is of each sample, as ``write_tasks`` writes the labels."""
    columns = []
    for task in tasks:
        assert task.certainty is not None
        columns.append([f"{value:.6g}" for value in task.certainty[task.rows_of(tasks[0].ids)].tolist()])
    _write(Path(path), [task.name for task in tasks], tasks[0].ids, columns)


def read_tasks(path: Path | str, only: Sequence[str] | None = None) -> list[Task]:
    r"""The tasks of a CSV: one column names the samples, every other is a task.

    The samples are named by a column called id, image_id, file, path or nothing, else by the first. Labels are whole
    numbers or words; the different ones, in order, are counted from 0 on, so that −1 and 1, or 1 and 2, become 0 and 1.
    Columns that are constant, or that hold other numbers, are no tasks and are left out. A folder is read as the
    ``tasks.csv`` in it, with the certainties beside it.

    Args:
        path: the file, or the folder that holds it.
        only: names of the columns to read; None: all.

    Raises:
        BadInput: no such file or column, a damaged table, a sample twice, a label that is missing, or no task in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "celeba.csv").write_text("image_id,Smiling,Young\n1.jpg,-1,1\n2.jpg,1,-1\n")
        ...     read_tasks(Path(folder) / "celeba.csv")
        [Task('Smiling', 2 samples, classes .500 .500), Task('Young', 2 samples, classes .500 .500)]
    """
    path = Path(path)
    if path.is_dir():
        path = path / TASKS
    table = read_table(path)
    found = []
    ids = _ids(table, path)
    names = [name for name in table.column_names[:] if name != ids[0]]
    for name in names if only is None else only:
        if name not in names:
            raise BadInput(f"{path} has no column {name!r}; it has {', '.join(names[:8])}.")
        labels = _labels(table.column(name), name, path)
        if labels is None or labels.min() == labels.max():
            if only is not None:
                raise BadInput(f"column {name!r} of {path} is no task: it is constant or holds no whole numbers.")
            continue
        certainty = None
        if name != "certainty" and "certainty" in names and len(names) == 2:
            certainty = _numbers(table.column("certainty"), "certainty", path)
        found.append(Task(name, labels, ids[1], certainty, f"column {name!r} of {path.name}"))
        if certainty is not None:
            break
    if not found:
        raise BadInput(f"{path} holds no task: give a column a task, with labels of at least two classes.")
    beside = path.with_name(CERTAINTY)
    return _with_certainty(found, beside) if path.name == TASKS and beside.is_file() else found


def read_table(path: Path) -> Any:
    """A CSV or TSV file with a heading; numbers and texts are told apart by column.

    Raises:
        BadInput: it cannot be read, has no row, or two columns of one name.
    """
    try:
        options = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        with path.open("rb") as file:
            first = file.readline(10_000_000).decode("utf-8-sig")
            columns = next(csv.reader([first], delimiter=options.delimiter), [])
        text = {name: pa.string() for name in _IDS if name in columns} or {columns[0]: pa.string()}
        convert = pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=False)
        table = pyarrow.csv.read_csv(path, parse_options=options, convert_options=convert)
    except (OSError, ValueError, IndexError, csv.Error, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise BadInput(f"{path} cannot be read as a table ({reason}). Give a CSV file with a heading.") from error
    if not table.num_rows:
        raise BadInput(f"{path} has a heading and no rows.")
    if len(set(table.column_names)) != len(table.column_names):
        twice = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise BadInput(f"{path} has two columns called {twice!r}; rename one.")
    return table


def _ids(table: Any, path: Path) -> tuple[str, tuple[str, ...]]:
    """The name of the column with the samples' ids, and these."""
    name = next((name for name in _IDS if name in table.column_names), table.column_names[0])
    ids = tuple(str(value) for value in table.column(name).to_pylist())
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(one for one in ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        raise BadInput(f"{path} names the sample {twice!r} twice in its column {name!r}; ids must be unique.")
    return name, ids


def _labels(column: Any, name: str, path: Path) -> np.ndarray | None:
    """Classes from 0 on; None where the column holds no labels."""
    if column.null_count:
        row = next(row for row, value in enumerate(column) if not value.is_valid)
        raise BadInput(f"column {name!r} of {path} has no label in row {row + 2}. Label every sample.")
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type) or pa.types.is_floating(column.type):
        values = column.to_numpy()
        whole = np.array_equal(values, np.floor(values))  # never of NaN
        return np.unique(values, return_inverse=True)[1].astype(np.int64) if whole else None
    if pa.types.is_string(column.type):
        if "" in (words := column.to_pylist()):
            raise BadInput(f"column {name!r} of {path} has no label in row {words.index('') + 2}. Label every sample.")
        return coded_labels(column.to_pylist(), f"labels in column {name!r} of {path}")[0]
    return None


def _numbers(column: Any, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(column.to_numpy(), dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise BadInput(f"column {name!r} of {path} holds other things than numbers.") from error


def _with_certainty(tasks: list[Task], path: Path) -> list[Task]:
    table = read_table(path)
    rows = {name: row for row, name in enumerate(_ids(table, path)[1])}
    if set(rows) != set(tasks[0].ids):
        raise BadInput(f"{path} is of other samples than {TASKS} beside it. Remove it, or make both again.")
    order = np.array([rows[name] for name in tasks[0].ids])
    known = set(table.column_names)
    return [
        Task(one.name, one.labels, one.ids, _numbers(table.column(one.name), one.name, path)[order], one.note)
        if one.name in known
        else one
        for one in tasks
    ]


def _write(path: Path, names: Sequence[str], ids: Sequence[str], columns: Sequence[Sequence[Any]]) -> None:
    with atomic_write(path) as file, file.open("w", newline="", encoding="utf-8") as text:
        rows = csv.writer(text)
        rows.writerow(["id", *names])
        rows.writerows(zip(ids, *columns, strict=True))
