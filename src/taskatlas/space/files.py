"""The room's results as a folder: what ``map``, ``select`` and ``transfer`` leave behind."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.space.selection import Selection
from taskatlas.space.task_space import TaskSpace
from taskatlas.space.transfer import Transfer, load_transfers, save_transfers
from taskatlas.store import output_folder
from taskatlas.zoo import Zoo
from taskatlas.zoo.weights import weights_files

SPACE, SELECTION, TRANSFER = "space.npz", "selection.json", "transfer.json"


def open_space(path: Path, names: Path | None = None) -> TaskSpace:
    """A task space from a folder or ``.npz`` that was mapped before, or from a matrix with names.

    Raises:
        BadInput: nothing there, or not a task space.
    """
    if not path.exists():
        raise BadInput(f"there is no {path}. Give a folder or space.npz that `taskatlas map` wrote, or a matrix.")
    if path.is_dir() and not (path / SPACE).is_file():
        raise BadInput(f"{path} holds no {SPACE}. Run `taskatlas map ZOO --probe PROBE --out {path}` first.")
    if path.is_dir():
        path = path / SPACE
    return TaskSpace.load(path) if path.suffix == ".npz" else TaskSpace.from_matrix(path, names)


def known_space(folder: Path) -> TaskSpace | None:
    """The space that was mapped into ``folder`` before; None where there is none that can be read."""
    with suppress(BadInput):
        return TaskSpace.load(folder / SPACE)
    return None


def write_space(
    space: TaskSpace,
    folder: Path,
    *,
    zoo: Zoo,
    probe: Probe,
    settings: Mapping[str, Any],
    seed: int,
    started: float | None = None,
    sources: Iterable[Path] = (),
) -> Path:
    """Writes the space, its covariance as CSV, its picture and a receipt; returns the path of the space.

    For the receipt, here as in the other writers: ``started`` is ``time.perf_counter()`` when the work began, and
    ``sources`` are what was read beside the zoo's weights. Those that are files are remembered, so that ``check``
    notices when they change.

    Raises:
        BadInput: the folder cannot be written.
    """
    inputs = {"zoo": zoo.digest, "probe": probe.digest}
    read = [*_weights_of(zoo), *_files(sources)]
    with output_folder(
        folder, "map", inputs=inputs, settings=settings, sources=read, seed=seed, started=started
    ) as staging:
        space.save(staging / SPACE)
        with (staging / "covariance.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["", *space.names])
            rows.writerows(
                [name, *map(repr, row.tolist())] for name, row in zip(space.names, space.covariance, strict=True)
            )
        _save_picture(space.plot(), staging / "space.png")
    return folder / SPACE


def write_selection(
    selection: Selection,
    folder: Path,
    *,
    space: TaskSpace,
    started: float | None = None,
    sources: Iterable[Path] = (),
) -> Path:
    """Writes the selection, its picture and a receipt; returns the path of the selection.

    Raises:
        BadInput: the folder cannot be written.
    """
    settings = {"method": selection.method, "picked": list(selection.names)}
    inputs, read = {"space": space.digest}, _files(sources)
    with output_folder(folder, "select", inputs=inputs, settings=settings, sources=read, started=started) as staging:
        selection.save(staging / SELECTION)
        if selection.steps:
            _save_picture(selection.plot(), staging / "selection.png")
    return folder / SELECTION


def write_transfers(
    transfers: Sequence[Transfer],
    folder: Path,
    *,
    zoo: Zoo,
    probes: Sequence[Probe],
    settings: Mapping[str, Any],
    seed: int,
    started: float | None = None,
    sources: Iterable[Path] = (),
) -> Path:
    """Writes the scores over the number of picks, their picture and a receipt; returns the path of the scores.

    Raises:
        BadInput: the folder cannot be written.
    """
    from taskatlas.space.drawing import draw_transfer

    inputs = {"zoo": zoo.digest, "train": probes[0].digest, "test": probes[1].digest}
    read = [*_weights_of(zoo), *_files(sources)]
    with output_folder(
        folder, "transfer", inputs=inputs, settings=settings, sources=read, seed=seed, started=started
    ) as staging:
        save_transfers(transfers, staging / TRANSFER)
        _save_picture(draw_transfer(transfers), staging / "transfer.png")
    return folder / TRANSFER


def read_transfers(folder: Path) -> tuple[Transfer, ...]:
    """The scores that ``write_transfers`` left in a folder.

    Raises:
        BadInput: there are none.
    """
    return load_transfers(folder / TRANSFER)


def read_numbers(path: Path) -> dict[str, float]:
    """Reads ``name,number`` lines; a first line whose second cell is no number is a header.

    Raises:
        BadInput: the file cannot be read or a line is not of that form; says which.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read {path} ({error}). Give a CSV of name,number.") from error
    numbers: dict[str, float] = {}
    for line, row in enumerate(rows, start=1):
        if not row:
            continue
        try:
            name, number = row
            value = float(number)
        except ValueError as error:
            if line == 1 and len(row) == 2:
                continue
            raise BadInput(f"line {line} of {path} is {','.join(row)!r}; write name,number.") from error
        if name.strip() in numbers:
            raise BadInput(f"line {line} of {path} names {name.strip()!r} again. Give every name one line.")
        numbers[name.strip()] = value
    return numbers


def _weights_of(zoo: Zoo) -> list[Path]:
    places = [checkpoint.weights for checkpoint in zoo.values()]
    return [file for place in places if isinstance(place, Path) for file in weights_files(place)]


def _files(sources: Iterable[Path]) -> list[Path]:
    return [path for path in sources if path.is_file()]


def _save_picture(ax: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    ax.figure.savefig(path, dpi=150)
    plt.close(ax.figure)
