"""A merged model to learn coefficients on: its weights and their gradient, flat, under what networks take."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.low_rank import Vectors
from taskatlas.merge.task_vectors import Level


class FlatModel:
    """θ(λ) as leaves of autograd that share the memory of one flat vector, and their gradients those of another.

    Merging writes into the one vector, and every backward pass adds to the other, so however many tasks are summed, and
    however many steps, there is one merged model and one gradient.

    Args:
        vectors: base and task vectors, dense or low-rank.

    Attributes:
        vectors: as given.
        theta: θ(λ), (D,).
        gradient: ∂L/∂θ, (D,), of all backward passes since the last ``merge``.
        tensors: what a network runs with, under all names (``torch.func.functional_call``).
        reached: names of the tensors that a backward pass came to.

    Example:
        >>> from taskatlas.merge.task_vectors import TaskVectors
        >>> base, expert = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}
        >>> model = FlatModel(TaskVectors.of(base, {"a": expert}))
        >>> model.merge(torch.tensor([0.5]))
        >>> model.backward(model.tensors["w"].square().sum())
        >>> model.gradient_of_coefficients("task")  # d/dλ of λ² (1 + 4)
        tensor([5.], dtype=torch.float64)
    """

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        self.theta = vectors.base.clone()
        self.gradient = torch.zeros_like(self.theta)
        self.reached: set[str] = set()
        gradients = vectors.views(self.gradient)
        self._leaves = {name: view.data.requires_grad_() for name, view in vectors.views(self.theta).items()}
        self.tensors = with_ties(vectors, self._leaves)
        for name, leaf in self._leaves.items():
            leaf.grad = gradients[name]
            leaf.register_post_accumulate_grad_hook(partial(self._reach, name))  # type: ignore[no-untyped-call]

    def merge(self, coefficients: Float[Tensor, "N *T"]) -> None:
        """Makes θ that of these coefficients, and forgets the gradient."""
        with torch.no_grad():
            self.vectors.merged(coefficients, out=self.theta)
            self.gradient.zero_()

    def backward(self, loss: Float[Tensor, ""], who: str = "the network") -> None:
        """Adds the gradient of a loss; no other tensor that the loss depends on is given one.

        Args:
            loss: of the network's outputs.
            who: the network, for messages.

        Raises:
            BadInput: as ``run_backward``.
        """
        run_backward(loss, self._leaves.values(), who)

    def gradient_of_coefficients(self, level: Level) -> Float[Tensor, "N *T"]:
        """∂L/∂λ_i = ⟨∂L/∂θ, τ_i⟩, summed over all backward passes since the last ``merge``; float64."""
        return self.vectors.gradient(self.gradient, level)

    def _reach(self, name: str, _: Tensor) -> None:
        self.reached.add(name)


def with_ties(vectors: Vectors, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The merged tensors also under the names that are tied to theirs."""
    return {**tensors, **{other: tensors[name] for other, name in vectors.ties.items() if name in tensors}}


def run_backward(loss: Float[Tensor, ""], leaves: Iterable[Tensor], who: str) -> None:
    """Gradients of a loss for leaves, and for nothing else.

    Raises:
        BadInput: the loss depends on none of them, or on a reentrant checkpoint.
    """
    if not loss.requires_grad:
        raise BadInput(
            f"no output of {who} depends on a tensor that is merged. Does it run under no_grad, or does own= "
            "leave nothing to merge?"
        )
    if any(node.name() == "CheckpointFunctionBackward" for node in _nodes(loss)):
        raise BadInput(
            f"{who} is checkpointed with use_reentrant=True, which gives no gradient to chosen tensors alone. "
            "Give torch.utils.checkpoint use_reentrant=False there."
        )
    torch.autograd.backward(loss, inputs=list(leaves))


def _nodes(loss: Tensor) -> Iterator[Any]:
    """The graph behind a loss."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            yield node
