"""A past training as a path: every checkpoint that it left behind, asked about the same probe."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.engine import Engine, run_jobs
from taskatlas.errors import BadInput
from taskatlas.paths.predict import predict
from taskatlas.paths.trajectory import Trajectory
from taskatlas.probe.forward import chosen_device
from taskatlas.probe.probe import Probe
from taskatlas.store import Store
from taskatlas.zoo.checkpoint import Checkpoint
from taskatlas.zoo.zoo import Zoo


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
        steps: of each checkpoint, in the zoo's order or by name; None: the last number in each name (epoch_12.pt).
        builder: for checkpoints that name none.
        tokens: predictions of a language model, a row a token.
        batch_size: samples a pass.
        device: cpu, cuda or auto.
        store: where predictions are kept; None: the user's store.
        engine: where the checkpoints are asked; see ``taskatlas.engine``.

    Raises:
        BadInput: no checkpoints, a name without a number, two with one step, or predictions that differ in their rows.
    """
    zoo = Zoo.open(checkpoints, builder=builder)
    numbered = sorted(zip(_steps(list(zoo), steps), zoo.values(), strict=True), key=lambda pair: pair[0])
    place = store or Store.default()
    jobs = [(checkpoint, probe, tokens, batch_size, device, place) for _, checkpoint in numbered]
    found = [_load(folder) for folder in run_jobs(_predict_once, jobs, engine=engine, description="asking checkpoints")]
    for (_, checkpoint), (log_probs, ids, _) in zip(numbered, found, strict=True):
        if log_probs.shape != found[0][0].shape or ids != found[0][1]:
            raise BadInput(
                f"{checkpoint.name} predicts {log_probs.shape[0]} rows of {log_probs.shape[1]} classes and "
                f"{numbered[0][1].name} {found[0][0].shape[0]} of {found[0][0].shape[1]}. They are not one training."
            )
    log_probs = np.stack([each[0] for each in found])
    return Trajectory(name, log_probs, [step for step, _ in numbered], found[0][1], found[0][2], probe.digest)


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
    if len(set(found)) != len(found):
        twice = next(step for step in found if found.count(step) > 1)
        alike = [name for name, step in zip(names, found, strict=True) if step == twice]
        raise BadInput(f"checkpoints {alike[0]!r} and {alike[1]!r} both have step {twice}. Say steps={{name: step}}.")
    return found
