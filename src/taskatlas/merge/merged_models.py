"""Merged models that run one after the other: merged together, and their gradients taken together.

Merging costs what reading the task vectors costs, so models that need no result of each other share that reading
(``vector_pass``). The gradient of a model's weights takes the weights' place as it arrives: two models and their
gradients need the memory of two vectors.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.flat_model import leaves_of, run_backward
from taskatlas.merge.low_rank import Vectors
from taskatlas.merge.task_vectors import Level
from taskatlas.merge.vector_pass import pass_over


class MergedModels:
    """θ(λ) of several coefficients, as leaves of autograd that share the memory of flat vectors.

    Args:
        vectors: base and task vectors, dense or low-rank.
        devices: on which networks run. One that does not hold the vectors has a copy of the model that runs there.
        count: of models.

    Attributes:
        reached: names of the tensors that a backward pass came to.

    Example:
        >>> from taskatlas.merge.task_vectors import TaskVectors
        >>> vectors = TaskVectors.of({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 2.0])}})
        >>> models = MergedModels(vectors, [vectors.base.device], count=2)
        >>> models.turn([torch.tensor([0.5]), torch.tensor([1.0])], "task")
        []
        >>> for slot in range(2):
        ...     w = models.tensors(slot, vectors.base.device)["w"]
        ...     models.backward(slot, vectors.base.device, w.square().sum())
        >>> models.turn([], "task")  # d/dλ of λ² (1 + 4)
        [tensor([5.], dtype=torch.float64), tensor([10.], dtype=torch.float64)]
    """

    def __init__(self, vectors: Vectors, devices: Iterable[torch.device], count: int) -> None:
        self.vectors = vectors
        self.reached: set[str] = set()
        self._models = vectors.base.repeat(count, 1)
        self._ran = 0
        self._here = [_Leaves(vectors, row) for row in self._models]
        home = vectors.base.device
        self._elsewhere = {
            device: _Leaves(vectors, vectors.base.to(device, copy=True))
            for device in set(devices)
            if _indexed(device) != home
        }

    def __len__(self) -> int:
        return len(self._models)

    def turn(self, coefficients: Sequence[Float[Tensor, "N *T"]], level: Level) -> list[Float[Tensor, "N *T"]]:
        """∂L/∂λ of the models that ran since the last turn, in float64; then the next are merged.

        Args:
            coefficients: of the models that run next, at most as many as there are.
            level: of the coefficients.
        """
        following = torch.stack([each.detach() for each in coefficients]) if coefficients else None
        found = pass_over(self.vectors, self._models, level, ran=self._ran, coefficients=following)
        self._ran = len(coefficients)
        return list(found)

    def tensors(self, slot: int, device: torch.device) -> dict[str, Tensor]:
        """What a network runs with, under all names (``torch.func.functional_call``), until another is asked for."""
        leaves = self._here[slot]
        if device in self._elsewhere:
            leaves = self._elsewhere[device]
            leaves.flat.copy_(self._models[slot])
        return leaves.tensors

    def backward(self, slot: int, device: torch.device, loss: Float[Tensor, ""], who: str = "the network") -> None:
        """Puts the gradient of a loss in place of a model's weights; no other tensor is given one.

        Args:
            slot: of the model, whose tensors were the last to be asked for on this device.
            device: where the network ran.
            loss: of the network's outputs.
            who: the network, for messages.

        Raises:
            BadInput: the loss depends on no merged tensor, or on a weight apart from its gradient.
        """
        leaves = self._elsewhere.get(device, self._here[slot])
        self.reached |= leaves.backward(loss, who)
        if device in self._elsewhere:
            self._models[slot].copy_(leaves.flat)


class _Leaves:
    """The tensors of one flat vector, which a backward pass overwrites with their gradients.

    A tensor is overwritten once all that depends on it has been gone through. Each has a version of its own, so torch
    notices where a network needs it after that, as it may where weights are used apart from their gradient.
    """

    def __init__(self, vectors: Vectors, flat: Tensor) -> None:
        self.flat = flat
        self._leaves, self.tensors = leaves_of(vectors, flat)
        self._arrived: set[str] = set()
        for name, leaf in self._leaves.items():
            leaf.register_post_accumulate_grad_hook(partial(self._arrive, name))  # type: ignore[no-untyped-call]

    def backward(self, loss: Tensor, who: str) -> set[str]:
        """Names of the tensors that it reached; the gradient of the others is zero."""
        self._arrived = set()
        try:
            run_backward(loss, self._leaves.values(), who)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise BadInput(
                f"{who} uses a weight beside its gradient (weight.detach(), or weight.data), or changes a tensor in "
                "place that its gradient needs; coefficients cannot be learned through it. Use the weight itself there."
            ) from error
        for name in self._leaves.keys() - self._arrived:
            self._leaves[name].detach().zero_()
        return self._arrived

    def _arrive(self, name: str, leaf: Tensor) -> None:
        self._arrived.add(name)
        assert leaf.grad is not None
        leaf.detach().copy_(leaf.grad.to_dense() if leaf.grad.is_sparse else leaf.grad)
        leaf.grad = None


def _indexed(device: torch.device) -> torch.device:
    """With the number that ``cuda`` alone stands for."""
    return device if device.index is not None else torch.empty(0, device=device).device
