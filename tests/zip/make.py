"""Features of several models that share some of what they see, each drawn from a seed."""

import numpy as np


def features(seed=0, models=2, samples=60, width=6, shared=0.6):
    """A list of (samples, width): noise, and a part common to all models whose columns each model has in its order."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((samples, width))
    return [
        shared * common[:, random.permutation(width)] + (1 - shared) * random.standard_normal((samples, width))
        for _ in range(models)
    ]


def covariance(seed=0, models=2, samples=60, width=6, shared=0.6):
    """(models·width, models·width) of such features."""
    return np.cov(np.concatenate(features(seed, models, samples, width, shared), axis=1).T, bias=True)
