"""``taskatlas split``."""

import time
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from taskatlas.cli.options import DEFAULTS, Common, NotNegative, Positive, counted, emit, table

app = App(
    name="split",
    help_epilogue="""Examples:

    taskatlas split digits.npz --tasks atlas --target 0,1,2,3,4 --out splits
    taskatlas split photos/ --tasks untrained:4 --learner small_cnn --learn classes --out splits
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
    repeats: Positive = 3,
    epochs: Positive = 60,
    batch_size: Positive = 128,
    learning_rate: float = 1e-3,
    size: Positive | None = None,
    common: Common = DEFAULTS,
) -> None:
    """Make train/test splits that break a network, ranked by what they do, with their controls.

    A split trains where an easier task agrees with the target and tests where it does not. Writes into --out (default:
    splits): splits/01.npz (the worst) and on with their controls, .csv, group_DRO's image_id,partition, manifest.json,
    splits.json, .csv and .png.

    Args:
        data: Samples: a folder of images, .parquet, .npz, .csv of texts, or hf:NAME:SPLIT.
        tasks: The easier tasks: a folder that `taskatlas discover` wrote, a CSV, untrained:N, human:N, random:N.
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
        repeats: Of each training.
        epochs: Passes over the samples, at most.
        batch_size: Samples a step.
        learning_rate: Of AdamW.
        size: Side in pixels that pictures are brought to.
    """
    from taskatlas.probe import Probe
    from taskatlas.probe.forward import chosen_device
    from taskatlas.tasks.adversarial import controls
    from taskatlas.tasks.agreement import Training
    from taskatlas.tasks.damage import damage_row, rank_splits
    from taskatlas.tasks.files import write_splits
    from taskatlas.tasks.opening import open_target, open_tasks
    from taskatlas.tasks.task import Task

    started = time.perf_counter()
    probe = Probe.open(data)
    device = chosen_device(common.device)
    easier = open_tasks(tasks, probe, learner, size=size, seed=common.seed, device=device)
    wanted = open_target(target, probe)
    ranked = rank_splits(
        wanted,
        easier,
        learner,
        probe,
        labels=Task.of_probe("classes", probe) if learn == "classes" else None,
        polarity=None if polarity == "larger" else polarity,
        balance=balance,
        train_share=train_share,
        reserve=reserve,
        controlled=controlled,
        seeds=repeats,
        training=Training(epochs, batch_size, learning_rate),
        size=size,
        seed=common.seed,
        device=common.device,
        engine=common.engine,
    )
    written = ranked[:keep]
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
    made = {split.name: controls(wanted, split, seed=common.seed) for split, damage in written if damage.controls}
    write_splits(
        written, out, data=probe, made=made, settings=settings, seed=common.seed, started=started, sources=[Path(data)]
    )
    rows = [_row(damage) for _, damage in ranked]
    columns = ["task", "like", "accuracy", "low", "high", "random split", "random task", "reserved", "train", "test"]
    document = {
        "out": out,
        "target": wanted.name,
        "learn": learn,
        "splits": [damage_row(damage) for _, damage in ranked],
        "seconds": time.perf_counter() - started,
    }
    title = f"{counted(len(ranked), 'split')} of {wanted.name}, the most damaging first; accuracy on the test part"
    emit(
        common, document, [table(title, columns, rows), f"wrote {out}: splits.csv, splits.png, manifest.json, splits/"]
    )


def _row(damage: Any) -> list[Any]:
    found, controls = damage.found, damage.controls
    beside = [controls[name].accuracy if name in controls else None for name in ("random split", "random task")]
    low, high = found.interval
    ends = [low, high] if len(found.values) > 1 else [None, None]
    called = damage.task if damage.polarity == "as given" else f"not {damage.task}"
    return [called, damage.similarity, found.accuracy, *ends, *beside, found.reserved, found.train, found.test]
