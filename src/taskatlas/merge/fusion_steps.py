"""What a step of data-adaptive fusion sees: a batch of each task, or the parts of a mixed batch that are alike."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.fusion_data import Featured
from taskatlas.merge.task_network import TaskNetwork
from taskatlas.merge.unlabelled import Batch


@dataclass(frozen=True, eq=False)
class Sampled:
    """One batch of a step.

    Attributes:
        position: of its task, or group, among K.
        networks: that may be its own; one where the task is known.
        batch: the samples.
        features: of them.
        share: of the samples of its step's stream.
    """

    position: int
    networks: Sequence[TaskNetwork]
    batch: Batch
    features: Float[Tensor, "batch d"]
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Groups:
    """Samples of unknown task, told apart by their features.

    Attributes:
        centres: of k-means, on standardised features, (K, d).
        mean: of the features.
        scale: their standard deviation.
    """

    centres: Float[Tensor, "K d"]
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"], count: int, seed: int = 0) -> "Groups":
        """Finds groups by k-means, started as k-means++ does: at most so many, and none without samples.

        Raises:
            BadInput: fewer samples than groups.

        Example:
            >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
            >>> groups = Groups.of(x, 2)
            >>> [len(rows) for rows in groups.rows(x)]
            [2, 2]
        """
        from scipy.cluster.vq import kmeans2

        if len(features) < count:
            raise BadInput(f"{len(features)} samples cannot be told apart into {count} groups. Give more.")
        deviation, mean = torch.std_mean(features.double(), 0, correction=0)
        scale = deviation.where(deviation > 1e-6, torch.ones_like(deviation))
        standard = ((features - mean) / scale).numpy()
        count = min(count, len(np.unique(standard, axis=0)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of groups without samples, which are left out
            centres, _ = kmeans2(standard, count, minit="++", rng=np.random.default_rng(seed), missing="warn")
        found = cls(torch.from_numpy(centres), mean, scale)
        used = [group for group, rows in enumerate(found.rows(features)) if len(rows)]
        return replace(found, centres=found.centres[used])

    def rows(self, features: Float[Tensor, "n d"]) -> list[Tensor]:
        """Which samples are of which group; some groups may have none."""
        nearest = torch.cdist((features - self.mean) / self.scale, self.centres).argmin(1)
        return [(nearest == group).nonzero()[:, 0] for group in range(len(self.centres))]


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some samples of a batch.

    Example:
        >>> rows_of({"x": torch.arange(3), "name": "a"}, torch.tensor([2]))
        {'x': tensor([2]), 'name': 'a'}
    """
    if isinstance(batch, tuple | list):
        return rows_of(batch[0], rows)
    if isinstance(batch, Tensor):
        return batch[rows.to(batch.device)]
    return {
        name: value[rows.to(value.device)] if isinstance(value, Tensor) and value.ndim else value
        for name, value in batch.items()
    }


def by_task(networks: Mapping[str, TaskNetwork], streams: Mapping[str, Featured]) -> Iterator[Iterable[Sampled]]:
    """Steps of one batch of each task, made one after the other as they are used."""
    endless = {task: stream.endlessly() for task, stream in streams.items()}
    while True:
        yield (Sampled(i, [networks[task]], *next(its)) for i, (task, its) in enumerate(endless.items()))


def by_group(
    groups: Groups, networks: Sequence[TaskNetwork], stream: Featured, fewest: int = 1
) -> Iterator[Iterable[Sampled]]:
    """Steps of one batch of a mixed stream, in parts that are alike.

    Args:
        groups: what is alike.
        networks: that may be a part's own.
        stream: the batches.
        fewest: samples of a part; one of fewer is left out where the batch has as many.
    """
    for batch, features in stream.endlessly():
        least = min(fewest, len(features))
        yield (
            Sampled(i, networks, rows_of(batch, rows), features[rows], share=len(rows) / len(features))
            for i, rows in enumerate(groups.rows(features))
            if len(rows) >= least
        )
