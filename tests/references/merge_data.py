"""References for merging with data: every definition written out in float64, with no care for speed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def two_layer_fisher(
    W1: np.ndarray, b1: np.ndarray, W2: np.ndarray, b2: np.ndarray, X: np.ndarray, labels: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Of logits W2 tanh(W1 x + b1) + b2, by back-propagation on paper, sample by sample and class by class.

    With ``labels`` the square at each sample's own label, else the mean over the network's own predictions.
    """
    F = {"W1": np.zeros_like(W1), "b1": np.zeros_like(b1), "W2": np.zeros_like(W2), "b2": np.zeros_like(b2)}
    for n, x in enumerate(X):
        h = np.tanh(W1 @ x + b1)
        p = softmax(W2 @ h + b2)
        for y in range(len(p)):
            share = p[y] if labels is None else float(labels[n] == y)
            at_logits = -p.copy()
            at_logits[y] += 1  # d log p_y / d z
            at_hidden = np.zeros(len(h))
            for j in range(len(h)):
                at_hidden[j] = sum(at_logits[c] * W2[c, j] for c in range(len(p))) * (1 - h[j] ** 2)
            for c in range(len(p)):
                F["b2"][c] += share * at_logits[c] ** 2 / len(X)
                for j in range(len(h)):
                    F["W2"][c, j] += share * (at_logits[c] * h[j]) ** 2 / len(X)
            for j in range(len(h)):
                F["b1"][j] += share * at_hidden[j] ** 2 / len(X)
                for i in range(len(x)):
                    F["W1"][j, i] += share * (at_hidden[j] * x[i]) ** 2 / len(X)
    return F


def fisher_mean(thetas: Sequence[np.ndarray], fishers: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Element by element; where all information is 0, the weighted mean."""
    merged = np.zeros(thetas[0].shape)
    for place in np.ndindex(merged.shape):
        total = math.fsum(c * F[place] for c, F in zip(weights, fishers, strict=True))
        if total > 0:
            terms = (c * F[place] * t[place] for c, F, t in zip(weights, fishers, thetas, strict=True))
            merged[place] = math.fsum(terms) / total
        else:
            terms = (c * t[place] for c, t in zip(weights, thetas, strict=True))
            merged[place] = math.fsum(terms) / math.fsum(weights)
    return merged


def gram(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of outer products."""
    G = np.zeros((len(rows[0]), len(rows[0])))
    for x in rows:
        for i in range(len(x)):
            for j in range(len(x)):
                G[i, j] += x[i] * x[j] / len(rows)
    return G


def regression_mean(
    Ws: Sequence[np.ndarray], Xs: Sequence[np.ndarray], weights: Sequence[float], off_diagonal: float
) -> np.ndarray:
    """The W (outputs, inputs) nearest to every model's layer on its inputs, by numpy's least squares.

    G̃ = α G + (1 - α) diag G is the Gram matrix of √α X above a diagonal of √(1 - α) root mean squares.
    """
    rows, wanted = [], []
    for W, X, c in zip(Ws, Xs, weights, strict=True):
        scaled = np.sqrt(off_diagonal * c / len(X)) * X
        spread = np.diag(np.sqrt((1 - off_diagonal) * c * (X**2).mean(0)))
        for block in (scaled, spread):
            rows.append(block)
            wanted.append(block @ W.T)
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0].T


def task_arithmetic(
    base: Mapping[str, np.ndarray], experts: Sequence[Mapping[str, np.ndarray]], coefficients: np.ndarray
) -> dict[str, np.ndarray]:
    """A loop over dictionaries: coefficients (N,) or (N, T)."""
    merged = {}
    for t, (name, value) in enumerate(base.items()):
        merged[name] = value.astype(np.float64).copy()
        for i, expert in enumerate(experts):
            coefficient = coefficients[i] if coefficients.ndim == 1 else coefficients[i, t]
            merged[name] += coefficient * (expert[name].astype(np.float64) - value.astype(np.float64))
    return merged


def trimmed_and_elected(deltas: np.ndarray, density: float) -> np.ndarray:
    """TIES on rows: the top share by magnitude, ties kept; then what has the sign of the sum."""
    kept = np.zeros_like(deltas)
    for row, delta in enumerate(deltas):
        k = max(1, int(density * len(delta)))
        threshold = sorted(abs(delta), reverse=True)[k - 1]
        kept[row] = np.where(abs(delta) >= threshold, delta, 0)
    elected = kept.copy()
    for column in range(deltas.shape[1]):
        sign = 1 if kept[:, column].sum() >= 0 else -1
        for row in range(len(deltas)):
            if np.sign(kept[row, column]) == -sign != 0:
                elected[row, column] = 0
    return elected


def adamerging(network, base, experts, batches, *, layerwise, steps, learning_rate, initial):
    """Coefficients after some steps of Adam: one graph through merge, all networks and entropies, float64.

    Args:
        network: (tensors, batch) -> logits.
        base, experts: tensors by name; experts in a list.
        batches: for each step a list with one batch for each task.
    """
    size = (len(experts), len(base)) if layerwise else (len(experts),)
    coefficients = torch.full(size, initial, dtype=torch.float64, requires_grad=True)
    first, second = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for step in range(1, steps + 1):
        merged = {}
        for t, (name, value) in enumerate(base.items()):
            column = coefficients[:, t] if layerwise else coefficients
            merged[name] = value + sum(c * (expert[name] - value) for c, expert in zip(column, experts, strict=True))
        loss = 0
        for batch in batches[step - 1]:
            p = torch.softmax(network(merged, batch), -1)
            loss = loss - (p * p.log()).sum(-1).mean()
        (gradient,) = torch.autograd.grad(loss, coefficients)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        change = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        coefficients = (coefficients.detach() - learning_rate * change).requires_grad_()
    return coefficients.detach().numpy()
