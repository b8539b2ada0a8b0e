"""Agreement score: do networks that are trained apart on a task say the same about samples they never saw?"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy import stats
from torch import Tensor

from taskatlas.engine import Engine
from taskatlas.errors import BadInput
from taskatlas.learn import IGNORED, new_network, outputs
from taskatlas.probe import Probe
from taskatlas.probe.forward import chosen_device
from taskatlas.store import Store, atomic_write, digest
from taskatlas.tasks.jobs import fit_learners, identified, in_blocks, seed_of
from taskatlas.tasks.samples import Learner, as_numbers, as_tensor, fresh_network, hold_out
from taskatlas.tasks.task import Task, check_class_rates
from taskatlas.tasks.task_sets import random_tasks, untrained_tasks

Differ = Literal["initialisation", "order", "half"]

_RATE = 0.005  # class rates are rounded to this before nulls are made for them: tasks that differ less share theirs


@dataclass(frozen=True)
class Training:
    """How learners are trained: AdamW at a constant rate.

    Attributes:
        epochs: passes over the samples, at most.
        batch_size: samples a step.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        enough: a learner stops once it was right for this share of its training samples in an epoch; None: never.

    Raises:
        BadInput: a setting out of its range.
    """

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    enough: float | None = 0.999

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise BadInput(f"{self.epochs} epochs of batches of {self.batch_size} are no training; give 1 or more.")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise BadInput(f"a learning rate of {self.learning_rate:g} or a decay of {self.weight_decay:g} is none.")
        if self.enough is not None and not 0 < self.enough <= 1:
            raise BadInput(f"a fit of {self.enough:g} is no share; give a number above 0, up to 1.")


@dataclass(frozen=True)
class Null:
    """Agreement on tasks of the same class rates that mean nothing, or that a network knows before it learns.

    Attributes:
        agreement: mean over tasks and repeats.
        interval: 95 % interval of it over tasks (Student's t); (NaN, NaN) for a single one.
        values: of each task, a mean over repeats.
    """

    agreement: float
    interval: tuple[float, float]
    values: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class Agreement:
    """What two networks or more, trained apart on a task, say about held-out samples.

    All shares are from 0 to 1, and means over repeats and, within each, over pairs of learners.

    Attributes:
        task: its name.
        agreement: share of held-out samples on which two learners predict the same class.
        interval: 95 % interval of it over repeats (Student's t); (NaN, NaN) for a single one.
        soft: probability that classes drawn from both learners' predictions are the same.
        accuracy: share of held-out samples that are predicted as the task has them.
        fit: the same on the training samples. Below 1, agreement may only say that nothing was learned.
        class_rates: shares of the classes.
        values: the agreement of each repeat.
        nulls: agreement on random labels (``random``) and on tasks of untrained networks (``untrained``).
        held_out: how many samples were asked.
        settings: how it was measured.
    """

    task: str
    agreement: float
    interval: tuple[float, float]
    soft: float
    accuracy: float
    fit: float
    class_rates: tuple[float, ...]
    values: tuple[float, ...]
    nulls: Mapping[str, Null] = field(default_factory=dict)
    held_out: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        low, high = self.interval
        lifts = "".join(f", {lift:+.3f} over {name}" for name, (lift, _, _) in self.lift.items())
        return f"Agreement({self.task!r}, {self.agreement:.3f} [{low:.3f}, {high:.3f}]{lifts})"

    @property
    def lift(self) -> dict[str, tuple[float, float, float]]:
        """How far the agreement is above each null, with the ends of a 95 % interval.

        It is Welch's, of the task's repeats against the means of the null's tasks, and so says how far another draw of
        null tasks could bring the lift. It takes two of each: the ends are NaN for a single repeat or null task.
        """
        return {name: _difference(self.values, null.values) for name, null in self.nulls.items()}

    @property
    def digest(self) -> str:
        """Digest of everything measured."""
        return digest(asdict(self))

    def save(self, path: Path | str) -> None:
        """Writes the score as JSON.

        Raises:
            BadInput: the place cannot be written.
        """
        save_agreements(path, [self])

    @classmethod
    def load(cls, path: Path | str) -> "Agreement":
        """A score that ``save`` wrote.

        Raises:
            BadInput: the file is no such score.
        """
        return load_agreements(path)[0]

    def plot(self, ax: Any = None) -> Any:
        """Draws the score with its interval beside its nulls; returns the matplotlib axes."""
        from taskatlas.tasks.drawing import draw_agreements

        return draw_agreements([self], ax)


def agreement_score(task: Task, learner: Learner, data: Probe, **settings: Any) -> Agreement:
    """The agreement score of one task; everything else as ``agreement_scores``.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
        >>> data = Probe.from_arrays(x, labels=x[:, 0] > 0)
        >>> training = Training(epochs=30, learning_rate=0.01)
        >>> score = agreement_score(Task.of_probe("sign", data), "mlp", data, training=training, seeds=2, nulls=0)
        >>> score.agreement > 0.9, score.held_out
        (True, 60)
    """
    return agreement_scores([task], learner, data, **settings)[0]


def agreement_scores(
    tasks: Sequence[Task],
    learner: Learner,
    data: Probe,
    *,
    held_out: float = 0.2,
    learners: int = 2,
    seeds: int = 3,
    differ: Sequence[Differ] = ("initialisation", "order"),
    training: Training | None = None,
    nulls: int = 2,
    least: float | None = None,
    size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    engine: Engine = "local",
    store: Store | None = None,
) -> list[Agreement]:
    """Agreement scores of tasks (Atanov et al., NeurIPS 2022, section 2), with intervals and nulls.

    Networks are trained apart on the task's labels of the same training samples and asked about held-out ones. Learners
    without batch statistics train stacked, up to eight tasks' at a time; those with them train in turn, and are asked
    with their running statistics. The result does not depend on the order of the data or on the engine.

    Args:
        tasks: labels for at least the samples of the data.
        learner: how a network is built: mlp, small_cnn, resnet18, vit, ``timm:NAME``, ``file.py:function``, or a
            function of ``classes``, ``channels`` or ``shape``.
        data: arrays, images or texts (counted words).
        held_out: share of the samples that no learner sees; which ones follows from the seed and the ids.
        learners: how many for each task and repeat.
        seeds: repeats, each with other learners.
        differ: what differs between learners: their initialisation, the order of batches, the half of the training
            samples that they see (a part, for more than two).
        training: how they are trained.
        nulls: how many tasks of random labels, and of untrained networks, are scored beside, with the class rates of
            the tasks (to half a hundredth); 0 for none.
        least: the least share of a class; tasks that are more uneven are refused, for they agree by themselves. None:
            as ``check_class_rates``.
        size: to what side images are brought.
        seed: of everything random.
        device: cpu, cuda or auto.
        engine: where jobs run, one for eight tasks and a repeat.
        store: where results are kept; None takes the user's. A learner whose source cannot be read is trained anew.

    Raises:
        BadInput: a nearly constant task, labels that do not fit the ids, fewer training samples than a batch, a learner
            with the wrong number of outputs.
        WorkFailed: a loss became NaN.
    """
    training = training or Training()
    _check(tasks, learners, seeds, differ, nulls)
    data = as_numbers(data)
    tasks = [Task(task.name, task.on(data.ids), data.ids, note=task.note) for task in tasks]
    for task in tasks:
        check_class_rates(task, least)
    learned, held = hold_out(data.ids, held_out, seed)
    if len(learned) // (learners if "half" in differ else 1) < training.batch_size:
        raise BadInput(
            f"{len(learned)} training samples are fewer than a batch of {training.batch_size} for each learner. "
            "Give more samples or a smaller batch."
        )
    place = chosen_device(device)
    made = partial(_null_tasks, learner=learner, data=data, count=nulls, size=size, seed=seed, device=place)
    rates = [_rounded_rates(task) for task in tasks]
    families: dict[tuple[float, ...], dict[str, list[Task]]] = {one: made(one) for one in dict.fromkeys(rates)}
    extra = [task for family in families.values() for several in family.values() for task in several]
    measured = _measure(
        [*tasks, *extra],
        learner,
        data,
        (learned, held),
        learners=learners,
        seeds=seeds,
        differ=tuple(differ),
        training=training,
        size=size,
        seed=seed,
        device=place,
        engine=engine,
        store=store,
    )
    found = dict(zip([id(task) for task in [*tasks, *extra]], measured, strict=True))
    null_scores = {
        rate: {
            name: _null(np.array([found[id(one)][:, 0].mean() for one in several])) for name, several in family.items()
        }
        for rate, family in families.items()
    }
    settings = {
        "learner": str(learner) if isinstance(learner, str) else getattr(learner, "__qualname__", "learner"),
        "learners": learners,
        "differ": list(differ),
        "held_out": held_out,
        "seed": seed,
        **asdict(training),
    }
    return [
        Agreement(
            task.name,
            float(found[id(task)][:, 0].mean()),
            mean_interval(found[id(task)][:, 0]),
            float(found[id(task)][:, 1].mean()),
            float(found[id(task)][:, 2].mean()),
            float(found[id(task)][:, 3].mean()),
            tuple(task.class_rates.tolist()),
            tuple(found[id(task)][:, 0].tolist()),
            null_scores[rate],
            len(held),
            settings,
        )
        for task, rate in zip(tasks, rates, strict=True)
    ]


def pair_agreement(
    one: Float[Tensor, "samples classes"], other: Float[Tensor, "samples classes"]
) -> tuple[float, float]:
    """Agreement and soft agreement of two networks' logits on the same samples.

    Example:
        >>> pair_agreement(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.tensor([[0.0, 9.0], [0.0, 9.0]]))[0]
        0.5
    """
    same = (one.argmax(-1) == other.argmax(-1)).double().mean()
    soft = (one.double().softmax(-1) * other.double().softmax(-1)).sum(-1).mean()
    return float(same), float(soft)


def mean_interval(values: Float[np.ndarray, " values"], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean of shares, within 0 and 1; (NaN, NaN) for a single value.

    Example:
        >>> mean_interval(np.array([0.5, 0.5]))
        (0.5, 0.5)
    """
    if len(values) < 2:
        return math.nan, math.nan
    middle, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return max(0.0, middle - reach), min(1.0, middle + reach)


def save_agreements(path: Path | str, scores: Sequence[Agreement]) -> None:
    """Writes scores as JSON, which ``load_agreements`` reads.

    Raises:
        BadInput: the place cannot be written.
    """
    document = [_without_nan(asdict(score) | {"lift": score.lift}) for score in scores]
    with atomic_write(Path(path)) as file:
        file.write_text(json.dumps({"scores": document}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_agreements(path: Path | str) -> list[Agreement]:
    """Scores that ``save_agreements`` wrote.

    Raises:
        BadInput: the file is missing or holds no scores.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["scores"]
        return [_read_score(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path} holds no agreement scores ({error}). Run `taskatlas agree` again.") from error


def _measure(
    tasks: Sequence[Task],
    learner: Learner,
    data: Probe,
    rows: tuple[np.ndarray, np.ndarray],
    *,
    learners: int,
    seeds: int,
    differ: tuple[str, ...],
    training: Training,
    size: int | None,
    seed: int,
    device: str,
    engine: Engine,
    store: Store | None,
) -> list[Float[np.ndarray, "seeds measures"]]:
    """Agreement, soft agreement, accuracy and fit of every task and repeat."""
    templates = {
        classes: fresh_network(learner, data, classes, size=size, seed=0)
        for classes in dict.fromkeys(task.classes for task in tasks)
    }
    x = as_tensor(data, next(iter(templates.values())), device)
    keep, few = store if store is not None else Store.default(), data.take(np.arange(min(2, len(data))))

    def job(positions: list[int], repeat: int) -> tuple[Any, ...]:
        classes = tasks[positions[0]].classes
        work = {
            "learners": learners,
            "repeat": seed_of(seed, "repeat", repeat),
            "differ": list(differ),
            "size": size,
            "classes": classes,
            **asdict(training),
        }
        labels = np.stack([tasks[i].labels for i in positions])
        key = identified(templates[classes], data, list(labels), *rows)
        return keep, "agreement", key, work, _block, learner, few, x, labels, *rows, training

    kinds = [task.classes for task in tasks]
    return in_blocks(kinds, seeds, job, x=x, engine=engine, description="training learners")


def _block(
    work: Mapping[str, Any],
    learner: Learner,
    few: Probe,
    x: Tensor,
    labels: Int64[np.ndarray, "tasks n"],
    learned: Int64[np.ndarray, " learned"],
    held: Int64[np.ndarray, " held"],
    training: Training,
) -> Float[np.ndarray, "tasks measures"]:
    """Trains every learner of some tasks and measures them."""
    count, repeat, differ = work["learners"], work["repeat"], work["differ"]
    own = [repeat + 1 + member for member in range(count)]
    begun = own if "initialisation" in differ else [repeat] * count
    orders = own if "order" in differ else [repeat] * count
    parts = np.random.default_rng(repeat).permutation(len(learned)) % count
    modules, targets = [], []
    for task in labels:
        wanted = torch.from_numpy(task[learned])
        for member in range(count):
            network = new_network(learner, few, work["classes"], size=work["size"], seed=begun[member])
            modules.append(network.module.to(x.device))
            seen = torch.from_numpy(parts == member) if "half" in differ else torch.ones(len(learned), dtype=torch.bool)
            targets.append(torch.where(seen, wanted, IGNORED))
    fit_learners(
        modules,
        x[torch.from_numpy(learned)],
        targets,
        larger=count if "half" in differ else 1,
        seed=repeat,
        orders=orders * len(labels) if "order" in differ else None,
        description="training learners",
        **asdict(training),
    )
    logits = [outputs(module, x).float().cpu() for module in modules]
    return np.array([_scores(logits[i * count :][:count], task, learned, held) for i, task in enumerate(labels)])


def _scores(
    logits: Sequence[Float[Tensor, "n classes"]],
    labels: Int64[np.ndarray, " n"],
    learned: Int64[np.ndarray, " learned"],
    held: Int64[np.ndarray, " held"],
) -> list[float]:
    asked = [each[torch.from_numpy(held)] for each in logits]
    pairs = np.array([pair_agreement(a, b) for a, b in combinations(asked, 2)])
    right = [(each.argmax(-1).numpy() == labels) for each in logits]
    return [
        *pairs.mean(0).tolist(),
        *(float(np.mean([each[rows].mean() for each in right])) for rows in (held, learned)),
    ]


def _null_tasks(
    rates: tuple[float, ...], *, learner: Learner, data: Probe, count: int, size: int | None, seed: int, device: str
) -> dict[str, list[Task]]:
    if not count:
        return {}
    own, classes = seed_of(seed, "nulls", list(rates)), len(rates)
    return {
        "random": random_tasks(data, count, rates=rates, seed=own),
        "untrained": untrained_tasks(
            learner, data, count, classes=classes, rates=rates, size=size, seed=own % 2**20, device=device
        ),
    }


def _null(values: Float[np.ndarray, " tasks"]) -> Null:
    return Null(float(values.mean()), mean_interval(values), tuple(values.tolist()))


def _rounded_rates(task: Task) -> tuple[float, ...]:
    """Class rates in steps of half a hundredth, the larger first; what a task and its complement have in common."""
    rates = np.maximum(np.round(np.sort(task.class_rates)[::-1] / _RATE) * _RATE, _RATE / 2)
    return tuple(np.round(rates / rates.sum(), 6).tolist())


def _difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    a, b = np.asarray(values), np.asarray(others)
    lift = float(a.mean() - b.mean())
    if len(a) < 2 or len(b) < 2:
        return lift, math.nan, math.nan
    parts = np.array([values.var(ddof=1) / len(values) for values in (a, b)])
    if parts.sum() == 0:
        return lift, lift, lift
    freedom = parts.sum() ** 2 / (parts**2 / [len(a) - 1, len(b) - 1]).sum()
    reach = float(stats.t.ppf(0.975, freedom) * np.sqrt(parts.sum()))
    return lift, lift - reach, lift + reach


def _check(tasks: Sequence[Task], learners: int, seeds: int, differ: Sequence[str], nulls: int) -> None:
    if not tasks:
        raise BadInput("there is no task to score.")
    if learners < 2 or seeds < 1 or nulls < 0:
        raise BadInput(f"{learners} learners in {seeds} repeats say nothing; give at least 2 learners and 1 repeat.")
    unknown = [one for one in differ if one not in get_args(Differ)]
    if unknown or not differ:
        raise BadInput(f"learners cannot differ in {list(differ)}. Choose among {', '.join(get_args(Differ))}.")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends(found: Sequence[float | None]) -> tuple[float, float]:
    low, high = (math.nan if end is None else float(end) for end in found)
    return low, high


def _read_score(row: Mapping[str, Any]) -> Agreement:
    nulls = {
        name: Null(float(null["agreement"]), _ends(null["interval"]), tuple(map(float, null["values"])))
        for name, null in row["nulls"].items()
    }
    return Agreement(
        str(row["task"]),
        float(row["agreement"]),
        _ends(row["interval"]),
        float(row["soft"]),
        float(row["accuracy"]),
        float(row["fit"]),
        tuple(map(float, row["class_rates"])),
        tuple(map(float, row["values"])),
        nulls,
        int(row["held_out"]),
        dict(row["settings"]),
    )
