"""``taskatlas trace``."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from taskatlas.cli.options import DEFAULTS, Common, NotNegative, Positive, counted, emit, table, warn

app = App(
    name="trace",
    help_epilogue="""Examples:

    taskatlas trace runs/ --out atlas
    taskatlas trace a.record b.npz --labels labels.csv --format json
    taskatlas trace runs/ --group-by "(.*)-seed" --bootstrap 200
    taskatlas trace old.h5 --predictions yhs --kind logits
""",
)


@app.default
def trace(
    runs: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    labels: Path | None = None,
    metric: Literal["bhattacharyya", "hellinger", "symmetric_kl"] = "bhattacharyya",
    components: Annotated[int | None, Parameter(validator=Number(gte=2))] = None,
    distance: Literal["progress", "frechet"] | None = None,
    bootstrap: NotNegative = 0,
    groups: Path | None = None,
    group_by: Annotated[str | None, Parameter(negative=())] = None,
    landmarks: Positive | None = None,
    predictions: str | None = None,
    kind: Literal["log_probs", "probs", "logits"] | None = None,
    common: Common = DEFAULTS,
) -> None:
    """Draw how trainings moved through prediction space: map, progress, lengths, distances, tree.

    Writes trace.json, tables (points.csv, eigenvalues.csv, runs.csv, distances.csv), embedding.npz, tree.nwk, pictures
    and receipt.json into --out (default: atlas). Runs may differ in length, not in samples or classes; those of one
    name are seeds of one task.

    Args:
        runs: Trajectories (.safetensors), recorders' files, .npz or HDF5 files of predictions, or folders of these.
        labels: The true classes: .csv of id,label; .npz; .npy or .txt in the samples' order. Default: what runs carry.
        metric: The distance that is mapped.
        components: Axes of the map. Default: three.
        distance: Compare runs at equal progress, or as paths (discrete Fréchet), which needs no labels.
        bootstrap: Resamples for 95 % intervals, over samples and, where tasks have several runs, over these.
        groups: CSV of run,group: runs of one group are seeds of one task.
        group_by: Regular expression: what it finds in a run's name is the group.
        landmarks: So many snapshots make the map and the others are projected, for thousands of them.
        predictions: Array of the predictions (snapshots, samples, classes), if not log_probs, probs or logits.
        kind: What that array holds.
    """
    from taskatlas.errors import BadInput
    from taskatlas.paths import run_files
    from taskatlas.paths.files import trace_document, write_trace
    from taskatlas.paths.trace import trace_runs

    started = time.perf_counter()
    if groups is not None and group_by is not None:
        raise BadInput("give either --groups FILE or --group-by PATTERN, not both.")
    opened = run_files.open_runs(runs, predictions=predictions, kind=kind)
    for one in opened:
        if one.warning:
            warn(one.warning)
    trajectories = [one.run for one in opened]
    names = [run.name for run in trajectories]
    _, _, classes = trajectories[0].log_probs.shape
    if groups is not None:
        names = run_files.read_groups(groups, names)
    elif group_by is not None:
        names = run_files.group_by(group_by, names)
    found = trace_runs(
        trajectories,
        truth=None if labels is None else run_files.read_labels(labels, trajectories[0].ids, classes),
        tasks=names,
        metric=metric,
        n_components=components,
        landmarks=landmarks,
        distance=distance,
        bootstrap=bootstrap,
        seed=common.seed,
    )
    for note in found.notes:
        warn(note)
    out = common.out or Path("atlas")
    settings = {
        "metric": metric,
        "components": components,
        "distance": distance,
        "bootstrap": bootstrap,
        "tasks": found.task_of,
        "landmarks": landmarks,
        "predictions": predictions,
        "kind": kind,
    }
    path = write_trace(
        found,
        out,
        runs=opened,
        settings=settings,
        seed=common.seed,
        started=started,
        sources=[one for one in (labels, groups) if one is not None],
    )
    document = trace_document(found) | {"trace": path}
    tables, wrote = [_runs(document), _axes(document)], f"wrote {out}: {', '.join(_files(out))}"
    emit(common, document, [*tables, *_saturated(document), wrote])


def _runs(document: dict[str, Any]) -> Any:
    tasks, names = document["tasks"], document["runs"]
    rows = [
        [
            name,
            *([tasks[name]] if len(set(tasks.values())) < len(names) else []),
            len(document["steps"][name]),
            document["length"][name],
            document["tortuosity"][name],
            document["progress"] and document["progress"][name][-1],
            document["accuracy"] and document["accuracy"][name][-1],
            len(document["regressions"][name]),
        ]
        for name in names
    ]
    columns = ["run", "task", "snapshots", "length", "tortuosity", "progress", "accuracy", "regressions"]
    if len(rows[0]) < len(columns):
        columns.remove("task")
    return table(
        f"{counted(len(rows), 'run')} on {counted(document['samples'], 'sample')}, {document['classes']} classes",
        columns,
        rows,
    )


def _axes(document: dict[str, Any]) -> Any:
    values, time_like = document["eigenvalues"], document["time_like"]
    rows = [
        [axis, values[axis - 1], "time-like" if axis in time_like else "space-like", stress]
        for axis, stress in enumerate(document["explained_stress"], start=1)
    ]
    return table("map (InPCA)", ["axis", "eigenvalue", "kind", "explained stress up to it"], rows)


def _saturated(document: dict[str, Any]) -> list[str]:
    """How much of the map is owed to the distance's floor."""
    from math import log

    from taskatlas.paths.bhattacharyya import FLOOR

    share = document["saturated_share"]
    if share is None:
        return []
    text = f"{share:.1%} of samples, over pairs of snapshots, do not overlap and count as {-log(FLOOR):.1f} nats"
    return [text + ("; --metric hellinger needs no such floor" if share > 0 else "")]


def _files(out: Path) -> list[str]:
    from taskatlas.store import load_receipts

    return [name for receipt in load_receipts(out) if receipt.made_by == "trace" for name in sorted(receipt.outputs)]
