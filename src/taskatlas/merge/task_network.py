"""One task's network as fusion runs it: with tensors from elsewhere, through the task's own head, to logits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.merge.low_rank import Vectors
from taskatlas.merge.unlabelled import Batch, batch_length, call, logits_of, network_inputs
from taskatlas.zoo.weights import first_line

Head = Callable[[Any], Any]
"""From a network's output to logits."""

_START = "decoder_input_ids"


@dataclass(frozen=True, eq=False)
class TaskNetwork:
    """A network with a task's head.

    An encoder-decoder is asked for the first token that its decoder gives: its logits are those of the vocabulary.

    Attributes:
        task: its name.
        network: in whatever mode; run it within ``quiet``.
        head: from the network's output to logits; None: the output holds them.
        kept: tensors that no coefficient moves: the task's own, and what the base has beside the task vectors.
        precision: of floating-point inputs.
    """

    task: str
    network: nn.Module
    head: Head | None
    kept: Mapping[str, Tensor]
    precision: torch.dtype

    @classmethod
    def each(
        cls, networks: Mapping[str, nn.Module], vectors: Vectors, heads: Mapping[str, Head] | None = None
    ) -> "dict[str, TaskNetwork]":
        """The network of every task, for what these vectors make; what they keep is on each device once."""
        fixed: dict[torch.device, dict[str, Tensor]] = {}
        found = {}
        for task, network in networks.items():
            device = _device(network)
            if device not in fixed:
                fixed[device] = _moved(vectors.fixed, device, vectors.base.dtype)
            kept = {**fixed[device], **_moved(vectors.own.get(task, {}), device, vectors.base.dtype)}
            found[task] = cls(task, network, (heads or {}).get(task), kept, vectors.base.dtype)
        return found

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return _device(self.network)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """A batch as the network takes it, with the start of what a decoder says."""
        found = network_inputs(batch, self.network, self.precision)
        start = decoder_start(self.network)
        if start is not None and _START not in found:
            found[_START] = torch.full((batch_length(found), 1), start, dtype=torch.int64, device=self.device)
        return found

    def logits(
        self, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "batch classes"]:
        """The logits of a batch that ``inputs`` made, with these tensors in place of the network's.

        Raises:
            BadInput: the network or the head cannot take them, or gives no logits.
            WorkFailed: the device's memory is too small.
        """
        count = batch_length(inputs)
        try:
            output = call(self.network, inputs, {**self.kept, **(tensors or {})})
            if decoder_start(self.network) is not None:
                output = output.logits[:, 0]
            output = output if self.head is None else self.head(output)
        except torch.OutOfMemoryError as error:
            raise WorkFailed(f"no memory for a batch of {count} of task {self.task!r}. Make it smaller.") from error
        except BadInput:
            raise
        except Exception as error:  # the network's own code may raise anything
            hint = " Give more than one sample a batch." if "more than 1 value" in str(error) else ""
            raise BadInput(
                f"the network of task {self.task!r} cannot take a batch: {first_line(error)}.{hint}"
            ) from error
        return logits_of(output, count, f"the network of task {self.task!r}")

    def holding(self, tensors: Mapping[str, Tensor], run: Callable[[], None]) -> None:
        """Runs something while the network holds these tensors in place of its own.

        For a backward pass, in which ``torch.utils.checkpoint`` computes parts of the network again.
        """
        held = {f"network.{name}": value for name, value in {**self.kept, **tensors}.items()}
        functional_call(_Holding(self.network, run), held, ())


class _Holding(nn.Module):
    """Runs something in place of a network."""

    def __init__(self, network: nn.Module, run: Callable[[], None]) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self) -> None:
        self.run()


def decoder_start(network: nn.Module) -> int | None:
    """The token with which an encoder-decoder of Hugging Face starts to speak; None for other networks.

    Raises:
        BadInput: its configuration names none.
    """
    config = getattr(network, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return None
    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(config, "pad_token_id", None) if start is None else start
    if start is None:
        raise BadInput("the model's configuration names no decoder_start_token_id. Set it to what it was trained with.")
    return int(start)


def _device(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def _moved(tensors: Mapping[str, Tensor], device: torch.device, precision: torch.dtype) -> dict[str, Tensor]:
    """The tensors on a device; one that has two names stays one."""
    once = {
        id(value): value.detach().to(device, precision if value.is_floating_point() else None)
        for value in tensors.values()
    }
    return {name: once[id(value)] for name, value in tensors.items()}
