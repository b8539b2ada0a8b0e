"""``taskatlas agree``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from taskatlas.cli.options import (
    DEFAULTS,
    Common,
    NotNegative,
    Positive,
    counted,
    emit,
    split_names,
    table,
    warn,
    with_reach,
)

app = App(
    name="agree",
    help_epilogue="""Examples:

    taskatlas agree digits.npz --tasks human:8 --out atlas
    taskatlas agree photos/ --tasks celeba.csv --learner small_cnn --size 32
    taskatlas agree photos/ --tasks atlas --learner resnet18 --repeats 5 --engine processes:2
    taskatlas agree reviews.tsv --tasks random:4 --differ half
""",
)


@app.default
def agree(
    data: str,
    *,
    tasks: str,
    learner: str = "mlp",
    learners: Positive = 2,
    repeats: Positive = 3,
    differ: str = "initialisation,order",
    held_out: float = 0.2,
    nulls: NotNegative = 2,
    least: float | None = None,
    epochs: Positive = 60,
    batch_size: Positive = 128,
    learning_rate: float = 1e-3,
    size: Positive | None = None,
    common: Common = DEFAULTS,
) -> None:
    """Score tasks: do networks that are trained apart on a task agree about samples they never saw?

    Beside each score stand its 95 % interval, accuracy, fit, and its lift over random labels and over tasks that
    untrained networks compute. With --out, writes agreement.json, .csv and .png.

    Args:
        data: Samples: a folder of images, .parquet, .npz, .csv, or hf:NAME:SPLIT. A table has a column text, or columns
            of numbers; classes in a column label, ids in a column id.
        tasks: human:N, random:N, untrained:N, a CSV with a column a task (FILE:COLUMN for one), a folder that
            `taskatlas discover` wrote, or an .npy with groups of classes.
        learner: mlp, small_cnn, resnet18, vit, timm:NAME, file.py:function, ...
        learners: Networks for each task and repeat.
        repeats: Each with other networks.
        differ: What differs between learners: initialisation, order, half; separated by commas.
        held_out: Share of the samples that no network sees.
        nulls: Random and untrained tasks that are scored beside.
        least: The least share of a class; a task below it is left out, if others remain. Default: .05, or half of the
            even share of more than ten classes.
        epochs: Passes over the samples, at most; a network stops when it fits.
        batch_size: Samples a step.
        learning_rate: Of AdamW.
        size: Side in pixels that pictures are brought to.
    """
    from taskatlas.probe import Probe
    from taskatlas.probe.forward import chosen_device
    from taskatlas.tasks.agreement import Training, agreement_scores
    from taskatlas.tasks.files import agreement_table, write_agreements
    from taskatlas.tasks.opening import files_of, open_tasks

    started = time.perf_counter()
    probe = Probe.open(data)
    opened = open_tasks(tasks, probe, learner, size=size, seed=common.seed, device=chosen_device(common.device))
    opened = _even_enough(opened, least)
    _warn_of_seen(tasks, probe, held_out, common.seed)
    training = Training(epochs, batch_size, learning_rate)
    scores = agreement_scores(
        opened,
        learner,
        probe,
        held_out=held_out,
        learners=learners,
        seeds=repeats,
        differ=_differences(differ),
        training=training,
        nulls=nulls,
        least=least,
        size=size,
        seed=common.seed,
        device=common.device,
        engine=common.engine,
    )
    lines = []
    if common.out is not None:
        settings = {**scores[0].settings, "tasks": tasks, "repeats": repeats, "nulls": nulls, "size": size}
        write_agreements(
            scores,
            common.out,
            data=probe,
            tasks=opened,
            settings=settings,
            seed=common.seed,
            started=started,
            sources=[Path(data), *files_of(tasks, learner)],
        )
        lines = [f"wrote {common.out}: agreement.json, agreement.csv, agreement.png, receipt.json"]
    columns, rows = agreement_table(scores)
    document = {
        "scores": {row[0]: dict(zip(_unique(columns[1:]), row[1:], strict=True)) for row in rows},
        "held_out": scores[0].held_out,
        "out": common.out,
    }
    title = f"{counted(len(scores), 'task')}, {scores[0].held_out:,} held-out samples; shares, ± 95 % intervals"
    emit(common, document, [table(title, *_shown(scores)), *_remarks(rows), *lines])


def _differences(said: str) -> list[Literal["initialisation", "order", "half"]]:
    return split_names(said)  # type: ignore[return-value]  # what is none of them is refused in a sentence


def _even_enough(tasks: list[Any], least: float | None) -> list[Any]:
    """The tasks without nearly constant ones, each of which is said; all of them where none remains."""
    from taskatlas.errors import BadInput
    from taskatlas.tasks.task import check_class_rates

    kept, told = [], []
    for task in tasks:
        try:
            check_class_rates(task, least)
            kept.append(task)
        except BadInput as error:
            told.append(f"left out: {error}")
    for line in told if kept else ():
        warn(line)
    return kept or tasks


def _warn_of_seen(tasks: str, probe: Any, held_out: float, seed: int) -> None:
    """Says where discovered tasks are to be scored on samples that their search has seen."""
    from taskatlas.tasks.files import read_held_out
    from taskatlas.tasks.samples import hold_out

    unseen = read_held_out(Path(tasks))
    if unseen is None:
        return
    asked = {probe.ids[row] for row in hold_out(probe.ids, held_out, seed)[1]}
    seen = len(asked.difference(unseen))
    if seen:
        warn(
            f"the search of {tasks} saw {seen} of the {len(asked)} samples that networks are asked about, so that the "
            "scores flatter. Give its --seed and --held-out."
        )


def _shown(scores: Sequence[Any]) -> tuple[list[str], list[list[Any]]]:
    """The table for people: what fits into 80 columns, each value with the reach of its interval."""
    nulls = list(dict.fromkeys(name for score in scores for name in score.nulls))
    rows = []
    for one in sorted(scores, key=lambda score: -score.agreement):
        low, high = one.interval
        reach = max(high - one.agreement, one.agreement - low)
        row = [one.task, with_reach(f"{one.agreement:.3f}", reach), one.accuracy, one.fit]
        for name in nulls:
            lift, end, _ = one.lift[name]
            row.append(with_reach(f"{lift:+.3f}", lift - end))
        rows.append(row)
    return ["task", "agreement", "accuracy", "fit", *(f"lift over {name}" for name in nulls)], rows


def _unique(columns: list[str]) -> list[str]:
    """Names for a document: the ends of a lift's interval carry its name."""
    found: list[str] = []
    for column in columns:
        lift = next((name for name in reversed(found) if name.startswith("lift")), "")
        found.append(f"{lift}_{column}" if column in found else column)
    return found


def _remarks(rows: list[list[object]]) -> list[str]:
    unfit = [str(row[0]) for row in rows if isinstance(row[6], float) and row[6] < 0.95]
    if not unfit:
        return []
    return [f"not fit to 95 % after all epochs, so that agreement may mean little: {', '.join(unfit[:6])}"]
