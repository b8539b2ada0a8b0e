"""What keeps discovered tasks apart: an embedding spread over the sphere, or little mutual information between them."""

import torch
from jaxtyping import Float
from torch import Tensor

_SHARPNESS = 2.0  # t of the Gaussian potential


def uniformity(h: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Ln mean_{i<j} exp(−t ‖ĥ_i − ĥ_j‖²) + 4t with t = 2, for rows on the unit sphere: 8 for one point, falling to 0.

    Wang and Isola (ICML 2020), as Atanov et al. (NeurIPS 2022, section 3.4) use it: on a sphere that is filled evenly,
    orthogonal directions divide the samples in halves that have nothing to do with each other.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item()
        0.0
    """
    cosines = h @ h.T
    upper = torch.triu_indices(len(h), len(h), 1, device=h.device)
    squared = 2 - 2 * cosines[upper[0], upper[1]]
    return (-_SHARPNESS * squared).logsumexp(0) - torch.tensor(float(len(squared))).log() + 4 * _SHARPNESS


def pairwise_information(labels: Float[Tensor, "tasks n classes"]) -> Float[Tensor, ""]:
    """Mean mutual information between soft tasks, plus what their classes lack of the largest entropy, in nats.

    A sample's classes in two tasks are drawn apart, so the joint table of two tasks is the mean over samples of the
    outer product of their labels. 0 for balanced tasks that know nothing of each other; without its second term
    constant tasks would have none either.

    Example:
        >>> pairwise_information(torch.eye(2).repeat(2, 1, 1)[..., :2]).item() > 0.69
        True
    """
    tasks, n, classes = labels.shape
    rates = labels.mean(1)
    lacking = torch.tensor(float(classes)).log() - _entropy(rates).mean()
    if tasks == 1:
        return lacking
    joint = torch.einsum("anc,bnd->abcd", labels, labels) / n
    information = _entropy(rates)[:, None] + _entropy(rates)[None] - _entropy(joint.flatten(2))
    upper = torch.triu_indices(tasks, tasks, 1, device=labels.device)
    return information[upper[0], upper[1]].mean() + lacking


def information_with(
    labels: Float[Tensor, "tasks n classes"], known: Float[Tensor, "known n others"]
) -> Float[Tensor, ""]:
    """Mean over tasks of the largest mutual information with a known task, in nats.

    Example:
        >>> one = torch.eye(2)[None]
        >>> information_with(one, one).item() > 0.69
        True
    """
    joint = torch.einsum("anc,bnd->abcd", labels, known) / labels.shape[1]
    information = _entropy(labels.mean(1))[:, None] + _entropy(known.mean(1))[None] - _entropy(joint.flatten(2))
    return information.amax(1).mean()


def _entropy(probs: Float[Tensor, "*shape classes"]) -> Float[Tensor, "*shape"]:
    return torch.special.entr(probs.clamp(min=1e-12)).sum(-1)
