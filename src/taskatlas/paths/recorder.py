"""Recording a run while it trains: log-probabilities on a fixed probe, and nothing else is touched."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.paths.predict import Prediction, check_labels_fit, predict
from taskatlas.paths.record_file import (
    RecordHeader,
    append_snapshot,
    cut_to_whole_blocks,
    read_record,
    start_record,
    survey_record,
)
from taskatlas.paths.schedule import Schedule, geometric
from taskatlas.paths.trajectory import Trajectory
from taskatlas.probe.probe import Probe

_ALIKE = 0.02  # mean share of probability that lies elsewhere: rounding on another device is far below


class Recorder:
    """Takes snapshots of a network's predictions on a probe.

    Call it in the training loop as often as you like: its schedule decides when a snapshot is due. The training goes on
    as if nothing had been: modes, BatchNorm's statistics and random states are as they were. With a path, each snapshot
    is on disk when the call returns; a run that was killed is read up to its last snapshot, and goes on in the same
    file. Steps that it has already are not recorded again: there the network has to predict what the file says, so that
    a training that was begun anew does not become the end of an old one.

    Args:
        probe: what the network is asked, the same at every snapshot.
        path: the record's file; None keeps snapshots in memory.
        name: of the run.
        prepare: raw samples -> a tensor, or a mapping for ``module(**batch)``; None: the probe's own way.
        schedule: which calls take a snapshot; see ``geometric`` and ``every``.
        tokens: predictions of a language model, a row a token.
        predict: what asks the network; ``predict_imprinted`` for one that was trained on other classes, or on none.
        batch_size: samples a pass.

    Raises:
        BadInput: the file there is no record, or one of another probe or run.

    Example:
        >>> net = nn.Linear(4, 4)
        >>> record = Recorder(Probe.from_arrays(np.eye(4), labels=range(4)))
        >>> for step in range(100):
        ...     _ = record(net, step)
        >>> record.trajectory()
        Trajectory('run', 16 snapshots from step 0 to 78, 4 samples, 4 classes)
    """

    def __init__(
        self,
        probe: Probe,
        path: Path | str | None = None,
        *,
        name: str = "run",
        prepare: Callable[[list[Any]], Any] | None = None,
        schedule: Schedule | None = None,
        tokens: bool = False,
        predict: Callable[..., Prediction] = predict,
        batch_size: int = 64,
    ) -> None:
        self.probe = probe
        self.path = None if path is None else Path(path)
        self.name = name
        self.prepare = prepare
        self.schedule = geometric() if schedule is None else schedule
        self.predict = partial(predict, tokens=True) if tokens else predict
        self.batch_size = batch_size
        self.steps: list[int] = []
        self._header: RecordHeader | None = None
        self._snapshots: list[np.ndarray] = []
        self._earlier: dict[int, np.ndarray] = {}  # what an earlier process recorded, by its steps
        if self.path is not None and self.path.exists():
            survey = survey_record(self.path)
            self._header = survey.header
            if (self._header.name, self._header.probe) != (name, probe.digest):
                which = "this" if self._header.probe == probe.digest else "another"
                raise BadInput(
                    f"{self.path} is a record of run {self._header.name!r} on {which} probe. Give another path, or "
                    "remove it."
                )
            cut_to_whole_blocks(self.path, survey)
            self.steps = [int(step) for step in survey.steps.values()]
            if self.steps:
                blocks = survey.snapshots(self.path)
                self._earlier = {int(step): blocks[place] for place, step in survey.steps.items()}

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else str(self.path)
        return f"Recorder({self.name!r}, {len(self.steps)} snapshots, {where})"

    def __call__(self, model: nn.Module, step: int) -> bool:
        """Takes a snapshot if one is due; says whether it did.

        Raises:
            BadInput: as ``record``.
        """
        last = self.steps[-1] if self.steps else None
        if (last is None or step > last) and not self.schedule(step, last):
            return False
        return self.record(model, step)

    def record(self, model: nn.Module, step: int) -> bool:
        """Takes a snapshot now, unless this step or a later one was recorded before; says whether it did.

        Raises:
            BadInput: the network cannot take the probe, gives NaN or other classes than before, the file cannot be
                written, or has this step from another training.
        """
        new = not self.steps or step > self.steps[-1]
        if not new and step not in self._earlier:
            return False
        found = self.predict(
            model,
            self.probe,
            prepare=self.prepare,
            batch_size=self.batch_size,
            who=f"run {self.name!r} at step {step}",
        )
        self._check_like_the_first(found, step)
        if not new:
            self._check_goes_on(found, step)
            return False
        if self.path is None:
            self._snapshots.append(found.log_probs)
        else:
            append_snapshot(self.path, float(step), found.log_probs)
        self.steps.append(step)
        return True

    def trajectory(self) -> Trajectory:
        """What has been recorded, as a run.

        Raises:
            BadInput: nothing has.
        """
        if self._header is None or not self.steps:
            raise BadInput(f"run {self.name!r} has no snapshot yet. Call the recorder in the training loop.")
        if self.path is not None:
            return read_record(self.path)
        header = self._header
        return Trajectory(
            self.name, np.stack(self._snapshots), self.steps, header.ids, header.labels, self.probe.digest
        )

    def hugging_face(self) -> Any:
        """This recorder as a ``transformers.TrainerCallback``: ``Trainer(..., callbacks=[record.hugging_face()])``.

        Raises:
            MissingExtra: transformers is not installed.
        """
        from taskatlas.paths.callbacks import hugging_face_callback

        return hugging_face_callback(self)

    def lightning(self) -> Any:
        """This recorder as a Lightning callback: ``Trainer(callbacks=[record.lightning()])``.

        Raises:
            MissingExtra: Lightning is not installed.
        """
        from taskatlas.paths.callbacks import lightning_callback

        return lightning_callback(self)

    def _check_like_the_first(self, found: Prediction, step: int) -> None:
        labels = None if found.labels is None else found.labels.tolist()
        header = RecordHeader(self.name, list(found.ids), found.log_probs.shape[1], labels, self.probe.digest)
        if self._header is None:
            check_labels_fit(found.labels, header.classes, f"run {self.name!r}")
            if self.path is not None:
                start_record(self.path, header)
            self._header = header
        elif header != self._header:
            raise BadInput(
                f"run {self.name!r} at step {step} gives {len(header.ids)} rows of {header.classes} classes, and "
                f"{len(self._header.ids)} of {self._header.classes} before. One record is one network on one probe."
            )

    def _check_goes_on(self, found: Prediction, step: int) -> None:
        """Compares, once a step, what the network says with what is on file."""
        before = np.exp(self._earlier.pop(step))
        elsewhere = float(np.abs(np.exp(found.log_probs) - before).sum(-1).mean()) / 2
        if elsewhere > _ALIKE:
            raise BadInput(
                f"{self.path} has step {step} of run {self.name!r} from another training: there the network's "
                "predictions were others. Give another path, or remove the file."
            )
