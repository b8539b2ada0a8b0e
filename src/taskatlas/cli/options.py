"""The options that every command shares, and how a result is printed."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

Positive = Annotated[int, Parameter(validator=Number(gte=1))]
NotNegative = Annotated[int, Parameter(validator=Number(gte=0))]

_FILE = 1000  # columns of what is no terminal: nothing is folded there
_WORD = 16  # letters of a word that a table does not break


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command."""

    format: Literal["human", "json"] = "human"
    """What to print: tables for people, or one JSON document and nothing else."""

    out: Annotated[Path | None, Parameter(negative=())] = None
    """Folder for the result's files."""

    seed: NotNegative = 0
    """Seed of everything random."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes a GPU if there is one."""

    engine: str = "local"
    """Where independent jobs run: local, threads:N, processes:N."""


DEFAULTS = Common()


def emit(common: Common, document: Mapping[str, Any], lines: Sequence[Any]) -> None:
    """Prints ``document`` as JSON, or ``lines`` (strings and rich tables) for people."""
    if common.format == "json":
        print(json.dumps(_plain(document), indent=1, allow_nan=False))
        return
    from rich.console import Console

    measured = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if measured else _FILE)
    for line in lines:
        console.print(line, markup=False, soft_wrap=isinstance(line, str))


def warn(message: str) -> None:
    """Says something on standard error that is no error."""
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold yellow]taskatlas:[/] {escape(message)}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A rich table; columns that hold numbers are aligned right and floats are given three decimals."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        numeric = any(isinstance(row[position], int | float) for row in rows)
        cells = [_cell(row[position]) for row in rows]
        words = max((len(word) for cell in cells for word in cell.split()), default=0)
        width = max(map(len, cells)) if numeric else min(words, _WORD)  # a number is never broken
        made.add_column(column, justify="right" if numeric else "left", overflow="fold", min_width=width)
    for row in rows:
        made.add_row(*(escape(_cell(value)) for value in row))
    return made


def split_names(names: str) -> list[str]:
    """The names in a list separated by commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def counted(number: int, noun: str) -> str:
    """A number of things, in words for people.

    Example:
        >>> counted(1, "run"), counted(1200, "sample")
        ('1 run', '1,200 samples')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def with_reach(value: str, reach: float) -> str:
    """A number and how far its interval reaches; the number alone where that is not known.

    Example:
        >>> with_reach("0.912", 0.004), with_reach("0.912", math.nan)
        ('0.912 ± 0.004', '0.912')
    """
    return value if math.isnan(reach) else f"{value} ± {reach:.3f}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: Any) -> Any:
    """Arrays as lists, paths as strings, numbers that JSON has no word for as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(item) for item in value]
