"""AdaMerging: merging coefficients learned on unlabelled data, by making predictions surer.

θ(λ) = θ₀ + Σ_i λ_i τ_i, task-wise with a number for each expert, layer-wise with one for each expert and tensor; λ
minimises the sum over tasks of the mean entropy of predictions (Yang et al., "AdaMerging: Adaptive Model Merging for
Multi-Task Learning", ICLR 2024, equations 4 to 6). With a ``density`` the task vectors are first trimmed and their
signs elected as in TIES: the paper's AdaMerging++.

A step merges once, goes forward and backward through one task after the other into one gradient of θ, and takes the
gradient of λ from it in closed form (``TaskVectors.gradient``): memory does not grow with the number of tasks.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from taskatlas.engine import track
from taskatlas.errors import BadInput, WorkFailed
from taskatlas.merge.adamerged import AdaMerged
from taskatlas.merge.batch_norm import batch_statistics, but_statistics, pooled_statistics
from taskatlas.merge.flat_model import FlatModel
from taskatlas.merge.state import Model, named_tensors
from taskatlas.merge.task_network import Head, TaskNetwork
from taskatlas.merge.task_vectors import Level, TaskVectors, differing
from taskatlas.merge.unlabelled import Batch, endless, placed
from taskatlas.probe import quiet


def adamerge(
    base: Model,
    experts: Mapping[str, Model],
    data: Mapping[str, Iterable[Batch]],
    *,
    level: Level = "layer",
    density: float | None = None,
    heads: Mapping[str, Head] | None = None,
    own: Sequence[str] = (),
    steps: int = 500,
    learning_rate: float = 1e-3,
    initial: float = 0.3,
    transductive: bool = False,
    seed: int = 0,
) -> AdaMerged:
    """Learns how much of each expert to add to the base, from unlabelled data.

    Heads belong to tasks and are never merged. Tensors that the base lacks, or that have another shape in some model,
    are each expert's own; heads of equal shapes have to be named by ``own``, or given apart as ``heads``.

    Networks run in evaluation mode and stay as they were. BatchNorm layers alone normalise with each batch's statistics
    while λ is learned; those of the merged network are estimated at the end, pooled over all tasks. An encoder-decoder
    is asked for the first token that its decoder gives.

    Args:
        base: what the experts were trained from: a module, tensors by name, a checkpoint, or a path of weights.
        experts: task -> the same. A module runs with merged weights in place of its own; where an expert is none, the
            base has to be a module and runs for it, with the expert's own tensors.
        data: task -> batches (tensors, mappings that go by keyword, or tuples that start with one), which can be passed
            over again; see ``Unlabelled``. Not the samples that are scored later, or say ``transductive``.
        level: ``task``: a coefficient an expert; ``layer``: one for each expert and tensor.
        density: keep this share of each task vector, by magnitude over the whole vector, and of that what agrees with
            the elected sign (AdaMerging++; the paper's is 0.2); None: task vectors as they are.
        heads: task -> function from the network's output to logits; None: the output holds logits.
        own: patterns of further tensors that stay each expert's own (``classifier.*``).
        steps: of Adam, each on one batch of every task.
        learning_rate: of Adam.
        initial: coefficient of every expert and tensor before the first step; that of task arithmetic.
        transductive: whether the data are the samples that will be scored; the result says so.
        seed: of the loaders' orders.

    Raises:
        BadInput: experts that do not fit the base, a task without expert or head, data that run out, outputs without
            logits, a batch that a network cannot take, a setting that is none.
        WorkFailed: an entropy is NaN, which is told with the task and the step; a device's memory is too small.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> base, a, b = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)
        >>> data = {"a": [torch.randn(8, 2)], "b": [torch.randn(8, 2)]}
        >>> adamerge(base, {"a": a, "b": b}, data, level="task", steps=5)
        AdaMerged(task-wise, 2 experts: a 0.295, b 0.295; 5 steps, entropy 1.077 to 1.077)
    """
    tasks = sorted(data)
    experts = {name: experts[name] for name in sorted(experts)}
    _check(tasks, experts, heads, level, steps, learning_rate, initial)
    networks = {task: _network(task, base, experts) for task in tasks}
    device, _ = placed(next(iter(networks.values())))
    vectors = TaskVectors.of(
        base, experts, own=(*own, *differing(base, experts)), dtype=_precision(base), device=device
    )
    if density is not None:
        vectors = vectors.elected(density)
    heads = dict(heads or {})
    with ExitStack() as stack:
        for module in _different([*networks.values(), *heads.values()]):
            stack.enter_context(quiet(module))
        for network in _different(networks.values()):
            stack.enter_context(batch_statistics(network))
        _seed_everything(seed)  # quiet puts back the states that it found
        learned = _learn(vectors, _learning(networks, vectors, heads), data, level, steps, learning_rate, initial)
        state = vectors.state(learned.theta)
        state |= pooled_statistics(networks, data, state, vectors.own)
    reached = learned.reached
    unreached = tuple(name for name in vectors.places if name not in reached)
    dead = vectors.dead.cpu().numpy() | np.array([name not in reached for name in vectors.places])
    return AdaMerged(
        level=level,
        names=vectors.names,
        tensors=tuple(vectors.places),
        tasks=tuple(tasks),
        coefficients=learned.path[-1],
        path=learned.path,
        entropy=learned.entropy[..., 0],
        marginal_entropy=learned.entropy[..., 1],
        dead=dead,
        unreached=unreached,
        dropped=vectors.dropped,
        transductive=transductive,
        settings={
            "steps": steps,
            "learning_rate": learning_rate,
            "initial": initial,
            "density": density,
            "own": list(own),
            "seed": seed,
        },
        state=state,
        own=vectors.own,
    )


def mean_entropy(logits: Float[Tensor, "batch classes"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean entropy of softmax predictions, and the entropy of their mean, in nats.

    Example:
        >>> mean_entropy(torch.tensor([[9.0, 0.0], [0.0, 9.0]]))
        (tensor(0.0012), tensor(0.6931))
    """
    log_probs = torch.log_softmax(logits, -1)
    probs = log_probs.exp()
    marginal = probs.mean(0)
    return -(probs * log_probs).sum(-1).mean(), -torch.special.xlogy(marginal, marginal).sum()


@dataclass(frozen=True, eq=False)
class _Learned:
    theta: Tensor  # (D,)
    path: np.ndarray  # (S + 1, N) or (S + 1, N, T)
    entropy: np.ndarray  # (S, K, 2): of predictions, of the mean prediction
    reached: frozenset[str]


def _learn(
    vectors: TaskVectors,
    networks: Mapping[str, TaskNetwork],
    data: Mapping[str, Iterable[Batch]],
    level: Level,
    steps: int,
    learning_rate: float,
    initial: float,
) -> _Learned:
    model = FlatModel(vectors)
    shape = (len(vectors.names),) if level == "task" else (len(vectors.names), len(vectors.places))
    coefficients = torch.full(shape, initial, dtype=torch.float64, device=vectors.base.device, requires_grad=True)
    optimizer = torch.optim.Adam([coefficients], lr=learning_rate)
    streams = {task: endless(data[task], f"task {task!r}") for task in networks}
    path = [coefficients.detach().cpu().numpy().copy()]
    entropy = np.empty((steps, len(networks), 2))
    for step in track(range(steps), "learning coefficients"):
        model.merge(coefficients)
        for position, (task, network) in enumerate(networks.items()):
            with torch.enable_grad():
                found = mean_entropy(network.logits(network.inputs(next(streams[task])), model.tensors))
            entropy[step, position] = [float(value.detach()) for value in found]
            if not math.isfinite(entropy[step, position, 0]):
                raise WorkFailed(
                    f"the predictions of task {task!r} became NaN in step {step + 1} of {steps}. "
                    f"Try a learning rate below {learning_rate:g}, or an initial coefficient below {initial:g}."
                )
            who = f"the network of task {task!r}"
            network.holding(model.tensors, partial(model.backward, found[0], who))
        coefficients.grad = model.gradient_of_coefficients(level)
        optimizer.step()
        path.append(coefficients.detach().cpu().numpy().copy())
    model.merge(coefficients)
    return _Learned(model.theta, np.stack(path), entropy, frozenset(model.reached))


def _learning(
    networks: Mapping[str, nn.Module], vectors: TaskVectors, heads: Mapping[str, Head]
) -> dict[str, TaskNetwork]:
    """The networks, without statistics that a pass under ``batch_statistics`` would write to."""
    return {
        task: replace(one, kept=but_statistics(one.network, one.kept))
        for task, one in TaskNetwork.each(networks, vectors, heads).items()
    }


def _network(task: str, base: Model, experts: Mapping[str, Model]) -> nn.Module:
    for model in (experts.get(task), base):
        if isinstance(model, nn.Module):
            return model
    raise BadInput(
        f"there is no network to run task {task!r} with: neither its expert nor the base is a module. "
        "Give one of them as a module."
    )


def _different(things: Iterable[object]) -> list[nn.Module]:
    """The networks among them, each once."""
    return list({id(thing): thing for thing in things if isinstance(thing, nn.Module)}.values())


def _precision(base: Model) -> torch.dtype:
    """float64 where the base has it, else float32, whatever the weights are stored in."""
    wide = any(value.dtype == torch.float64 for value in named_tensors(base, "the base").values())
    return torch.float64 if wide else torch.float32


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _check(
    tasks: Sequence[str],
    experts: Mapping[str, Model],
    heads: Mapping[str, Head] | None,
    level: str,
    steps: int,
    learning_rate: float,
    initial: float,
) -> None:
    if level not in get_args(Level):
        raise BadInput(f"level={level!r} is none. Choose one of: {', '.join(get_args(Level))}.")
    if not math.isfinite(initial):
        raise BadInput(f"coefficients cannot start at {initial:g}; give a finite number, such as 0.3.")
    if not tasks:
        raise BadInput("there are no data to learn coefficients on. Give batches for each task.")
    unknown = [task for task in tasks if task not in experts]
    if unknown:
        raise BadInput(f"there are data of {unknown[0]!r} and no such expert; there are {', '.join(experts)}.")
    headless = [task for task in tasks if heads is not None and task not in heads]
    if headless:
        raise BadInput(f"task {headless[0]!r} has no head, and others have. Give every task one, or none.")
    if steps < 1 or not 0 < learning_rate < math.inf:
        raise BadInput(f"{steps} steps at a learning rate of {learning_rate:g} learn nothing; give positive numbers.")
