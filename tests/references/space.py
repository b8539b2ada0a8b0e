"""References for the task space: every definition written out in float64, with no care for speed."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar

# Candidates whose scores differ by less than this tie; the lowest index wins, whatever the rounding.
TIE = 1e-12


# Kernels


def linear_cka(X: np.ndarray, Y: np.ndarray) -> float:
    """Biased linear CKA of (n, d1) and (n, d2): the cosine of HKH and HLH (Kornblith et al. 2019, eq. 4)."""
    return _centred_alignment(_gram(X), _gram(Y))


def debiased_cka(X: np.ndarray, Y: np.ndarray) -> float:
    """Linear CKA with HSIC_1 in place of HSIC (Nguyen et al. 2021, sec. 2); n at least 4, can be negative."""
    return minibatch_debiased_cka([(X, Y)])


def minibatch_debiased_cka(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Debiased linear CKA of a stream: HSIC_1 summed over batches, one division (Nguyen et al. 2021, sec. 2)."""
    xy = xx = yy = 0.0
    for X, Y in batches:
        K, L = _gram(X), _gram(Y)
        xy += hsic1(K, L)
        xx += hsic1(K, K)
        yy += hsic1(L, L)
    return xy / math.sqrt(xx * yy)


def hsic1(K: np.ndarray, L: np.ndarray) -> float:
    """Unbiased HSIC of two (n, n) Grams (Song et al. 2012), diagonals zeroed."""
    n = len(K)
    K = K - np.diag(np.diag(K))
    L = L - np.diag(np.diag(L))
    one = np.ones(n)
    products = np.trace(K @ L)
    sums = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    paths = 2 / (n - 2) * (one @ K @ L @ one)
    return float((products + sums - paths) / (n * (n - 3)))


def rbf_cka(X: np.ndarray, Y: np.ndarray, fraction: float = 1.0) -> float:
    """Biased CKA, Gaussian kernel; each bandwidth a fraction of the median non-zero distance over i < j."""
    return _centred_alignment(_rbf_gram(X, fraction), _rbf_gram(Y, fraction))


def procrustes_similarity(X: np.ndarray, Y: np.ndarray) -> float:
    """Nuclear norm of X^T Y, both column-centred and of unit Frobenius norm."""
    X, Y = _centred(X), _centred(Y)
    X, Y = X / np.linalg.norm(X), Y / np.linalg.norm(Y)
    return float(np.linalg.svd(X.T @ Y, compute_uv=False).sum())


def mutual_knn(X: np.ndarray, Y: np.ndarray, k: int) -> float:
    """Mean over samples of the share of k nearest neighbours that X and Y have in common."""
    in_x, in_y = _neighbours(X, k), _neighbours(Y, k)
    return float(np.mean([len(a & b) / k for a, b in zip(in_x, in_y, strict=True)]))


# Gaussian-process selection. Each greedy returns the picked indices in order and the gain of each pick.


def conditional_variance(cov: np.ndarray, y: int, given: Sequence[int]) -> float:
    """var(y | given) = cov_yy - cov_yA cov_AA^-1 cov_Ay."""
    given = list(given)
    if not given:
        return float(cov[y, y])
    inner = np.linalg.solve(cov[np.ix_(given, given)], cov[given, y])
    return float(cov[y, y] - cov[y, given] @ inner)


def mutual_information(cov: np.ndarray, picked: Sequence[int]) -> float:
    """I(S; rest) = (ln|cov_S| + ln|cov_rest| - ln|cov|) / 2, in nats."""
    rest = [v for v in range(len(cov)) if v not in picked]
    return (_log_det(cov, picked) + _log_det(cov, rest) - _log_det(cov, range(len(cov)))) / 2


def greedy_mutual_information(
    cov: np.ndarray,
    k: int,
    start: Sequence[int] = (),
    exclude: Sequence[int] = (),
    cost: Sequence[float] | None = None,
) -> tuple[list[int], list[float]]:
    """Greedy max I(S; rest): k picks on top of `start` (Krause et al. 2008, algorithm 1).

    The gain is ln(var(y | A) / var(y | rest without y and A)) / 2, in nats. Excluded tasks are never picked and
    stay in the rest. With `cost` the pick has the largest gain per cost, or where nothing gains the
    smallest loss; the gain returned is the gain itself.
    """

    def gain(picked: list[int], y: int) -> float:
        rest = [v for v in range(len(cov)) if v != y and v not in picked]
        return math.log(conditional_variance(cov, y, picked) / conditional_variance(cov, y, rest)) / 2

    return _greedy(len(cov), k, gain, start, exclude, cost)


def greedy_entropy(cov: np.ndarray, k: int) -> tuple[list[int], list[float]]:
    """Greedy maximum entropy; the gain is ln(2 pi e var(y | A)) / 2, in nats."""

    def gain(picked: list[int], y: int) -> float:
        return math.log(2 * math.pi * math.e * conditional_variance(cov, y, picked)) / 2

    return _greedy(len(cov), k, gain)


def greedy_facility_location(
    cov: np.ndarray, k: int, weights: Sequence[float] | None = None
) -> tuple[list[int], list[float]]:
    """Greedy maximum of F(A) = sum_v w_v max_{a in A} cov_va, F of the empty set 0."""
    weights = np.ones(len(cov)) if weights is None else weights

    def value(picked: list[int]) -> float:
        return sum(weights[v] * max(cov[v, a] for a in picked) for v in range(len(cov))) if picked else 0.0

    return _greedy(len(cov), k, lambda picked, y: value([*picked, y]) - value(picked))


def greedy_weighted_coverage(cov: np.ndarray, k: int, weights: Sequence[float]) -> tuple[list[int], list[float]]:
    """Greedy maximum of `weighted_coverage`, by its differences."""
    return _greedy(
        len(cov),
        k,
        lambda picked, y: weighted_coverage(cov, [*picked, y], weights) - weighted_coverage(cov, picked, weights),
    )


def weighted_coverage(cov: np.ndarray, picked: Sequence[int], weights: Sequence[float]) -> float:
    """F(A) = sum over v not in A of w_v ln(var(v) / var(v | A)) / 2, in nats: what A tells of the others."""
    total = 0.0
    for v in range(len(cov)):
        if v not in picked:
            total += weights[v] * math.log(cov[v, v] / conditional_variance(cov, v, picked)) / 2
    return total


# Comparing covariances


def gaussian_kl(S0: np.ndarray, S1: np.ndarray) -> float:
    """KL(N(0, S0) || N(0, S1)) = [tr(S1^-1 S0) - m + ln|S1| - ln|S0|] / 2, in nats."""
    m = len(S0)
    trace = np.trace(np.linalg.inv(S1) @ S0)
    return float(trace - m + _log_det(S1, range(m)) - _log_det(S0, range(m))) / 2


def matrix_cosine(S0: np.ndarray, S1: np.ndarray) -> float:
    """Cosine of the two matrices as vectors."""
    return float(np.sum(S0 * S1) / math.sqrt(np.sum(S0 * S0) * np.sum(S1 * S1)))


# Scores for a labelled target


def log_me(F: np.ndarray, y: np.ndarray) -> float:
    """Log of the largest evidence per sample, mean over one-vs-rest classes (You et al. 2021, section 4).

    F (n, d) and the 0/1 targets are taken as they are, not centred. Infinite where the features give a
    class's targets exactly and span less than the sample space.
    """
    return float(np.mean([max_log_evidence(F, y == c) / len(y) for c in np.unique(y)]))


def max_log_evidence(F: np.ndarray, target: np.ndarray) -> float:
    """Supremum over alpha, beta > 0 of ln N(target; 0, I / beta + F F^T / alpha), found by search.

    In the left singular basis of F the coordinates z_i are independent with variance s (1 + t l_i), where
    s = 1 / beta, t = beta / alpha, l_i the squared singular values (0 beyond d). For a given t the best s is the
    mean of z_i^2 / (1 + t l_i); t is searched over 26 decades, for more than one local maximum may exist.
    """
    n = len(target)
    U, singular, _ = np.linalg.svd(np.asarray(F, dtype=np.float64), full_matrices=True)
    z = U.T @ np.asarray(target, dtype=np.float64)
    spectrum = np.zeros(n)
    spectrum[: len(singular)] = singular**2
    beyond = spectrum <= 1e-20 * spectrum.max()
    spectrum[beyond] = 0
    if beyond.any() and np.sum(z[beyond] ** 2) <= 1e-20 * np.sum(z**2):
        return math.inf

    def log_evidence(log_t: float) -> float:
        shape = 1 + math.exp(log_t) * spectrum / spectrum.max()
        variance = np.mean(z**2 / shape) * shape
        return float(-0.5 * np.sum(np.log(2 * np.pi * variance) + z**2 / variance))

    step = 0.05
    grid = np.arange(-30, 30, step)
    best = max(grid, key=log_evidence)
    refined = minimize_scalar(
        lambda t: -log_evidence(t), bounds=(best - step, best + step), method="bounded", options={"xatol": 1e-10}
    )
    return max(log_evidence(best), -float(refined.fun))


def h_score(F: np.ndarray, y: np.ndarray) -> float:
    """tr(pinv(cov(F)) cov(E[F | y])) (Bao et al. 2019); eigenvalues below 1e-10 of the largest are 0."""
    F = np.asarray(F, dtype=np.float64)
    means = np.array([F[y == label].mean(axis=0) for label in y])
    total, between = _centred(F).T @ _centred(F), _centred(means).T @ _centred(means)
    return float(np.trace(np.linalg.pinv(total, rcond=1e-10, hermitian=True) @ between))


def leep(P: np.ndarray, y: np.ndarray) -> float:
    """Mean log of sum_z P(y_i | z) P_iz, P(y | z) the empirical conditional (Nguyen et al. 2020, sec. 3)."""
    n, sources = P.shape
    total = 0.0
    for i in range(n):
        expected = 0.0
        for z in range(sources):
            mass = sum(P[j, z] for j in range(n))
            mass_with_label = sum(P[j, z] for j in range(n) if y[j] == y[i])
            if mass > 0:
                expected += mass_with_label / mass * P[i, z]
        total += math.log(expected)
    return total / n


def _centred(X: np.ndarray) -> np.ndarray:
    X = np.asarray(X, dtype=np.float64)
    return X - X.mean(axis=0)


def _gram(X: np.ndarray) -> np.ndarray:
    # Neither HSIC sees a common shift; taking it out first keeps its rounding out as well.
    return _centred(X) @ _centred(X).T


def _rbf_gram(X: np.ndarray, fraction: float) -> np.ndarray:
    squared = _squared_distances(X)
    apart = np.sqrt(squared[np.triu_indices(len(X), 1)])
    sigma = fraction * np.median(apart[apart > 0])
    return np.exp(-squared / (2 * sigma**2))


def _squared_distances(X: np.ndarray) -> np.ndarray:
    X = np.asarray(X, dtype=np.float64)
    return np.array([[np.sum((a - b) ** 2) for b in X] for a in X])


def _centred_alignment(K: np.ndarray, L: np.ndarray) -> float:
    n = len(K)
    H = np.eye(n) - np.ones((n, n)) / n
    return matrix_cosine(H @ K @ H, H @ L @ H)


def _neighbours(X: np.ndarray, k: int) -> list[set[int]]:
    squared = _squared_distances(X)
    found = []
    for i in range(len(X)):
        others = [j for j in range(len(X)) if j != i]
        found.append(set(sorted(others, key=lambda j: (squared[i, j], j))[:k]))
    return found


def _log_det(cov: np.ndarray, subset: Sequence[int]) -> float:
    subset = list(subset)
    sign, value = np.linalg.slogdet(cov[np.ix_(subset, subset)])
    if sign <= 0:
        raise ValueError("not positive definite")
    return float(value)


def _greedy(
    m: int,
    k: int,
    gain: Callable[[list[int], int], float],
    start: Sequence[int] = (),
    exclude: Sequence[int] = (),
    cost: Sequence[float] | None = None,
) -> tuple[list[int], list[float]]:
    picked, gains = list(start), []
    for _ in range(k):
        candidates = [y for y in range(m) if y not in picked and y not in exclude]
        gain_of = {y: gain(picked, y) for y in candidates}
        # A loss is the same loss at any price, so prices count only while something can be gained.
        priced = cost is not None and max(gain_of.values()) > 0
        score = {y: gain_of[y] / cost[y] for y in candidates} if priced else gain_of
        best = max(score.values())
        pick = min(y for y in candidates if score[y] >= best - TIE)
        picked.append(pick)
        gains.append(float(gain_of[pick]))
    return picked[len(start) :], gains
