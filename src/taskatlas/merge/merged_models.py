"""Merged models that run one after the other: merged together, and their gradients taken together.

Merging costs what reading the task vectors costs, so models that need no result of each other share that reading
(``vector_pass``). The gradient of a model's weights takes the weights' place as it arrives, without a copy where nobody
else holds it: two models and their gradients need the memory of two vectors, and for one of them of both for a while.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.merge.flat_model import run_backward, with_ties
from taskatlas.merge.low_rank import Vectors
from taskatlas.merge.task_vectors import Level
from taskatlas.merge.vector_pass import pass_over

_ITS_OWN = 2  # uses of a storage: by its tensor, and by the object that asks


class MergedModels:
    """θ(λ) of several coefficients, as leaves of autograd that give up their memory for their gradients.

    Args:
        vectors: base and task vectors, dense or low-rank.
        count: of models.

    Attributes:
        reached: names of the tensors that a backward pass came to.

    Example:
        >>> from taskatlas.merge.task_vectors import TaskVectors
        >>> vectors = TaskVectors.of({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([1.0, 2.0])}})
        >>> models = MergedModels(vectors, count=2)
        >>> models.turn([torch.tensor([0.5]), torch.tensor([1.0])], "task")
        []
        >>> for slot in range(2):
        ...     w = models.tensors(slot, vectors.base.device)["w"]
        ...     models.backward(slot, w.square().sum())
        >>> models.turn([], "task")  # d/dλ of λ² (1 + 4)
        [tensor([5.], dtype=torch.float64), tensor([10.], dtype=torch.float64)]
    """

    def __init__(self, vectors: Vectors, count: int) -> None:
        self.vectors = vectors
        self.reached: set[str] = set()
        self._models = [
            {name: vectors.base.new_empty(shape) for name, shape in vectors.shapes.items()} for _ in range(count)
        ]
        self._leaves = [{name: self._leaf(slot, name) for name in vectors.shapes} for slot in range(count)]
        self._arrived: set[str] = set()
        self._ran = 0

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
        """What a network runs with, under all names (``torch.func.functional_call``), until its backward pass.

        They are copies where the device is not that of the vectors.
        """
        leaves = self._leaves[slot]
        for name, leaf in leaves.items():
            leaf.data = self._models[slot][name].to(device)
        return with_ties(self.vectors, leaves)

    def backward(self, slot: int, loss: Float[Tensor, ""], who: str = "the network") -> None:
        """Puts the gradient of a loss in place of a model's weights; no other tensor is given one.

        Args:
            slot: of the model, whose tensors were the last that were asked for.
            loss: of the outputs of a network that ran with these.
            who: the network, for messages.

        Raises:
            BadInput: as ``run_backward``.
        """
        self._arrived = set()
        run_backward(loss, self._leaves[slot].values(), who)
        for name, leaf in self._leaves[slot].items():  # not before: parts that are computed again may need any weight
            leaf.data = leaf.new_empty(0)
            if name not in self._arrived:
                self._models[slot][name].zero_()
        self.reached |= self._arrived

    def _leaf(self, slot: int, name: str) -> Tensor:
        leaf = self.vectors.base.new_empty(0).requires_grad_()
        leaf.register_post_accumulate_grad_hook(partial(self._arrive, slot, name))  # type: ignore[no-untyped-call]
        return leaf

    def _arrive(self, slot: int, name: str, leaf: Tensor) -> None:
        """A gradient takes the place of a weight; a further one, as backward passes within one give, is added."""
        model, gradient = self._models[slot], leaf.grad
        assert gradient is not None
        leaf.grad = None
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if name in self._arrived:
            model[name] += gradient.to(model[name])
        elif gradient.device != model[name].device or not _is_alone(gradient):
            model[name] = torch.empty_like(model[name]).copy_(gradient)
        else:
            model[name] = gradient
        self._arrived.add(name)


def _is_alone(tensor: Tensor) -> bool:
    """Whether nobody else holds a tensor's memory, so that it can be written over.

    Torch gives one to two weights that are added, and a hook may have kept it.
    """
    count, storage = getattr(torch._C, "_storage_Use_Count", None), tensor.untyped_storage()
    return count is not None and storage.nbytes() == tensor.nbytes and count(storage._cdata) == _ITS_OWN
