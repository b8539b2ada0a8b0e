"""A fused model: experts, a hypernetwork that says how to merge them for each input, and what both give together."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.family import Family
from taskatlas.merge.fusion_data import Data, Featured
from taskatlas.merge.fusion_files import export_model
from taskatlas.merge.fusion_learning import surest
from taskatlas.merge.hypernetwork import Hypernetwork
from taskatlas.merge.kept_features import KeptFeatures
from taskatlas.merge.per_sample import ByCluster, Engine, PerSample
from taskatlas.merge.task_network import TaskNetwork
from taskatlas.merge.unlabelled import Batch
from taskatlas.probe import quiet
from taskatlas.store import Store

_STEERED = ""  # in place of a task, the base itself
_AT_ONCE = 32  # samples of a probe that pass together


@dataclass(eq=False, repr=False)
class FusedModel:
    """Experts under a hypernetwork; samples are a ``Probe``, ``Unlabelled``, one batch, or a list or loader of batches.

    Attributes:
        family: task vectors, and the network of every task.
        hypernetwork: from features to coefficients.
        extractor: from samples to features.
        engine: of predictions: ``auto`` chooses by size, ``mixing``, ``vmap``, ``merging``.
        store: where features are kept; None: the user's store.
        chosen: which engine ran the last predictions, and why.
    """

    family: Family
    hypernetwork: Hypernetwork
    extractor: Extractor
    engine: Engine = "auto"
    store: Store | None = None
    chosen: str = ""
    _running: dict[str, PerSample] = field(default_factory=dict, repr=False)

    def coefficients(self, X: Data | Batch) -> Float[np.ndarray, "n N *T"]:
        """The coefficients of every sample."""
        return np.concatenate([self._coefficients(features).cpu().numpy() for _, features in self._once(X)])

    def logits(self, X: Data | Batch, task: str) -> Iterator[Float[Tensor, "batch C"]]:
        """Batch after batch, the logits of every sample from a model that is merged for it, through a task's head.

        Raises:
            BadInput: no such task, a batch that network or extractor cannot take.
        """
        for batch, features in self._once(X):
            yield self.answer(batch, features, task)

    def answer(self, batch: Batch, features: Float[Tensor, "batch d"], task: str) -> Float[Tensor, "batch C"]:
        """The logits of one batch through a task's head, each sample's from a model that is merged for it.

        Args:
            batch: as the task's network takes it.
            features: of its samples.
            task: whose head.

        Raises:
            BadInput: no such task, a batch that the network cannot take.
        """
        runs = self._runs(task)
        logits = runs(runs.network.inputs(batch), self._coefficients(features))
        self.chosen = runs.chosen
        return logits

    def predict_log_proba(self, X: Data | Batch, task: str) -> Float[np.ndarray, "n C"]:
        """Log-probabilities of every sample, through a task's head."""
        return np.concatenate([torch.log_softmax(logits, -1).cpu().numpy() for logits in self.logits(X, task)])

    def predict(self, X: Data | Batch, task: str | None = None) -> Int64[np.ndarray, " n"]:
        """The class of every sample.

        Args:
            X: the samples.
            task: whose head; None: for each sample the head that is surest, see ``inferred``. A score with heads known
                and one with heads inferred are two results: say which.
        """
        if task is None:
            return self.inferred(X)[1]
        return np.concatenate([logits.argmax(1).cpu().numpy() for logits in self.logits(X, task)])

    def inferred(self, X: Data | Batch) -> tuple[np.ndarray, Int64[np.ndarray, " n"]]:
        """For every sample the task whose head is surest, by entropy as a share of ln C, and the class that it says."""
        names = self.family.different()
        several = [self._runs(name) for name in names]
        tasks, classes = [], []
        for batch, features in self._once(X):
            coefficients = self._coefficients(features)
            logits = [runs(runs.network.inputs(batch), coefficients).cpu() for runs in several]
            best = surest(logits).argmin(1).tolist()
            tasks += [names[head] for head in best]
            classes += [int(logits[head][row].argmax()) for row, head in enumerate(best)]
            self.chosen = several[0].chosen
        return np.array(tasks), np.array(classes, dtype=np.int64)

    def score(self, X: Any, y: Any = None, task: str | None = None) -> float:
        """The share of samples that are right.

        Args:
            X: the samples.
            y: their classes; None: the labels of the probe.
            task: as ``predict``.

        Raises:
            BadInput: there are no labels, or not one for each sample.
        """
        truth = getattr(getattr(X, "probe", X), "labels", None) if y is None else y
        if truth is None:
            raise BadInput("there are no labels to score against. Give a probe with labels, or y.")
        found, truth = self.predict(X, task), np.asarray(truth)
        if truth.shape != found.shape:
            raise BadInput(f"there are labels of shape {truth.shape} for {len(found)} samples. Give one for each.")
        return float(np.mean(found == truth))

    def merged_for(self, X: Data | Batch, task: str | None = None) -> dict[str, Tensor]:
        """The tensors of the one model that is merged for the mean coefficients of these samples.

        Args:
            X: one batch or many; or, as a NumPy array, the coefficients themselves.
            task: whose own tensors (head, BatchNorm statistics) go along; None: none.
        """
        return self.state(self._mean(X), task)

    def state(self, coefficients: Float[np.ndarray, "N *T"], task: str | None = None) -> dict[str, Tensor]:
        """The tensors of the model that is merged with these coefficients; ``task`` as in ``merged_for``."""
        vectors = self.family.vectors
        merged = vectors.state(vectors.merged(torch.from_numpy(np.asarray(coefficients))))
        return merged if task is None else {**merged, **self.network(task).kept}

    def export(
        self, folder: Path | str, X: Data | Batch, task: str, *, like: Path | str | None = None, learned: str = ""
    ) -> None:
        """Writes the model that is merged for some samples as an ordinary checkpoint folder, with a receipt.

        Args:
            folder: where to.
            X: as ``merged_for``.
            task: whose head it has, where that is part of the network; heads given beside it are not written.
            like: a model folder whose tokenizer and image processor go along.
            learned: on which samples the hypernetwork was trained; goes into the receipt.

        Raises:
            BadInput: no such task, a folder that is not empty, or the place cannot be written.
        """
        coefficients = self._mean(X)
        names = self.family.vectors.names
        about = {"task": task, "experts": names, "coefficients": coefficients.tolist(), "learned on": learned}
        export_model(folder, self.network(task).network, self.state(coefficients, task), about, like)

    @contextmanager
    def steered(
        self, base: nn.Module, coefficients: Float[np.ndarray, "batch N *T"], batch: Batch
    ) -> Iterator[nn.Module]:
        """While it lasts, a network with the base's weights computes each sample of a batch with its own coefficients.

        Args:
            base: the network: for its ``generate``.
            coefficients: of the samples.
            batch: that it will be given, and no other; on the first one mixing is compared with merged models.

        Raises:
            BadInput: another number of samples or coefficients, or samples that cannot be mixed.
        """
        vectors = self.family.vectors
        wanted = torch.as_tensor(np.asarray(coefficients)).to(vectors.base)
        sizes = (len(vectors.names),), (len(vectors.names), len(vectors.places))
        if tuple(wanted.shape[1:]) not in sizes:
            raise BadInput(
                f"coefficients of shape {tuple(wanted.shape)} do not fit; give (samples, *{sizes[0]}) or "
                f"(samples, *{sizes[1]})."
            )
        if _STEERED not in self._running:
            network = replace(TaskNetwork.each({_STEERED: base}, vectors)[_STEERED], head=_flat_logits)
            self._running[_STEERED] = PerSample(network, vectors, "mixing")
        runs = self._running[_STEERED]
        with quiet(base), runs.mixing(runs.network.inputs(batch), wanted):
            yield base

    def network(self, task: str) -> TaskNetwork:
        """The network that runs a task.

        Raises:
            BadInput: there is no such task.
        """
        if task not in self.family.networks:
            raise BadInput(f"there is no task {task!r}; there are {', '.join(self.family.networks)}.")
        return self.family.networks[task]

    def _mean(self, X: Data | Batch) -> np.ndarray:
        return X if isinstance(X, np.ndarray) else self.coefficients(X).mean(0)

    def _once(self, X: Data | Batch) -> Iterator[tuple[Batch, Tensor]]:
        alone, kept = isinstance(X, Tensor | Mapping | tuple), KeptFeatures(self.extractor, self.store)
        return Featured([X] if alone else X, kept, "the data", _AT_ONCE, passing=alone).once()

    def _coefficients(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            return self.hypernetwork(features.to(self.hypernetwork.mean))

    def _runs(self, task: str) -> PerSample | ByCluster:
        if task not in self._running:
            self._running[task] = PerSample(self.network(task), self.family.vectors, self.engine)
        return self._running[task]


def _flat_logits(output: Any) -> Tensor:
    """What a network says about each sample, of all positions."""
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, tuple | list) else found
    return torch.as_tensor(found).flatten(1)
