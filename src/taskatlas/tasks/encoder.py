"""The network that labels samples: a point on the unit sphere for each, and heads that ask on which side it lies."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from taskatlas.errors import BadInput

_LOOKED_AT = 1024  # samples a pass


class TaskEncoder(nn.Module):
    """h = normalise((f(x) − μ) / σ), with μ and σ those of f's outputs on samples.

    While it learns, each batch has its own μ and σ, so that tasks stay balanced: with any others the search can push
    all samples to one point of the sphere, where nothing pulls them apart again. Afterwards ``settle`` takes those of
    all samples, and a sample's label depends on that sample alone. What normalises by batch within the network keeps
    the statistics that it has.

    Args:
        network: f, samples (n, ...) to (n, d).
        samples: what μ and σ are measured on.

    Raises:
        BadInput: the network gives other than finite vectors, or the same for all samples.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, samples: Shaped[Tensor, "n *rest"]) -> None:
        super().__init__()
        self.network = network.eval()
        found = self._outputs(samples)
        if not found.isfinite().all() or float(found.std(0).max()) == 0:
            raise BadInput("the encoder's outputs are constant or not finite before training. Scale the samples.")
        self.register_buffer("mean", found.mean(0))
        self.register_buffer("scale", _scale(found))

    def train(self, mode: bool = True) -> "TaskEncoder":  # noqa: ARG002
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, x: Shaped[Tensor, "n *rest"]) -> Float[Tensor, "n d"]:
        """Points on the unit sphere."""
        return nn.functional.normalize((self.network(x) - self.mean) / self.scale, dim=-1)

    def of_batch(self, x: Shaped[Tensor, "n *rest"]) -> Float[Tensor, "n d"]:
        """Points with the batch's own μ and σ, which the gradient goes through."""
        found = self.network(x)
        return nn.functional.normalize((found - found.mean(0)) / _scale(found), dim=-1)

    @torch.no_grad()
    def settle(self, samples: Shaped[Tensor, "n *rest"]) -> None:
        """Takes μ and σ of samples, from now on."""
        found = self._outputs(samples)
        self.mean.copy_(found.mean(0))
        self.scale.copy_(_scale(found))

    @torch.no_grad()
    def embed(self, x: Shaped[Tensor, "n *rest"]) -> Float[Tensor, "n d"]:
        """``forward`` without gradients, some samples at a time."""
        return torch.cat([self(part) for part in torch.split(x, _LOOKED_AT)])

    @torch.no_grad()
    def _outputs(self, samples: Tensor) -> Tensor:
        return torch.cat([self.network(part) for part in torch.split(samples, _LOOKED_AT)])


def _scale(outputs: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Deviations; of an output that is constant, a small number in place of zero."""
    scale = outputs.std(0)
    return scale.clamp(min=1e-6 * float(scale.max().detach()) + 1e-12)


def soft_labels(
    h: Float[Tensor, "n d"], heads: Float[Tensor, "tasks classes d"], temperature: float
) -> Float[Tensor, "tasks n classes"]:
    """Probabilities of each task's classes: softmax of ``temperature`` times the products with its head's corners.

    For two classes the head is [w, −w] (Atanov et al., NeurIPS 2022, section 3.4). Higher is harder.

    Example:
        >>> soft_labels(torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), 5.0).argmax(-1)
        tensor([[0]])
    """
    return (temperature * torch.einsum("nd,tcd->tnc", h, heads)).softmax(-1)
