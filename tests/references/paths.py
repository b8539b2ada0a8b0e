"""References for paths in prediction space: every definition written out in float64, with no care for speed."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar


def bhattacharyya(P: np.ndarray, Q: np.ndarray, floor: float = 1e-6) -> np.ndarray:
    """d(P, Q) = -mean_n ln max(sum_c sqrt(p q), floor), in three nested loops: (M, N, C), (K, N, C) -> (M, K)."""
    D = np.zeros((len(P), len(Q)))
    for i, p in enumerate(P):
        for j, q in enumerate(Q):
            for n in range(len(p)):
                coefficient = math.fsum(math.sqrt(a * b) for a, b in zip(p[n], q[n], strict=True))
                D[i, j] -= math.log(max(coefficient, floor))
    return D / P.shape[1]


def hellinger(P: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """1 - mean_n sum_c sqrt(p q)."""
    D = np.zeros((len(P), len(Q)))
    for i, p in enumerate(P):
        for j, q in enumerate(Q):
            for n in range(len(p)):
                D[i, j] += 1 - math.fsum(math.sqrt(a * b) for a, b in zip(p[n], q[n], strict=True))
    return D / P.shape[1]


def symmetric_kl(P: np.ndarray, Q: np.ndarray, smallest: float = 1e-12) -> np.ndarray:
    """mean_n (KL(p, q) + KL(q, p)) / 2, probabilities raised to the smallest one."""
    D = np.zeros((len(P), len(Q)))
    for i, p in enumerate(P):
        for j, q in enumerate(Q):
            for n in range(len(p)):
                for a, b in zip(np.maximum(p[n], smallest), np.maximum(q[n], smallest), strict=True):
                    D[i, j] += (a * math.log(a / b) + b * math.log(b / a)) / 2
    return D / P.shape[1]


def inpca(D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed eigenvalues by magnitude, and coordinates, of -1/2 J D J (Quinn et al., 2019)."""
    J = np.eye(len(D)) - 1 / len(D)
    values, vectors = np.linalg.eigh(-0.5 * J @ D @ J)
    order = np.argsort(-np.abs(values))
    return values[order], vectors[:, order] * np.sqrt(np.abs(values[order]))


def geodesic(p: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    """Square roots on the great circle of each sample, with the textbook arccos: (N, C), (N, C) -> (N, C)."""
    points = np.zeros_like(p)
    for n in range(len(p)):
        a, b = np.sqrt(p[n]), np.sqrt(q[n])
        theta = math.acos(min(1.0, float(a @ b)))
        points[n] = a if theta < 1e-7 else (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)
    return points


def progress(P: np.ndarray, labels: Sequence[int], floor: float = 1e-6) -> float:
    """argmin_t d(geodesic_t, P) from ignorance to the truth: a grid, the best cell refined, the ends tested."""
    N, C = P.shape
    ignorance, truth = np.full((N, C), 1 / C), np.eye(C)[np.asarray(labels)]

    def distance(t: float) -> float:
        return float(bhattacharyya(geodesic(ignorance, truth, t)[None] ** 2, P[None], floor)[0, 0])

    grid = np.linspace(0, 1, 51)
    best = int(np.argmin([distance(t) for t in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 50)]
    inside = minimize_scalar(distance, bounds=(low, high), method="bounded", options={"xatol": 1e-9}).x
    return min([0.0, 1.0, float(inside)], key=distance)


def path_length(P: np.ndarray) -> float:
    """Sum over steps of 2 sqrt(mean_n θ_n²), θ_n by arccos."""
    total = 0.0
    for p, q in itertools.pairwise(P):
        squares = [math.acos(min(1.0, float(np.sqrt(a) @ np.sqrt(b)))) ** 2 for a, b in zip(p, q, strict=True)]
        total += 2 * math.sqrt(sum(squares) / len(squares))
    return total


def published_length(P: np.ndarray) -> float:
    """√8 Σ √d between neighbours."""
    return sum(math.sqrt(8 * bhattacharyya(p[None], q[None])[0, 0]) for p, q in itertools.pairwise(P))


def imprint(features: np.ndarray, labels: np.ndarray, classes: int, temperature: float) -> np.ndarray:
    """Leave-one-out softmax of minus squared distance to class means, sample by sample."""
    result = np.zeros((len(features), classes))
    for i, x in enumerate(features):
        keep = np.arange(len(features)) != i
        scores = [-((x - features[keep & (labels == k)].mean(0)) ** 2).sum() / temperature for k in range(classes)]
        result[i] = np.exp(np.array(scores) - max(scores))
        result[i] /= result[i].sum()
    return result


def resampled_map(P: Sequence[np.ndarray], times: Sequence[int]) -> np.ndarray:
    """Eigenvalues of the map in which each run's predictions stand as often as it was drawn."""
    drawn = np.concatenate([run for run, count in zip(P, times, strict=True) for _ in range(count)])
    return inpca(bhattacharyya(drawn, drawn))[0]


def mean_of_drawn(values: Sequence[float], times: Sequence[int]) -> float:
    """The mean of values that stand as often as they were drawn."""
    drawn = [value for value, count in zip(values, times, strict=True) for _ in range(count)]
    return sum(drawn) / len(drawn)
