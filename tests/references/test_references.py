"""The references against values worked out by hand, so that what the other tests stand on stands itself."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, ortho_group

from . import space

CROSS = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
PAIRS = np.array([[1.0], [1], [-1], [-1]])
ALTERNATING = np.array([[1.0], [-1], [1], [-1]])
# A Markov chain 0 - 1 - 2, correlation 1/2: var(1 | 0, 2) = .75 / 1.25 = .6, var(0 | 1) = .75, var(0 | 2) = 15/16.
CHAIN = np.array([[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])


def column(*values):
    return np.array(values, dtype=float)[:, None]


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


# Kernels


def test_linear_cka_by_hand():
    # One column each: centred (-1, 0, 1) and (-1, -1, 2); 3^2 / (2 * 6).
    assert space.linear_cka(column(0, 1, 2), column(0, 0, 3)) == pytest.approx(0.75, abs=1e-14)
    # X^T Y = diag(2, 6), X^T X = diag(2, 2), Y^T Y = diag(2, 18): 40 / sqrt(8 * 328).
    assert space.linear_cka(CROSS, CROSS * [1, 3]) == pytest.approx(40 / math.sqrt(2624), abs=1e-14)


def test_procrustes_by_hand():
    # |correlation| of one column each: 3 / sqrt(12).
    assert space.procrustes_similarity(column(0, 1, 2), column(3, 3, 0)) == pytest.approx(0.75**0.5)
    # Singular values 2 and 6 over the norms 2 and sqrt(20).
    assert space.procrustes_similarity(CROSS, CROSS * [1, 3]) == pytest.approx(2 / math.sqrt(5), abs=1e-14)


def test_debiased_cka_by_hand():
    # Zero-diagonal Grams of +-1: rows sum to -1, total -4. HSIC_1(K, K) = [12 + 16/6 - 4] / 4 = 8/3. The six
    # pairs of K * L are -1 four times and 1 twice, trace -4: HSIC_1(K, L) = [-4 + 16/6 - 4] / 4 = -4/3.
    # Biased CKA is 0.
    assert space.debiased_cka(PAIRS, ALTERNATING) == pytest.approx(-0.5, abs=1e-14)
    assert space.linear_cka(PAIRS, ALTERNATING) == pytest.approx(0, abs=1e-14)


def test_minibatches_divide_once():
    # The second batch (2x, x): 4 * 8/3, 16 * 8/3, 8/3. Sums 28/3, 136/3, 16/3.
    batches = [(PAIRS, ALTERNATING), (2 * PAIRS, PAIRS)]
    assert space.minibatch_debiased_cka(batches) == pytest.approx(28 / math.sqrt(136 * 16), abs=1e-14)


def test_hsic1_is_the_u_statistic_over_four_distinct_samples():
    # Song et al. 2012: E[K_ij (L_ij + L_qr - 2 L_iq)] over distinct i, j, q, r.
    K, L = noise(0, 6, 3), noise(1, 6, 2)
    K, L = K @ K.T, L @ L.T
    terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in itertools.permutations(range(6), 4)]
    assert space.hsic1(K, L) == pytest.approx(np.mean(terms), abs=1e-12)


def test_rbf_cka_by_hand():
    # X: distances 1, 2, 3, so sigma 2 and K = e^-1/8, e^-1/2, e^-9/8. Y: two clusters, HLH is a multiple of
    # u u^T, u = (-1, -1, 2). u^T K u = 4.0402610, u^T u = 6, |HKH|^2 = 5.5041588 - 9.8641570 + 4.8802115 = .5202133.
    found = space.rbf_cka(column(0, 1, 3), column(0, 0, 1))
    assert found == pytest.approx(4.0402610 / 6 / math.sqrt(0.5202133), abs=1e-6)


def test_rbf_bandwidth_leaves_zero_distances_out():
    # X: distances 1, 1, 2, 3, 3 and a 0: the median is 2, not 1.5. Y: two clusters, u = (-1, -1, 1, 1).
    K = np.exp(-np.array([[0, 0, 1, 9], [0, 0, 1, 9], [1, 1, 0, 4], [9, 9, 4, 0]]) / 8)
    u = np.array([-1, -1, 1, 1])
    centred = K - K.mean(axis=0) - K.mean(axis=1)[:, None] + K.mean()
    expected = u @ K @ u / (4 * np.linalg.norm(centred))
    assert space.rbf_cka(column(0, 0, 1, 3), column(0, 0, 1, 1)) == pytest.approx(expected, abs=1e-12)


def test_rbf_bandwidth_follows_scale_and_fraction():
    X, Y = noise(2, 12, 3), noise(3, 12, 4)
    assert space.rbf_cka(5 * X, Y) == pytest.approx(space.rbf_cka(X, Y), abs=1e-12)
    assert space.rbf_cka(X, Y, 0.5) != pytest.approx(space.rbf_cka(X, Y), abs=1e-3)
    # A wide Gaussian kernel is 1 - d^2 / (2 sigma^2), whose centred Gram is the linear one.
    assert space.rbf_cka(X, Y, 1e3) == pytest.approx(space.linear_cka(X, Y), abs=1e-5)


def test_mutual_knn_by_hand():
    # Nearest in X: 1, 0, 1, 2. In Y: 1, 0, 3, 2. Three of four agree.
    assert space.mutual_knn(column(0, 1, 3, 7), column(0, 1, 5, 4), 1) == 0.75
    # Sample 1 is half-way between 0 and 2 in X: it takes 0, as in (0, 1, 5) and not as in (-3, 1, 2).
    assert space.mutual_knn(column(0, 1, 2), column(0, 1, 5), 1) == 1
    assert space.mutual_knn(column(0, 1, 2), column(-3, 1, 2), 1) == pytest.approx(2 / 3)
    # k = 2: X has {1,2} {0,2} {1,0} {2,1}, Y has {1,3} {0,3} {3,1} {2,1}: halves, then all of the last.
    assert space.mutual_knn(column(0, 1, 3, 7), column(0, 1, 5, 4), 2) == pytest.approx(2.5 / 4)


KERNELS = [
    space.linear_cka,
    space.debiased_cka,
    space.rbf_cka,
    space.procrustes_similarity,
    lambda X, Y: space.mutual_knn(X, Y, 3),
]


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_laws(kernel):
    X, Y = noise(4, 20, 4), noise(5, 20, 6)
    moved = 3 * X @ ortho_group.rvs(4, random_state=6) + 7
    order = np.random.default_rng(7).permutation(20)
    assert kernel(X, X) == pytest.approx(1, abs=1e-10)
    assert kernel(X, Y) == pytest.approx(kernel(Y, X), abs=1e-10)
    assert kernel(moved, Y) == pytest.approx(kernel(X, Y), abs=1e-10)
    assert kernel(X[order], Y[order]) == pytest.approx(kernel(X, Y), abs=1e-10)
    assert kernel(X, Y) < 0.9


@pytest.mark.parametrize("kernel", [space.linear_cka, space.debiased_cka])
def test_kernels_are_not_drowned_by_a_large_mean(kernel):
    X, Y = noise(4, 20, 4), noise(5, 20, 6)
    assert kernel(X + 1e6, Y) == pytest.approx(kernel(X, Y), abs=1e-8)


def test_biased_cka_of_noise_is_inflated_and_debiased_is_not():
    X, Y = noise(8, 32, 768), noise(9, 32, 768)
    assert space.linear_cka(X, Y) == pytest.approx(0.96, abs=0.005)
    assert abs(space.debiased_cka(X, Y)) < 0.05


# Selection


def test_conditional_variance_by_hand():
    assert space.conditional_variance(CHAIN, 1, []) == 1
    assert space.conditional_variance(CHAIN, 1, [0, 2]) == pytest.approx(0.6, abs=1e-14)
    assert space.conditional_variance(CHAIN, 0, [1, 2]) == pytest.approx(0.75, abs=1e-14)
    assert space.conditional_variance(CHAIN, 0, [2]) == pytest.approx(15 / 16, abs=1e-14)


def test_mutual_information_by_hand():
    # |CHAIN| = .75^2; the ends alone have determinant 15/16.
    assert space.mutual_information(CHAIN, [1]) == pytest.approx(math.log(15 / 16 / 0.5625) / 2, abs=1e-14)
    assert space.mutual_information(CHAIN, [0]) == pytest.approx(math.log(0.75 / 0.5625) / 2, abs=1e-14)
    assert space.mutual_information(CHAIN, []) == pytest.approx(0, abs=1e-14)
    assert space.mutual_information(CHAIN, [2, 0, 1]) == pytest.approx(0, abs=1e-14)


def test_greedy_mutual_information_by_hand():
    # The middle first; then an end, a tie: ln(.75 / (15/16)) / 2; then the last: ln(.75 / 1) / 2.
    picked, gains = space.greedy_mutual_information(CHAIN, 3)
    assert picked == [1, 0, 2]
    assert gains == pytest.approx([math.log(1 / 0.6) / 2, math.log(0.8) / 2, math.log(0.75) / 2], abs=1e-14)


@pytest.mark.parametrize("rho", [0.5, 0.7])
def test_ties_go_to_the_lowest_index_whatever_the_rounding(rho):
    # Eight tasks on a ring: all alike, so 0; the opposite, 4; 2 and 6 mirror each other; then the odd ones do.
    ring = np.array([[rho ** min(abs(i - j), 8 - abs(i - j)) for j in range(8)] for i in range(8)])
    assert space.greedy_mutual_information(ring, 5)[0] == [0, 4, 2, 6, 1]
    assert space.greedy_entropy(ring, 5)[0] == [0, 4, 2, 6, 1]


def test_greedy_mutual_information_start_exclude_cost():
    # From 0: task 1 ln(.75 / .75) = 0, task 2 ln((15/16) / .75) / 2.
    assert space.greedy_mutual_information(CHAIN, 1, start=[0]) == ([2], [pytest.approx(math.log(1.25) / 2)])
    assert space.greedy_mutual_information(CHAIN, 2, exclude=[1])[0] == [0, 2]
    # Gains .1438, .2554, .1438 over costs 2, 2, 1: per cost .0719, .1277, .1438.
    picked, gains = space.greedy_mutual_information(CHAIN, 1, cost=[2, 2, 1])
    assert (picked, gains) == ([2], [pytest.approx(math.log(1 / 0.75) / 2)])


def test_greedy_gains_are_differences_of_mutual_information():
    X = noise(10, 9, 20)
    cov = X @ X.T
    picked, gains = space.greedy_mutual_information(cov, 9)
    cumulative = [space.mutual_information(cov, picked[: i + 1]) for i in range(9)]
    assert sorted(picked) == list(range(9))
    assert np.cumsum(gains) == pytest.approx(cumulative, abs=1e-10)
    assert cumulative[-1] == pytest.approx(0, abs=1e-10)


def test_greedy_entropy_by_hand():
    # Variances 1, 2, 4; after task 2 the second has 2 - 2.4^2 / 4 = .56, below the untouched first's 1.
    cov = np.array([[1, 0, 0], [0, 2, 2.4], [0, 2.4, 4]])
    picked, gains = space.greedy_entropy(cov, 3)
    assert picked == [2, 0, 1]
    assert np.exp(2 * np.array(gains)) / (2 * np.pi * np.e) == pytest.approx([4, 1, 0.56], abs=1e-12)


def test_greedy_facility_location_by_hand():
    # Column sums 1.75, 2, 1.75: the middle. Then each end adds 1 - .5, a tie.
    picked, gains = space.greedy_facility_location(CHAIN, 2)
    assert (picked, gains) == ([1, 0], pytest.approx([2, 0.5]))
    # Weights 1, 2, 4 make the columns 3, 4.5, 5.25; then 0 adds .75 (its own) and 1 adds .25 + 2 * .5.
    picked, gains = space.greedy_facility_location(CHAIN, 2, [1, 2, 4])
    assert (picked, gains) == ([2, 1], pytest.approx([5.25, 1.25]))


def test_greedy_weighted_coverage_by_hand():
    # Only task 2 is wanted. Picks 0, 1, 2 tell of it ln(16/15)/2, ln(4/3)/2 and nothing. After 1, task 0 adds 0
    # and picking 2 itself takes its term away.
    picked, gains = space.greedy_weighted_coverage(CHAIN, 3, [0, 0, 1])
    assert picked == [1, 0, 2]
    assert gains == pytest.approx([math.log(4 / 3) / 2, 0, -math.log(4 / 3) / 2], abs=1e-14)
    # Equal weights, the first pick: 0 tells ln(4/3)/2 + ln(16/15)/2, 1 tells ln(4/3).
    assert space.greedy_weighted_coverage(CHAIN, 1, [1, 1, 1]) == ([1], [pytest.approx(math.log(4 / 3))])


# Covariances


def test_gaussian_kl_by_hand():
    # Coordinates add up: (2 - 1 - ln 2) / 2 and (1/4 - 1 + ln 4) / 2.
    kl = space.gaussian_kl(np.diag([2.0, 1]), np.diag([1.0, 4]))
    assert kl == pytest.approx((1 - math.log(2)) / 2 + (math.log(4) - 0.75) / 2, abs=1e-14)
    assert space.gaussian_kl(CHAIN, CHAIN) == pytest.approx(0, abs=1e-14)


def test_matrix_cosine_by_hand():
    assert space.matrix_cosine(np.eye(2), np.ones((2, 2))) == pytest.approx(math.sqrt(0.5), abs=1e-14)


# Scores for a labelled target


def test_log_me_by_hand():
    # One constant feature: direction 1/2 (1,1,1,1) may have more variance than the other three, never less.
    # Targets (1,1,0,0) and (0,0,1,1): z^2 = 1, residual 1, so variances 1 and 1/3 three times.
    # ln evidence = -[4 ln 2pi + 3 ln(1/3) + 4] / 2.
    ones = np.ones((4, 1))
    expected = -(4 * math.log(2 * math.pi) - 3 * math.log(3) + 4) / 8
    assert space.log_me(ones, np.array([0, 0, 1, 1])) == pytest.approx(expected, abs=1e-12)
    # Target (1,0,0,0): z^2 = 1/4, residual 3/4: all variances 1/4 (alpha infinite). (0,1,1,1): 9/4,
    # and 1/4 three times.
    lonely = -(4 * math.log(2 * math.pi) + 4 * math.log(1 / 4) + 4) / 8
    others = -(4 * math.log(2 * math.pi) + math.log(9 / 4) + 3 * math.log(1 / 4) + 4) / 8
    assert space.log_me(ones, np.array([1, 0, 0, 0])) == pytest.approx((lonely + others) / 2, abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(25, 4), (8, 12)])
def test_max_log_evidence_is_the_largest_density(n, d):
    F = noise(11, n, d)
    target = F @ noise(12, d) + noise(13, n)

    def minus_log_density(logs):
        alpha, beta = np.exp(logs)
        return -multivariate_normal.logpdf(target, cov=np.eye(n) / beta + F @ F.T / alpha)

    start = min(itertools.product(np.linspace(-5, 5, 15), repeat=2), key=minus_log_density)
    largest = -minimize(minus_log_density, start, method="Nelder-Mead", options={"fatol": 1e-10}).fun
    assert space.max_log_evidence(F, target) == pytest.approx(largest, abs=1e-6)


def test_log_me_is_infinite_on_features_that_are_the_labels():
    y = np.array([0, 1, 2, 0, 1, 2])
    assert space.log_me(np.eye(3)[y], y) == math.inf


def test_h_score_by_hand():
    # Class means 1 and 5 about 3: variance 4 of a total 5. A copied column adds nothing.
    F, y = column(0, 2, 4, 6), np.array([0, 0, 1, 1])
    assert space.h_score(F, y) == pytest.approx(0.8, abs=1e-12)
    assert space.h_score(np.hstack([F, F]), y) == pytest.approx(0.8, abs=1e-12)
    # Independent columns add up: the second, (1, -1, 1, -1), has equal class means.
    assert space.h_score(np.hstack([PAIRS, ALTERNATING]), y) == pytest.approx(1, abs=1e-12)
    # Unequal classes: means -1 (three times) and 3 about 0, variance 3; (-2, -1, 0, 3) has variance 3.5.
    assert space.h_score(column(-2, -1, 0, 3), np.array([0, 0, 0, 1])) == pytest.approx(6 / 7, abs=1e-12)


def test_h_score_ignores_redundant_features():
    F, y = noise(14, 30, 4), np.arange(30) % 3
    redundant = np.hstack([F, F @ noise(15, 4, 5)])
    assert space.h_score(redundant, y) == pytest.approx(space.h_score(F, y), abs=1e-8)


def test_leep_by_hand():
    P = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert space.leep(P, np.array([5, 5, 2, 2])) == 0
    assert space.leep(P, np.array([0, 1, 0, 1])) == pytest.approx(-math.log(2), abs=1e-14)
    # P(0 | z) = .75, .25: each sample expects .75 * .75 + .25 * .25. An empty source class changes nothing.
    soft = np.array([[0.75, 0.25, 0], [0.25, 0.75, 0]])
    assert space.leep(soft, np.array([0, 1])) == pytest.approx(math.log(0.625), abs=1e-14)


# The published covariance of 34 language models


def test_published_covariance(real_input):
    cov = np.load(real_input / "golden/space/kappa34.npy").astype(np.float64)
    names = (real_input / "golden/space/names34.txt").read_text().split()
    picked, gains = space.greedy_mutual_information(cov, 34)
    assert [names[i] for i in picked[:5]] == [
        "roberta-base",
        "distilbert-base-uncased",
        "t5-base",
        "bert-base-cased",
        "bart-large",
    ]
    information = np.cumsum(gains)
    assert information[0] == pytest.approx(1.2259, abs=5e-5)
    assert information[4] == pytest.approx(2.9484, abs=5e-5)
    assert information.argmax() + 1 == 15
    assert information[4] == pytest.approx(space.mutual_information(cov, picked[:5]), abs=1e-9)
    # With a unit diagonal KL to the identity is -ln|cov| / 2.
    assert space.gaussian_kl(cov, np.eye(34)) == pytest.approx(17.88286 / 2, abs=1e-5)
