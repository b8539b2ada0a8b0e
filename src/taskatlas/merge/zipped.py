"""What zipping gives: a network, how its parts agree, what it costs, and one file of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from taskatlas.merge.aligning import NetworkAlignment
from taskatlas.merge.axis_groups import AxisGroups, Example
from taskatlas.merge.axis_run import Call
from taskatlas.merge.exporting import exported_freely
from taskatlas.merge.network_graph import flat_inputs
from taskatlas.merge.probe_batches import batch_length
from taskatlas.merge.zipped_network import OneHead, ZippedNetwork
from taskatlas.probe import quiet
from taskatlas.store import atomic_write


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: how many numbers it learned.
        macs: multiplications and additions of products and convolutions, for one sample.
        seconds: for one batch, the median of several passes.
    """

    parameters: int
    macs: float
    seconds: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.macs + other.macs, self.seconds + other.seconds)


@dataclass(frozen=True, eq=False, repr=False)
class Zipped:
    """One network made of several.

    Attributes:
        network: an ordinary module. Merged to the end it is one like the models, or the widest of them; up to a stop it
            is a ``ZippedNetwork``, whose ``network(x)`` gives the output of every head in a tuple.
        names: of the models, in the order of the heads.
        stop_at: up to where they are merged; None: to the end.
        groups: the units that were matched, up to there.
        aligned: how, and how well they agree.
        notes: what to know before relying on it.
        example: two samples, as the network takes them.
    """

    network: nn.Module
    names: tuple[str, ...]
    stop_at: str | None
    groups: AxisGroups
    aligned: NetworkAlignment
    notes: tuple[str, ...]
    example: Example

    def __repr__(self) -> str:
        until = "to the end" if self.stop_at is None else f"up to {self.stop_at}"
        count = len(self.aligned.alignments)
        return f"Zipped({', '.join(self.names)}; {until}, {count} {'group' if count == 1 else 'groups'} aligned)"

    @property
    def models(self) -> dict[str, nn.Module]:
        """For each of the models by its name a network that answers as it does: up to a stop, with its own head."""
        if isinstance(self.network, ZippedNetwork):
            return {name: OneHead(self.network, position) for position, name in enumerate(self.names)}
        return dict.fromkeys(self.names, self.network)

    def agreement_rows(self) -> list[dict[str, str | int | float]]:
        """For every group of units how many there are, and how well those that were joined agree."""
        return [
            {"group": group.name, "units": group.size, "agreement": self.aligned.agreements[group.name]}
            for group in self.groups
            if group.name in self.aligned.agreements
        ]

    def save(self, path: Path | str) -> None:
        """Writes one file that ``torch.export.load(path).module()`` opens anywhere, without the code of the models.

        That module takes the network's inputs by position, in the order of the example, of any number of samples, and
        texts of any length where the network can be followed so.

        Raises:
            BadInput: the place cannot be written.
        """
        leaves = flat_inputs(self.example)
        flat = _ByPosition(self.network, tuple(self.example) if isinstance(self.example, Mapping) else ())
        with quiet(self.network):
            program = exported_freely(flat, leaves)
        content = BytesIO()
        torch.export.save(program, content)
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(content.getvalue())


def cost_of(network: nn.Module, batch: Example, rounds: int = 5) -> Cost:
    """Counts and measures a network on a batch; to compare several, do so in one process.

    Args:
        network: left as it was.
        batch: as it takes it.
        rounds: passes that are timed, after one that is not.

    Example:
        >>> cost_of(nn.Linear(3, 2), torch.zeros(5, 3)).macs
        6.0
    """
    call = Call.of(network, batch, None)
    with quiet(network):
        with FlopCounterMode(display=False) as counter:
            network(*call.arguments, **call.keywords)
        seconds = []
        for _ in range(rounds):
            start = perf_counter()
            network(*call.arguments, **call.keywords)
            seconds.append(perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, counter.get_total_flops() / 2 / batch_length(batch), sorted(seconds)[rounds // 2])


class _ByPosition(nn.Module):
    """A network that takes its keyword arguments by position."""

    def __init__(self, network: nn.Module, keywords: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self._keywords = keywords

    def forward(self, *arguments: Any) -> Any:
        if self._keywords:
            return self.network(**dict(zip(self._keywords, arguments, strict=True)))
        return self.network(*arguments)
