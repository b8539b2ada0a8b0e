"""A family of experts, ready to be fused: task vectors, and for each task the network that runs merged weights."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.batch_norm import batch_moments, batch_statistics, but_statistics
from taskatlas.merge.lora import is_adapter
from taskatlas.merge.low_rank import LowRankVectors, Vectors
from taskatlas.merge.opening import open_as_saved
from taskatlas.merge.placement import Placement
from taskatlas.merge.state import Model, named_tensors
from taskatlas.merge.task_network import Head, TaskNetwork
from taskatlas.merge.task_vectors import TaskVectors, differing_heads
from taskatlas.merge.unlabelled import Batch
from taskatlas.probe import quiet
from taskatlas.zoo import Checkpoint, read_weights

Expert = Model
"""A network, its tensors by name, a checkpoint, a weights file or model folder, a PEFT folder with a LoRA adapter."""

_HERE = Placement()
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Family:
    """Base, task vectors and networks of N experts.

    Attributes:
        vectors: base and task vectors.
        networks: expert -> the network that runs its task, also for experts that equal the base.
        moving_statistics: whether the experts' BatchNorm statistics are not those of the base. Then they have to be
            estimated again after a merge; where they are, networks trained with frozen statistics, they just stay.
        estimated: whether they have been.
    """

    vectors: Vectors
    networks: Mapping[str, TaskNetwork]
    moving_statistics: bool
    estimated: bool = False

    @classmethod
    def of(
        cls,
        base: Model,
        experts: Mapping[str, Expert] | Vectors,
        *,
        heads: Mapping[str, Head] | None = None,
        own: Sequence[str] = (),
        placement: Placement = _HERE,
    ) -> "Family":
        """Opens experts and takes their task vectors, float32 (float64 where the base has it).

        Args:
            base: what they were trained from: a network, or its tensors.
            experts: by task; or task vectors that were made before.
            heads: task -> from a network's output to logits; None: the output holds logits.
            own: patterns of tensors that stay each expert's own, beside those that the base lacks and heads that differ
                in their number of classes alone.
            placement: of vectors and networks.

        Raises:
            BadInput: no experts, some that do not fit the base, adapters beside other experts, no network to run.
        """
        opened: Mapping[str, Any] = {}
        base = _opened(base) if isinstance(base, Checkpoint) else base
        if isinstance(experts, TaskVectors | LowRankVectors):
            vectors: Vectors = experts
            opened = dict.fromkeys(sorted({*experts.names, *experts.dropped}))
        else:
            opened = {name: _opened(experts[name]) for name in sorted(experts)}
            vectors = _vectors(base, opened, own, placement.vectors)
        missing = [name for name in opened if heads is not None and name not in heads]
        if missing:
            raise BadInput(f"expert {missing[0]!r} has no head, and others have. Give every one a head, or none.")
        modules = {name: _network(name, expert, base) for name, expert in opened.items()}
        networks = TaskNetwork.each(placement.deal(modules), vectors, heads)
        return cls(vectors, networks, _statistics_move(named_tensors(base, "the base"), vectors))

    def for_learning(self) -> dict[str, TaskNetwork]:
        """The networks without statistics that a pass under ``batch_statistics`` would write to."""
        if not self.moving_statistics:
            return dict(self.networks)
        return {
            name: replace(network, kept=but_statistics(network.network, network.kept))
            for name, network in self.networks.items()
        }

    def different(self) -> list[str]:
        """Experts whose networks give different logits for the same merged weights: one of each kind."""
        found = {
            (id(one.network), id(one.head), _places_of(one.kept)): name
            for name, one in reversed(list(self.networks.items()))
        }
        return sorted(found.values())

    @contextmanager
    def learning(self, seed: int) -> Iterator[None]:
        """While it lasts, networks evaluate, moving BatchNorm follows each batch, and random numbers the seed."""
        heads = [network.head for network in self.networks.values()]
        modules = [network.network for network in self.networks.values()]
        with ExitStack() as stack:
            for module in {id(one): one for one in (*modules, *heads) if isinstance(one, nn.Module)}.values():
                stack.enter_context(quiet(module))
                if self.moving_statistics:
                    stack.enter_context(batch_statistics(module))
            random.seed(seed)  # quiet puts back the states that it found
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield

    def with_statistics(
        self, batches: Mapping[str, Iterable[Batch]], coefficients: Mapping[str, Float[Tensor, "N *T"]]
    ) -> "Family":
        """BatchNorm's statistics for each task, of the model that is merged for its mean coefficients.

        Args:
            batches: task -> its samples, passed over once.
            coefficients: of each task.

        Raises:
            BadInput: as ``reestimate_batch_norm``.
        """
        found = {}
        for task, its in batches.items():
            network = self.networks[task]
            merged = self.vectors.state(self.vectors.merged(coefficients[task]))
            tensors = {name: value.to(network.device) for name, value in {**merged, **network.kept}.items()}
            seen = batch_moments(network.network, its, tensors=tensors, who=f"the network of task {task!r}")
            found[task] = {f"{name}.running_mean": moments.mean for name, moments in seen.items()}
            found[task] |= {f"{name}.running_var": moments.variance for name, moments in seen.items()}
        return self.given_statistics(found)

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """BatchNorm's statistics of each task, where they have been estimated."""
        if not self.estimated:
            return {}
        return {
            task: {name: value for name, value in network.kept.items() if name.endswith(_STATISTICS)}
            for task, network in self.networks.items()
        }

    def given_statistics(self, statistics: Mapping[str, Mapping[str, Tensor]]) -> "Family":
        """The family with these statistics for each of these tasks."""
        networks = dict(self.networks)
        for task, its in statistics.items():
            network = networks[task]
            moved = {name: value.to(network.device, network.precision) for name, value in its.items()}
            networks[task] = replace(network, kept={**network.kept, **moved})
        return replace(self, networks=networks, estimated=self.estimated or bool(statistics))


def _opened(expert: Expert) -> Any:
    place = expert.weights if isinstance(expert, Checkpoint) else expert
    if isinstance(place, str | Path) and Path(place).is_dir() and is_adapter(Path(place)):
        return Path(place)
    if isinstance(expert, Checkpoint):
        is_network = expert.module is not None or expert.builder is not None
        return open_as_saved(expert).module if is_network else named_tensors(expert, expert.name)
    return read_weights(Path(expert)) if isinstance(expert, str | Path) else expert


def _vectors(base: Model, experts: Mapping[str, Any], own: Sequence[str], device: str) -> Vectors:
    adapters = [name for name, expert in experts.items() if isinstance(expert, Path)]
    wide = any(value.dtype == torch.float64 for value in named_tensors(base, "the base").values())
    precision = torch.float64 if wide else torch.float32
    if adapters and len(adapters) == len(experts):
        return LowRankVectors.of(base, experts, dtype=precision, device=device)
    if adapters:
        other = next(name for name in experts if name not in adapters)
        raise BadInput(
            f"{adapters[0]!r} is a LoRA adapter and {other!r} is not. Merge the adapters into their base first."
        )
    own = (*own, *differing_heads(base, experts, own))
    return TaskVectors.of(base, experts, own=own, dtype=precision, device=device)


def _network(task: str, expert: object, base: Model) -> nn.Module:
    for model in (expert, base):
        if isinstance(model, nn.Module):
            return model
    raise BadInput(
        f"there is no network to run task {task!r} with: its expert and the base are tensors by name. "
        "Give one of them as a module, or as a checkpoint with a builder."
    )


def _places_of(tensors: Mapping[str, Tensor]) -> frozenset[tuple[str, int]]:
    """Where tensors lie in memory: what two tasks share is there once."""
    return frozenset((name, value.data_ptr()) for name, value in tensors.items())


def _statistics_move(base: Mapping[str, Tensor], vectors: Vectors) -> bool:
    return any(
        name.endswith(_STATISTICS) and name in base and not torch.allclose(base[name].to(value), value)
        for name, value in vectors.fixed.items()
    )
