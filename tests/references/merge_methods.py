"""References for merging in weight space: every formula written out in float64, with no care for speed.

Models and bases are float64 arrays of one shape. Every function returns one such array.
"""

import math
from collections.abc import Sequence

import numpy as np


def linear(models, weights, normalize=True):
    """Σ w θ, over Σ w where normalised."""
    total = sum(weights) if normalize else 1
    return sum((w / total) * theta for w, theta in zip(weights, models, strict=True))


def trimmed(tau: np.ndarray, density: float) -> np.ndarray:
    """The ⌊density n⌋ largest magnitudes, one at least, with those that are as large as the smallest of them."""
    if density == 0 or tau.size == 0:
        return np.zeros_like(tau)
    ranked = sorted(np.abs(tau).ravel(), reverse=True)
    least = ranked[max(1, math.floor(density * tau.size)) - 1]
    return np.where(np.abs(tau) >= least, tau, 0)


def trimmed_together(taus: Sequence[np.ndarray], density: float) -> list[np.ndarray]:
    """The same over several tensors as one vector."""
    vector = trimmed(np.concatenate([tau.ravel() for tau in taus]), density)
    parts = np.split(vector, np.cumsum([tau.size for tau in taus])[:-1])
    return [part.reshape(tau.shape) for part, tau in zip(parts, taus, strict=True)]


def middle(tau: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Without the ⌊gamma n⌋ largest; of the others the ⌊density n⌋ largest; equals of the first and last kept too."""
    n = tau.size
    top = math.floor(min(gamma, 1 - density) * n)
    kept = max(1, math.floor(density * n))
    ranked = sorted(np.abs(tau).ravel(), reverse=True)
    high, low = ranked[top], ranked[min(n, top + kept) - 1]
    return np.where((np.abs(tau) >= low) & (np.abs(tau) <= high), tau, 0)


def dropped(tau: np.ndarray, keep: np.ndarray | float, uniform: np.ndarray, rescale: bool) -> np.ndarray:
    """An element stays where its uniform number is below its probability, divided by that where rescaled."""
    probability = np.broadcast_to(keep, tau.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(uniform < probability, tau / probability if rescale else tau, 0)


def rank_probabilities(tau: np.ndarray, density: float, epsilon: float) -> np.ndarray:
    """Row by row, from density - epsilon for the smallest magnitude to density + epsilon for the largest."""
    probabilities = np.full(tau.shape, float(density))
    for row in np.ndindex(tau.shape[:-1]):
        order = sorted(range(tau.shape[-1]), key=lambda i: (abs(tau[row][i]), i))
        for rank, i in enumerate(order):
            if len(order) > 1 and density < 1:
                probabilities[row][i] = density - epsilon + 2 * epsilon * rank / (len(order) - 1)
    return probabilities


def summed(taus, weights, normalize) -> np.ndarray:
    """Σ w τ, over Σ w where normalised."""
    return linear(taus, weights, normalize)


def elected(taus, weights, normalize, consensus="sum") -> np.ndarray:
    """Element by element: the sign of Σ w τ (plus for zero), then Σ w τ over those of that sign, over their Σ w.

    By count, the sign is that of Σ sign(w τ).
    """
    merged = np.zeros(taus[0].shape)
    for at in np.ndindex(merged.shape):
        votes = [w * tau[at] for w, tau in zip(weights, taus, strict=True)]
        ballots = votes if consensus == "sum" else [float(np.sign(vote)) for vote in votes]
        sign = 1 if math.fsum(ballots) >= 0 else -1
        agreeing = [(w, vote) for w, vote in zip(weights, votes, strict=True) if vote * sign > 0]
        mass = math.fsum(w for w, _ in agreeing)
        value = math.fsum(vote for _, vote in agreeing)
        least = 1e-6 * sum(map(abs, weights)) if min(weights) < 0 else 0
        merged[at] = value / mass if normalize and abs(mass) > least else value
    return merged


def sce(models, base, topk):
    """Positions of large variance; weights by squares; the plain sum elects; weighted mean of those that agree."""
    taus = [theta - base for theta in models]
    n = base.size
    if topk < 1:
        variance = np.var(np.stack(taus), axis=0) * len(taus) ** 2
        least = sorted(variance.ravel(), reverse=True)[max(1, math.floor(topk * n)) - 1]
        taus = [np.where(variance >= least * (1 - 1e-12), tau, 0) for tau in taus]
    squares = [float((tau**2).sum()) for tau in taus]
    if not sum(squares):
        return base.copy()
    eta = [square / sum(squares) for square in squares]
    merged = base.copy()
    for at in np.ndindex(base.shape):
        values = [tau[at] for tau in taus]
        sign = 1 if math.fsum(values) >= 0 else -1
        agreeing = [(e, value) for e, value in zip(eta, values, strict=True) if value * sign > 0]
        if agreeing:
            merged[at] += sum(e * value for e, value in agreeing) / sum(e for e, _ in agreeing)
    return merged


def slerp(a, b, t):
    """Shoemake's formula, or the straight line where there is no angle."""
    x, y = a.ravel(), b.ravel()
    if not x.any() or not y.any():
        return (1 - t) * a + t * b
    theta = angle(x, y)
    if min(theta, math.pi - theta) < 1e-6:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


def angle(x, y) -> float:
    """Between two vectors, well even where they are nearly parallel (Kahan)."""
    u, v = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return 2 * math.atan2(float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v)))


def nuslerp(a, b, weights, base=None, lines=None):
    """SLERP of whole tensors, or of the lines along an axis, of differences from the base where there is one."""
    t = weights[1] / sum(weights)
    origin = np.zeros_like(a) if base is None else base
    x, y = a - origin, b - origin
    if lines is None or a.ndim == 0:
        return origin + slerp(x, y, t)
    merged = np.zeros_like(a)
    for at in np.ndindex(*[size for axis, size in enumerate(a.shape) if axis != lines % a.ndim]):
        line = list(at)
        line.insert(lines % a.ndim, slice(None))
        merged[tuple(line)] = slerp(x[tuple(line)], y[tuple(line)], t)
    return origin + merged


def multislerp(models, weights, base=None, normalize=True):
    """(Σ w |x|) · m / |m| with m = Σ w x / |x|; zero where m is."""
    weights = np.array(weights) / (sum(weights) if normalize else 1)
    origin = np.zeros_like(models[0]) if base is None else base
    vectors = [theta - origin for theta in models]
    lengths = [float(np.linalg.norm(x)) for x in vectors]
    mean = sum(w * (x / r if r else x) for w, x, r in zip(weights, vectors, lengths, strict=True))
    length = float(np.linalg.norm(mean))
    return origin + (sum(weights * lengths) * mean / length if length > 1e-8 else 0)


def karcher(models, steps=10, tolerance=1e-5):
    """Logarithms, their mean, the exponential, on the vectors themselves."""
    lengths = [float(np.linalg.norm(x)) for x in models]
    units = [x.ravel() / r for x, r in zip(models, lengths, strict=True) if r]
    mean = np.mean(units, axis=0) if units else np.zeros(models[0].size)
    if np.linalg.norm(mean) < 1e-8:
        return np.zeros_like(models[0])
    point = mean / np.linalg.norm(mean)
    for _ in range(steps):
        tangent = np.zeros_like(point)
        for unit in units:
            theta = angle(unit, point)
            rest = unit - (unit @ point) * point
            if np.linalg.norm(rest) > 1e-12:
                tangent += theta * rest / np.linalg.norm(rest) / len(units)
        length = float(np.linalg.norm(tangent))
        if length < tolerance:
            break
        point = math.cos(length) * point + math.sin(length) * tangent / length
    return np.mean(lengths) * point.reshape(models[0].shape)


def model_stock(models, base):
    """t · average + (1 - t) · base, t = n c / (1 + (n - 1) c), c the mean cosine of pairs."""
    taus = [(theta - base).ravel() for theta in models]
    n = len(taus)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    norms = [np.linalg.norm(tau) for tau in taus]
    c = np.mean([taus[i] @ taus[j] / (norms[i] * norms[j]) if norms[i] * norms[j] else 0 for i, j in pairs])
    t = n * c / (1 + (n - 1) * c) if 1 + (n - 1) * c > 1e-9 else 0
    return t * np.mean(models, axis=0) + (1 - t) * base


def nearswap(model, base, t):
    """The model's share is min(1, t / |model - base|), element by element."""
    merged = base.copy()
    for at in np.ndindex(base.shape):
        gap = abs(model[at] - base[at])
        share = 1 if gap <= t else t / gap
        merged[at] = share * model[at] + (1 - share) * base[at]
    return merged


def merge(method, models, base, parameters, settings, uniforms=None):
    """Any method by its name; ``uniforms``: numbers in [0, 1) for each model, of the random ones."""
    weights = [p.get("weight") for p in parameters]
    match method:
        case "linear":
            return linear(models, weights, settings["normalize"])
        case "sce":
            return sce(models, base, settings["select_topk"])
        case "slerp":
            return slerp(base, models[0], settings["t"])
        case "nuslerp":
            lines = None if settings["nuslerp_flatten"] else 0 if settings["nuslerp_row_wise"] else -1
            return nuslerp(*models, weights, base, lines)
        case "multislerp":
            return multislerp(models, weights, base, settings["normalize_weights"])
        case "karcher":
            return karcher(models, settings["max_iter"], settings["tol"])
        case "model_stock" if settings["filter_wise"] and base.ndim > 1:
            rows = [np.array(list(x.reshape(-1, x.shape[-1]))) for x in (*models, base)]
            return np.stack([model_stock(row[:-1], row[-1]) for row in zip(*rows, strict=True)]).reshape(base.shape)
        case "model_stock":
            return model_stock(models, base)
        case "nearswap":
            return nearswap(models[0], base, settings["t"])
        case "passthrough":
            return models[0] * parameters[0]["scale"]
    taus = [theta - base for theta in models]
    for i, p in enumerate(parameters):
        match method.removesuffix("_linear").removesuffix("_ties"):
            case "ties":
                taus[i] = trimmed(taus[i], p["density"])
            case "breadcrumbs":
                taus[i] = middle(taus[i], p["density"], p["gamma"])
            case "dare":
                taus[i] = dropped(taus[i], p["density"], uniforms[i], settings["rescale"])
            case "della":
                keep = rank_probabilities(np.atleast_1d(taus[i]), p["density"], p["epsilon"]).reshape(taus[i].shape)
                taus[i] = dropped(taus[i], keep, uniforms[i], settings["rescale"])
    if method in {"ties", "dare_ties", "della", "breadcrumbs_ties"}:
        together = elected(taus, weights, settings["normalize"], settings["consensus_method"])
    else:
        together = summed(taus, weights, settings["normalize"])
    return base + settings["lambda"] * together
