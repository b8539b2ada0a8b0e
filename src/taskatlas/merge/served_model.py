"""Serving a fusion with a few merged models: each sample is answered by the model of its cluster of coefficients."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from taskatlas.merge.clusters import Clusters
from taskatlas.merge.fused_model import FusedModel
from taskatlas.merge.fusion_data import Data
from taskatlas.merge.per_sample import ByCluster
from taskatlas.merge.unlabelled import Batch


@dataclass(eq=False, repr=False, kw_only=True)
class ServedModel(FusedModel):
    """A fused model that answers with a few merged models, which stay in memory.

    It predicts as the fused model does, see ``FusedModel``. A model is merged when a sample first needs it, for all
    tasks, and takes as much memory as the base's merged tensors; of LoRA experts these are the adapted weights.

    Attributes:
        clusters: coefficients that stand for those of many samples, and the models that are merged with them.
    """

    clusters: Clusters

    @classmethod
    def of(cls, fused: FusedModel, clusters: Clusters) -> "ServedModel":
        """A fused model, from now on answered by clusters of its coefficients."""
        return cls(
            family=fused.family,
            hypernetwork=fused.hypernetwork,
            extractor=fused.extractor,
            store=fused.store,
            clusters=clusters,
        )

    def __repr__(self) -> str:
        kept = f"at most {self.clusters.kept} kept, {self.clusters.bytes / 1e6:.3g} MB"
        return f"ServedModel({len(self.clusters.centres)} merged models, {kept})"

    def assign(self, X: Data | Batch) -> tuple[Int64[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The cluster of every sample, and a bound on how far its model is from the sample's own, see ``Clusters``."""
        which, bounds = self.clusters.assign(torch.from_numpy(self.coefficients(X)))
        return which.numpy(), bounds.numpy()

    def model(self, cluster: int, task: str | None = None) -> dict[str, Tensor]:
        """The tensors of a cluster's model; with the task's own (head, BatchNorm statistics) where one is named.

        Raises:
            BadInput: there is no such cluster or task.
        """
        return {**self.clusters.model(cluster), **({} if task is None else self.network(task).kept)}

    def save(self, path: Path | str) -> None:
        """Writes the clusters as one safetensors file, which ``DataAdaptive.served`` reads; the fusion stays apart.

        Raises:
            BadInput: the place cannot be written.
        """
        self.clusters.save(path)

    def _runs(self, task: str) -> "ByCluster":
        return ByCluster(self.network(task), self.clusters)
