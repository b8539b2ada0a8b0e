"""Coefficients in clusters, a merged model for each, and how far that is from each sample's own.

Coefficients are clustered by k-means in units of the weights that they move, so each λ_i counts with ‖τ_i‖. What a
sample loses by being given its cluster's model in place of its own is bounded:
‖θ(λ) − θ(λ̄)‖ ≤ Σ_i |λ_i − λ̄_i| ‖τ_i‖, a distance between weights; layer-wise the sum goes over tensors too.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.low_rank import Vectors, content_digests, task_vector_norms
from taskatlas.store import atomic_write
from taskatlas.zoo.weights import first_line

_FORMAT = "taskatlas.clusters/1"  # the one key of the metadata: of several, the order in the file would be random


@dataclass(frozen=True, eq=False, repr=False)
class Clusters:
    """K coefficients that stand for many, and the models that are merged with them.

    Attributes:
        centres: (K, N) or (K, N, T).
        norms: ‖τ_i‖, (N,), or of every tensor, (N, T).
        vectors: what is merged.
        kept: how many merged models are kept in memory at most, D numbers each; the one that was asked for longest ago
            goes first.

    Example:
        >>> from taskatlas.merge.task_vectors import TaskVectors
        >>> vectors = TaskVectors.of({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([3.0, 4.0])}})
        >>> clusters = Clusters.of(torch.tensor([[0.0], [0.2], [1.0]]), vectors, count=2)
        >>> which, bound = clusters.assign(torch.tensor([[0.0], [1.0]]))
        >>> clusters.centres[which], bound
        (tensor([[0.1000],
                [1.0000]]), tensor([0.5000, 0.0000], dtype=torch.float64))
    """

    centres: Float[Tensor, "K N *T"]
    norms: Float[Tensor, "N *T"]
    vectors: Vectors
    kept: int
    _models: "OrderedDict[tuple[int, torch.device], Tensor]" = field(default_factory=OrderedDict)

    @classmethod
    def of(
        cls, coefficients: Float[Tensor, "n N *T"], vectors: Vectors, count: int, seed: int = 0, kept: int | None = None
    ) -> "Clusters":
        """Finds the centres.

        Args:
            coefficients: of the samples that are to be served well.
            vectors: what is merged.
            count: of clusters, at most; fewer where there are fewer different coefficients.
            seed: of k-means++.
            kept: merged models that are kept in memory at most; None: all.

        Raises:
            BadInput: no clusters, no coefficients, or no model to be kept.
        """
        from scipy.cluster.vq import kmeans2

        if count < 1 or count != int(count) or not len(coefficients):
            raise BadInput(f"{len(coefficients)} coefficients cannot be put into {count} clusters.")
        if kept is not None and kept < 1:
            raise BadInput(f"kept={kept} leaves no room for a model. Keep at least one.")
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
        return cls(centres, norms, vectors, kept or len(centres))

    def __repr__(self) -> str:
        return f"Clusters({len(self.centres)} of coefficients {tuple(self.centres.shape[1:])}, {self.kept} models kept)"

    @property
    def bytes(self) -> int:
        """Memory of the merged models that are kept, once each was asked for."""
        return min(self.kept, len(self.centres)) * self.vectors.base.numel() * self.vectors.base.element_size()

    def assign(self, coefficients: Float[Tensor, "n N *T"]) -> tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]:
        """The cluster of every sample, and its bound on ‖θ(λ) − θ(centre)‖: the cluster is that of the least bound."""
        norms = self.norms.to(coefficients.device)
        apart = [((coefficients - centre).abs() * norms).flatten(1).sum(1) for centre in self.centres.to(coefficients)]
        bounds, which = torch.stack(apart, 1).min(1)
        return which, bounds

    def merged(self, cluster: int, device: torch.device | None = None) -> Float[Tensor, " D"]:
        """The merged weights of a cluster; kept, so treat them as read-only.

        Args:
            cluster: its number.
            device: where they are wanted and kept; None: where the task vectors are.

        Raises:
            BadInput: there is no such cluster.
        """
        if not 0 <= cluster < len(self.centres):
            raise BadInput(f"there is no cluster {cluster}; they go from 0 to {len(self.centres) - 1}.")
        key = cluster, device or self.vectors.base.device
        if key not in self._models:
            while len(self._models) >= self.kept:
                self._models.popitem(last=False)
            self._models[key] = self.vectors.merged(self.centres[cluster]).to(key[1])
        self._models.move_to_end(key)
        return self._models[key]

    def model(self, cluster: int) -> dict[str, Tensor]:
        """The merged tensors of a cluster, copied, with all that the base has beside them.

        Raises:
            BadInput: there is no such cluster.
        """
        return self.vectors.state(self.merged(cluster))

    def save(self, path: Path | str) -> None:
        """Writes centres and norms as one safetensors file; models are merged again when they are asked for.

        Raises:
            BadInput: the place cannot be written.
        """
        about = {"kept": self.kept, **_about(self.vectors)}
        tensors = {"centres": self.centres.contiguous(), "norms": self.norms.contiguous()}
        with atomic_write(Path(path)) as file:
            save_file(tensors, file, metadata={_FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: Path | str, vectors: Vectors) -> "Clusters":
        """Reads what ``save`` wrote.

        Args:
            path: the file.
            vectors: as they were.

        Raises:
            BadInput: the file is missing, cut short, or something else; another base, other experts or tensors.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise BadInput(f"{path} holds no clusters. Give a file that their save wrote.")
                about = json.loads(metadata[_FORMAT])
                centres, norms, kept = file.get_tensor("centres"), file.get_tensor("norms"), int(about["kept"])
        except FileNotFoundError as error:
            raise BadInput(f"there is no file {path}. Is the path right?") from error
        except (SafetensorError, OSError, LookupError, ValueError, TypeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{path} is not whole ({first_line(error)}). Was its writing cut short?") from error
        other = [what for what, own in _about(vectors).items() if own != about.get(what)]
        if other or norms.shape != centres.shape[1:]:
            raise BadInput(
                f"{path} was made with other {other[0] if other else 'levels'}. Load it into its own fusion."
            )
        return cls(centres, norms, vectors, kept)


def _about(vectors: Vectors) -> Mapping[str, object]:
    """What clusters are of."""
    return {"names": list(vectors.names), "tensors": list(vectors.places), **content_digests(vectors)}
