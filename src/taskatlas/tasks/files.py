"""The room's results as folders: what ``agree``, ``discover`` and ``split`` leave behind."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.store import digest, output_folder
from taskatlas.tasks.agreement import Agreement, load_agreements, save_agreements
from taskatlas.tasks.damage import Damage, load_damage, save_damage
from taskatlas.tasks.discovery import Discovered, Step
from taskatlas.tasks.drawing import (
    draw_agreements,
    draw_damage,
    draw_history,
    draw_portrait,
    draw_similarity,
)
from taskatlas.tasks.portrait import Portrait
from taskatlas.tasks.similarity import similarity_matrix
from taskatlas.tasks.split import Split
from taskatlas.tasks.task import Task
from taskatlas.tasks.task_files import CERTAINTY, TASKS, read_tasks, write_certainty, write_tasks

AGREEMENT, DISCOVERY, PORTRAITS, DAMAGE, STATE = (
    "agreement.json",
    "discovery.json",
    "portraits.json",
    "splits.json",
    "discovery.state",
)
SPLITS, MANIFEST = "splits", "manifest.json"
_EMBEDDING, _HISTORY, _ENCODER = "embedding.npz", "history.csv", "encoder.safetensors"


def write_agreements(
    scores: Sequence[Agreement],
    folder: Path,
    *,
    data: Probe,
    tasks: Sequence[Task] = (),
    settings: Mapping[str, Any],
    seed: int,
    started: float | None = None,
    sources: Iterable[Path] = (),
) -> Path:
    """Writes scores as JSON and CSV, their picture and a receipt; returns the path of the JSON.

    Raises:
        BadInput: the folder cannot be written.
    """
    inputs = {"data": data.digest, "tasks": _digest_of(tasks)}
    with _folder(folder, "agree", inputs, settings, sources, seed, started) as staging:
        save_agreements(staging / AGREEMENT, scores)
        _write_table(staging / "agreement.csv", *agreement_table(scores))
        _save_picture(draw_agreements(scores).figure, staging / "agreement.png")
    return folder / AGREEMENT


def agreement_table(scores: Sequence[Agreement]) -> tuple[list[str], list[list[Any]]]:
    """A row for each score, the highest first."""
    columns = ["task", "agreement", "low", "high", "soft", "accuracy", "fit", "smallest_class"]
    nulls = list(dict.fromkeys(name for score in scores for name in score.nulls))
    for name in nulls:
        columns += [f"{name}_null", f"lift_over_{name}", "low", "high"]
    rows: list[list[Any]] = []
    for one in sorted(scores, key=lambda score: -score.agreement):
        row = [one.task, one.agreement, *one.interval, one.soft, one.accuracy, one.fit, min(one.class_rates)]
        for name in nulls:
            row += [one.nulls[name].agreement, *one.lift[name]] if name in one.nulls else [None] * 4
        rows.append([None if isinstance(value, float) and math.isnan(value) else value for value in row])
    return columns, rows


def write_discovered(
    found: Discovered,
    folder: Path,
    *,
    data: Probe | None = None,
    portraits: Sequence[Portrait] = (),
    scores: Sequence[Agreement] = (),
    coverage: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    started: float | None = None,
    sources: Iterable[Path] = (),
) -> Path:
    """Writes discovered tasks as tables, with their embedding, pictures and a receipt; returns the tasks' path.

    Args:
        found: the tasks.
        folder: where they belong.
        data: the samples; with them each task's portrait is drawn.
        portraits: of the tasks.
        scores: of the tasks.
        coverage: of known tasks by the embedding.
        settings: for the receipt.
        started: ``time.perf_counter()`` when the work began.
        sources: files that were read.

    Raises:
        BadInput: the folder cannot be written.
    """
    tasks = list(found.tasks)
    inputs = {"tasks": found.digest} | ({} if data is None else {"data": data.digest})
    all_settings = {**found.settings, **(settings or {})}
    with _folder(folder, "discover", inputs, all_settings, sources, found.settings.get("seed"), started) as staging:
        write_tasks(staging / TASKS, tasks)
        if all(task.certainty is not None for task in tasks):
            write_certainty(staging / CERTAINTY, tasks)
        np.savez_compressed(
            staging / _EMBEDDING,
            embedding=found.embedding.astype(np.float32),
            heads=found.heads,
            ids=np.array(tasks[0].ids),
            held_out=np.array(found.held_out, dtype=str),
        )
        _write_table(staging / _HISTORY, list(Step._fields), [list(map(repr, row)) for row in found.history])
        names = [task.name for task in tasks]
        matrix = similarity_matrix(tasks).tolist()
        rows = [[name, *row] for name, row in zip(names, matrix, strict=True)]
        _write_table(staging / "similarity.csv", ["", *names], rows)
        _write_json(
            staging / DISCOVERY,
            {"settings": all_settings, "notes": list(found.notes), "coverage": dict(coverage or {})},
        )
        if found.encoder is not None:
            save_file(
                {key: value.cpu().contiguous() for key, value in found.encoder.state_dict().items()}, staging / _ENCODER
            )
        if found.history:
            _save_picture(draw_history(found).figure, staging / "history.png")
        _save_picture(draw_similarity(tasks).figure, staging / "similarity.png")
        if scores:
            save_agreements(staging / AGREEMENT, scores)
            _write_table(staging / "agreement.csv", *agreement_table(scores))
            _save_picture(draw_agreements(scores).figure, staging / "agreement.png")
        if portraits:
            _write_json(staging / PORTRAITS, {"tasks": [one.as_row() for one in portraits]})
        for number, one in enumerate(portraits if data is not None else ()):
            assert data is not None
            _save_picture(draw_portrait(one, data), staging / f"task-{number}.png")
    return folder / TASKS


def read_discovered(folder: Path) -> Discovered:
    """Tasks that ``write_discovered`` left in a folder, without the encoder's network.

    Raises:
        BadInput: there are none, or they are damaged.
    """
    tasks = read_tasks(folder / TASKS)
    try:
        with np.load(folder / _EMBEDDING, allow_pickle=False) as archive:
            embedding, heads = archive["embedding"].astype(np.float64), archive["heads"].astype(np.float64)
            ids, held_out = archive["ids"].tolist(), tuple(archive["held_out"].tolist())
        document = json.loads((folder / DISCOVERY).read_text(encoding="utf-8"))
        with (folder / _HISTORY).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        history = tuple(Step(int(row["step"]), *(float(row[name]) for name in Step._fields[1:])) for row in rows)
        if tuple(ids) != tasks[0].ids or len(embedding) != len(ids):
            raise BadInput(f"{folder / _EMBEDDING} is of other samples than {TASKS}. Run `taskatlas discover` again.")
        return Discovered(
            tuple(tasks), embedding, heads, held_out, history, document["settings"], tuple(document["notes"])
        )
    except BadInput:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise BadInput(
            f"{folder} holds no discovery that can be read ({error}). Run `taskatlas discover` again."
        ) from error


def write_splits(
    ranked: Sequence[tuple[Split, Damage | None]],
    folder: Path,
    *,
    data: Probe,
    tasks: Sequence[Task] = (),
    target: Task | None = None,
    made: Mapping[str, Mapping[str, Split]] | None = None,
    settings: Mapping[str, Any],
    seed: int,
    started: float | None = None,
    sources: Iterable[Path] = (),
) -> Path:
    """Writes splits with their controls, what they do, a picture and a receipt; returns the path of the manifest.

    Each split is ``splits/RANK.npz`` and ``.csv``, its controls ``RANK-random-task.npz`` and ``RANK-random-split.npz``;
    ``manifest.json`` says of each how it was made, its sizes and its classes' shares. What they do is in
    ``splits.json``, ``.csv`` and ``.png``, where it was measured.

    Args:
        ranked: splits with what they do, the most damaging first; None: that was not measured.
        folder: where they belong.
        data: the samples.
        tasks: that made the splits, and
        target: for the receipt.
        made: the controls of splits, by the splits' names.
        settings: for the receipt.
        seed: of everything random.
        started: ``time.perf_counter()`` when the work began.
        sources: files that were read.

    Raises:
        BadInput: the folder cannot be written.
    """
    damages = [damage for _, damage in ranked if damage is not None]
    inputs = {"data": data.digest, "tasks": _digest_of(tasks)} | ({} if target is None else {"target": target.digest})
    with _folder(folder, "split", inputs, settings, sources, seed, started) as staging:
        (staging / SPLITS).mkdir()
        manifest = {}
        for rank, (split, _) in enumerate(ranked, start=1):
            several = {f"{rank:02}": split}
            for name, control in (made or {}).get(split.name, {}).items():
                several[f"{rank:02}-{name.replace(' ', '-')}"] = control
            for stem, one in several.items():
                one.save(staging / SPLITS / f"{stem}.npz")
                manifest[f"{SPLITS}/{stem}.npz"] = one.manifest()
            split.save(staging / SPLITS / f"{rank:02}.csv")
            split.save_group_dro(staging / SPLITS / f"{rank:02}-partition.csv")
        _write_json(staging / MANIFEST, manifest)
        if damages:
            save_damage(staging / DAMAGE, damages)
            _write_table(staging / "splits.csv", *damage_table(damages))
            _save_picture(draw_damage(damages).figure, staging / "splits.png")
    return folder / MANIFEST


def damage_table(ranked: Sequence[Damage]) -> tuple[list[str], list[list[Any]]]:
    """A row for each split, in the order given; agreement and lift are those of the easier task."""
    columns = ["split", "similarity", "agreement", "lift", "accuracy", "low", "high", "fit", "reserved"]
    columns += ["train", "test", "random split", "random task", "fall"]
    rows: list[list[Any]] = []
    for one in ranked:
        found = one.found
        beside = [one.controls[name].accuracy if name in one.controls else None for name in columns[11:13]]
        easy = one.easier
        row = [one.split, easy.similarity, easy.agreement, easy.lift, found.accuracy, *found.interval, found.fit]
        row += [found.reserved, found.train, found.test, *beside, one.fall]
        rows.append([None if isinstance(value, float) and math.isnan(value) else value for value in row])
    return columns, rows


def read_agreements(folder: Path) -> list[Agreement]:
    """The scores in a folder.

    Raises:
        BadInput: there are none.
    """
    return load_agreements(folder / AGREEMENT)


def read_damage(folder: Path) -> list[Damage]:
    """What the splits in a folder do.

    Raises:
        BadInput: there are none.
    """
    return load_damage(folder / DAMAGE)


def read_held_out(folder: Path) -> tuple[str, ...] | None:
    """Ids of the samples that a discovery in a folder never saw; None where there is no discovery.

    Raises:
        BadInput: it is damaged.
    """
    if not (folder / _EMBEDDING).is_file():
        return None
    try:
        with np.load(folder / _EMBEDDING, allow_pickle=False) as archive:
            return tuple(archive["held_out"].tolist())
    except Exception as error:  # a damaged archive fails in many ways
        raise BadInput(f"{folder / _EMBEDDING} cannot be read ({error}). Run `taskatlas discover` again.") from error


def _digest_of(tasks: Sequence[Task]) -> str:
    return digest("tasks", [task.digest for task in tasks])


def _folder(
    folder: Path,
    maker: str,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    sources: Iterable[Path],
    seed: int | None,
    started: float | None,
) -> Any:
    read = [path for path in sources if path.is_file()]
    return output_folder(folder, maker, inputs=inputs, settings=settings, sources=read, seed=seed, started=started)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)


def _save_picture(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=130)
    plt.close(figure)
