"""The laws of the room of paths: what every divergence between models must hold to.

A divergence is one row: its function and what it declares. The check draws its models from a seed, tries every law that
the row declares, and raises an AssertionError that names the divergence, the law and the values that break it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from taskatlas.paths.bhattacharyya import bhattacharyya
from taskatlas.paths.hellinger import hellinger
from taskatlas.paths.symmetric_kl import symmetric_kl

_MODELS, _SAMPLES, _CLASSES = 7, 13, 4


@dataclass(frozen=True)
class DivergenceLaws:
    """A divergence, called as ``function(probs)`` and ``function(probs, others, weights=)``, and what it declares.

    Example:
        >>> def accuracy_gap(probs, others=None, weights=None):
        ...     first = probs.max(-1).mean(-1)
        ...     second = first if others is None else others.max(-1).mean(-1)
        ...     return first[:, None] - second
        >>> check_divergence(DivergenceLaws("accuracy_gap", accuracy_gap))
        Traceback (most recent call last):
            ...
        AssertionError: accuracy_gap breaks the law 'symmetric' with seed 0: ...
    """

    name: str
    function: Callable[..., Any]
    symmetric: bool = True  # d(P, Q) = d(Q, P)
    zero_on_itself: bool = True  # d(P, P) = 0, exactly
    never_negative: bool = True
    finite_when_disjoint: bool = True  # also where one model rules out what the other is sure of
    sample_order: bool = True  # the same when all models see the samples in another order
    class_order: bool = True  # the same when the classes are renamed
    mean_over_samples: bool = True  # a sample seen twice weighs as much as one of weight two
    cross: bool = True  # d(P, Q) is the block of d(P and Q together)
    root_is_metric: bool = False  # its square root keeps the triangle inequality
    tolerance: float = 1e-10


DIVERGENCE_LAWS: tuple[DivergenceLaws, ...] = (
    DivergenceLaws("bhattacharyya", bhattacharyya),
    DivergenceLaws("hellinger", hellinger, root_is_metric=True),
    DivergenceLaws("symmetric_kl", symmetric_kl),
)


def check_divergence(laws: DivergenceLaws, seed: int = 0) -> None:
    """Tries every law that a divergence declares, on models drawn from the seed.

    Raises:
        AssertionError: names the divergence, the law, the seed and the values.

    Example:
        >>> check_divergence(DIVERGENCE_LAWS[0])
    """

    def broken(law: str, found: object) -> NoReturn:
        raise AssertionError(f"{laws.name} breaks the law {law!r} with seed {seed}: {found}")

    def same(law: str, found: np.ndarray, expected: np.ndarray) -> None:
        off = float(np.abs(found - expected).max())
        if not off <= laws.tolerance * max(1.0, float(np.abs(expected).max())):
            broken(law, f"values differ by {off:.3g}")

    d = laws.function
    random = np.random.default_rng(seed)
    sharpness = random.uniform(0.2, 3, size=(_MODELS, 1))
    probs = random.dirichlet(np.ones(_CLASSES), size=(_MODELS, _SAMPLES)) ** sharpness[..., None]
    probs /= probs.sum(-1, keepdims=True)
    distances = np.asarray(d(probs))
    if laws.symmetric and not (distances == distances.T).all():
        broken("symmetric", f"distances and their transpose differ by {np.abs(distances - distances.T).max():.3g}")
    if laws.zero_on_itself and distances.diagonal().any():
        broken("zero_on_itself", f"diagonal {distances.diagonal()}")
    if laws.never_negative and (distances < 0).any():
        broken("never_negative", f"smallest {distances.min():.3g}")
    certain = np.eye(_CLASSES)[(np.arange(_CLASSES)[:, None] + np.arange(_SAMPLES)) % _CLASSES]
    if laws.finite_when_disjoint and not np.isfinite(d(certain)).all():
        broken("finite_when_disjoint", d(certain))
    if laws.sample_order:
        same("sample_order", d(probs[:, random.permutation(_SAMPLES)]), distances)
    if laws.class_order:
        same("class_order", d(probs[..., random.permutation(_CLASSES)]), distances)
    if laws.mean_over_samples:
        times = random.integers(0, 3, _SAMPLES)
        times[0] = 2
        same("mean_over_samples", d(probs, weights=times.astype(float)), d(np.repeat(probs, times, axis=1)))
    if laws.cross:
        same("cross", d(probs[:3], probs[3:]), distances[:3, 3:])
    if laws.root_is_metric:
        roots = np.sqrt(distances)
        detour = (roots[:, :, None] + roots[None]).min(1)
        if (roots > detour + 1e-9).any():
            broken("root_is_metric", f"a detour is shorter by {(roots - detour).max():.3g}")
