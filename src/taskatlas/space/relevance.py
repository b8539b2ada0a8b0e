"""How promising frozen features are for a labelled target, and a ranking that is relevant and not redundant.

Three published scores without training a head: LogME (You et al., ICML 2021), LEEP (Nguyen et al., ICML 2020) and the
H-score (Bao et al., ICIP 2019). Larger is better for all three; they are not comparable with one another.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from taskatlas.errors import BadInput
from taskatlas.space.selection import Selection, Step
from taskatlas.space.task_space import TaskSpace

_GRID = 151  # points over 75 units of ln(β/α), so that no second maximum hides between two


def log_me(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> float:
    """LogME: the log evidence per sample, in nats, of a Bayesian linear model, mean over one-against-rest targets.

    The evidence p(y | F) = ∫ p(y | F, w, β) p(w | α) dw is maximised over α and β in the singular basis of F (You et
    al., section 4); infinite where the features give a class's targets exactly with fewer dimensions than samples.

    Args:
        features: one row a sample.
        labels: a class for each sample, at least two classes.

    Raises:
        BadInput: shapes that do not fit, one class only, or values that are not finite.
    """
    features, classes, members = _checked(features, labels)
    n = len(features)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    squared = singular**2
    targets = (members == np.arange(len(classes))[:, None]).astype(np.float64)  # (classes, n)
    projected = targets @ left  # (classes, rank)
    outside = np.maximum((targets**2).sum(axis=1) - (projected**2).sum(axis=1), 0.0)
    evidence = [_max_evidence(squared, projected[c] ** 2, outside[c], n) for c in range(len(classes))]
    return float(np.mean(evidence) / n)


def h_score(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> float:
    """H-score tr(cov(F)⁺ cov(E[F | y])): between-class variance in units of the total; at most the number of features.

    Args:
        features: one row a sample.
        labels: a class for each sample, at least two classes.

    Raises:
        BadInput: shapes that do not fit, one class only, or values that are not finite.

    Example:
        >>> round(h_score(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])), 9)
        1.0
    """
    features, classes, members = _checked(features, labels)
    centred = features - features.mean(axis=0)
    means = np.stack([centred[members == c].mean(axis=0) for c in range(len(classes))])
    share = np.bincount(members, minlength=len(classes)) / len(members)
    between = (means * share[:, None]).T @ means
    total = centred.T @ centred / len(members)
    return float(np.trace(np.linalg.pinv(total, rcond=1e-10, hermitian=True) @ between))


def leep(probabilities: Float[np.ndarray, "n source"], labels: Int[np.ndarray, " n"]) -> float:
    """LEEP: mean log-likelihood, in nats, of the labels under the source model's own classes as go-betweens.

    With P̂(y | z) the empirical conditional of target label on source class, mean_i ln Σ_z P̂(y_i | z) p_iz (Nguyen et
    al., equation 2). At most 0.

    Args:
        probabilities: the source model's predictions, rows that sum to one.
        labels: the target's class for each sample.

    Raises:
        BadInput: shapes that do not fit, one class only, or rows that are no probabilities.

    Example:
        >>> leep(np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
        0.0
    """
    probabilities, classes, members = _checked(probabilities, labels)
    if (probabilities < 0).any() or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-4:
        raise BadInput("LEEP needs probabilities: rows that are not negative and sum to one. Apply softmax first.")
    joint = np.stack([probabilities[members == c].sum(axis=0) for c in range(len(classes))]) / len(members)
    source = joint.sum(axis=0)
    conditional = np.divide(joint, source, out=np.zeros_like(joint), where=source > 0)
    likelihood = (conditional[members] * probabilities).sum(axis=1)
    return float(np.log(likelihood).mean())


def rank_for_target(space: TaskSpace, relevance: Mapping[str, float], k: int, *, balance: float = 1.0) -> Selection:
    """Ranks checkpoints for one target: relevant to it, and not redundant among themselves.

    Greedy maximum of ln det of the kernel q_i Σ_ij q_j (a quality and diversity decomposition: Kulesza and Taskar,
    2012, section 3.1) with quality q_i = exp(balance · z_i / 2), z the standardised relevance. A step gains
    ½ [balance · z_y + ln var(y | picked)].

    Args:
        space: the covariance of the checkpoints' tasks.
        relevance: a score for every checkpoint, larger is better: ``log_me``, ``h_score``, ``leep``, an accuracy.
        k: how many to pick.
        balance: 0 looks at diversity alone; the larger, the more relevance counts.

    Returns:
        A ``Selection`` whose gains are in nats of the formula above.

    Raises:
        BadInput: a checkpoint without a score, scores that are not finite, or k out of range.

    Example:
        >>> space = TaskSpace(("a", "b", "c"), np.array([[1, 0.99, 0.1], [0.99, 1, 0.1], [0.1, 0.1, 1]]))
        >>> rank_for_target(space, {"a": 0.9, "b": 0.89, "c": 0.5}, 2).names
        ('a', 'c')
    """
    missing = [name for name in space.names if name not in relevance]
    if missing:
        raise BadInput(f"there is no score for {missing[0]!r} ({len(missing)} missing). Score every checkpoint first.")
    if not 1 <= k <= len(space):
        raise BadInput(f"k is {k}, but the task space holds {len(space)} checkpoints. Choose k from 1 to {len(space)}.")
    names = sorted(space.names)
    covariance = space.subset(names).covariance
    scores = np.array([relevance[name] for name in names], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise BadInput(f"the score of {names[int(np.argmin(np.isfinite(scores)))]!r} is not finite.")
    spread = scores.std()
    quality = balance * (scores - scores.mean()) / spread if spread > 0 else np.zeros(len(names))
    conditional = covariance.astype(np.float64).copy()
    steps: list[Step] = []
    open_positions = list(range(len(names)))
    total = 0.0
    while len(steps) < k:
        variances = np.maximum(np.diagonal(conditional), 1e-12)  # a duplicate loses to anything, and comes last
        gains = 0.5 * (quality + np.log(variances))
        ranked = sorted(open_positions, key=lambda y: (-round(float(gains[y]), 12), y))
        best = ranked[0]
        total += float(gains[best])
        second = ranked[1] if len(ranked) > 1 else None
        steps.append(
            Step(
                names[best],
                float(gains[best]),
                total,
                None if second is None else names[second],
                None if second is None else float(gains[best] - gains[second]),
            )
        )
        open_positions.remove(best)
        conditional -= np.outer(conditional[:, best], conditional[best] / variances[best])
    return Selection(tuple(step.picked for step in steps), tuple(steps), method="relevance", space=space.digest)


def _checked(
    features: np.ndarray, labels: np.ndarray
) -> tuple[Float[np.ndarray, "n d"], np.ndarray, Int[np.ndarray, " n"]]:
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != (len(features),):
        raise BadInput(f"features of shape {features.shape} and labels of shape {labels.shape} do not fit.")
    if not np.isfinite(features).all():
        raise BadInput(f"the features of sample {int(np.argwhere(~np.isfinite(features))[0][0])} are not finite.")
    classes, members = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise BadInput("all labels are the same; a target needs at least two classes.")
    return features, classes, members


def _max_evidence(
    squared: Float[np.ndarray, " rank"], projected: Float[np.ndarray, " rank"], outside: float, n: int
) -> float:
    """Largest log evidence of one target, whose squared coordinates in the left singular basis are ``projected``.

    The target's coordinates are independent with variances s (1 + t λ), s = 1/β and t = β/α. For given t the best s is
    a mean, so that one search over ln t remains; it finds the maximum to which the fixed point of the paper converges,
    and also where that runs off to infinity (features that say nothing, or everything).
    """
    from scipy.optimize import minimize_scalar

    largest = float(squared.max(initial=0.0))
    reached = squared > 1e-20 * largest
    outside += float(projected[~reached].sum())
    squared, projected = squared[reached] / (largest or 1.0), projected[reached]
    if len(squared) < n and outside <= 1e-12 * (outside + float(projected.sum())):
        return np.inf

    def negative(log_ratio: float) -> float:
        spread = 1 + np.exp(log_ratio) * squared
        variance = (float((projected / spread).sum()) + outside) / n
        if variance <= 0:
            return -np.inf
        return 0.5 * (n * (np.log(2 * np.pi * variance) + 1) + float(np.log(spread).sum()))

    grid = np.linspace(-30, 45, _GRID)
    heights = [negative(point) for point in grid]
    best = int(np.argmin(heights))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    found = minimize_scalar(negative, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return -min(float(found.fun), heights[best])
