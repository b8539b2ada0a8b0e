"""The room's results as a folder: what ``trace`` and ``record`` leave behind."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.errors import BadInput
from taskatlas.paths.embedding import Embedding, explained_stress
from taskatlas.paths.past_training import PastTraining
from taskatlas.paths.reindex import Regression
from taskatlas.paths.run_files import OpenedRun
from taskatlas.paths.trace import RunSummary, Trace
from taskatlas.paths.tree import TaskTree
from taskatlas.store import file_digest, output_folder
from taskatlas.zoo import Zoo
from taskatlas.zoo.weights import weights_files

TRACE, EMBEDDING, TREE = "trace.json", "embedding.npz", "tree.npz"


def trace_document(trace: Trace) -> dict[str, Any]:
    """A trace as plain values, which ``taskatlas trace`` prints and ``trace.json`` holds."""
    embedding, tree, names = trace.embedding, trace.tree, [run.name for run in trace.runs]
    axes = embedding.coordinates.shape[1]
    has_progress = any(run.progress is not None for run in trace.runs)
    has_accuracy = any(run.accuracy is not None for run in trace.runs)
    document: dict[str, Any] = {
        "runs": names,
        "tasks": trace.task_of,
        "samples": trace.samples,
        "classes": trace.classes,
        "metric": embedding.metric,
        "components": axes,
        "explained_stress": embedding.explained_stress,
        "eigenvalues": embedding.eigenvalues,
        "time_like": [axis + 1 for axis in range(axes) if embedding.signs[axis] < 0],
        "saturated_share": trace.saturated,
        "steps": {run.name: run.steps for run in trace.runs},
        "progress": {run.name: run.progress for run in trace.runs} if has_progress else None,
        "accuracy": {run.name: run.accuracy for run in trace.runs} if has_accuracy else None,
        "regressions": {run.name: [fall._asdict() for fall in run.regressions] for run in trace.runs},
        "length": {run.name: run.length for run in trace.runs},
        "tortuosity": {run.name: run.tortuosity for run in trace.runs},
        "means": _task_means(trace),
        "distances": None
        if tree is None
        else {"between": tree.distance, "names": tree.names, "values": tree.distances, "unit": "nat"},
        "tree": None if tree is None else {"newick": tree.newick(), "linkage": tree.linkage},
        "intervals": trace.intervals or None,
        "run_notes": {run.name: run.note for run in trace.runs if run.note},
        "notes": trace.notes,
    }
    return plain(document)


def write_trace(
    trace: Trace,
    folder: Path,
    *,
    runs: Sequence[OpenedRun],
    settings: Mapping[str, Any],
    seed: int,
    started: float | None = None,
    sources: Iterable[Path] = (),
) -> Path:
    """Writes a trace as JSON, tables and pictures with a receipt; returns the path of ``trace.json``.

    Runs are not copied: ``runs.csv`` names each one's file with its digest.

    Args:
        trace: the result.
        folder: where it belongs.
        runs: what was traced, in the trace's order.
        settings: for the receipt.
        seed: of everything random.
        started: ``time.perf_counter()`` when the work began.
        sources: what was read beside the runs, so that ``check`` notices when it changes.

    Raises:
        BadInput: the folder cannot be written.
    """
    from taskatlas.paths.drawing import draw_map, draw_progress, draw_tree

    files = [one.path for one in runs]
    digests = [file_digest(path) for path in files]
    names = [run.name for run in trace.runs]
    with output_folder(
        folder,
        "trace",
        inputs=dict(zip(names, digests, strict=True)),
        settings=settings,
        sources=[*dict.fromkeys([*files, *sources])],
        seed=seed,
        started=started,
    ) as staging:
        text = json.dumps(trace_document(trace), indent=1, allow_nan=False)
        (staging / TRACE).write_text(f"{text}\n", encoding="utf-8")
        trace.embedding.save(staging / EMBEDDING)
        _write_table(staging / "points.csv", *_points(trace))
        _write_table(staging / "eigenvalues.csv", *_axes(trace))
        _write_table(staging / "runs.csv", *_run_rows(trace, files, digests))
        _save_picture(draw_map(trace), staging / "inpca.png")
        if trace.embedding.coordinates.shape[1] > 2:
            _save_picture(trace.embedding.plot(axes=(0, 1, 2), tasks=trace.task_of).figure, staging / "inpca-3d.png")
        if any(run.progress is not None for run in trace.runs):
            _save_picture(draw_progress(trace.runs), staging / "progress.png")
        if trace.tree is not None:
            trace.tree.save(staging / TREE)
            (staging / "tree.nwk").write_text(f"{trace.tree.newick()}\n", encoding="utf-8")
            rows = [[name, *row] for name, row in zip(trace.tree.names, trace.tree.distances.tolist(), strict=True)]
            _write_table(staging / "distances.csv", ["", *trace.tree.names], rows)
            _save_picture(draw_tree(trace.tree), staging / "distances.png")
    return folder / TRACE


def read_trace(folder: Path) -> Trace:
    """The trace that ``write_trace`` left in a folder.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    path = folder / TRACE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names, tree = document["runs"], TaskTree.load(folder / TREE) if document["tree"] else None
        embedding = Embedding.load(folder / EMBEDDING)
        if [*dict.fromkeys(embedding.runs)] != names:
            raise BadInput(f"{path} and {folder / EMBEDDING} are of other runs. Run taskatlas trace again.")
        return Trace(
            tuple(_summary(document, name) for name in names),
            embedding,
            tree,
            document["saturated_share"],
            document["samples"],
            document["classes"],
            document["intervals"] or {},
            tuple(document["notes"]),
        )
    except BadInput:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise BadInput(f"{path} is no trace that can be read ({error}). Run taskatlas trace again.") from error


def write_past_training(
    past: PastTraining,
    folder: Path,
    *,
    zoo: Zoo,
    settings: Mapping[str, Any],
    started: float | None = None,
    sources: Iterable[Path] = (),
) -> Path:
    """Writes a past training's run and a receipt that is its own; returns the path of the run's file.

    Raises:
        BadInput: the name is none for a file, or the folder cannot be written.
    """
    if not past.name or past.name.startswith(".") or "/" in past.name or "\\" in past.name:
        raise BadInput(f"{past.name!r} is no name for a run's file. Give one without slashes.")
    places = [checkpoint.weights for checkpoint in zoo.values()]
    weights = [file for place in places if isinstance(place, Path) for file in weights_files(place)]
    read = [*weights, *(path for path in sources if path.is_file())]
    with output_folder(
        folder,
        f"record {past.name}",
        inputs={"zoo": zoo.digest, "probe": past.probe},
        settings=settings,
        sources=read,
        started=started,
    ) as staging:
        past.write(staging / f"{past.name}.safetensors")
    return folder / f"{past.name}.safetensors"


def plain(value: Any) -> Any:
    """Arrays as lists; numbers that JSON has no word for as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | bool | int | None):
        return value
    return [plain(item) for item in value.tolist()] if isinstance(value, np.ndarray) else [plain(one) for one in value]


def _task_means(trace: Trace) -> dict[str, Any] | None:
    """Means over the seeds of each task, at the end; None where every run is a task of its own."""
    if len(trace.tasks) == len(trace.runs):
        return None
    found = {}
    for task, rows in trace.tasks.items():
        runs = [trace.runs[row] for row in rows]
        ends = {
            what: [float(curve[-1]) for run in runs if (curve := getattr(run, what)) is not None]
            for what in ("progress", "accuracy")
        }
        found[task] = {
            "runs": [run.name for run in runs],
            "length": float(np.mean([run.length for run in runs])),
            **{what: float(np.mean(values)) if values else None for what, values in ends.items()},
        }
    return found


def _points(trace: Trace) -> tuple[list[str], list[list[Any]]]:
    """A row for each snapshot, and for each point of what was projected onto the map."""
    embedding = trace.embedding
    axes = embedding.coordinates.shape[1]
    columns = ["kind", "run", "task", "step", "progress", "accuracy", "residual"]
    columns += [f"axis_{axis + 1}{'_time_like' if embedding.signs[axis] < 0 else ''}" for axis in range(axes)]
    rows: list[list[Any]] = []
    first = 0
    for run in trace.runs:
        for position, step in enumerate(run.steps.tolist()):
            curves = [None if curve is None else float(curve[position]) for curve in (run.progress, run.accuracy)]
            place = embedding.coordinates[first + position].tolist()
            rows.append(["snapshot", run.name, run.task, step, *curves, None, *place])
        first += len(run.steps)
    for path in embedding.paths:
        task = path.name if path.kind == "mean" else None
        for place, residual, point in zip(
            path.places.tolist(), path.residuals.tolist(), path.coordinates.tolist(), strict=True
        ):
            rows.append([path.kind, None, task, None, place, None, residual, *point])
    return columns, rows


def _axes(trace: Trace) -> tuple[list[str], list[list[Any]]]:
    values = trace.embedding.eigenvalues
    rows = [
        [axis + 1, value, "time-like" if value < 0 else "space-like", stress]
        for axis, (value, stress) in enumerate(zip(values.tolist(), explained_stress(values).tolist(), strict=True))
    ]
    return ["axis", "eigenvalue", "kind", "explained_stress"], rows


def _run_rows(trace: Trace, files: Sequence[Path], digests: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    columns = ["run", "task", "snapshots", "first_step", "last_step", "length", "tortuosity", "final_progress"]
    columns += ["best_progress", "final_accuracy", "regressions", "deepest_regression", "file", "sha256"]
    rows: list[list[Any]] = []
    for run, file, digest in zip(trace.runs, files, digests, strict=True):
        progress = [None, None] if run.progress is None else [float(run.progress[-1]), float(run.progress.max())]
        accuracy = None if run.accuracy is None else float(run.accuracy[-1])
        deepest = max((fall.depth for fall in run.regressions), default=None)
        ends = [run.steps[0].item(), run.steps[-1].item()]
        falls = [len(run.regressions), deepest]
        measures = [run.length, run.tortuosity, *progress, accuracy, *falls]
        rows.append([run.name, run.task, len(run.steps), *ends, *measures, file.resolve(), digest])
    return columns, rows


def _summary(document: Mapping[str, Any], name: str) -> RunSummary:
    curves = [document[what] and document[what][name] for what in ("progress", "accuracy")]
    progress, accuracy = (None if curve is None else np.array(curve, dtype=np.float64) for curve in curves)
    tortuosity = document["tortuosity"][name]
    return RunSummary(
        name,
        document["tasks"][name],
        np.array(document["steps"][name]),
        float(document["length"][name]),
        math.inf if tortuosity is None else float(tortuosity),
        progress,
        accuracy,
        tuple(Regression(**fall) for fall in document["regressions"][name]),
        document["run_notes"].get(name, ""),
    )


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)


def _save_picture(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150)
    plt.close(figure)
