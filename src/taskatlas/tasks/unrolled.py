"""The gradient of discovery's objective, through every step of the learners' training, in the labels they learn from.

Two learners a task start anew and take K steps of gradient descent on soft labels; then they are asked about other
samples. The objective, the symmetric cross-entropy of their answers, depends on the labels only through the learners'
weights, so its gradient is that of the whole training (Atanov et al., NeurIPS 2022, section 3.3, equation 4).

All tasks of a step are stacked, (tasks, 2, ...), and differentiated at once: the sum of losses gives each learner its
own gradient. Memory grows with the steps that are differentiated together. ``segment`` bounds it: the weights between
segments are kept, and each segment is trained again when the gradient comes back to it. ``truncate`` leaves out all but
the last steps, whose labels matter most; then the first ones need no second derivatives, but the gradient is not exact.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap

from taskatlas.errors import BadInput, WorkFailed

Weights = dict[str, Tensor]
"""Parameters of all learners, each (tasks, 2, ...)."""

Forward = Callable[[Weights, Tensor], Tensor]
"""(weights, samples (2, n, ...) of the first and the second learner) -> logits (tasks, 2, n, classes)."""


class Unrolled(NamedTuple):
    """What K steps of training say about a batch's labels."""

    objective: Tensor  # mean over tasks, in nats
    gradient: Tensor  # of it, in the labels
    agreement: Tensor  # (tasks,) share of the asked samples on which both learners say the same
    fit: Tensor  # (tasks,) share of the learners' own samples whose likeliest label they predict


def unrolled_gradient(
    forward: Forward,
    weights: Weights,
    samples: Shaped[Tensor, "two n *rest"],
    labels: Float[Tensor, "tasks two n classes"],
    asked: Shaped[Tensor, "asked *rest"],
    *,
    steps: int,
    rate: float,
    truncate: int | None = None,
    segment: int | None = None,
) -> Unrolled:
    """The objective of a batch and its gradient in the labels, exact unless it is truncated.

    Args:
        forward: the learners.
        weights: where they start.
        samples: what the first and the second learner of every task train on, all of it at each step.
        labels: probabilities of the classes.
        asked: the samples that all are asked about.
        steps: K.
        rate: of gradient descent.
        truncate: only so many last steps are differentiated; None: all.
        segment: steps that are differentiated together; None: all of them at once.

    Raises:
        BadInput: numbers of steps that make no sense.
        WorkFailed: a loss became NaN or infinite; names the step.
    """
    differentiated = steps if truncate is None else min(truncate, steps)
    length = differentiated if segment is None else min(segment, differentiated)
    if min(steps, differentiated, length) < 1:
        raise BadInput(f"{differentiated} of {steps} steps in segments of {length} cannot be differentiated.")
    labels = labels.detach()
    ends = [steps - differentiated, *range(steps - differentiated + length, steps, length), steps]
    states, losses = [_leaves(weights)], []
    for begin, end in zip([0, *ends[:-2]], ends[:-1], strict=True):
        reached, seen = _train(forward, states[-1], samples, labels, end - begin, rate, graph=False)
        losses += seen
        states.append(_leaves(reached))
    states = states[1:]  # the weights at the beginning of each segment

    last = labels.clone().requires_grad_()
    reached, seen = _train(forward, states[-1], samples, last, ends[-1] - ends[-2], rate, graph=True)
    _check_finite([*losses, *seen], rate)
    objective, agreement = _objective(forward, reached, asked)
    if not torch.isfinite(objective):
        raise WorkFailed(f"the learners' answers became NaN after {steps} steps. Try an inner rate below {rate:g}.")
    back, gradient = _backward(objective, states[-1], last)
    for position in range(len(states) - 2, -1, -1):
        own = labels.clone().requires_grad_()
        ended, _ = _train(
            forward, states[position], samples, own, ends[position + 1] - ends[position], rate, graph=True
        )
        total = sum(((ended[name] * back[name]).sum() for name in ended), start=torch.zeros_like(objective))
        back, more = _backward(total, states[position], own)
        gradient += more
    with torch.no_grad():
        fit = (forward(reached, samples).argmax(-1) == labels.argmax(-1)).double().mean((1, 2))
    return Unrolled(objective.detach(), gradient, agreement, fit)


def stack_learners(modules: Sequence[nn.Module], *, at_once: bool = True) -> tuple[Weights, Forward]:
    """Learners of one structure, two a task after each other, as weights and the function that they are.

    All run at once under ``vmap``, or in turn. They are taken in evaluation mode, so that a step depends on nothing but
    its weights and its samples: without dropout, and with the statistics of the batch at hand where they normalise by
    batch.

    Raises:
        BadInput: learners that cannot be stacked.
    """
    first, *others = (replace_all_batch_norm_modules_(module).eval() for module in modules)
    own = [dict(module.named_parameters()) for module in (first, *others)]
    if any([(k, v.shape) for k, v in one.items()] != [(k, v.shape) for k, v in own[0].items()] for one in own):
        raise BadInput("learners of different structures cannot be trained together: their parameters differ.")
    weights = {name: _in_pairs([one[name].detach() for one in own]) for name in own[0]}

    def one(own: Weights, x: Tensor) -> Tensor:
        return functional_call(first, own, (x,))

    def in_turn(weights: Weights, x: Tensor) -> Tensor:
        tasks = range(len(next(iter(weights.values()))))
        answers = [one({k: v[task, which] for k, v in weights.items()}, x[which]) for task in tasks for which in (0, 1)]
        return _in_pairs(answers)

    return weights, vmap(vmap(one), in_dims=(0, None)) if at_once else in_turn


def _in_pairs(tensors: Sequence[Tensor]) -> Tensor:
    """(tasks, 2, ...) of tensors in order."""
    return torch.stack(list(tensors)).reshape(-1, 2, *tensors[0].shape)


@torch.no_grad()
def can_stack(module: nn.Module, few: Shaped[Tensor, "n *rest"]) -> bool:
    """Whether learners such as this one run under ``vmap``; recurrent layers, or an ``if`` on values, may not.

    Example:
        >>> can_stack(nn.Linear(3, 2), torch.zeros(2, 3)), can_stack(nn.LSTM(3, 2), torch.zeros(2, 3))
        (True, False)
    """
    weights, forward = stack_learners([copy.deepcopy(module) for _ in range(2)])
    try:
        forward(weights, few.expand(2, *few.shape))
    except Exception:  # in turn they run, or their own error is told
        return False
    return True


def symmetric_cross_entropy(logits: Float[Tensor, "tasks two n classes"]) -> Float[Tensor, " tasks"]:
    """½ [CE(p₁, p₂) + CE(p₂, p₁)] of two learners' predictions, mean over samples, in nats.

    Example:
        >>> round(symmetric_cross_entropy(torch.zeros(1, 2, 3, 2)).item(), 4) == round(math.log(2), 4)
        True
    """
    logs = logits.log_softmax(-1)
    probs = logs.exp()
    return -0.5 * ((probs[:, 0] * logs[:, 1]).sum(-1) + (probs[:, 1] * logs[:, 0]).sum(-1)).mean(-1)


def _train(
    forward: Forward, weights: Weights, samples: Tensor, labels: Tensor, steps: int, rate: float, *, graph: bool
) -> tuple[Weights, list[Tensor]]:
    """Steps of gradient descent, with a graph for second derivatives or without; and the loss before each."""
    losses = []
    for _ in range(steps):
        if not graph:
            weights = _leaves(weights)
        loss = -(labels * forward(weights, samples).log_softmax(-1)).sum(-1).mean(-1).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=graph)
        weights = {
            name: value - rate * gradient for (name, value), gradient in zip(weights.items(), gradients, strict=True)
        }
        losses.append(loss.detach())
    return weights, losses


def _objective(forward: Forward, weights: Weights, asked: Tensor) -> tuple[Tensor, Tensor]:
    logits = forward(weights, asked.expand(2, *asked.shape))
    same = logits[:, 0].argmax(-1) == logits[:, 1].argmax(-1)
    return symmetric_cross_entropy(logits).mean(), same.double().mean(-1)


def _backward(value: Tensor, weights: Weights, labels: Tensor) -> tuple[Weights, Tensor]:
    *back, gradient = torch.autograd.grad(value, [*weights.values(), labels])
    return dict(zip(weights, back, strict=True)), gradient


def _leaves(weights: Mapping[str, Tensor]) -> Weights:
    return {name: value.detach().requires_grad_() for name, value in weights.items()}


def _check_finite(losses: Sequence[Tensor], rate: float) -> None:
    finite = torch.isfinite(torch.stack(list(losses)))
    if not finite.all():
        step = int((~finite).nonzero()[0])
        raise WorkFailed(
            f"the learners' loss became NaN or infinite at inner step {step} of {len(losses)}. "
            f"Try an inner rate below {rate:g}."
        )


def sqrt_segment(steps: int) -> int:
    """The length of segments that balances what is kept between them and within one: √K, rounded.

    Example:
        >>> sqrt_segment(50)
        7
    """
    return max(1, round(math.sqrt(steps)))
