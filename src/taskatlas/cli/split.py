"""``taskatlas split``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from taskatlas.cli.options import DEFAULTS, Common, NotNegative, Positive, counted, emit, table, warn, with_reach

if TYPE_CHECKING:
    from taskatlas.tasks import Damage, Split

app = App(
    name="split",
    help_epilogue="""Examples:

    taskatlas split digits.npz --tasks atlas --target 0,1,2,3,4 --out splits
    taskatlas split photos/ --tasks untrained:4 --learner small_cnn --learn classes --out splits
    taskatlas split imagenet/train --tasks halves:1 --learner timm:resnet50 --learn classes --size 224 --out splits
    taskatlas split celeba.parquet --tasks atlas --target list_attr_celeba.csv:Blond_Hair --out splits
    taskatlas train photos/ --model timm:resnet50 --split splits/splits/01.npz --out run
""",
)


@app.default
def split_data(
    data: str,
    *,
    tasks: str,
    target: str | None = None,
    learn: Literal["target", "classes"] = "target",
    learner: str = "mlp",
    polarity: Literal["larger", "as given", "complement"] = "larger",
    balance: Literal["none", "classes"] = "none",
    train_share: float | None = None,
    reserve: float = 0.1,
    keep: Positive | None = None,
    controlled: NotNegative | None = None,
    repeats: NotNegative | None = None,
    epochs: Positive = 60,
    batch_size: Positive = 128,
    learning_rate: float = 1e-3,
    size: Positive | None = None,
    common: Common = DEFAULTS,
) -> None:
    """Make train/test splits that break a network, ranked by what they do, with their controls.

    A split trains where an easier task agrees with the target and tests where it does not. Beside it stand how like the
    target the task is and, where its folder has them, the task's agreement score and its lift over the highest null.
    Writes into --out (default: splits): splits/01.npz (the worst) and on with their controls, .csv, group_DRO's
    image_id,partition, manifest.json, and where networks were trained splits.json, .csv and .png.

    Args:
        data: Samples: a folder of images, .parquet, .npz, .csv, or hf:NAME:SPLIT. A table has a column text, or columns
            of numbers; classes in a column label, ids in a column id.
        tasks: The easier tasks: a folder that `taskatlas discover` wrote, a CSV, untrained:N, human:N, random:N; or
            halves:N, by untrained networks that put half of each class on either side, a batch of samples in memory.
        target: What is to be learned: classes of group 1 separated by commas, or FILE:COLUMN. Default: the first half
            of the classes.
        learn: The network learns the two-way target, or all classes of the data whose groups the target is.
        learner: mlp, small_cnn, resnet18, vit, timm:NAME, file.py:function.
        polarity: A task and its complement split differently; larger takes the one that leaves more to train on.
        balance: classes: as many of both classes of the target in each part.
        train_share: Of train and test together.
        reserve: Share of all samples that is kept for validation.
        keep: So many splits, the most damaging, are written.
        controlled: So many are compared with controls. Default: all.
        repeats: Of each training; 0: none, and splits are not ranked. Default: 3, or 0 with halves:N.
        epochs: Passes over the samples, at most.
        batch_size: Samples a step.
        learning_rate: Of AdamW.
        size: Side in pixels that pictures are brought to.
    """
    from taskatlas.probe import Probe
    from taskatlas.probe.forward import chosen_device
    from taskatlas.tasks.adversarial import adversarial_splits, controls
    from taskatlas.tasks.agreement import Training, load_agreements
    from taskatlas.tasks.damage import easier_task, rank_splits
    from taskatlas.tasks.files import write_splits
    from taskatlas.tasks.opening import files_of, open_halves, open_target, open_tasks, scores_of
    from taskatlas.tasks.task import Task

    started = time.perf_counter()
    probe = Probe.open(data)
    wanted = open_target(target, probe)
    labels = Task.of_probe("classes", probe) if learn == "classes" else None
    looking: dict[str, Any] = {"size": size, "seed": common.seed, "device": chosen_device(common.device)}
    halves = open_halves(tasks, wanted, learner, probe, labels=labels, reserve=reserve, **looking)
    easier = open_tasks(tasks, probe, learner, **looking) if halves is None else halves
    known = scores_of(tasks)
    scores = [] if known is None else load_agreements(known)
    repeats = (0 if halves else 3) if repeats is None else repeats
    making: dict[str, Any] = {
        "labels": labels,
        "polarity": None if polarity == "larger" else polarity,
        "balance": balance,
        "train_share": train_share,
        "reserve": reserve,
        "seed": common.seed,
    }
    made, refused = adversarial_splits(wanted, easier, **making)
    named = {score.task: score for score in scores}
    easy = {split.name: easier_task(wanted, task, named.get(task.name)) for task, split in made}
    for reason in refused:
        warn(f"left out: {reason}")
    ranked: Sequence[tuple[Split, Damage | None]]
    if repeats:
        ranked = rank_splits(
            wanted,
            [task for task, _ in made],
            learner,
            probe,
            **making,
            controlled=controlled,
            scores=scores,
            seeds=repeats,
            training=Training(epochs, batch_size, learning_rate),
            size=size,
            device=common.device,
            engine=common.engine,
        )
    else:
        ranked = [(split, None) for _, split in made]
    written = ranked[:keep]
    compared = [split for split, damage in written[:controlled] if damage is None or damage.controls]
    out = common.out or Path("splits")
    settings = {
        "tasks": tasks,
        "target": wanted.name,
        "learn": learn,
        "learner": learner,
        "polarity": polarity,
        "balance": balance,
        "train_share": train_share,
        "reserve": reserve,
        "repeats": repeats,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "size": size,
    }
    write_splits(
        written,
        out,
        data=probe,
        tasks=easier,
        target=wanted,
        made={split.name: controls(wanted, split, seed=common.seed) for split in compared},
        settings=settings,
        seed=common.seed,
        started=started,
        sources=[Path(data), *files_of(tasks, target, learner), *([] if known is None else [known])],
    )
    document = {
        "out": out,
        "target": wanted.name,
        "learn": learn,
        "splits": [_document(split, damage, easy[split.name]) for split, damage in ranked],
        "seconds": time.perf_counter() - started,
    }
    title = f"{counted(len(ranked), 'split')} of {wanted.name}"
    columns = ["task", "like", *(["agree", "lift"] if scores else [])]
    if repeats:
        title += ", the most damaging first; accuracy on the test part"
        columns += ["accuracy", "random split", "random task", "reserved"]
    columns += ["train", "test"] if repeats else ["train", "test", "reserved"]
    wrote = "splits.csv, splits.png, manifest.json, splits/" if repeats else "manifest.json, splits/"
    rows = [_row(split, damage, easy[split.name], scored=bool(scores)) for split, damage in ranked]
    emit(common, document, [table(title, columns, rows), f"wrote {out}: {wrote}"])


def _document(split: Any, damage: Any, easy: Any) -> dict[str, Any]:
    from taskatlas.tasks.damage import damage_row, easier_row

    if damage is not None:
        return damage_row(damage)
    sizes = {"train": len(split.train), "test": len(split.test), "reserved": len(split.reserved)}
    named = {"split": split.name, "task": split.how["task"], "polarity": split.how["polarity"]}
    return named | easier_row(easy) | sizes


def _row(split: Any, damage: Any, easy: Any, *, scored: bool) -> list[Any]:
    from taskatlas.tasks.damage import easier_row

    called = split.how["task"] if split.how["polarity"] == "as given" else f"not {split.how['task']}"
    said = easier_row(easy)
    row = [called, *(said[name] for name in ("similarity", *(["agreement", "lift"] if scored else [])))]
    if damage is None:
        return [*row, len(split.train), len(split.test), len(split.reserved)]
    found, controls = damage.found, damage.controls
    beside = [controls[name].accuracy if name in controls else None for name in ("random split", "random task")]
    low, high = found.interval
    accuracy = with_reach(f"{found.accuracy:.3f}", max(high - found.accuracy, found.accuracy - low))
    return [*row, accuracy, *beside, found.reserved, found.train, found.test]
