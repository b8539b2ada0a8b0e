"""Models and runs for the tests of this room, each drawn from a seed."""

import numpy as np

from taskatlas.paths import Trajectory, geodesic


def models(seed=0, count=5, samples=12, classes=4, sharpness=1.0):
    """(count, samples, classes) softmax of normal logits, the sharper the surer."""
    return softmax(sharpness * np.random.default_rng(seed).standard_normal((count, samples, classes)))


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def labels(seed=0, samples=12, classes=4):
    return np.random.default_rng((seed, 1)).integers(0, classes, samples)


def learning(seed=0, steps=9, samples=30, classes=5, speed=0.6, noise=0.3):
    """Predictions that go from near ignorance towards labels(0, samples, classes), with noise that may lead back."""
    random = np.random.default_rng((seed, 2))
    truth = np.eye(classes)[labels(0, samples, classes)]
    aptitude = random.uniform(0.2, 1.5, (samples, 1))
    pace = speed * np.arange(steps)[:, None, None]
    return softmax(pace * aptitude * truth + noise * random.standard_normal((steps, samples, classes)))


def run(name="a", seed=0, steps=9, samples=30, classes=5, **settings):
    with np.errstate(divide="ignore"):
        log_probs = np.log(learning(seed, steps, samples, classes, **settings))
    ids = [f"s{i}" for i in range(samples)]
    return Trajectory(name, log_probs, 10 * np.arange(steps), ids, labels(0, samples, classes))


def shortest(seed=0, points=7, samples=9, classes=4):
    """A geodesic between two random models, walked unevenly."""
    p, q = models(seed, 2, samples, classes, sharpness=2.0)
    t = np.append(np.sort(np.random.default_rng(seed).uniform(0, 1, points - 1)), 1.0)
    t[0] = 0.0
    return p, q, geodesic(p, q, t)
