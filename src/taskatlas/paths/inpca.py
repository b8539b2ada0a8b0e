"""InPCA: a map of predictions on which every axis keeps its sign.

With distances D among M models, W = -½ J D J (J centres), W = V Λ Vᵀ, and the coordinates are V √|λ|. Bhattacharyya's
distance is no squared distance of points in Euclidean space, so some λ are negative: their axes are *time-like*, a
difference along them makes two models closer. They are kept, in the order of |λ|, and then the map loses nothing:
D_ij = Σ_k sgn(λ_k) (X_ik - X_jk)² (Quinn et al., PNAS 2019; Ramesh et al., ICML 2023, section 2).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import scipy.linalg
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.paths.bhattacharyya import bhattacharyya
from taskatlas.paths.embedding import Embedding
from taskatlas.paths.hellinger import hellinger
from taskatlas.paths.incremental import Divergence
from taskatlas.paths.pairwise import sample_slices
from taskatlas.paths.simplex import check_weights
from taskatlas.paths.symmetric_kl import symmetric_kl
from taskatlas.paths.trajectory import Trajectory, check_same_samples

METRICS: Mapping[str, Divergence] = MappingProxyType(
    {"bhattacharyya": bhattacharyya, "hellinger": hellinger, "symmetric_kl": symmetric_kl}
)
_SLAB = 2**28  # bytes of probabilities made at a time where models are trajectories, which may lie on disk
_NOTHING = 1e-13  # an eigenvalue below this share of the largest is rounding: nothing can be projected on its axis
