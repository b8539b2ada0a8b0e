"""The whole tour on scikit-learn's handwritten digits: map a zoo and pick from it, trace trainings, merge, score tasks.

A dozen small networks learn a dozen questions about the same digits ("is it odd?", "does it have a loop?", "0, 1 or
2?"). None is asked which of the ten digits it sees. The map is drawn from unlabelled digits alone; then a linear head
on the features of the picked networks has to tell all ten digits apart from a few examples of each, against random
picks. It is the agents experiment of Huang et al. (NeurIPS 2021, section 4.2) in small.

Three more networks learn the ten digits themselves, two from different seeds and one with its labels shuffled, and are
asked about digits they never see while they train: paths in prediction space (Ramesh et al., ICML 2023) in small. The
first two are then merged into one network without training (Stoica et al., ICLR 2024). Last, pairs of fresh networks
learn some of the questions, and random ones: on which do they agree (Atanov et al., NeurIPS 2022)?
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from taskatlas.engine import Engine
from taskatlas.errors import BadInput
from taskatlas.learn import accuracy, mlp, train
from taskatlas.merge import Evaluation, evaluate, zip_models
from taskatlas.merge.evaluation import write_evaluation
from taskatlas.merge.scores import EVALUATION
from taskatlas.paths import Recorder, Trace, trace_runs
from taskatlas.paths.files import write_trace
from taskatlas.paths.run_files import open_runs
from taskatlas.probe import Probe
from taskatlas.report import write_report
from taskatlas.space import TaskSpace, Transfer, map_tasks, select, transfer
from taskatlas.space.files import write_selection, write_space, write_transfers
from taskatlas.store import Store, load_receipts, output_folder
from taskatlas.tasks import Agreement, Task, Training, agreement_scores
from taskatlas.tasks.files import write_agreements
from taskatlas.zoo import Checkpoint, Zoo

# What each network is asked: a class for every digit, or -1 where the digit is not shown to it.
QUESTIONS: Mapping[str, tuple[int, ...]] = {
    #               0  1  2  3  4  5  6  7  8  9
    "odd":          (0, 1, 0, 1, 0, 1, 0, 1, 0, 1),
    "large":        (0, 0, 0, 0, 0, 1, 1, 1, 1, 1),
    "loop":         (1, 0, 0, 0, 0, 0, 1, 0, 1, 1),
    "prime":        (0, 0, 1, 1, 0, 1, 0, 1, 0, 0),
    "curved":       (1, 0, 1, 1, 0, 1, 1, 0, 1, 1),
    "by-three":     (0, 1, 2, 0, 1, 2, 0, 1, 2, 0),
    "0-1-2":        (0, 1, 2, -1, -1, -1, -1, -1, -1, -1),
    "3-4-5":        (-1, -1, -1, 0, 1, 2, -1, -1, -1, -1),
    "6-7-8":        (-1, -1, -1, -1, -1, -1, 0, 1, 2, -1),
    "1-or-7":       (-1, 0, -1, -1, -1, -1, -1, 1, -1, -1),
    "3-or-8":       (-1, -1, -1, 0, -1, -1, -1, -1, 1, -1),
    "4-or-9":       (-1, -1, -1, -1, 0, -1, -1, -1, -1, 1),
}  # fmt: skip

_IGNORED = -100  # PyTorch's cross-entropy skips this label
_HIDDEN = (48, 24)
_SHOTS = 5  # labelled examples of each digit for the unseen task
_PROBE, _TRAINING = 500, 800  # digits; the rest tests the heads
TRAININGS: Mapping[str, tuple[str, int, bool]] = {  # file: task, seed, whether labels are shuffled
    "digits-0": ("ten digits", 0, False),
    "digits-1": ("ten digits", 1, False),
    "shuffled": ("shuffled labels", 0, True),
}
_MERGED = ("digits-0", "digits-1")
_SCORED = ("odd", "large", "loop")  # questions with two answers about every digit


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, for programs and for people."""

    document: Mapping[str, Any]
    lines: tuple[str, ...]


def network(classes: int) -> nn.Module:
    """A small network for 8 x 8 images; the builder that the demo's zoo.yaml names."""
    return mlp(64, _HIDDEN, classes)


def run_demo(out: Path | str = "demo", *, quick: bool = False, seed: int = 0, engine: Engine = "local") -> DemoResult:
    """Trains, maps, selects, transfers, traces and reports into ``out``; running again does not train or extract again.

    Args:
        out: folder for the zoo, the pictures, the results and ``atlas.html``.
        quick: shorter training and fewer random selections.
        seed: of training, of the division of the digits, and of the random selections.
        engine: where independent jobs run.

    Raises:
        BadInput: the folder cannot be written.
    """
    started = time.perf_counter()
    out = Path(out)
    say = _teller()
    images, digits = _digits(seed)
    probe = Probe.from_arrays(images[:_PROBE])
    pool = slice(_PROBE, _PROBE + _TRAINING)
    test = Probe.from_arrays(images[_PROBE + _TRAINING :], labels=digits[_PROBE + _TRAINING :])
    few = _few_of_each(digits[pool], _SHOTS)
    few_shot = Probe.from_arrays(images[pool][few], labels=digits[pool][few])

    say(f"1/8  training {len(QUESTIONS)} small networks, each on a question of its own about handwritten digits")
    epochs = 15 if quick else 60
    scores = _train_zoo(out / "zoo", images[pool], digits[pool], test, epochs=epochs, seed=seed)
    zoo = Zoo.open(out / "zoo")
    store = Store(out / ".store")

    begun = time.perf_counter()
    say(f"2/8  mapping the zoo on {len(probe)} unlabelled digits")
    replicates = 10 if quick else 50
    space = map_tasks(zoo, probe, bootstrap=replicates, seed=seed, engine=engine, store=store)
    settings = {"kernel": space.kernel, "bootstrap": replicates}
    write_space(space, out, zoo=zoo, probe=probe, settings=settings, seed=seed, started=begun)

    begun = time.perf_counter()
    say("3/8  selecting the networks that cover the rest")
    selection = select(space, stop_at_peak=True)
    write_selection(selection, out, space=space, started=begun)

    begun = time.perf_counter()
    say(f"4/8  testing the picks on an unseen task: all ten digits, from {_SHOTS} examples of each")
    sizes = [size for size in (1, 2, 3, 4, 5, 6) if size <= len(selection.names)]
    n_random = 10 if quick else 20
    transfers = [
        transfer(zoo, selection.names[:k], few_shot, test, n_random=n_random, seed=seed, engine=engine, store=store)
        for k in sizes
    ]
    settings = {"shots": _SHOTS, "random": n_random}
    write_transfers(transfers, out, zoo=zoo, probes=(few_shot, test), settings=settings, seed=seed, started=begun)

    begun = time.perf_counter()
    say(f"5/8  recording {len(TRAININGS)} trainings on all ten digits, one with shuffled labels; drawing their paths")
    _record_trainings(out, images[pool], digits[pool], test, epochs=8 if quick else 20, seed=seed)
    runs = open_runs([out / "runs"])
    resamples = 5 if quick else 20
    trace = trace_runs([one.run for one in runs], distance="frechet", bootstrap=resamples, seed=seed)
    write_trace(trace, out, runs=runs, settings={"bootstrap": resamples}, seed=seed, started=begun)

    say("6/8  merging the two that learned the digits from different seeds into one network, without training")
    merged = _merge(out, probe, test)

    begun = time.perf_counter()
    say(f"7/8  training pairs of networks apart on {len(_SCORED)} questions and on random ones: do they agree?")
    agreements = _score_tasks(images[: _PROBE + _TRAINING], digits, out, quick, seed, engine, store, begun)

    say("8/8  writing the report")
    page = write_report(out)
    found = _Found(out, page, space, selection.names, transfers, trace, merged, agreements, scores)
    return _told(found, time.perf_counter() - started)


def _digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 images as rows of 64 values in [0, 1], and their digits, in an order that the seed gives."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    return (data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int64)


def _few_of_each(digits: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(digits == digit)[:count] for digit in range(10)])


def _train_zoo(
    folder: Path, images: np.ndarray, digits: np.ndarray, test: Probe, *, epochs: int, seed: int
) -> dict[str, float]:
    """Trains one network a question, unless the folder holds them already; returns each one's accuracy."""
    settings = {"epochs": epochs, "seed": seed, "hidden": list(_HIDDEN), "questions": dict(QUESTIONS)}
    if _is_finished(folder, "train", settings):
        found: dict[str, float] = json.loads((folder / "accuracy.json").read_text(encoding="utf-8"))
        return found
    test_images = torch.from_numpy(np.asarray(test.inputs))
    networks, questions, scores = [], [], {}
    for position, (name, answers) in enumerate(QUESTIONS.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + position)
            networks.append(network(max(answers) + 1))
        questions.append(_labels_of(answers, digits))
        scores[name] = 0.0
    train(
        networks,
        torch.from_numpy(images),
        questions,
        epochs=epochs,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=1e-3,
        seed=seed,
        description="training",
    )
    assert test.labels is not None
    for (name, answers), one in zip(QUESTIONS.items(), networks, strict=True):
        asked = _labels_of(answers, test.labels)
        shown = asked != _IGNORED
        scores[name] = round(accuracy(one, test_images[shown], asked[shown]), 4)
    with output_folder(folder, "train", inputs={}, settings=settings, seed=seed) as staging:
        Zoo.open(
            {
                name: Checkpoint(name, builder=network, arguments={"classes": max(answers) + 1}, task=name, module=one)
                for (name, answers), one in zip(QUESTIONS.items(), networks, strict=True)
            }
        ).save(staging)
        (staging / "accuracy.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return scores


def _record_trainings(
    out: Path, images: np.ndarray, digits: np.ndarray, test: Probe, *, epochs: int, seed: int
) -> None:
    """Trains each of ``TRAININGS``: ``runs`` records it on unseen digits, ``trained`` has the networks in the end."""
    settings = {"epochs": epochs, "seed": seed, "hidden": list(_HIDDEN), "trainings": dict(TRAININGS)}
    if _is_finished(out / "runs", "record", settings) and _is_finished(out / "trained", "train", settings):
        return
    inputs = torch.from_numpy(images)
    networks = {}
    with output_folder(out / "runs", "record", inputs={"probe": test.digest}, settings=settings, seed=seed) as staging:
        for file, (task, own, shuffled) in TRAININGS.items():
            random = np.random.default_rng((seed, own))
            targets = torch.from_numpy(random.permutation(digits) if shuffled else digits)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * seed + own)
                net = network(10)
            optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3)
            recorder, step = Recorder(test, staging / f"{file}.record", name=task), 0
            for _ in range(epochs):
                for rows in torch.split(torch.from_numpy(random.permutation(len(digits))), 64):
                    recorder(net, step)
                    optimiser.zero_grad()
                    torch.autograd.backward(nn.functional.cross_entropy(net(inputs[rows]), targets[rows]))
                    optimiser.step()
                    step += 1
            recorder.record(net, step)
            networks[file] = Checkpoint(file, builder=network, arguments={"classes": 10}, task=task, module=net.eval())
    with output_folder(out / "trained", "train", inputs={}, settings=settings, seed=seed) as staging:
        Zoo.open(networks).save(staging)


def _merge(out: Path, probe: Probe, test: Probe) -> Evaluation:
    """Scores two trained networks, their average, and both aligned and merged; all on digits that none has seen."""
    trained = Zoo.open(out / "trained")
    both = [trained[name] for name in _MERGED]
    settings = {"merged": [one.digest for one in both], "probe": probe.digest}
    if _is_finished(out, "evaluate", settings):
        return Evaluation.load(out / EVALUATION)
    started = time.perf_counter()
    models: dict[str, Any] = {one.name: one for one in both}
    models["their average"] = zip_models(both, probe, method="identity", calibration=None).network
    models["aligned, averaged"] = zip_models(both, probe, method="permute", calibration=None).network
    models["aligned, averaged, calibrated"] = zip_models(both, probe, method="permute").network
    found = evaluate(models, {"ten digits": test}, store=Store(out / ".store"))
    write_evaluation(found, out, models=models, data={"ten digits": test}, settings=settings, started=started)
    return found


def _score_tasks(
    images: np.ndarray,
    digits: np.ndarray,
    out: Path,
    quick: bool,
    seed: int,
    engine: Engine,
    store: Store,
    started: float,
) -> list[Agreement]:
    """Agreement scores of some questions, beside random ones and those of untrained networks."""
    data = Probe.from_arrays(images)
    tasks = [Task.of_probe(name, data, np.array(QUESTIONS[name])[digits[: len(images)]]) for name in _SCORED]
    training, repeats = Training(epochs=15 if quick else 60, learning_rate=2e-3), 2 if quick else 3
    found = agreement_scores(
        tasks, "mlp", data, training=training, seeds=repeats, nulls=1, seed=seed, engine=engine, store=store
    )
    write_agreements(found, out, data=data, settings=found[0].settings, seed=seed, started=started)
    return found


def _is_finished(folder: Path, maker: str, settings: Mapping[str, Any]) -> bool:
    """Whether an earlier run with the same settings left its results, and all of its files still hold."""
    wanted = json.loads(json.dumps(settings))
    with suppress(BadInput):
        return any(
            one.made_by == maker and one.settings == wanted and not one.verify(folder) for one in load_receipts(folder)
        )
    return False


def _labels_of(answers: tuple[int, ...], digits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array([_IGNORED if answer < 0 else answer for answer in answers])[digits])


def _teller() -> Callable[[str], None]:
    """Says where the demo is, on standard error, so that JSON on standard output stays alone."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True).print


@dataclass(frozen=True)
class _Found:
    out: Path
    page: Path
    space: TaskSpace
    picked: tuple[str, ...]
    transfers: list[Transfer]
    trace: Trace
    merged: Evaluation
    agreements: list[Agreement]
    scores: Mapping[str, float]


def _told(found: _Found, seconds: float) -> DemoResult:
    space, transfers, scores, out = found.space, found.transfers, found.scores, found.out
    off = space.covariance - np.eye(len(space))
    i, j = np.unravel_index(int(off.argmax()), off.shape)
    closest = (space.names[int(i)], space.names[int(j)])
    worst, best = min(scores.values()), max(scores.values())
    lines = [
        "",
        f"Done in {seconds:.0f} s. What it found:",
        f"  - The networks answer their own questions right for {worst:.0%} to {best:.0%} of unseen digits.",
        f"  - The closest tasks are {closest[0]} and {closest[1]} (covariance {off[i, j]:.2f}).",
        f"  - {len(found.picked)} of {len(space)} networks cover the rest, in this order: {', '.join(found.picked)}.",
        "  - Telling all ten digits apart from five examples of each, with a linear head on k networks' features:",
    ]
    for one in transfers:
        low, median, high = one.band
        lines.append(
            f"      k = {len(one.names)}: picked {one.selected:.3f}, random {median:.3f} "
            f"(5 % to 95 %: {low:.3f} to {high:.3f})"
        )
    lines.append("  - Trainings on all ten digits, asked about digits that they did not see:")
    for run in found.trace.runs:
        assert run.progress is not None
        assert run.accuracy is not None
        lines.append(
            f"      {run.name}: a path of length {run.length:.1f}, {run.progress[-1]:.0%} of the way to the truth, "
            f"{run.accuracy[-1]:.0%} right"
        )
    right = {name: found.merged.accuracy(name, "ten digits").value for name in found.merged.models()}
    lines.append("  - Two of them merged into one network of the same size, without training; of unseen digits right:")
    lines += [f"      {name}: {value:.0%}" for name, value in right.items()]
    lines.append("  - Pairs of networks trained apart on one question say the same about unseen digits:")
    for score in found.agreements:
        nulls = ", ".join(f"{name} {null.agreement:.2f}" for name, null in score.nulls.items())
        lines.append(f"      {score.task}: {score.agreement:.2f} (questions that mean nothing: {nulls})")
    lines += ["", f"Open {found.page} in a browser; the pictures are in {out}/*.png and the networks in {out}/zoo."]
    document = {
        "out": str(out),
        "report": str(found.page),
        "seconds": round(seconds, 2),
        "accuracy": dict(scores),
        "closest": {"names": closest, "covariance": float(off[i, j])},
        "selected": found.picked,
        "transfer": [
            {
                "k": len(one.names),
                "selected": one.selected,
                "random": dict(zip(("low", "median", "high"), one.band, strict=True)),
            }
            for one in transfers
        ],
        "paths": {
            run.name: {
                "length": run.length,
                "tortuosity": run.tortuosity,
                "progress": None if run.progress is None else float(run.progress[-1]),
                "accuracy": None if run.accuracy is None else float(run.accuracy[-1]),
            }
            for run in found.trace.runs
        },
        "merged": right,
        "agreement": {
            one.task: {"agreement": one.agreement, **{name: null.agreement for name, null in one.nulls.items()}}
            for one in found.agreements
        },
        "explained_stress": found.trace.embedding.explained_stress.tolist(),
    }
    return DemoResult(document, tuple(lines))
