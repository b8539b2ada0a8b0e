"""A recorder inside other people's training loops: Hugging Face's Trainer and Lightning's."""

from typing import Any

from taskatlas.errors import MissingExtra
from taskatlas.paths.recorder import Recorder


def hugging_face_callback(recorder: Recorder) -> Any:
    """A ``TrainerCallback`` that offers the recorder every optimiser step, and takes the first and the last.

    Raises:
        MissingExtra: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtra("transformers", "hf", "recording inside Hugging Face's Trainer") from error

    class RecordingCallback(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.is_world_process_zero:
                recorder(kwargs["model"], state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.is_world_process_zero:
                recorder(kwargs["model"], state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.is_world_process_zero:
                recorder.record(kwargs["model"], state.global_step)

    return RecordingCallback()


def lightning_callback(recorder: Recorder) -> Any:
    """A Lightning ``Callback`` that offers the recorder every optimiser step, and takes the first and the last.

    Raises:
        MissingExtra: neither ``lightning`` nor ``pytorch_lightning`` is installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise MissingExtra("lightning", "lightning", "recording inside Lightning's Trainer") from error

    class RecordingCallback(Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero:
                recorder(pl_module, trainer.global_step)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:  # noqa: ARG002
            if trainer.is_global_zero:
                recorder(pl_module, trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero:
                recorder.record(pl_module, trainer.global_step)

    return RecordingCallback()
