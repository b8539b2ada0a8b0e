"""References for matching features: the rules written out, with no care for speed."""

import itertools
import math
from collections.abc import Sequence

import numpy as np


def correlation(covariance: np.ndarray) -> np.ndarray:
    """cov_ij / sqrt(cov_ii cov_jj), 0 where a feature is constant, in two nested loops."""
    found = np.zeros_like(covariance, dtype=np.float64)
    for i, j in itertools.product(range(len(covariance)), repeat=2):
        variances = float(covariance[i, i]) * float(covariance[j, j])
        if variances > 0:
            found[i, j] = 1.0 if i == j else float(covariance[i, j]) / math.sqrt(variances)
    return found


def covariance(features: list[np.ndarray]) -> np.ndarray:
    """Two passes: the mean, then sums of products about it."""
    x = np.concatenate([values.astype(np.float64) for values in features], axis=1)
    centred = x - x.mean(axis=0)
    found = np.zeros((x.shape[1], x.shape[1]))
    for row in centred:
        found += np.outer(row, row)
    return found / len(x)


def greedy_zip(similarity: np.ndarray, widths: Sequence[int], a: float, b: float) -> np.ndarray:
    """The greedy loop on a list of clusters: look at every pair, join the best, start again. A place each feature."""
    total, n_models = len(similarity), len(widths)
    width = max(widths)
    owner = [model for model, features in enumerate(widths) for _ in range(features)]
    clusters = [[feature] for feature in range(total)]
    s = {(i, j): similarity[i, j] for i in range(total) for j in range(total)}  # by first members
    budget = [max(1, math.floor((total - width) / n_models * b + 1e-9)) if b > 0 else 0 for _ in range(n_models)]

    def owners(cluster):
        return {owner[feature] for feature in cluster}

    while len(clusters) > width:
        best = None
        for one, other in itertools.combinations(clusters, 2):
            shared = owners(one) & owners(other)
            if any(budget[model] == 0 for model in shared):
                continue
            if best is None or s[one[0], other[0]] > s[best[0][0], best[1][0]]:
                best = (one, other)
        if best is None:
            budget = [total] * n_models
            continue
        one, other = best
        sharp = s[one[0], other[0]] >= 1
        for model in owners(one) & owners(other):
            budget[model] -= 1
        for rest in clusters:
            smaller = min(s[one[0], rest[0]], s[other[0], rest[0]])
            new = smaller if sharp or smaller < 0 else smaller.dtype.type(a) * smaller
            if rest is not one:
                s[one[0], rest[0]] = s[rest[0], one[0]] = new
        clusters = [[*cluster, *other] if cluster is one else cluster for cluster in clusters if cluster is not other]
    places = np.empty(total, dtype=int)
    for place, cluster in enumerate(clusters):
        places[cluster] = place
    return places


def best_permutations(similarity: np.ndarray, n_models: int) -> float:
    """The largest sum of similarities at one place over all pairs of models, by trying every permutation."""
    width = len(similarity) // n_models
    first = tuple(range(width))
    best = -np.inf
    for orders in itertools.product(itertools.permutations(range(width)), repeat=n_models - 1):
        total = 0.0
        for (p, one), (q, other) in itertools.combinations(enumerate((first, *orders)), 2):
            total += sum(similarity[p * width + i, q * width + j] for i, j in zip(one, other, strict=True))
        best = max(best, total)
    return best


def patch_products(
    x: np.ndarray, y: np.ndarray, kernel: tuple[int, int], padding: tuple[int, int], groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every patch of every image cut out of the padded image, a 1 added, and its outer products summed."""
    images, channels = x.shape[:2]
    padded = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    each, outputs = channels // groups, y.shape[1] // groups
    unknowns = each * kernel[0] * kernel[1] + 1
    normal, right = np.zeros((groups, unknowns, unknowns)), np.zeros((groups, unknowns, outputs))
    for image, group, row, column in itertools.product(range(images), range(groups), *map(range, y.shape[2:])):
        own = padded[image, group * each : (group + 1) * each, row : row + kernel[0], column : column + kernel[1]]
        patch = np.append(own.ravel(), 1.0)
        normal[group] += np.outer(patch, patch)
        right[group] += np.outer(patch, y[image, group * outputs : (group + 1) * outputs, row, column])
    return normal, right
