"""``taskatlas discover``."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from taskatlas.cli.options import DEFAULTS, Common, NotNegative, Positive, counted, emit, table, warn

_LISTED = 12  # known tasks; of more a summary is shown

app = App(
    name="discover",
    help_epilogue="""Examples:

    taskatlas discover digits.npz --out atlas
    taskatlas discover photos/ --learner small_cnn --size 16 --tasks 8 --steps 300 --out atlas
    taskatlas discover photos/ --features features.npy --tasks 16 --out atlas
    taskatlas discover photos/ --route sequential --bound 0.6 --out atlas
""",
)


@app.default
def discover(
    data: str,
    *,
    learner: str = "mlp",
    tasks: Positive = 8,
    classes: Positive = 2,
    encoder: str | None = None,
    width: Positive | None = None,
    features: Path | None = None,
    route: Literal["together", "sequential"] = "together",
    bound: float = 0.6,
    steps: Positive = 120,
    learning_rate: float = 2e-3,
    batch_size: Positive = 128,
    asked: Positive = 128,
    inner_steps: Positive = 30,
    inner_rate: float = 0.3,
    truncate: NotNegative = 5,
    checkpoint: Annotated[bool, Parameter(negative=())] = False,
    temperature: float = 5.0,
    diversity: Literal["uniformity", "information"] | None = None,
    coefficient: float = 0.4,
    fresh_heads: Annotated[bool, Parameter(negative=())] = False,
    held_out: float = 0.2,
    repeats: NotNegative = 3,
    known: str | None = None,
    size: Positive | None = None,
    common: Common = DEFAULTS,
) -> None:
    """Find tasks on which networks generalise, different from each other, and show what they are.

    Writes into --out (default: atlas): tasks.csv, certainty.csv, embedding.npz, history.csv, similarity.csv,
    agreement.json, portraits.json and pictures. A search that was stopped goes on when it is run again.

    Args:
        data: Samples: a folder of images, .parquet, .npz, .csv, or hf:NAME:SPLIT. A table has a column text, or columns
            of numbers; classes in a column label, ids in a column id. Labels are not used, but for comparison.
        learner: What shall agree: mlp, small_cnn, resnet18, vit, timm:NAME, file.py:function.
        tasks: How many.
        classes: Of each task.
        encoder: The network that labels. Default: as the learner.
        width: Dimensions of its output. Default: 8 (of each on the sequential route 2), or as many as the tasks need.
        features: Features (samples, d) as .npy, from a network that stays as it is: then a linear map of them labels.
        route: All tasks together, or one after the other against those accepted.
        bound: The largest similarity to an accepted task, on the sequential route.
        steps: Of the search.
        learning_rate: Of the encoder.
        batch_size: Samples that the two learners of a task train on, half each.
        asked: Further samples on which they are compared.
        inner_steps: Steps of gradient descent that learners take.
        inner_rate: Of these.
        truncate: So many last inner steps are differentiated; 0 for all.
        checkpoint: Train parts of the inner steps twice instead of keeping all of them in memory.
        temperature: Of the labels.
        diversity: What keeps tasks apart. Default: uniformity; on the sequential route always information.
        coefficient: Of the diversity.
        fresh_heads: Ask new directions at every step.
        held_out: Share of the samples that the search never sees, on which the tasks are scored.
        repeats: Of the agreement scores; 0: none are measured.
        known: Known tasks to compare with, as `taskatlas agree --tasks`.
        size: Side in pixels that pictures are brought to.
    """
    import numpy as np

    from taskatlas.errors import BadInput
    from taskatlas.probe import Probe
    from taskatlas.tasks.agreement import Training, agreement_scores
    from taskatlas.tasks.discovery import Search, discover_tasks
    from taskatlas.tasks.files import STATE, write_discovered
    from taskatlas.tasks.opening import files_of, open_tasks
    from taskatlas.tasks.portrait import coverage, portray
    from taskatlas.tasks.sequential import discover_in_turn
    from taskatlas.tasks.similarity import similarity_matrix

    started = time.perf_counter()
    probe = Probe.open(data)
    if route == "sequential" and diversity == "uniformity":
        raise BadInput("the sequential route keeps tasks apart by information; leave out --diversity.")
    compared = [] if known is None else open_tasks(known, probe, learner, size=size, seed=common.seed)
    out = common.out or Path("atlas")
    search = Search(
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        asked=asked,
        inner_steps=inner_steps,
        inner_rate=inner_rate,
        truncate=truncate or None,
        checkpoint=checkpoint,
        temperature=temperature,
        diversity=diversity or "uniformity",
        coefficient=coefficient,
        fresh_heads=fresh_heads,
    )
    arguments: dict[str, Any] = {
        "classes": classes,
        "width": width,
        "encoder": encoder,
        "features": None if features is None else _features(features),
        "search": search,
        "held_out": held_out,
        "size": size,
        "seed": common.seed,
        "device": common.device,
    }
    if route == "sequential":
        found = discover_in_turn(probe, learner, n_tasks=tasks, bound=bound, states=out / STATE, **arguments)
    else:
        found = discover_tasks(probe, learner, n_tasks=tasks, state=out / STATE, **arguments)
    for note in found.notes:
        warn(note)
    scores = []
    if repeats:
        scores = agreement_scores(
            found.tasks,
            learner,
            probe,
            held_out=held_out,
            seeds=repeats,
            training=Training(batch_size=min(Training().batch_size, len(probe) - len(found.held_out))),
            least=0.0,
            size=size,
            seed=common.seed,
            device=common.device,
            engine=common.engine,
        )
    covered = coverage(found.embedding, probe.ids, compared, held_out=held_out, seed=common.seed)
    portraits = portray(found.tasks, probe, known=compared, scores=scores)
    write_discovered(
        found,
        out,
        data=probe,
        portraits=portraits,
        scores=scores,
        coverage=covered,
        settings={"known": known, "repeats": repeats, "size": size},
        started=started,
        sources=[Path(data), *files_of(known, learner, encoder), *([features] if features is not None else [])],
    )
    for state in out.glob(f"{STATE}*"):
        state.unlink()
    alike = similarity_matrix(found.tasks)[np.triu_indices(len(found), 1)]
    named = {score.task: score for score in scores}
    document = {
        "out": out,
        "tasks": {
            task.name: {
                "class_rates": task.class_rates,
                "agreement": named[task.name].agreement if named else None,
                "interval": named[task.name].interval if named else None,
                "lift": {name: lift[0] for name, lift in named[task.name].lift.items()} if named else None,
                "goes_by": portrait.goes_by,
                "resembles": portrait.resembles,
            }
            for task, portrait in zip(found.tasks, portraits, strict=True)
        },
        "agreement": float(np.mean([score.agreement for score in scores])) if scores else None,
        "similarity": {"mean": float(alike.mean()), "max": float(alike.max())} if len(alike) else None,
        "coverage": covered,
        "notes": found.notes,
        "seconds": time.perf_counter() - started,
    }
    lines: list[Any] = [_tasks(document, found)]
    if len(alike):
        lines.append(f"similarity of pairs: mean {alike.mean():.3f}, largest {alike.max():.3f}")
    if covered:
        lines.append(f"covered by a linear probe: {_coverage(covered)}")
    emit(common, document, [*lines, f"wrote {out}: tasks.csv and its pictures, task-0.png and on"])


def _coverage(covered: Mapping[str, float]) -> str:
    """Accuracy on each known task; of many the mean and both ends."""
    said = {name: f"{name} {value:.3f}" for name, value in sorted(covered.items(), key=lambda item: item[1])}
    if len(said) <= _LISTED:
        return ", ".join(said[name] for name in covered)
    mean = sum(covered.values()) / len(covered)
    return f"{len(said)} tasks, mean {mean:.3f}, from {next(iter(said.values()))} to {[*said.values()][-1]}"


def _features(path: Path) -> Any:
    import numpy as np

    from taskatlas.errors import BadInput
    from taskatlas.probe import Probe

    found = Probe.open(path)
    if found.kind != "array":
        raise BadInput(f"{path} holds no features; give an .npy of numbers (samples, d).")
    return np.asarray(found.inputs)


def _tasks(document: dict[str, Any], found: Any) -> Any:
    rows = []
    for name, task in document["tasks"].items():
        low, high = task["interval"] or (None, None)
        lift = task["lift"] or {}
        strongest = ", ".join(f"{what} {value:.2f}" for what, value in list(task["goes_by"].items())[:2])
        resembles = next((f"{what} {value:.2f}" for what, value in task["resembles"].items()), None)
        rows.append(
            [
                name,
                float(min(task["class_rates"])),
                task["agreement"],
                low,
                high,
                lift.get("untrained"),
                strongest or None,
                resembles,
            ]
        )
    columns = ["task", "smallest class", "agreement", "low", "high", "lift over untrained", "goes by", "like"]
    return table(f"{counted(len(found), 'task')} of {counted(len(found.embedding), 'sample')}", columns, rows)
