"""Imprinting: a network trained on one label set predicts another, by the distance to each class's mean feature.

The prototype μ_k is the mean feature of class k on an imprinting set, and p(k | x) = softmax_k(-‖φ(x) - μ_k‖² / T)
(Ramesh et al., ICML 2023, section 2); with cosine similarity, softmax_k(cos(φ(x), μ_k) / T). Predictions on the samples
that made the prototypes flatter the network, so here a sample's own feature is left out of its class's mean, unless
other samples are predicted.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Real
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.simplex import Array, Labels, as_tensor, check_labels, like

Similarity = Literal["euclidean", "cosine"]


def prototypes(features: Real[Array, "samples width"], labels: Labels, classes: int) -> Float[Array, "classes width"]:
    """Mean feature of each class.

    Raises:
        BadInput: a class without samples (0/0), a label out of range, or features that are not finite.

    Example:
        >>> prototypes(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[1.],
                [5.]])
    """
    sums, counts, _, _ = _class_sums(features, labels, classes)
    return like(sums / counts[:, None], features)


def imprint(
    features: Real[Array, "samples width"],
    labels: Labels,
    query: Real[Array, "others _"] | None = None,
    *,
    classes: int | None = None,
    temperature: float | int = 1,
    similarity: Similarity = "euclidean",
    held_out: bool = True,
) -> Float[Array, "predicted classes"]:
    """Log-probabilities of the imprinted classes.

    Args:
        features: of the imprinting set.
        labels: its classes.
        query: features of other samples to predict; without them the imprinting set itself is predicted.
        classes: how many; one more than the largest label where it is not said.
        temperature: what squared distances, or cosines, are divided by, before the softmax.
        similarity: ``"euclidean"`` (minus squared distance) or ``"cosine"``.
        held_out: predict each sample of the imprinting set from prototypes without it (leave-one-out); False, as
            published, uses it for both. No matter where there is a ``query``.

    Returns:
        (samples or others, classes) log-probabilities, in the precision of ``features``.

    Raises:
        BadInput: no samples; a class without samples, or with one that would have to be held out; a label out of range;
            features that are not finite or of another width; a temperature that is not finite and above 0.

    Example:
        >>> features, labels = torch.tensor([[0.0], [2.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 1])
        >>> imprint(features, labels, torch.tensor([[1.0]])).exp().round(decimals=3)
        tensor([[1., 0.]])
    """
    check_temperature(temperature)
    if similarity not in ("euclidean", "cosine"):
        raise BadInput(f"there is no similarity {similarity!r}. Choose euclidean or cosine.")
    if not len(labels):
        raise BadInput("the imprinting set is empty. Give labelled samples of every class.")
    number = int(labels.max()) + 1 if classes is None else classes
    sums, counts, points, found = _class_sums(features, labels, number)
    means = sums / counts[:, None]
    if query is not None:
        points = _checked_features(query)
        if points.shape[1:] != means.shape[1:]:
            raise BadInput(f"features of width {points.shape[1]} do not fit prototypes of width {means.shape[1]}.")
    scores = _scores(points, means, similarity)
    if query is None and held_out:
        _check_two_each(counts)
        rows = torch.arange(len(points), device=points.device)
        own = (sums[found] - points) / (counts[found] - 1)[:, None]
        scores[rows, found] = _own_scores(points, own, similarity)
    return like(torch.log_softmax(scores / temperature, -1), features)


def check_temperature(temperature: float | int) -> None:
    """Refuses a temperature that no score can be divided by.

    Raises:
        BadInput: it is not finite, or not above 0.
    """
    if not 0 < temperature < math.inf:
        raise BadInput(f"the temperature is {temperature}; it is finite and above 0.")


def _class_sums(features: Array, labels: Labels, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of each class's features, how many there are, all features and all labels."""
    points = _checked_features(features)
    found = check_labels(labels, len(points), classes).to(points.device)
    counts = torch.bincount(found, minlength=classes)
    if bool((counts == 0).any()):
        empty = int((counts == 0).nonzero()[0, 0])
        raise BadInput(
            f"class {empty} has no sample in the imprinting set, so it has no prototype. Add samples, or number the "
            "classes anew without it."
        )
    sums = points.new_zeros(classes, points.shape[1]).index_add_(0, found, points)
    return sums, counts.double(), points, found


def _checked_features(features: Array) -> Tensor:
    points = as_tensor(features).double()
    if points.ndim != 2 or 0 in points.shape:
        raise BadInput(f"features have the shape (samples, width), not {tuple(points.shape)}.")
    finite = torch.isfinite(points).all(-1)
    if not bool(finite.all()):
        raise BadInput(f"sample {int((~finite).nonzero()[0, 0])} has a feature that is NaN or infinite.")
    return points


def _check_two_each(counts: Tensor) -> None:
    if bool((counts < 2).any()):
        alone = int((counts < 2).nonzero()[0, 0])
        raise BadInput(
            f"class {alone} has a single sample: with it held out nothing is left of the class. Give more samples, "
            "give others to predict, or say held_out=False."
        )


def _scores(points: Tensor, means: Tensor, similarity: Similarity) -> Tensor:
    if similarity == "cosine":
        return torch.nn.functional.normalize(points, dim=-1) @ torch.nn.functional.normalize(means, dim=-1).T
    return -torch.cdist(points, means, compute_mode="donot_use_mm_for_euclid_dist").square()


def _own_scores(points: Tensor, own: Tensor, similarity: Similarity) -> Tensor:
    if similarity == "cosine":
        return torch.nn.functional.cosine_similarity(points, own, dim=-1)
    return -(points - own).square().sum(-1)
