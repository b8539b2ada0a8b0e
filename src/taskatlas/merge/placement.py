"""Where the parts of a fusion sit: task vectors, hypernetwork and networks may each have a device of their own."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from taskatlas.errors import BadInput


@dataclass(frozen=True)
class Placement:
    """Devices by part; the extractor's is its own.

    Attributes:
        vectors: of base and task vectors, the largest part: a merged model is made there and sent to the network.
        hypernetwork: of the hypernetwork.
        networks: tasks are dealt to these devices in turn, and each holds one merged model, that of the task vectors
            two while it learns; none: networks stay where they are.

    Example:
        >>> Placement(networks=("cpu",)).deal({"a": nn.Linear(2, 1)})
        {'a': Linear(in_features=2, out_features=1, bias=True)}
    """

    vectors: str = "cpu"
    hypernetwork: str = "cpu"
    networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for device in (self.vectors, self.hypernetwork, *self.networks):
            check_device(device)

    def deal(self, networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The network of each task on its device: a copy where it lies elsewhere, one for each device.

        Args:
            networks: task -> its network; tasks may share one.
        """
        if not self.networks:
            return dict(networks)
        copies: dict[tuple[int, torch.device], nn.Module] = {}
        dealt = {}
        for position, (task, network) in enumerate(networks.items()):
            device = torch.device(self.networks[position % len(self.networks)])
            key = id(network), device
            if key not in copies:
                here = all(value.device == device for value in (*network.parameters(), *network.buffers()))
                copies[key] = network if here else copy.deepcopy(network).to(device)
            dealt[task] = copies[key]
        return dealt


def check_device(device: str) -> None:
    """Refuses a device that is not here.

    Raises:
        BadInput: there is none of this name.

    Example:
        >>> check_device("cpu")
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"there is no device {device!r} here. Choose cpu, or cuda where there is one.") from error
