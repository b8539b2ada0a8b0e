"""Serving a fusion with a few merged models: coefficients in clusters, and how far that is from each sample's own.

Coefficients are clustered by k-means in units of the weights that they move, so each λ_i counts with ‖τ_i‖. What a
sample loses by being given its cluster's model in place of its own is bounded:
‖θ(λ) − θ(λ̄)‖ ≤ Σ_i |λ_i − λ̄_i| ‖τ_i‖, a distance between weights; layer-wise the sum goes over tensors too.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.low_rank import Vectors, task_vector_norms


@dataclass(frozen=True, eq=False, repr=False)
class Clusters:
    """K coefficients that stand for many, and the models that are merged with them.

    Attributes:
        centres: (K, N) or (K, N, T).
        norms: ‖τ_i‖, (N,), or of every tensor, (N, T).
        vectors: what is merged.
        kept: how many merged models are kept in memory; the one that was asked for longest ago goes first.

    Example:
        >>> from taskatlas.merge.task_vectors import TaskVectors
        >>> vectors = TaskVectors.of({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([3.0, 4.0])}})
        >>> clusters = Clusters.of(torch.tensor([[0.0], [0.2], [1.0]]), vectors, count=2)
        >>> which, bound = clusters.assign(torch.tensor([[0.0], [1.0]]))
        >>> clusters.centres[which], bound
        (tensor([[0.1000],
                [1.0000]]), tensor([0.5000, 0.0000]))
    """

    centres: Float[Tensor, "K N *T"]
    norms: Float[Tensor, "N *T"]
    vectors: Vectors
    kept: int = 4
    _models: "OrderedDict[int, dict[str, Tensor]]" = field(default_factory=OrderedDict)

    @classmethod
    def of(
        cls, coefficients: Float[Tensor, "n N *T"], vectors: Vectors, count: int, seed: int = 0, kept: int = 4
    ) -> "Clusters":
        """Finds the centres.

        Args:
            coefficients: of the samples that are to be served well.
            vectors: what is merged.
            count: of clusters, at most; fewer where there are fewer different coefficients.
            seed: of k-means++.
            kept: merged models that are kept in memory.

        Raises:
            BadInput: no clusters or no coefficients.
        """
        from scipy.cluster.vq import kmeans2

        if count < 1 or count != int(count) or not len(coefficients):
            raise BadInput(f"{len(coefficients)} coefficients cannot be put into {count} clusters.")
        by_tensor = task_vector_norms(vectors).cpu()
        norms = by_tensor if coefficients.ndim == 3 else by_tensor.square().sum(1).sqrt()
        points = (coefficients.double() * norms).flatten(1).numpy()
        different = np.unique(points, axis=0)
        if len(different) <= count:
            _, which = np.unique(points, axis=0, return_inverse=True)
        else:
            _, which = kmeans2(points, count, minit="++", rng=np.random.default_rng(seed), missing="warn")
        used = np.unique(which)
        centres = torch.stack([coefficients[torch.from_numpy(which == cluster)].mean(0) for cluster in used])
        return cls(centres, norms, vectors, kept)

    def __repr__(self) -> str:
        return f"Clusters({len(self.centres)} of coefficients {tuple(self.centres.shape[1:])}, {self.kept} models kept)"

    def assign(self, coefficients: Float[Tensor, "n N *T"]) -> tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]:
        """The cluster of every sample, and its bound on ‖θ(λ) − θ(centre)‖: the cluster is that of the least bound."""
        apart = (coefficients[:, None] - self.centres.to(coefficients)).abs() * self.norms.to(coefficients)
        bounds, which = apart.flatten(2).sum(2).min(1)
        return which, bounds

    def model(self, cluster: int) -> dict[str, Tensor]:
        """The merged tensors of a cluster; kept, so treat them as read-only.

        Raises:
            BadInput: there is no such cluster.
        """
        if not 0 <= cluster < len(self.centres):
            raise BadInput(f"there is no cluster {cluster}; they go from 0 to {len(self.centres) - 1}.")
        if cluster not in self._models:
            while len(self._models) >= self.kept:
                self._models.popitem(last=False)
            self._models[cluster] = self.vectors.state(self.vectors.merged(self.centres[cluster]))
        self._models.move_to_end(cluster)
        return self._models[cluster]
