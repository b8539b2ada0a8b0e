"""How good models are on labelled tasks: each task, their average, all tasks joined, and against individual models.

A model is one network that answers every task, or a network with a head of its own for each task. Two questions are
kept apart. *Known head*: the sample's task is told, so only that task's classes compete: all outputs of a head of its
own, and of one network for all tasks those that are known to be the task's. *Inferred head*: the task is not told; one
network's classes all compete, and of several heads the surest decides.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from taskatlas.engine import Engine, run_jobs
from taskatlas.errors import BadInput
from taskatlas.merge.opening import open_classifier
from taskatlas.merge.scores import EVALUATION, INDIVIDUAL, Evaluation, Score
from taskatlas.merge.unlabelled import logits_of
from taskatlas.probe import Probe, quiet
from taskatlas.probe.forward import Batch as BatchOfProbe
from taskatlas.probe.forward import batches, chosen_device
from taskatlas.store import Store, output_folder
from taskatlas.zoo import Checkpoint, OpenedCheckpoint
from taskatlas.zoo.weights import weights_files

Infer = Literal["entropy", "confidence"]
Network = Checkpoint | nn.Module
Subject = Network | Mapping[str, Network]
"""One network for all tasks, or task -> network with that task's head."""

ENSEMBLE = "ensemble"
_ALL = ""  # in place of a task where one network answers all
_FILE = "log_probs.npy"


def evaluate(
    models: Mapping[str, Subject],
    data: Mapping[str, Probe],
    *,
    individual: Mapping[str, Network] | None = None,
    ensemble: bool = False,
    infer: Infer | None = None,
    classes: Mapping[str, Sequence[int]] | None = None,
    prepare: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 64,
    device: str = "auto",
    store: Store | None = None,
    engine: Engine = "local",
) -> Evaluation:
    """Scores models on labelled tasks.

    A label that is an integer is the number of an output. Labels that are names are numbered in the order of the
    alphabet: over the task's own names where the network has as many outputs, else over those of all tasks.

    Args:
        models: by name: a checkpoint or module that answers every task, or task -> checkpoint or module. Of a
            Hugging Face model folder the head that it was saved with is used.
        data: task -> labelled probe.
        individual: task -> the network that was trained for it: rows to compare with.
        ensemble: a further row: the mean of the individual networks' probabilities, which must share one label space.
        infer: how a sample's head is chosen where a model has several: lowest ``entropy`` (as a share of the largest
            that a head can have) or highest ``confidence`` (probability of the likeliest class). None: known heads
            alone. Every head then sees the samples of every task.
        classes: task -> the numbers of the outputs that are its classes, of networks that answer every task. Where they
            are not given, they are the probe's class names; where it has none, all outputs compete and the result says
            so (``unlisted``).
        prepare: raw samples -> a tensor, or a mapping for ``module(**batch)``, for networks that do not bring it along;
            nothing is kept in the store then.
        batch_size: samples a pass; changes nothing but rounding.
        device: ``auto``, ``cpu`` or ``cuda``.
        store: where what checkpoints say is kept, not what modules do; None: the user's store.
        engine: where networks run; see ``taskatlas.engine``.

    Raises:
        BadInput: no models or data, data without labels, a label that a network has no output for or that is none of
            the task's classes, a task without a head, an ensemble of unlike label spaces, outputs that are NaN or no
            logits.

    Example:
        >>> x = np.array([[3, 1, 0], [0, 2, 4], [1, 0, 2]])
        >>> tasks = {"first": Probe.from_arrays(x[:2], [0, 1]), "second": Probe.from_arrays(x[2:], [2])}
        >>> evaluate({"net": nn.Identity()}, tasks, classes={"first": [0, 1], "second": [2]})
        Evaluation(1 models on 2 tasks; known heads: net 1.000; inferred heads: net 0.750)
    """
    _check(models, data, individual, ensemble, infer, classes or {})
    subjects = {**models, **({} if individual is None else {INDIVIDUAL: individual})}
    networks = {name: _networks(name, subject, data) for name, subject in subjects.items()}
    pairs = {
        (id(network), task): (network, name, probe)
        for name, own in networks.items()
        for head, network in own.items()
        for task, probe in data.items()
        if head in (task, _ALL) or infer is not None or (ensemble and name == INDIVIDUAL)
    }
    place = store or Store.default()
    jobs = [(*pair, prepare, batch_size, device, place) for pair in pairs.values()]
    answers = dict(zip(pairs, run_jobs(_log_probs, jobs, engine=engine, description="asking networks"), strict=True))
    scores: list[Score] = []
    unlisted: set[str] = set()
    for name, own in networks.items():
        said = {head: {t: answers[id(net), t] for t in data if (id(net), t) in answers} for head, net in own.items()}
        one = {name: said[_ALL]} if _ALL in said else {}
        if _ALL not in said:
            scores += _score_heads(name, said, data, infer)
        if ensemble and name == INDIVIDUAL:
            _check_one_space(said, data)
            one[ENSEMBLE] = {task: _mixed(task, said) for task in data}
        for row, its in one.items():
            competing = {task: _competing(task, data, its[task].shape[1], row, classes or {}) for task in its}
            scores += _score_one(row, its, data, competing)
            unlisted |= {task for task, outputs in competing.items() if outputs is None}
    return Evaluation(tuple(scores), infer, tuple(task for task in data if task in unlisted))


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    *,
    models: Mapping[str, Subject],
    data: Mapping[str, Probe],
    settings: Mapping[str, Any],
    started: float | None = None,
    sources: Sequence[Path] = (),
) -> None:
    """Writes evaluation.json, evaluation.csv, evaluation.png and a receipt.

    Args:
        evaluation: the scores.
        folder: made where it is not there.
        models: what was scored, the individual networks too.
        data: on what.
        settings: how.
        started: ``time.perf_counter()`` when the work began.
        sources: files that were read, so that ``check`` notices when they change.

    Raises:
        BadInput: the folder cannot be written.
    """
    import matplotlib.pyplot as plt

    named = {
        f"{name}/{head}" if head else name: network
        if isinstance(network, Checkpoint)
        else Checkpoint(name, module=network)
        for name, subject in models.items()
        for head, network in (subject.items() if isinstance(subject, Mapping) else [("", subject)])
    }
    inputs = {name: checkpoint.digest for name, checkpoint in named.items()}
    inputs |= {f"data/{task}": probe.digest for task, probe in data.items()}
    places = [checkpoint.weights for checkpoint in named.values()]
    read = {file for place in places if isinstance(place, Path) for file in weights_files(place)}
    read |= {path for path in sources if path.is_file()}
    with output_folder(
        folder, "evaluate", inputs=inputs, settings=settings, sources=sorted(read), started=started
    ) as staging:
        evaluation.save(staging / EVALUATION)
        evaluation.save(staging / "evaluation.csv")
        ax = evaluation.plot()
        ax.figure.savefig(staging / "evaluation.png", dpi=150)
        plt.close(ax.figure)


def _networks(name: str, subject: Subject, data: Mapping[str, Probe]) -> dict[str, Network]:
    """Task -> network, or the one network for all."""
    if not isinstance(subject, Mapping):
        return {_ALL: subject}
    missing = [task for task in data if task not in subject]
    if missing:
        raise BadInput(
            f"{name} has no network for task {missing[0]!r}; it has {', '.join(subject)}. Name data and networks alike."
        )
    return {task: subject[task] for task in data}


def _checkpoint(name: str, network: Network) -> Checkpoint:
    return network if isinstance(network, Checkpoint) else Checkpoint(name, module=network)


def _log_probs(
    network: Network,
    name: str,
    probe: Probe,
    prepare: Callable[[list[Any]], Any] | None,
    batch_size: int,
    device: str,
    store: Store,
) -> np.ndarray:
    """Logarithms of what a network says, (samples, outputs) float32; a checkpoint's are mapped from the store."""
    checkpoint = _checkpoint(name, network)

    def asked() -> np.ndarray:
        where = chosen_device(device)
        opened = open_classifier(checkpoint, where)
        opened = OpenedCheckpoint(opened.module, opened.prepare or prepare)
        with quiet(opened.module):
            passes = batches(opened, probe, who=checkpoint.name, batch_size=batch_size, device=where)
            return np.concatenate([_log_softmax(batch, probe, checkpoint.name) for batch in passes])

    # A module may differ from another in what its digest does not see, and a function to prepare has no digest.
    if checkpoint is not network or prepare is not None:
        return asked()
    inputs = {"checkpoint": checkpoint.digest, "probe": probe.digest}
    folder = store.make("log_probs", inputs, {}, lambda folder: np.save(folder / _FILE, asked()))
    try:
        kept: np.ndarray = np.load(folder / _FILE, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"the stored predictions in {folder} are damaged ({error}). Remove that folder.") from error
    return kept


def _log_softmax(batch: BatchOfProbe, probe: Probe, who: str) -> np.ndarray:
    logits = logits_of(batch.output, len(batch.rows), who).float()
    bad = (~logits.isfinite()).any(1)
    if bool(bad.any()):
        sample = probe.ids[batch.rows[int(bad.int().argmax())]]
        raise BadInput(f"{who} gives NaN or infinite outputs for sample {sample!r}. Are its weights whole?")
    values: np.ndarray = torch.log_softmax(logits, -1).cpu().numpy()
    return values


def _check_one_space(said: Mapping[str, Mapping[str, np.ndarray]], data: Mapping[str, Probe]) -> None:
    """Refuses to mix networks whose outputs are known to stand for other classes."""
    named = {
        task: tuple(_classes(task, data, its[task].shape[1]))
        for task, its in said.items()
        if data[task].class_names is not None
    }
    if len(set(named.values())) > 1:
        told = "; ".join(f"{', '.join(names[:4])} of {task}" for task, names in named.items())
        raise BadInput(f"no ensemble of networks whose outputs are other classes ({told}); it needs one label space.")


def _mixed(task: str, said: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """Logarithm of the mean of the networks' probabilities on one task."""
    sizes = {head: its[task].shape[1] for head, its in said.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{size} of {head}" for head, size in sizes.items())
        raise BadInput(f"no ensemble of networks with different numbers of outputs ({told}); it needs one label space.")
    mean = np.mean([np.exp(its[task]) for its in said.values()], axis=0)
    return np.log(np.maximum(mean, np.finfo(np.float32).tiny))


# Scores from log-probabilities


def _score_one(
    name: str, said: Mapping[str, np.ndarray], data: Mapping[str, Probe], competing: Mapping[str, np.ndarray | None]
) -> list[Score]:
    """One network for all tasks: with the task known its own classes compete, else all outputs.

    Of a single task that has all of the outputs the two are one, and only the first is given.
    """
    known, inferred = [], []
    for task, log_probs in said.items():
        labels, _ = _numbered(task, data, log_probs.shape[1], name)
        given = competing[task]
        own = np.arange(log_probs.shape[1]) if given is None else given
        known.append(Score(name, "known", task, _right(own[log_probs[:, own].argmax(1)], labels), len(labels)))
        if len(said) > 1 or len(own) < log_probs.shape[1]:
            inferred.append(Score(name, "inferred", task, _right(log_probs.argmax(1), labels), len(labels)))
    return known + inferred


def _score_heads(
    name: str, said: Mapping[str, Mapping[str, np.ndarray]], data: Mapping[str, Probe], infer: Infer | None
) -> list[Score]:
    """A head for each task: the task's own, or the one that is surest about the sample."""
    known, inferred = [], []
    outputs = {head: its[head].shape[1] for head, its in said.items()}
    for task in data:
        labels, _ = _numbered(task, data, outputs[task], f"{name} for {task}")
        known.append(Score(name, "known", task, _right(said[task][task].argmax(1), labels), len(labels)))
        if infer is None:
            continue
        surest = np.stack([_doubt(its[task], infer) for its in said.values()]).argmin(0)
        answers = np.stack([_classes(h, data, outputs[h])[its[task].argmax(1)] for h, its in said.items()])
        wanted = _classes(task, data, outputs[task])[labels]
        inferred.append(
            Score(name, "inferred", task, _right(answers[surest, np.arange(len(labels))], wanted), len(labels))
        )
    return known + inferred


def _right(answers: np.ndarray, wanted: np.ndarray) -> int:
    return int((answers == wanted).sum())


def _doubt(log_probs: np.ndarray, infer: Infer) -> np.ndarray:
    """How unsure each sample's prediction is, comparable between heads of different sizes."""
    if infer == "confidence":
        return -log_probs.max(1)
    entropy = -(np.exp(log_probs) * log_probs).sum(1)
    return entropy / max(np.log(log_probs.shape[1]), 1e-12)


# Labels and outputs


def _competing(
    task: str, data: Mapping[str, Probe], outputs: int, who: str, classes: Mapping[str, Sequence[int]]
) -> np.ndarray | None:
    """The outputs that are the task's own, ascending; None where it is not known which they are."""
    labels, named = _numbered(task, data, outputs, who)
    if task not in classes:
        return named if named is not None or len(np.unique(labels)) < outputs else np.arange(outputs)
    own = np.unique(np.asarray(classes[task], dtype=np.int64))
    if not len(own) or own[0] < 0 or own[-1] >= outputs:
        raise BadInput(f"the classes of {task} are to be outputs of {who}, which are numbered from 0 to {outputs - 1}.")
    other = labels[~np.isin(labels, own)]
    if len(other):
        raise BadInput(f"{task} has the label {other[0]}, which is none of its classes. Correct either.")
    return own


def _numbered(task: str, data: Mapping[str, Probe], outputs: int, who: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Each sample's label as the number of an output, and the outputs that are the task's own where they have names."""
    probe = data[task]
    labels, names = np.asarray(probe.labels), probe.class_names
    if names is None:
        if labels.min() < 0 or labels.max() >= outputs:
            raise BadInput(
                f"the labels of {task} run from {labels.min()} to {labels.max()}, and {who} has {outputs} outputs, "
                "numbered from 0. Is it a network for this task?"
            )
        return labels, None
    if len(names) == outputs:
        return labels, np.arange(outputs)
    every = _every_name(data)
    if len(every) != outputs:
        raise BadInput(
            f"{task} names {len(names)} classes, all tasks together {len(every)}, and {who} has {outputs} outputs. "
            "Give labels as numbers of outputs."
        )
    numbers = np.array([every.index(name) for name in names])
    return numbers[labels], np.sort(numbers)


def _classes(task: str, data: Mapping[str, Probe], outputs: int) -> np.ndarray:
    """What a head's outputs stand for: names where there are some, so that equal names of two tasks are one class."""
    names = data[task].class_names
    if names is None:
        return np.array([f"{task}/{number}" for number in range(outputs)])
    return np.array(names if len(names) == outputs else _every_name(data))


def _every_name(data: Mapping[str, Probe]) -> list[str]:
    return sorted({name for probe in data.values() for name in probe.class_names or ()})


def _check(
    models: Mapping[str, Subject],
    data: Mapping[str, Probe],
    individual: Mapping[str, Network] | None,
    ensemble: bool,
    infer: str | None,
    classes: Mapping[str, Sequence[int]],
) -> None:
    if not data:
        raise BadInput("there are no data to evaluate on. Give labelled samples of at least one task.")
    if not models and individual is None:
        raise BadInput("there are no models to evaluate. Give at least one.")
    if ensemble and individual is None:
        raise BadInput("an ensemble is made of the individual networks, which are not given.")
    if infer is not None and infer not in get_args(Infer):
        raise BadInput(f"infer={infer!r} is no way to choose a head. Choose one of: {', '.join(get_args(Infer))}.")
    unknown = [task for task in classes if task not in data]
    if unknown:
        raise BadInput(f"classes are given for {unknown[0]!r}, and there are only the tasks {', '.join(data)}.")
    taken = [name for name in (INDIVIDUAL, ENSEMBLE) if name in models]
    if taken:
        raise BadInput(f"a model is called {taken[0]!r}, which stands for a row of its own. Give it another name.")
    for task, probe in data.items():
        if probe.labels is None:
            raise BadInput(
                f"the samples of {task} have no labels, so nothing can be scored on them. Give labelled ones."
            )
        if probe.kind == "words":
            raise BadInput(f"{task} has a label for each word; models are scored on samples. Give one label each.")
