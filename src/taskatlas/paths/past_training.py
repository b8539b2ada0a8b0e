"""A past training as a path: every checkpoint that it left behind, asked about the same probe."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.engine import Engine, run_jobs
from taskatlas.errors import BadInput
from taskatlas.paths.predict import check_labels_fit, predict
from taskatlas.paths.trajectory import Trajectory
from taskatlas.paths.trajectory_file import write_run
from taskatlas.probe.forward import chosen_device
from taskatlas.probe.probe import Probe
from taskatlas.store import Store
from taskatlas.zoo.checkpoint import Checkpoint
from taskatlas.zoo.zoo import Zoo


@dataclass(frozen=True, repr=False)
class PastTraining:
    """A training's checkpoints, asked about a probe: where in a store the answers lie, in the order of their steps.

    Attributes:
        name: of the run.
        steps: of the checkpoints, increasing.
        answers: their folders in the store.
        shape: (T, N, C) of all answers together.
        probe: its digest.
    """

    name: str
    steps: tuple[int, ...]
    answers: tuple[Path, ...]
    shape: tuple[int, int, int]
    probe: str

    def __repr__(self) -> str:
        return (
            f"PastTraining({self.name!r}, {len(self.steps)} checkpoints from step {self.steps[0]} to {self.steps[-1]})"
        )

    def trajectory(self) -> Trajectory:
        """The run, in memory."""
        log_probs = np.empty(self.shape, dtype=np.float32)
        for position, folder in enumerate(self.answers):
            log_probs[position], ids, labels = _load(folder)
        return Trajectory(self.name, log_probs, self.steps, ids, labels, self.probe)

    def write(self, path: Path) -> None:
        """Writes the run's file, one checkpoint's answers after the other.

        Raises:
            BadInput: the place cannot be written.
        """
        _, ids, labels = _load(self.answers[0])
        snapshots = (_load(folder)[0] for folder in self.answers)
        steps = np.array(self.steps)
        write_run(path, snapshots, self.shape, name=self.name, steps=steps, ids=ids, labels=labels, probe=self.probe)


def trace_checkpoints(
    checkpoints: Any,
    probe: Probe,
    *,
    name: str = "run",
    steps: Sequence[int] | Mapping[str, int] | None = None,
    builder: Any = None,
    tokens: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    store: Store | None = None,
    engine: Engine = "local",
) -> Trajectory:
    """The path of a training from its checkpoints, in the order of their steps.

    What a checkpoint says is kept in the store: after an interruption, or with one checkpoint more, only what is new is
    computed.

    Args:
        checkpoints: a zoo, or what ``Zoo.open`` takes: a folder of checkpoints, for example.
        probe: what they are asked.
        name: of the run.
        steps: of each checkpoint, in the zoo's order or by name; None: the last number in each name (epoch_12.pt),
            unless other numbers in the names say another order.
        builder: for checkpoints that name none.
        tokens: predictions of a language model, a row a token.
        batch_size: samples a pass.
        device: cpu, cuda or auto.
        store: where predictions are kept; None: the user's store.
        engine: where the checkpoints are asked; see ``taskatlas.engine``.

    Raises:
        BadInput: no checkpoints, names that do not tell the steps, two with one step, predictions that differ in their
            rows, or labels of the probe that are no classes.
    """
    return ask_checkpoints(
        Zoo.open(checkpoints, builder=builder),
        probe,
        name=name,
        steps=steps,
        tokens=tokens,
        batch_size=batch_size,
        device=device,
        store=store,
        engine=engine,
    ).trajectory()


def ask_checkpoints(
    zoo: Zoo,
    probe: Probe,
    *,
    name: str = "run",
    steps: Sequence[int] | Mapping[str, int] | None = None,
    tokens: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    store: Store | None = None,
    engine: Engine = "local",
) -> PastTraining:
    """``trace_checkpoints`` without the path itself, which may be larger than memory: where its parts lie.

    Raises:
        BadInput: as ``trace_checkpoints``.
    """
    numbered = sorted(zip(_steps(list(zoo), steps), zoo.values(), strict=True), key=lambda pair: pair[0])
    place = store or Store.default()
    jobs = [(checkpoint, probe, tokens, batch_size, device, place) for _, checkpoint in numbered]
    answers = run_jobs(_predict_once, jobs, engine=engine, description="asking checkpoints")
    first = _load(answers[0])
    for (_, checkpoint), folder in zip(numbered, answers, strict=True):
        log_probs, ids, _ = _load(folder)
        if log_probs.shape != first[0].shape or ids != first[1]:
            raise BadInput(
                f"{checkpoint.name} predicts {log_probs.shape[0]} rows of {log_probs.shape[1]} classes and "
                f"{numbered[0][1].name} {first[0].shape[0]} of {first[0].shape[1]}. They are not one training."
            )
    samples, classes = first[0].shape
    check_labels_fit(first[2], classes, f"run {name!r}")
    shape = (len(answers), samples, classes)
    return PastTraining(name, tuple(step for step, _ in numbered), tuple(answers), shape, probe.digest)


def _predict_once(
    checkpoint: Checkpoint, probe: Probe, tokens: bool, batch_size: int, device: str, store: Store
) -> Path:
    def build(folder: Path) -> None:
        opened = checkpoint.open(chosen_device(device))
        found = predict(
            opened.module, probe, prepare=opened.prepare, tokens=tokens, batch_size=batch_size, who=checkpoint.name
        )
        arrays: dict[str, Any] = {"log_probs": found.log_probs, "ids": np.array(found.ids)}
        np.savez(folder / "prediction.npz", **arrays | ({} if found.labels is None else {"labels": found.labels}))

    inputs = {"checkpoint": checkpoint.digest, "probe": probe.digest}
    return store.make("prediction", inputs, {"tokens": tokens}, build)


def _load(folder: Path) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    try:
        with np.load(folder / "prediction.npz", allow_pickle=False) as file:
            return file["log_probs"], file["ids"].tolist(), file["labels"] if "labels" in file.files else None
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"the stored predictions in {folder} are damaged ({error}). Remove that folder.") from error


def _steps(names: list[str], steps: Sequence[int] | Mapping[str, int] | None) -> list[int]:
    if isinstance(steps, Mapping):
        missing = [name for name in names if name not in steps]
        if missing:
            raise BadInput(f"there is no step for checkpoint {missing[0]!r}. Give one for each name.")
        found = [int(steps[name]) for name in names]
    elif steps is not None:
        if len(steps) != len(names):
            raise BadInput(f"{len(steps)} steps do not fit {len(names)} checkpoints. Give one for each.")
        found = [int(step) for step in steps]
    else:
        numbers = {name: re.findall(r"\d+", Path(name).name) for name in names}
        without = [name for name, digits in numbers.items() if not digits]
        if without:
            raise BadInput(f"the name {without[0]!r} has no number to tell its step by. Say steps={{name: step}}.")
        found = [int(numbers[name][-1]) for name in names]
        if len({len(digits) for digits in numbers.values()}) == 1:
            _check_one_order([[int(digit) for digit in digits] for digits in numbers.values()], names)
    if len(set(found)) != len(found):
        twice = next(step for step in found if found.count(step) > 1)
        alike = [name for name, step in zip(names, found, strict=True) if step == twice]
        raise BadInput(f"checkpoints {alike[0]!r} and {alike[1]!r} both have step {twice}. Say steps={{name: step}}.")
    return found


def _check_one_order(numbers: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Refuses names such as epoch_9_acc90 whose earlier numbers fall where the last one rises."""
    columns = list(zip(*sorted(numbers, key=lambda found: found[-1]), strict=True))
    for column in columns[:-1]:
        if any(later < sooner for sooner, later in itertools.pairwise(column)):
            raise BadInput(
                f"names such as {names[0]!r} hold several numbers, and these put the checkpoints in different orders. "
                "Say steps={name: step}."
            )
