"""``taskatlas agree``."""

import time
from pathlib import Path
from typing import Literal

from cyclopts import App

from taskatlas.cli.options import DEFAULTS, Common, NotNegative, Positive, emit, split_names, table

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
    least: float = 0.05,
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
        data: Samples: a folder of images, .parquet, .npz, .csv of texts, or hf:NAME:SPLIT.
        tasks: human:N, random:N, untrained:N, a CSV with a column a task (FILE:COLUMN for one), a folder that
            `taskatlas discover` wrote, or an .npy with groups of classes.
        learner: mlp, small_cnn, resnet18, vit, timm:NAME, file.py:function, ...
        learners: Networks for each task and repeat.
        repeats: Each with other networks.
        differ: What differs between learners: initialisation, order, half; separated by commas.
        held_out: Share of the samples that no network sees.
        nulls: Random and untrained tasks that are scored beside.
        least: The least share of a class.
        epochs: Passes over the samples, at most; a network stops when it fits.
        batch_size: Samples a step.
        learning_rate: Of AdamW.
        size: Side in pixels that pictures are brought to.
    """
    from taskatlas.probe import Probe
    from taskatlas.probe.forward import chosen_device
    from taskatlas.tasks.agreement import Training, agreement_scores
    from taskatlas.tasks.files import agreement_table, write_agreements
    from taskatlas.tasks.opening import open_tasks

    started = time.perf_counter()
    probe = Probe.open(data)
    opened = open_tasks(tasks, probe, learner, size=size, seed=common.seed, device=chosen_device(common.device))
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
        sources = [Path(data), Path(tasks.rpartition(":")[0] or tasks)]
        write_agreements(
            scores, common.out, data=probe, settings=settings, seed=common.seed, started=started, sources=sources
        )
        lines = [f"wrote {common.out}: agreement.json, agreement.csv, agreement.png, receipt.json"]
    columns, rows = agreement_table(scores)
    document = {
        "scores": {row[0]: dict(zip(_unique(columns[1:]), row[1:], strict=True)) for row in rows},
        "held_out": scores[0].held_out,
        "out": common.out,
    }
    title = f"{len(scores)} tasks, {scores[0].held_out:,} held-out samples; shares from 0 to 1, 95 % intervals"
    emit(common, document, [table(title, columns, rows), *_remarks(rows), *lines])


def _differences(said: str) -> list[Literal["initialisation", "order", "half"]]:
    return split_names(said)  # type: ignore[return-value]  # what is none of them is refused in a sentence


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
