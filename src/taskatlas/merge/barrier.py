"""Between two networks: the straight path in weight space, aligned or not, and the barrier of loss on it.

Networks that were trained apart lie in different valleys; once the units of one stand in the order of the other's, the
valleys are often one (Ainsworth et al., Git Re-Basin, ICLR 2023, definition 2.2): the barrier is the most that the loss
on the path rises above the straight line between the losses at its ends.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.batch_norm import reestimate_batch_norm
from taskatlas.merge.matching import Alignment
from taskatlas.merge.merged_weights import StateDict, merged_weights
from taskatlas.merge.zipped import Zipped
from taskatlas.zoo.weights import first_line

Points = Sequence[float | int] | Float[np.ndarray, " points"]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LossBarrier:
    """Losses on a path.

    Attributes:
        points: from 0, the first network, to 1, the second.
        losses: there.
    """

    points: Float[np.ndarray, " points"]
    losses: Float[np.ndarray, " points"]

    @property
    def height(self) -> float:
        """The most that the loss rises above the line between its ends; 0 where it never does."""
        line = self.losses[0] + (self.losses[-1] - self.losses[0]) * self.points
        return max(0.0, float((self.losses - line).max()))

    def __repr__(self) -> str:
        return f"LossBarrier({self.height:.3g} on {len(self.points)} points)"


def loss_barrier(
    one: nn.Module,
    other: nn.Module,
    data: Sequence[tuple[Any, Tensor]],
    *,
    points: Points | int = 11,
    loss: Loss = F.cross_entropy,
    reset_statistics: bool = True,
) -> LossBarrier:
    """The loss on the straight path between two networks of one architecture.

    Args:
        one: left as it was.
        other: left as it was; ``in_order_of_the_first`` brings its units into the order of the first's.
        data: batches of inputs and answers.
        points: from 0 to 1, or how many, evenly spaced.
        loss: (outputs, answers) -> mean over the batch.
        reset_statistics: BatchNorm statistics are estimated again at each point between the ends.

    Raises:
        BadInput: no data, points that do not go from 0 to 1, networks with other tensors than each other, answers that
            do not fit, or a loss that is NaN or infinite.

    Example:
        >>> one, other = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = one.weight.copy_(torch.tensor([[3.0], [0.0]])), other.weight.copy_(torch.tensor([[6.0], [0.0]]))
        >>> loss_barrier(one, other, [(torch.ones(4, 1), torch.zeros(4, dtype=torch.long))])
        LossBarrier(0 on 11 points)
    """
    where = np.linspace(0, 1, points) if isinstance(points, int) else np.asarray(points, np.float64)
    if len(where) < 2 or where[0] != 0 or where[-1] != 1 or (np.diff(where) <= 0).any():
        raise BadInput("points on a path go up from 0 to 1. Give how many, or a list of them.")
    if not data:
        raise BadInput("there are no batches to measure a loss on.")
    inputs = [batch for batch, _ in data]
    losses: list[float] = []
    for network in track(on_the_path(one, other, where, inputs if reset_statistics else None), "measuring the path"):
        total = count = 0.0
        with torch.no_grad():
            for batch, answers in data:
                total += _value(loss, network(batch), answers) * len(answers)
                count += len(answers)
        if not math.isfinite(total):
            raise BadInput(
                f"the loss is NaN or infinite at {where[len(losses)]:.3g} of the path. Are all weights whole?"
            )
        losses.append(total / count)
    return LossBarrier(where, np.array(losses))


def _value(loss: Loss, outputs: Tensor, answers: Tensor) -> float:
    try:
        return float(loss(outputs, answers))
    except (IndexError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"the loss of outputs of shape {tuple(outputs.shape)} cannot be computed ({first_line(error)}). "
            "Do the answers fit them?"
        ) from error


def on_the_path(
    one: nn.Module, other: nn.Module, points: Points, batches: Sequence[Any] | None = None
) -> Iterator[nn.Module]:
    """Networks on the straight path between two, one after the other, each a copy.

    Args:
        one: at 0.
        other: at 1.
        points: where.
        batches: to estimate BatchNorm's statistics on, at points between the ends; None: they are interpolated.

    Raises:
        BadInput: the networks have other tensors than each other.
    """
    first, second = one.state_dict(), other.state_dict()
    unlike = [name for name in first if name not in second or first[name].shape != second[name].shape]
    if unlike or len(first) != len(second):
        name = unlike[0] if unlike else next(name for name in second if name not in first)
        raise BadInput(f"there is no straight path between networks that differ in {name!r}.")
    for point in points:
        network = deepcopy(one).eval()
        network.load_state_dict(between(first, second, float(point)))
        if batches is not None and 0 < point < 1:
            reestimate_batch_norm(network, batches)
        yield network


def between(first: StateDict, second: StateDict, point: float) -> dict[str, Tensor]:
    """(1 - t) first + t second; what is no floating-point number is the first's.

    Example:
        >>> between({"w": torch.zeros(1)}, {"w": torch.ones(1)}, 0.25)
        {'w': tensor([0.2500])}
    """
    return {
        name: torch.lerp(value, second[name].to(value.dtype), point) if value.is_floating_point() else value
        for name, value in first.items()
    }


def in_order_of_the_first(network: nn.Module, zipped: Zipped, model: int = 1) -> nn.Module:
    """A copy that computes the same, with its units in the order of the first of the networks that were aligned.

    Args:
        network: one of them; stays as it is.
        zipped: what became of them, by a method that permutes.
        model: which of them it is.

    Raises:
        BadInput: units were joined within the network, so that no order is left.

    Example:
        >>> from taskatlas.merge.zipping import zip_models
        >>> _ = torch.manual_seed(0)
        >>> one, other = (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)) for _ in range(2))
        >>> moved = in_order_of_the_first(other, zip_models([one, other], torch.randn(50, 2), method="permute"))
        >>> x = torch.randn(5, 2)
        >>> bool(torch.allclose(moved(x), other(x), atol=1e-6))
        True
    """
    found = zipped.aligned.alignments
    joined = [name for name, alignment in found.items() if not alignment.is_permutation]
    if joined:
        raise BadInput(f"units of {joined[0]!r} were joined. Align with method='permute' or 'weight_matching'.")
    own = {name: Alignment(alignment.places[[model]]) for name, alignment in found.items()}
    moved = deepcopy(network)
    moved.load_state_dict(merged_weights([network.state_dict()], zipped.groups, own))
    return moved
