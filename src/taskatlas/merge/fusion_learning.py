"""Learning a hypernetwork without labels: each batch is merged for, and its predictions are made surer.

A step takes one batch of every task. The coefficients of its samples are averaged, the model is merged once for them,
and the mean entropy of the predictions through the task's own head is the loss, less β times the entropy of the mean
prediction where diversity is asked for. The gradient of the coefficients follows in closed form,
∂L/∂λ_i = ⟨∂L/∂θ, τ_i⟩, and goes on into the hypernetwork. Tasks are gone through two by two, which share the reading of
the task vectors: there are two merged models, and at last their gradients, however many tasks a step has (Tang et al.,
IJCV 2025, section 4).
"""

import copy
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from taskatlas.engine import track
from taskatlas.errors import WorkFailed
from taskatlas.merge.adamerging import mean_entropy
from taskatlas.merge.freed_memory import give_back_freed_memory
from taskatlas.merge.fusion_steps import Sampled
from taskatlas.merge.hypernetwork import Hypernetwork
from taskatlas.merge.merged_models import MergedModels
from taskatlas.merge.task_network import TaskNetwork
from taskatlas.merge.task_vectors import Level

Optimizer = Literal["adam", "adamw"]

_WINDOW = 20  # steps over which predictions are pooled to see whether they have collapsed; of a short run its half
_POOLED = 16  # samples that are pooled at least: of fewer the predictions may be alike by chance


@dataclass(frozen=True, eq=False)
class Learned:
    """How learning went, over S steps and K tasks (or groups, where tasks are unknown).

    Attributes:
        coefficients: mean coefficient of every expert in a step's batch, over living tensors, (S, K, N); NaN where a
            step had no sample of a group.
        entropy: mean entropy of predictions in nats, (S, K).
        marginal_entropy: entropy of the mean prediction of a batch in nats, (S, K).
        reached: names of the tensors that a prediction depends on.
        collapsed: task -> step at which its predictions had become alike; learning stopped there and took back what it
            had learned since they were last sound.
    """

    coefficients: Float[np.ndarray, "S K N"]
    entropy: Float[np.ndarray, "S K"]
    marginal_entropy: Float[np.ndarray, "S K"]
    reached: frozenset[str]
    collapsed: Mapping[str, int]


def learn(
    hypernetwork: Hypernetwork,
    models: MergedModels,
    steps: Iterator[Iterable[Sampled]],
    names: Sequence[str],
    *,
    level: Level,
    count: int,
    learning_rate: float,
    optimizer: Optimizer = "adam",
    diversity: float = 0.0,
    collapse: float | None = 0.3,
    alive: Bool[Tensor, "N T"] | None = None,
) -> Learned:
    """Trains the hypernetwork in place.

    Args:
        hypernetwork: h.
        models: that are merged; as many batches as there are of them share a pass over the task vectors.
        steps: the batches of every step.
        names: of the K tasks or groups.
        level: of the coefficients.
        count: of steps.
        learning_rate: of the optimizer.
        optimizer: Adam, or AdamW.
        diversity: β, the weight of the marginal entropy.
        collapse: learning stops where, for a task, the entropy of the mean prediction of the last 20 steps falls below
            this share of that of the first 20; None: never. Of fewer than 40 steps the first half and the last.
        alive: layer-wise, which coefficients count in ``coefficients``.

    Raises:
        BadInput: data that run out, a batch that a network cannot take, predictions that depend on nothing merged.
        WorkFailed: an entropy is NaN, or a step makes the hypernetwork's weights so; names the step.
    """
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    descent = make(hypernetwork.parameters(), lr=learning_rate)
    place = hypernetwork.mean.device
    experts = hypernetwork.shape[0]
    means = np.full((count, len(names), experts), np.nan)
    entropy = np.full((count, len(names), 2), np.nan)
    monitor = Monitor(names, collapse, min(_WINDOW, max(1, count // 2)))
    sound, done = copy.deepcopy(hypernetwork.state_dict()), 0
    for step in track(range(count), "learning to merge"):
        descent.zero_grad()
        ran: list[Tensor] = []
        for together in _batched(next(steps), len(models)):
            with torch.enable_grad():
                coefficients = [hypernetwork(sampled.features.to(place)).mean(0) for sampled in together]
            _backward(ran, models.turn(coefficients, level))
            ran = coefficients
            for slot, sampled in enumerate(together):
                network, inputs = _network_of(sampled, models, slot)
                tensors = models.tensors(slot, network.device)
                with torch.enable_grad():
                    logits = network.logits(inputs, tensors)
                    mean, marginal = mean_entropy(logits)
                    loss = sampled.share * (mean - diversity * spread_of(logits) if diversity else mean)
                if not math.isfinite(float(mean.detach())):
                    raise WorkFailed(
                        f"the predictions of {network.task!r} became NaN in step {step + 1} of {count}. "
                        f"Try a learning rate below {learning_rate:g}, bound='clamp', or a smaller initial coefficient."
                    )
                who = f"the network of task {network.task!r}"
                network.holding(tensors, partial(models.backward, slot, loss, who))
                entropy[step, sampled.position] = [float(mean.detach()), float(marginal.detach())]
                means[step, sampled.position] = _by_expert(coefficients[slot], alive)
                monitor.see(sampled.position, logits)
                give_back_freed_memory()
        _backward(ran, models.turn([], level))
        descent.step()
        done = step + 1
        if not all(bool(value.isfinite().all()) for value in hypernetwork.parameters()):
            raise WorkFailed(
                f"the hypernetwork's weights became NaN or infinite in step {done} of {count}. "
                f"Try a learning rate below {learning_rate:g}."
            )
        if done % monitor.window == 0 or done == count:
            if monitor.collapsed():
                hypernetwork.load_state_dict(sound)
                break
            for name, value in hypernetwork.state_dict().items():
                sound[name].copy_(value)
    return Learned(
        coefficients=means[:done],
        entropy=entropy[:done, :, 0],
        marginal_entropy=entropy[:done, :, 1],
        reached=frozenset(models.reached),
        collapsed=dict.fromkeys(monitor.collapsed(), done),
    )


def spread_of(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """The entropy of the mean prediction, in nats; its gradient is finite where a class has no probability left.

    Example:
        >>> spread_of(torch.tensor([[900.0, 0.0], [0.0, 900.0]]))
        tensor(0.6931)
    """
    log_mean = torch.log_softmax(logits, -1).logsumexp(0) - math.log(len(logits))
    return -(log_mean.exp() * log_mean).sum()


@dataclass(eq=False)
class Monitor:
    """Watches whether a network comes to say the same about every sample: the entropy of its pooled predictions falls.

    Args:
        names: of the tasks.
        share: of the entropy at the start below which predictions have collapsed; None: they never have.
        window: batches of a task that are pooled.

    Example:
        >>> monitor = Monitor(["a"], 0.5)
        >>> for logits in [torch.tensor([[9.0, 0.0], [0.0, 9.0]])] * 20 + [torch.tensor([[9.0, 0.0]])] * 20:
        ...     monitor.see(0, logits)
        >>> monitor.collapsed()
        ['a']
    """

    names: Sequence[str]
    share: float | None
    window: int = _WINDOW
    _recent: dict[int, deque[Tensor]] = field(default_factory=dict, repr=False)
    _samples: dict[int, int] = field(default_factory=dict, repr=False)
    _first: dict[int, float] = field(default_factory=dict, repr=False)

    def see(self, position: int, logits: Float[Tensor, "batch classes"]) -> None:
        """One batch's predictions."""
        recent = self._recent.setdefault(position, deque(maxlen=self.window))
        recent.append(torch.softmax(logits.detach().float(), -1).mean(0).cpu())
        self._samples[position] = min(len(logits), self._samples.get(position, len(logits)))
        if position not in self._first and len(recent) == self.window:
            self._first[position] = self._entropy(position)

    def collapsed(self) -> list[str]:
        """The tasks whose predictions have become alike."""
        if self.share is None:
            return []
        return [
            self.names[position]
            for position, first in sorted(self._first.items())
            if self._samples[position] * self.window >= _POOLED and self._entropy(position) < self.share * first
        ]

    def _entropy(self, position: int) -> float:
        """Of batches of one width: a group of unknown task may go through different heads."""
        recent = self._recent[position]
        alike = [mean for mean in recent if len(mean) == len(recent[-1])]
        pooled = torch.stack(alike).double().mean(0)
        return float(-torch.special.xlogy(pooled, pooled).sum())


def surest(
    logits: Sequence[Float[Tensor, "batch _"]],
) -> Float[Tensor, "batch heads"]:
    """How unsure each head is of each sample: the entropy of its prediction as a share of the greatest possible, ln C.

    Example:
        >>> surest([torch.tensor([[9.0, 0.0]]), torch.zeros(1, 3)])
        tensor([[0.0018, 1.0000]])
    """
    columns = []
    for found in logits:
        log_probs = torch.log_softmax(found, -1)
        columns.append(-(log_probs.exp() * log_probs).sum(-1) / math.log(max(2, found.shape[1])))
    return torch.stack(columns, 1)


def _batched(step: Iterable[Sampled], size: int) -> Iterator[list[Sampled]]:
    """The batches of a step, so many at a time; the last may be fewer."""
    rest = iter(step)
    while found := list(islice(rest, size)):
        yield found


def _backward(coefficients: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    for each, gradient in zip(coefficients, gradients, strict=True):
        torch.autograd.backward(each, gradient.to(each))


def _network_of(sampled: Sampled, models: MergedModels, slot: int) -> tuple[TaskNetwork, dict[str, Any]]:
    """The network of a batch; where the task is unknown, the one whose head is surest of these samples."""
    network = sampled.networks[0]
    if len(sampled.networks) > 1:
        with torch.no_grad():
            logits = [
                one.logits(one.inputs(sampled.batch), models.tensors(slot, one.device)).cpu()
                for one in sampled.networks
            ]
            network = sampled.networks[int(surest(logits).mean(0).argmin())]
    return network, network.inputs(sampled.batch)


def _by_expert(coefficients: Tensor, alive: Tensor | None) -> np.ndarray:
    found = coefficients.detach().double().cpu()
    if found.ndim == 2:
        counts = torch.ones_like(found) if alive is None else alive.double()
        found = (found * counts).sum(1) / counts.sum(1)
    plain: np.ndarray = found.numpy()
    return plain
