"""``taskatlas evaluate``."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from taskatlas.cli.options import DEFAULTS, Common, Positive, emit, table

app = App(
    name="evaluate",
    help_epilogue="""Examples:

    taskatlas evaluate merged.safetensors --on digits.npz --builder nets.py:mlp
    taskatlas evaluate average/ ties/ --on a.tsv b.tsv --individual experts/
    taskatlas evaluate merged/ --on a=a.npz b=b.npz --infer entropy --out scores
    taskatlas evaluate net.pt --on a=a.npz b=b.npz --classes a=0-4 b=5-9
""",
)


@app.default
def evaluate_models(
    *models: str,
    on: Annotated[list[str], Parameter(consume_multiple=True, negative=())],
    individual: str | None = None,
    ensemble: Annotated[bool, Parameter(negative=())] = False,
    infer: Literal["entropy", "confidence"] | None = None,
    classes: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    builder: str | None = None,
    split: str | None = None,
    batch_size: Positive = 64,
    common: Common = DEFAULTS,
) -> None:
    """Score models on labelled tasks: each task, their average, all tasks joined, as a share of individual models.

    A model is a weights file, a Hugging Face model folder, or a folder with a checkpoint called like each task: one
    model with a head for each. Any other folder of checkpoints is a model for each of them. Rows are called by the
    file's or folder's name, or as in NAME=PATH.

    Known heads: the task is told, so only its classes compete: all outputs of a head of its own, and of one network
    for all tasks those in --classes, or that the samples' class names say. Inferred heads: all classes compete.

    With --out, writes evaluation.csv, evaluation.json, evaluation.png and receipt.json there.

    Args:
        models: Weights files, model folders, folders of checkpoints or zoo.yaml files.
        on: Labelled samples, one task each, called by the file's name or as in TASK=PATH: .npz with x and y, .tsv
            or .csv with text and label, .parquet, or a folder with a folder a class. Integers are numbers of
            outputs.
        individual: Folder with a checkpoint called like each task, trained for it: a row to compare with.
        ensemble: A row for the mean of the individual networks' probabilities; they must share one label space.
        infer: How a head is chosen where the task is not told: lowest entropy or highest confidence. Default: heads of
            a folder are not inferred.
        classes: Which outputs of one network for all tasks are a task's: TASK=0-4 or TASK=0,2,7. Default: the names of
            the samples' classes, and all outputs where they have none.
        builder: For checkpoints that name none: transformers, timm:NAME, torchvision:NAME,
            module.path:function, file.py:function.
        split: Of tables with a column split, only the rows with this value: test.
        batch_size: Samples at once in a forward pass.
    """
    from taskatlas.errors import BadInput
    from taskatlas.merge.evaluation import evaluate, write_evaluation
    from taskatlas.merge.merge_with_data import learned_on
    from taskatlas.merge.scores import INDIVIDUAL

    started = time.perf_counter()
    if not models and individual is None:
        raise BadInput("name at least one model: a weights file, a model folder, or a folder of checkpoints.")
    paths = _named(on, "task")
    data = {task: _probe(path, split) for task, path in paths.items()}
    subjects: dict[str, Any] = {}
    learned: dict[str, str | None] = {}
    for name, path in _named(list(models), "model").items():
        for row, subject in _subjects(name, path, builder, list(data)).items():
            if row in subjects:
                raise BadInput(f"two models are called {row!r}. Name one of them: NAME={path}")
            subjects[row], learned[row] = subject, learned_on(path)
    experts = None if individual is None else _experts(individual, builder, list(data))
    found = evaluate(
        subjects,
        data,
        individual=experts,
        ensemble=ensemble,
        infer=infer,
        classes=_numbers(classes or [], list(data)),
        batch_size=batch_size,
        device=common.device,
        engine=common.engine,
    )
    files = []
    if common.out is not None:
        settings = {"infer": infer, "ensemble": ensemble, "split": split, "classes": classes or []}
        everything = {**subjects, **({} if experts is None else {INDIVIDUAL: experts})}
        sources = [Path(path) for path in paths.values()]
        write_evaluation(
            found, common.out, models=everything, data=data, settings=settings, started=started, sources=sources
        )
        files = [f"wrote {common.out}: evaluation.csv, evaluation.json, evaluation.png, receipt.json"]
    rows = [{**row, "learned on": learned.get(row["model"])} for row in found.rows()]
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    shown = table("Accuracy ± standard error", columns, cells)
    tasks = {task: len(probe) for task, probe in data.items()}
    told = []
    if found.unlisted:
        unlisted = ", ".join(found.unlisted)
        told = [f"Which outputs are the classes of {unlisted} is not known: all compete. Name them: --classes TASK=0-4"]
    document = {"tasks": tasks, "infer": infer, "unlisted": found.unlisted}
    emit(common, document | {"models": [_plain(row, tasks) for row in rows]}, [shown, *told, *files])


def _named(given: list[str], what: str) -> dict[str, str]:
    """Names to paths; a path without a name is called like its last part, without suffix."""
    from taskatlas.errors import BadInput

    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).resolve().name.partition(".")[0], text
        if not name or not path:
            raise BadInput(f"{text!r} names no {what}. Write NAME=PATH, or a path alone.")
        if name in found:
            raise BadInput(f"two {what}s are called {name!r}: {found[name]} and {path}. Name one: NAME={path}")
        found[name] = path
    return found


def _numbers(given: list[str], tasks: list[str]) -> dict[str, list[int]]:
    """Task -> the numbers in TASK=0-4,7."""
    from taskatlas.errors import BadInput

    found: dict[str, list[int]] = {}
    for text in given:
        task, _, numbers = text.rpartition("=")
        ranges = [part.partition("-") for part in numbers.split(",")]
        try:
            ends = [(int(first), int(last if dash else first)) for first, dash, last in ranges]
        except ValueError as error:
            raise BadInput(f"{text!r} gives no classes. Write TASK=0-4 or TASK=0,2,7.") from error
        if task not in tasks or task in found:
            raise BadInput(f"--classes {text}: name each of the tasks {', '.join(tasks)} at most once.")
        found[task] = [number for first, last in ends for number in range(first, last + 1)]
    return found


def _probe(path: str, split: str | None) -> Any:
    from taskatlas.probe import Probe

    if split is not None and Path(path).suffix in (".csv", ".tsv"):
        return Probe.from_table(path, split=split)
    return Probe.open(path)


def _subjects(name: str, path: str, builder: str | None, tasks: list[str]) -> dict[str, Any]:
    """The rows that one path stands for: one network, one with a head a task, or a network each."""
    from taskatlas.zoo import Zoo

    zoo = Zoo.open(path if Path(path).exists() else [path], builder=builder)
    if set(tasks) <= set(zoo):
        return {name: {task: zoo[task] for task in tasks}}
    if len(zoo) == 1:
        return {name: next(iter(zoo.values()))}
    return {f"{name}/{own}": checkpoint for own, checkpoint in zoo.items()}


def _experts(path: str, builder: str | None, tasks: list[str]) -> dict[str, Any]:
    from taskatlas.errors import BadInput
    from taskatlas.zoo import Zoo

    zoo = Zoo.open(path if Path(path).exists() else [path], builder=builder)
    missing = [task for task in tasks if task not in zoo]
    if missing:
        raise BadInput(
            f"--individual {path} has no checkpoint called {missing[0]!r}; it has {', '.join(list(zoo)[:8])}. "
            "Call the data like the checkpoints: --on NAME=PATH."
        )
    return {task: zoo[task] for task in tasks}


def _cell(value: Any) -> Any:
    return str(value) if isinstance(value, tuple) else value


def _plain(row: dict[str, Any], tasks: dict[str, int]) -> dict[str, Any]:
    """A row as JSON: each accuracy with its standard error."""

    def both(value: Any) -> Any:
        return None if value is None else {"accuracy": value.value, "standard_error": value.error}

    return {
        "model": row["model"],
        "heads": row["heads"],
        "tasks": {task: both(row[task]) for task in tasks},
        "average": both(row["average"]),
        "joint": both(row["joint"]),
        "ratio": row["ratio"],
        "learned_on": row["learned on"],
    }
