"""How far networks fall on a split: trained on its train part, asked about its test part, beside its controls."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from taskatlas.engine import Engine
from taskatlas.errors import BadInput
from taskatlas.learn import IGNORED, new_network, outputs
from taskatlas.probe import Probe
from taskatlas.probe.forward import chosen_device
from taskatlas.store import Store, atomic_write
from taskatlas.tasks.adversarial import Balance, Polarity, adversarial_splits, controls
from taskatlas.tasks.agreement import Agreement, Training, mean_interval
from taskatlas.tasks.jobs import fit_learners, identified, in_blocks, seed_of
from taskatlas.tasks.samples import Learner, as_numbers, as_tensor, fresh_network
from taskatlas.tasks.similarity import similarity
from taskatlas.tasks.split import RESERVED, TEST, TRAIN, Split
from taskatlas.tasks.task import Task


@dataclass(frozen=True)
class Fall:
    """Accuracy on the test part of a split, as shares from 0 to 1; nothing is clipped at chance.

    Attributes:
        accuracy: mean over repeats.
        interval: 95 % interval of it (Student's t); (NaN, NaN) for a single repeat.
        values: of each repeat.
        fit: accuracy on the training part.
        reserved: accuracy on the reserved part; None where there is none.
        train, test: sizes of the parts.
    """

    accuracy: float
    interval: tuple[float, float]
    values: tuple[float, ...]
    fit: float
    reserved: float | None
    train: int
    test: int


@dataclass(frozen=True)
class Easier:
    """What is known of a task beside the target that it splits.

    Attributes:
        similarity: the share of samples on which it is the target, up to its polarity; .5 where they have nothing in
            common.
        agreement: of networks that were trained on it; NaN where it was not measured.
        nulls: agreement on tasks that mean nothing, by name.
    """

    similarity: float = math.nan
    agreement: float = math.nan
    nulls: Mapping[str, float] = field(default_factory=dict)

    @property
    def lift(self) -> float:
        """How far the agreement is above the highest of its nulls; NaN where these are not known."""
        return self.agreement - max(self.nulls.values(), default=math.nan)


@dataclass(frozen=True, repr=False)
class Damage:
    """What a split does to a network, beside splits of the same size that mean nothing.

    Attributes:
        split: its name.
        task: the task that made it.
        polarity: in which the task was taken.
        found: on the split itself.
        controls: on a split by a random task, and on a random split.
        easier: how like the target the task is, and how well networks agree about it.
    """

    split: str
    task: str
    polarity: str
    found: Fall
    controls: Mapping[str, Fall] = field(default_factory=dict)
    easier: Easier = Easier()

    def __repr__(self) -> str:
        beside = "".join(f", {name} {one.accuracy:.3f}" for name, one in self.controls.items())
        return f"Damage({self.split!r}, accuracy {self.found.accuracy:.3f}{beside})"

    @property
    def fall(self) -> float:
        """How much lower the accuracy is than on a random split; NaN without that control."""
        control = self.controls.get("random split")
        return math.nan if control is None else control.accuracy - self.found.accuracy


def easier_task(target: Task, task: Task, score: Agreement | None = None) -> Easier:
    """What is known of a task beside a target, with the task's agreement score where there is one.

    Raises:
        BadInput: the task lacks a sample of the target.

    Example:
        >>> ids = ("a", "b", "c", "d")
        >>> easier_task(Task("t", np.array([0, 0, 1, 1]), ids), Task("u", np.array([1, 1, 0, 1]), ids)).similarity
        0.75
    """
    alike = similarity(target, task.among(target.ids))
    if score is None:
        return Easier(alike)
    return Easier(alike, score.agreement, {name: null.agreement for name, null in score.nulls.items()})


def rank_splits(
    target: Task,
    tasks: Sequence[Task],
    learner: Learner,
    data: Probe,
    *,
    labels: Task | None = None,
    polarity: Polarity | None = None,
    balance: Balance = "none",
    train_share: float | None = None,
    reserve: float = 0.1,
    controlled: int | None = None,
    scores: Sequence[Agreement] = (),
    seeds: int = 3,
    training: Training | None = None,
    size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    engine: Engine = "local",
    store: Store | None = None,
) -> list[tuple[Split, Damage]]:
    """Adversarial splits of a target by many tasks, the most damaging first, with their controls.

    Args:
        target: two classes.
        tasks: that may be easier; those of two classes.
        learner: the network that is to fail; see ``agreement_scores``.
        data: the samples.
        labels: what it learns, where that is not the target (the classes whose groups the target is).
        polarity: see ``adversarial_splits``.
        balance: see ``adversarial_split``.
        train_share: likewise.
        reserve: share of all samples that no training sees, and on which all networks are compared.
        controlled: how many splits, the most damaging, are given controls; None: all.
        scores: agreement scores of tasks, where they are known, which are shown beside the splits.
        seeds: repeats of each training.
        training: how networks are trained.
        size: to what side images are brought.
        seed: of everything random.
        device: cpu, cuda or auto.
        engine: where jobs run, one for eight splits and a repeat.
        store: where results are kept; None takes the user's.

    Raises:
        BadInput: no task makes a split, labels that do not fit the ids, a learner with the wrong outputs.
        WorkFailed: a loss became NaN.
    """
    made, _ = adversarial_splits(
        target,
        tasks,
        polarity=polarity,
        labels=labels,
        balance=balance,
        train_share=train_share,
        reserve=reserve,
        seed=seed,
    )
    splits = [split for _, split in made]
    known = {score.task: score for score in scores}
    measure = partial(
        measure_splits,
        learner=learner,
        data=data,
        seeds=seeds,
        training=training,
        size=size,
        seed=seed,
        device=device,
        engine=engine,
        store=store,
    )
    falls = measure(splits)
    order = sorted(range(len(splits)), key=lambda i: (falls[i].accuracy, splits[i].name))
    checked = order[: len(order) if controlled is None else controlled]
    drawn = {i: controls(target, splits[i], seed=seed) for i in checked}
    beside = iter(measure([one for i in checked for one in drawn[i].values()]) if checked else [])
    measured = {i: {name: next(beside) for name in drawn[i]} for i in checked}
    return [
        (
            splits[i],
            Damage(
                splits[i].name,
                str(splits[i].how["task"]),
                str(splits[i].how["polarity"]),
                falls[i],
                measured.get(i, {}),
                easier_task(target, made[i][0], known.get(made[i][0].name)),
            ),
        )
        for i in order
    ]


def measure_splits(
    splits: Sequence[Split],
    learner: Learner,
    data: Probe,
    *,
    seeds: int = 3,
    training: Training | None = None,
    size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    engine: Engine = "local",
    store: Store | None = None,
) -> list[Fall]:
    """Trains networks on the train part of each split and asks them about its other parts.

    Networks without batch statistics train stacked, up to eight splits' at a time, all with the same initialisation in
    a repeat; those with them in turn, on the train part alone. The result does not depend on the order of the data or
    on the engine.

    Args:
        splits: of the data's samples.
        learner: see ``agreement_scores``.
        data: the samples; the splits say what is learned.
        seeds: repeats.
        training: how networks are trained.
        size: to what side images are brought.
        seed: of everything random.
        device: cpu, cuda or auto.
        engine: where jobs run.
        store: where results are kept; None takes the user's.

    Raises:
        BadInput: no splits, a split of other samples, fewer training samples than a batch, a target with one class, a
            learner with the wrong number of outputs.
        WorkFailed: a loss became NaN.
    """
    training = training or Training()
    if not splits or seeds < 1:
        raise BadInput(f"{len(splits)} splits in {seeds} repeats say nothing; give at least 1 of each.")
    data = as_numbers(data)
    aligned = [_aligned(split, data) for split in splits]
    for split in splits:
        if len(split.train) < training.batch_size:
            raise BadInput(
                f"split {split.name!r} has {len(split.train)} training samples, fewer than a batch of "
                f"{training.batch_size}. Give more samples or a smaller batch."
            )
    kinds = [(int(target.max()) + 1, _counted_in(split)) for split, (_, target) in zip(splits, aligned, strict=True)]
    templates = {
        classes: fresh_network(learner, data, classes, size=size, seed=0)
        for classes in dict.fromkeys(classes for classes, _ in kinds)
    }
    x = as_tensor(data, next(iter(templates.values())), chosen_device(device))
    few, keep = data.take(np.arange(min(2, len(data)))), store if store is not None else Store.default()

    def job(positions: list[int], repeat: int) -> tuple[Any, ...]:
        classes, larger = kinds[positions[0]]
        parts, targets = (np.stack([aligned[i][which] for i in positions]) for which in (0, 1))
        work = {"classes": classes, "repeat": seed_of(seed, "fall", repeat), "size": size, "larger": larger}
        work |= asdict(training)
        key = identified(templates[classes], data, parts, targets)
        return keep, "split", key, work, _block, learner, few, x, parts, targets, training

    found = in_blocks(kinds, seeds, job, x=x, engine=engine, description="training on splits")
    return [_fall(rows, split) for rows, split in zip(found, splits, strict=True)]


def save_damage(path: Path | str, ranked: Sequence[Damage]) -> None:
    """Writes what splits do as JSON, which ``load_damage`` reads.

    Raises:
        BadInput: the place cannot be written.
    """
    document = {"splits": [damage_row(one) for one in ranked]}
    with atomic_write(Path(path)) as file:
        file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def damage_row(one: Damage) -> dict[str, Any]:
    """A damage as plain values; numbers that are not known as None."""

    def plain(fall: Fall) -> dict[str, Any]:
        row = asdict(fall)
        return row | {"interval": [_or_none(end) for end in fall.interval]}

    return {
        "split": one.split,
        "task": one.task,
        "polarity": one.polarity,
        **easier_row(one.easier),
        "fall": _or_none(one.fall),
        "found": plain(one.found),
        "controls": {name: plain(fall) for name, fall in one.controls.items()},
    }


def easier_row(one: Easier) -> dict[str, Any]:
    """What is known of a task as plain values; numbers that are not known as None."""
    row = {name: _or_none(value) for name, value in (("similarity", one.similarity), ("agreement", one.agreement))}
    return row | {"nulls": dict(one.nulls), "lift": _or_none(one.lift)}


def load_damage(path: Path | str) -> list[Damage]:
    """What ``save_damage`` wrote.

    Raises:
        BadInput: the file is missing or no such list.
    """

    def fall(row: Mapping[str, Any]) -> Fall:
        low, high = (_or_nan(end) for end in row["interval"])
        return Fall(**{**row, "interval": (low, high), "values": tuple(row["values"])})

    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["splits"]
        return [
            Damage(
                str(row["split"]),
                str(row["task"]),
                str(row["polarity"]),
                fall(row["found"]),
                {name: fall(one) for name, one in row["controls"].items()},
                Easier(
                    _or_nan(row["similarity"]),
                    _or_nan(row["agreement"]),
                    {str(name): float(null) for name, null in row["nulls"].items()},
                ),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path} holds no measured splits ({error}). Run `taskatlas split` again.") from error


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _aligned(split: Split, data: Probe) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Parts and targets in the order of the data."""
    rows = Task(split.name, split.target, split.ids).rows_of(data.ids) if np.ptp(split.target) else None
    if rows is None:
        raise BadInput(f"the target of split {split.name!r} has one class; there is nothing to learn.")
    return split.parts[rows], split.target[rows]


def _counted_in(split: Split) -> int:
    """In how many samples there is one for training, to the next whole number."""
    return max(1, round(len(split) / len(split.train)))


def _block(
    work: Mapping[str, Any],
    learner: Learner,
    few: Probe,
    x: Tensor,
    parts: Int64[np.ndarray, "splits n"],
    targets: Int64[np.ndarray, "splits n"],
    training: Training,
) -> Float[np.ndarray, "splits measures"]:
    """Accuracy on the test, train and reserved part of each split."""
    modules = [
        new_network(learner, few, work["classes"], size=work["size"], seed=work["repeat"]).module.to(x.device)
        for _ in parts
    ]
    fit_learners(
        modules,
        x,
        [torch.from_numpy(np.where(own == TRAIN, wanted, IGNORED)) for own, wanted in zip(parts, targets, strict=True)],
        larger=work["larger"],
        seed=work["repeat"],
        description="training on splits",
        **asdict(training),
    )
    rows = []
    for module, own, wanted in zip(modules, parts, targets, strict=True):
        right = outputs(module, x).argmax(-1).cpu().numpy() == wanted
        shares = [right[own == part] for part in (TEST, TRAIN, RESERVED)]
        rows.append([float(one.mean()) if len(one) else math.nan for one in shares])
    return np.array(rows)


def _fall(rows: Float[np.ndarray, "seeds measures"], split: Split) -> Fall:
    test, fit, reserved = rows.mean(0).tolist()
    return Fall(
        test,
        mean_interval(rows[:, 0]),
        tuple(rows[:, 0].tolist()),
        fit,
        None if math.isnan(reserved) else reserved,
        len(split.train),
        len(split.test),
    )
