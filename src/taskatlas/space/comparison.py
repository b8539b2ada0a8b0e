"""How much probe is enough: the covariance from fewer samples against the covariance from all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.probe import Features, check_same_samples
from taskatlas.space.kernels import Kernel, find_kernel
from taskatlas.space.mapping import KernelName
from taskatlas.space.samples import SampleSubset


@dataclass(frozen=True, eq=False)
class ProbeGrowth:
    """Distance of the covariance at growing numbers of samples from the covariance on the whole probe.

    Rows are sizes, columns are repeats with other samples. ``identity_*`` is the same for "all tasks are unrelated".
    """

    sizes: tuple[int, ...]
    divergence: Float[np.ndarray, "sizes repeats"]  # KL(full ‖ fewer), nats
    cosine: Float[np.ndarray, "sizes repeats"]
    identity_divergence: float  # KL(full ‖ identity), nats
    identity_cosine: float

    def __repr__(self) -> str:
        pairs = zip(self.sizes, np.median(self.divergence, axis=1), strict=True)
        return "ProbeGrowth(" + ", ".join(f"{size}: {nats:.3g} nats" for size, nats in pairs) + ")"

    def plot(self, ax: Any = None) -> Any:
        """Draws the divergence over the number of samples, with the spread over repeats; returns the axes."""
        from taskatlas.space.drawing import draw_growth

        return draw_growth(self, ax)


def gaussian_kl(S0: Float[np.ndarray, "m m"], S1: Float[np.ndarray, "m m"]) -> float:
    """KL(N(0, S0) ‖ N(0, S1)) = ½ [tr(S1⁻¹ S0) - m + ln|S1| - ln|S0|], in nats.

    Raises:
        BadInput: a matrix is not positive definite.

    Example:
        >>> round(gaussian_kl(np.eye(2), 2 * np.eye(2)), 6)
        0.193147
    """
    try:
        logs = [2 * np.log(np.diagonal(np.linalg.cholesky(S))).sum() for S in (S0, S1)]
    except np.linalg.LinAlgError as error:
        raise BadInput(
            "a covariance is singular or indefinite: its divergence is infinite. Use more samples or drop duplicates."
        ) from error
    return float(0.5 * (np.trace(np.linalg.solve(S1, S0)) - len(S0) + logs[1] - logs[0]))


def matrix_cosine(S0: Float[np.ndarray, "m m"], S1: Float[np.ndarray, "m m"]) -> float:
    """Cosine of two matrices as vectors: 1 for equal ones up to scale.

    Example:
        >>> matrix_cosine(np.eye(2), 3 * np.eye(2))
        1.0
    """
    return float(np.vdot(S0, S1) / np.sqrt(np.vdot(S0, S0) * np.vdot(S1, S1)))


def probe_growth(
    features: Sequence[Features],
    sizes: Sequence[int] | None = None,
    *,
    kernel: KernelName | Kernel = "cka",
    repeats: int = 5,
    seed: int = 0,
) -> ProbeGrowth:
    """Compares the covariance on growing parts of a probe with the covariance on all of it.

    Args:
        features: of every checkpoint on one probe of n samples, as ``extract`` returns them.
        sizes: numbers of samples, each at most n; None takes n/32, n/16, … n/2.
        kernel: as in ``map_tasks``.
        repeats: draws of samples, without replacement, for each size.
        seed: of the draws.

    Raises:
        BadInput: sizes out of range, or a covariance that is singular (too few samples, duplicates).
    """
    if not features:
        raise BadInput("there are no features to compare; give at least one checkpoint's.")
    check_same_samples(features)
    features = sorted(features, key=lambda one: one.checkpoint)
    n = features[0].values.shape[0]
    sizes = tuple(sizes) if sizes is not None else tuple(n // part for part in (32, 16, 8, 4, 2) if n // part >= 8)
    if not sizes or min(sizes) < 4 or max(sizes) > n:
        raise BadInput(f"sizes must lie between 4 and the probe's {n} samples; got {list(sizes)}.")
    function, _ = find_kernel(kernel)
    full = function([one.values for one in features], None)
    divergence = np.empty((len(sizes), repeats))
    cosine = np.empty((len(sizes), repeats))
    rounds = [(row, column) for row in range(len(sizes)) for column in range(repeats)]
    for row, column in track(rounds, "growing the probe"):
        draw = np.random.default_rng([seed, row, column])
        rows = np.sort(draw.choice(n, size=sizes[row], replace=False))
        part = function([SampleSubset(one.values, rows) for one in features], None)
        divergence[row, column] = gaussian_kl(full, part)
        cosine[row, column] = matrix_cosine(full, part)
    identity = np.eye(len(features))
    return ProbeGrowth(sizes, divergence, cosine, gaussian_kl(full, identity), matrix_cosine(full, identity))
