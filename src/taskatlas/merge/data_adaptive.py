"""Data-adaptive fusion: one model of several experts, whose merging coefficients follow from the input.

θ(x) = θ₀ + Σ_i λ_i(x) τ_i with λ(x) = h(f(x)): f a frozen feature extractor, h a small hypernetwork that is trained on
unlabelled data alone (Tang et al., "Data-Adaptive Weight-Ensembling for Multi-Task Model Fusion", IJCV 2025).
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.clusters import Clusters
from taskatlas.merge.depth_map import depth_map
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.family import Expert, Family
from taskatlas.merge.fused_model import FusedModel
from taskatlas.merge.fusion_arguments import check_arguments
from taskatlas.merge.fusion_data import Data, Featured
from taskatlas.merge.fusion_files import SavedFusion
from taskatlas.merge.fusion_learning import Learned, Optimizer, learn
from taskatlas.merge.fusion_plots import Picture, check_picture, plot_by_layer, plot_by_task, plot_learning
from taskatlas.merge.fusion_steps import Groups, by_group, by_task
from taskatlas.merge.hypernetwork import Bound, Hypernetwork, mean_coefficients, published_hypernetwork
from taskatlas.merge.kept_features import KeptFeatures
from taskatlas.merge.low_rank import Vectors, content_digests
from taskatlas.merge.merged_models import MergedModels
from taskatlas.merge.per_sample import Engine
from taskatlas.merge.placement import Placement
from taskatlas.merge.served_model import ServedModel
from taskatlas.merge.state import Model
from taskatlas.merge.task_network import Head
from taskatlas.merge.task_vectors import Level
from taskatlas.merge.unlabelled import Batch
from taskatlas.store import Store, digest
from taskatlas.zoo.builders import some

_HELD = ("base", "experts", "extractor", "heads", "placement", "store")  # arguments that are no plain values
_TOGETHER = 2  # models that are merged together: these and their gradients take the memory of two vectors
_STATISTICS_BATCHES = 64  # of each task, from which BatchNorm's statistics are estimated after learning


class DataAdaptive(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Learns from unlabelled data how to merge experts for each input; a scikit-learn estimator.

    Heads belong to tasks and are never merged. Tensors that the base lacks are each expert's own, and so are heads of
    other numbers of classes: layers that differ in their number of outputs, where nothing else differs in shape. Heads
    of equal shapes have to be named by ``own``, or given apart as ``heads``. Networks and extractor run in evaluation
    mode and stay as they were.

    Args:
        base: what the experts were trained from: a network, or its tensors by name.
        experts: task -> its network, tensors, weights file or LoRA adapter; or task vectors that were made before. A
            task runs with its expert's network, or else the base's: one of them has to be one, or a checkpoint with a
            builder.
        extractor: makes the features: a module, a Hugging Face model by folder or hub id, an ``Extractor``.
        level: ``task``: a coefficient an expert; ``layer``: one for each expert and tensor.
        heads: task -> function from the network's output to logits; None: the output holds logits.
        own: patterns of further tensors that stay each expert's own (``classifier.*``).
        initial: every coefficient before the first step and before the bound.
        bound: of the coefficients: ``none``, ``clamp`` to [0, 1], or ``softmax`` over the experts.
        standardise: whether features are given zero mean and unit deviation: features of unit norm hardly move h.
        diversity: weight of the entropy of the mean prediction, which learning then raises.
        steps: each on one batch of every task.
        batch_size: of a probe that is given as it is.
        learning_rate: published: 1e-5, for T5 5e-6.
        optimizer: published: ``adam``, for T5 ``adamw``.
        collapse: learning stops where the entropy of a task's mean prediction falls below this share of what it was.
        transductive: whether the data are the samples that will be scored; every result says so.
        engine: of predictions: ``auto`` chooses by size, ``mixing``, ``vmap``, ``merging``.
        placement: devices of task vectors, hypernetwork and networks.
        store: where features are kept; None: the user's store.
        seed: of the hypernetwork and of the loaders' orders.

    Attributes:
        hypernetwork_: h.
        family_: task vectors, and the network of every task.
        names_: the experts that have a task vector, N.
        tensors_: the merged tensors, T.
        tasks_: those that it learned on, K; groups where tasks were unknown.
        coefficients_: mean coefficients of every task's data after learning, (K, N) or (K, N, T).
        fused_: the fused model.
        learned_: how learning went; None where nothing was learned here.
        dead_: (N, T), where a coefficient changes nothing: the expert left the tensor as it was, or no prediction
            depends on it.
        collapsed_: task -> step at which its predictions had become alike.
        adaptation_: on which samples it learned: ``held-out`` or ``transductive``; or where h comes from.
        engine_: which engine ran the last predictions, and why.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> base, a, b = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)
        >>> data = {"a": [torch.randn(8, 2)], "b": [torch.randn(8, 2)]}
        >>> DataAdaptive(base, {"a": a, "b": b}, nn.Linear(2, 2), steps=5).fit(data)
        DataAdaptive(task-wise, 2 experts: a, b; 5 steps on held-out samples, entropy 1.077 to 1.077)
    """

    def __init__(
        self,
        base: Any,
        experts: Any,
        extractor: Any,
        *,
        level: Level = "task",
        heads: Mapping[str, Head] | None = None,
        own: Sequence[str] = (),
        initial: float = 0.3,
        bound: Bound = "none",
        standardise: bool = False,
        diversity: float = 0.0,
        steps: int = 1000,
        batch_size: int = 16,
        learning_rate: float = 1e-5,
        optimizer: Optimizer = "adam",
        collapse: float | None = 0.3,
        transductive: bool = False,
        engine: Engine = "auto",
        placement: Placement | None = None,
        store: Store | None = None,
        seed: int = 0,
    ) -> None:
        self.base = base
        self.experts = experts
        self.extractor = extractor
        self.level = level
        self.heads = heads
        self.own = own
        self.initial = initial
        self.bound = bound
        self.standardise = standardise
        self.diversity = diversity
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.collapse = collapse
        self.transductive = transductive
        self.engine = engine
        self.placement = placement
        self.store = store
        self.seed = seed

    def __repr__(self) -> str:
        if not hasattr(self, "fused_"):
            return f"DataAdaptive({self.level}-wise, not fitted)"
        shown = ", ".join(self.names_[:6]) + (" ..." if len(self.names_) > 6 else "")
        said = [f"{self.level}-wise, {len(self.names_)} experts: {shown}", self.adaptation_]
        if self.learned_ is not None:
            entropy = self.learned_.entropy
            edge = max(1, len(entropy) // 10)
            first, last = np.nanmean(entropy[:edge]), np.nanmean(entropy[-edge:])
            said[-1] = f"{len(entropy)} steps on {self.adaptation_} samples, entropy {first:.3f} to {last:.3f}"
        return f"DataAdaptive({'; '.join([*said, *self.notes_])})"

    @property
    def notes_(self) -> list[str]:
        """What a reader of the result has to know beside the coefficients, a phrase each."""
        vectors, dead = self.family_.vectors, self.dead_ if self.level == "layer" else self.dead_.all(1)
        own = sorted({name for its in vectors.own.values() for name in its})
        missing = self.family_.moving_statistics and not self.family_.estimated
        notes = {
            f"each expert's own: {some(own)}": own,
            f"equal to the base: {', '.join(vectors.dropped)}": vectors.dropped,
            f"{int(dead.sum())} of {dead.size} coefficients dead": dead.any(),
            f"stopped, predictions collapsed: {', '.join(self.collapsed_)}": self.collapsed_,
            "BatchNorm statistics are the experts' mean, see estimate_statistics": missing,
        }
        return [note for note, holds in notes.items() if holds]

    # Learning

    def fit(self, X: Mapping[str, Data] | Data, y: Any = None) -> "DataAdaptive":  # noqa: ARG002
        """Trains the hypernetwork on unlabelled data.

        Args:
            X: task -> its samples; or one mixed stream, whose tasks are unknown: its samples are then grouped by their
                features, and a group goes through the head that is surest of it. Samples are a ``Probe``,
                ``Unlabelled(probe, prepare=...)``, or batches that can be passed over again. Not the samples that are
                scored later, or say ``transductive``.
            y: ignored.

        Raises:
            BadInput: experts that do not fit the base, a task without expert or head, no data, a batch that a network
                or the extractor cannot take.
            WorkFailed: an entropy or the hypernetwork becomes NaN; names the step.
        """
        check_arguments(self.get_params(deep=False))
        self._open()
        parts = dict(sorted(X.items())) if isinstance(X, Mapping) else {"": X}
        self._check_tasks(parts)
        streams = self._featured(parts)
        some = {task: stream.some() for task, stream in streams.items()}
        groups = Groups.of(some[""], len(self.names_), self.seed) if "" in some else None
        if groups is not None:
            some = {f"group {i}": some[""][rows] for i, rows in enumerate(groups.rows(some[""]))}
        self.tasks_ = tuple(some)
        everything = torch.cat(list(some.values()))
        h = Hypernetwork(everything.shape[1], self._shape, initial=self.initial, bound=self.bound, seed=self.seed)
        self._take(h)
        if self.standardise:
            h.standardise(everything.to(h.mean.device))
        networks = self.family_.for_learning()
        with self.family_.learning(self.seed):
            self.learned_: Learned | None = learn(
                h,
                MergedModels(self.family_.vectors, min(_TOGETHER, len(self.tasks_))),
                by_task(networks, streams)
                if groups is None
                else by_group(
                    groups,
                    [networks[name] for name in self.family_.different()],
                    streams[""],
                    fewest=2 if self.family_.moving_statistics else 1,  # BatchNorm normalises with each part's own
                ),
                self.tasks_,
                level=self.level,
                count=self.steps,
                learning_rate=self.learning_rate,
                optimizer=self.optimizer,
                diversity=self.diversity,
                collapse=self.collapse,
                alive=~self.family_.vectors.dead.cpu() if self.level == "layer" else None,
            )
        means = np.stack([mean_coefficients(h, features) for features in some.values()])
        self._finish(means, "transductive" if self.transductive else "held-out")
        if self.family_.moving_statistics:
            self._estimate(streams)
        if self.collapsed_:
            warnings.warn(
                f"the predictions of {', '.join(self.collapsed_)} became alike, so learning stopped at step "
                f"{len(self.learned_.entropy)} of {self.steps} and went back to where they were sound. Try a lower "
                "learning rate, diversity=0.1, or cleaner data.",
                stacklevel=2,
            )
        return self

    def transferred(self, base: Model, experts: Mapping[str, Expert] | Vectors, **changes: Any) -> "DataAdaptive":
        """This hypernetwork on another family of experts for the same tasks, without training.

        Task-wise coefficients go to the experts of the same names (Tang et al., IJCV 2025, section 5.4). Layer-wise
        ones are interpolated over relative depth, tensor by tensor of the same role, see ``depth_map``. Dead ones were
        never learned and are left out.

        Args:
            base: of the other family.
            experts: of the other family, with names of this one.
            changes: other arguments (``heads``, ``own``, ``engine``, ...); the rest is as here.

        BatchNorm's statistics are the experts' mean afterwards: ``estimate_statistics`` where they moved.

        Raises:
            BadInput: an expert that this hypernetwork does not know.
        """
        check_is_fitted(self, "fused_")
        other = DataAdaptive(**{**self.get_params(deep=False), **changes, "base": base, "experts": experts})
        check_arguments(other.get_params(deep=False))
        other._open()
        unknown = [name for name in other.names_ if name not in self.names_]
        if unknown:
            raise BadInput(f"the hypernetwork does not know {unknown[0]!r}; it knows {', '.join(self.names_)}.")
        rows = [self.names_.index(name) for name in other.names_]
        mixing = None
        if self.level == "layer":
            alive = ~self.dead_
            mixing = torch.stack([depth_map(self.tensors_, other.tensors_, alive[row].tolist()) for row in rows])
        other._take(self.hypernetwork_.remapped(rows, mixing, other.bound))
        other.tasks_, other.learned_ = self.tasks_, None
        picked = self.coefficients_[:, rows]
        other._finish(
            picked if mixing is None else np.einsum("knt,ntu->knu", picked, mixing.numpy()),
            f"transferred from {len(self.tensors_)} tensors, {self.adaptation_} samples",
        )
        other._warn_of_statistics()
        return other

    def estimate_statistics(self, X: Mapping[str, Data]) -> "DataAdaptive":
        """Estimates BatchNorm's statistics for each task from unlabelled data; ``fit`` has done so for its own tasks.

        Networks without such statistics stay as they are.

        Args:
            X: task -> its samples.

        Raises:
            BadInput: no such task, or as ``reestimate_batch_norm``.
        """
        check_is_fitted(self, "fused_")
        self._check_tasks(X)
        if not self.family_.moving_statistics:
            return self
        self._estimate(self._featured({task: X[task] for task in sorted(X)}))
        return self

    def with_published(
        self, path: Path | str, experts: Sequence[str], tensors: Sequence[str] | None = None
    ) -> "DataAdaptive":
        """Takes a published hypernetwork (``nn.Sequential`` of two linear layers) in place of learning one.

        BatchNorm's statistics are the experts' mean afterwards: ``estimate_statistics`` where they moved.

        Args:
            path: its file; read without running code of it.
            experts: in the order of its outputs, which the file does not say.
            tensors: layer-wise, in the order of its outputs; None: those that are merged here, in the base's order.
                Those that are not merged here are left out.

        Raises:
            BadInput: a file that is none, an expert that is not here, outputs that do not fit.
        """
        check_arguments(self.get_params(deep=False))
        self._open()
        layers = self.level == "layer"
        order = experts, (list(self.tensors_ if tensors is None else tensors) if layers else None)
        wanted = self.names_, (self.tensors_ if layers else None)
        self._take(published_hypernetwork(path, order, wanted, self.bound))
        self.tasks_, self.learned_ = (), None
        self._finish(np.empty((0, *self._shape)), f"published in {Path(path).name}")
        self._warn_of_statistics()
        return self

    # Results: see ``FusedModel``, which says what samples and arguments may be

    def coefficients(self, X: Data | Batch) -> Float[np.ndarray, "n N *T"]:
        """The coefficients of every sample."""
        return self._fused.coefficients(X)

    def predict_log_proba(self, X: Data | Batch, task: str) -> Float[np.ndarray, "n C"]:
        """Log-probabilities of every sample, each from a model that is merged for it, through a task's head."""
        return self._fused.predict_log_proba(X, task)

    def predict(self, X: Data | Batch, task: str | None = None) -> Int64[np.ndarray, " n"]:
        """The class of every sample, through a task's head, or through the head that is surest of it."""
        return self._fused.predict(X, task)

    def infer_tasks(self, X: Data | Batch) -> np.ndarray:
        """The name of the task whose head is surest of a sample."""
        return self._fused.inferred(X)[0]

    def score(self, X: Any, y: Any = None, task: str | None = None) -> float:
        """The share of samples that are right; ``y`` are their classes, or a probe has them."""
        return self._fused.score(X, y, task)

    def merged_for(self, X: Data | Batch, task: str | None = None) -> dict[str, Tensor]:
        """The tensors of the one model that is merged for the mean coefficients of these samples, or for an array."""
        return self._fused.merged_for(X, task)

    def export(self, folder: Path | str, X: Data | Batch, task: str, like: Path | str | None = None) -> None:
        """Writes the model merged for some samples as an ordinary checkpoint folder; see ``FusedModel.export``."""
        self._fused.export(folder, X, task, like=like, learned=self.adaptation_)

    def clusters(self, X: Data | Batch, count: int, kept: int | None = None) -> ServedModel:
        """This fusion, answered by a few merged models; ``assign`` bounds what that costs each sample.

        Args:
            X: samples like those that are to be served well; their coefficients are clustered.
            count: of merged models, at most.
            kept: how many of them stay in memory at most; the others are merged again when they are needed. None: all.

        Raises:
            BadInput: no clusters, no samples, or no model to be kept.
        """
        found = torch.from_numpy(self.coefficients(X))
        return ServedModel.of(self._fused, Clusters.of(found, self.family_.vectors, count, self.seed, kept))

    def served(self, path: Path | str) -> ServedModel:
        """This fusion, answered by the merged models of clusters that ``ServedModel.save`` wrote.

        Raises:
            BadInput: the file is missing, cut short, something else, or of another fusion.
        """
        return ServedModel.of(self._fused, Clusters.load(path, self._fused.family.vectors))

    @contextmanager
    def steered(self, coefficients: Float[np.ndarray, "batch N *T"], batch: Batch) -> Iterator[nn.Module]:
        """While it lasts, the base computes each sample of this batch with its own coefficients: for ``generate``.

        Raises:
            BadInput: the base is no network, another number of samples or coefficients, or samples that cannot be
                mixed.
        """
        if not isinstance(self.base, nn.Module):
            raise BadInput("the base is given by its tensors; steered needs the network.")
        with self._fused.steered(self.base, coefficients, batch) as network:
            yield network

    def save(self, path: Path | str) -> None:
        """Writes what was learned as one safetensors file; base, experts and extractor stay where they are.

        Raises:
            BadInput: the place cannot be written.
        """
        check_is_fitted(self, "fused_")
        about = {
            "arguments": {name: value for name, value in self.get_params(deep=False).items() if name not in _HELD},
            "content": self._content(),
            "adaptation": self.adaptation_,
            **{name: list(getattr(self, f"{name}_")) for name in ("names", "tensors", "tasks")},
        }
        statistics = self.family_.statistics()
        SavedFusion(about, self.hypernetwork_, self.coefficients_, self.dead_, self.learned_, statistics).save(path)

    @classmethod
    def load(cls, path: Path | str, base: Any, experts: Any, extractor: Any, **others: Any) -> "DataAdaptive":
        """Reads what ``save`` wrote.

        Args:
            path: the file.
            base: as it was.
            experts: as they were.
            extractor: as it was.
            others: what a file cannot hold: ``heads``, ``placement``, ``store``; and any other argument.

        Raises:
            BadInput: the file is missing, cut short, or something else; another base, other experts, tensors, heads or
                another extractor than it was learned with.
        """
        saved = SavedFusion.load(path)
        if saved.about["arguments"].keys() != cls(base, experts, extractor).get_params(deep=False).keys() - {*_HELD}:
            raise BadInput(f"{path} was written by another version of taskatlas. Learn it again.")
        found = cls(base, experts, extractor, **{**saved.about["arguments"], **others})
        check_arguments(found.get_params(deep=False))
        found._open()
        opened = {"names": list(found.names_), "tensors": list(found.tensors_), **found._content()}
        known = {**saved.about, **saved.about["content"]}
        other = [what for what, own in opened.items() if own != known.get(what)]
        if other or saved.hypernetwork.shape != found._shape:
            raise BadInput(
                f"{path} was learned with other {other[0] if other else 'levels'}. "
                "Give the base, experts, heads and extractor that it was learned with."
            )
        found._take(saved.hypernetwork)
        found.tasks_, found.learned_ = tuple(saved.about["tasks"]), saved.learned
        found.family_ = found.family_.given_statistics(saved.statistics)
        found._finish(saved.coefficients, saved.about["adaptation"])
        return found

    def plot(self, picture: Picture = "tasks", ax: Any = None, task: str | None = None) -> Any:
        """Draws mean coefficients by task, one task's by layer, or how they were learned; returns the axes.

        Args:
            picture: ``tasks``, ``layers`` or ``learning``.
            ax: where; None: a new figure.
            task: of ``layers``; None: the mean over all tasks.

        Raises:
            BadInput: a picture that cannot be drawn.
        """
        check_is_fitted(self, "fused_")
        check_picture(picture, self.level, self.learned_ is not None, self.tasks_, task)
        if picture == "learning" and self.learned_ is not None:
            return plot_learning(self.learned_.coefficients, self.tasks_, self.names_, self.adaptation_, ax)
        if picture == "layers":
            rows = [row for row, name in enumerate(self.tasks_) if task in (None, name)]
            found = self.coefficients_[rows].mean(0)
            note = f"{task or 'mean over tasks'}, {self.adaptation_}"
            return plot_by_layer(found, self.dead_, self.names_, self.tensors_, note, ax)
        layers = self.level == "layer"
        found = np.nanmean(np.where(self.dead_, np.nan, self.coefficients_), -1) if layers else self.coefficients_
        return plot_by_task(found, self.tasks_, self.names_, self.adaptation_, ax)

    @property
    def engine_(self) -> str:
        """Which engine ran the last predictions, and why."""
        return self._fused.chosen

    @property
    def _fused(self) -> FusedModel:
        check_is_fitted(self, "fused_")
        return self.fused_

    @property
    def _placement(self) -> Placement:
        return self.placement or Placement()

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(self.names_),) if self.level == "task" else (len(self.names_), len(self.tensors_))

    def _open(self) -> None:
        """Experts and extractor, as the arguments name them."""
        self._extractor = Extractor.of(self.extractor)
        self.family_ = Family.of(self.base, self.experts, heads=self.heads, own=self.own, placement=self._placement)
        self.names_, self.tensors_ = self.family_.vectors.names, tuple(self.family_.vectors.places)

    def _featured(self, parts: Mapping[str, Data]) -> dict[str, Featured]:
        kept = KeptFeatures(self._extractor, self.store)  # all tasks' together: the extractor is digested once
        who = {task: f"the data of task {task!r}" if task else "the data of the mixed stream" for task in parts}
        return {task: Featured(its, kept, who[task], self.batch_size) for task, its in parts.items()}

    def _take(self, hypernetwork: Hypernetwork) -> None:
        self.hypernetwork_ = hypernetwork.to(self._placement.hypernetwork, self.family_.vectors.base.dtype)

    def _finish(self, coefficients: np.ndarray, adaptation: str) -> None:
        """Says what was found, once the hypernetwork is there."""
        learned = self.learned_
        self.coefficients_, self.adaptation_ = coefficients, adaptation
        self.dead_ = self.family_.vectors.dead.cpu().numpy()
        if learned is not None:
            self.dead_ = self.dead_ | np.array([name not in learned.reached for name in self.tensors_])
        self.collapsed_ = {} if learned is None else dict(learned.collapsed)
        self.fused_ = FusedModel(self.family_, self.hypernetwork_, self._extractor, self.engine, self.store)

    def _content(self) -> dict[str, str]:
        """Digests of what the hypernetwork was learned with."""
        f = self._extractor
        return {
            **content_digests(self.family_.vectors),
            "heads": digest("heads", sorted(self.heads or ())),
            "extractor": digest("extractor", f.digest, f.tap, f.pool),
        }

    def _warn_of_statistics(self) -> None:
        if self.family_.moving_statistics:
            warnings.warn(
                "BatchNorm's statistics are the mean of the experts', and no function of their weights. Call "
                "estimate_statistics with unlabelled samples of each task.",
                stacklevel=3,
            )

    def _estimate(self, streams: Mapping[str, Featured]) -> None:
        """BatchNorm's statistics of every task from its own data; where tasks are unknown, of all from all."""
        data = dict.fromkeys(self.family_.networks, streams[""]) if "" in streams else streams
        means = {
            task: torch.from_numpy(mean_coefficients(self.hypernetwork_, its.some())) for task, its in data.items()
        }
        batches = {task: (batch for batch, _ in islice(its.once(), _STATISTICS_BATCHES)) for task, its in data.items()}
        self.family_ = self.family_.with_statistics(batches, means)
        self.fused_ = FusedModel(self.family_, self.hypernetwork_, self._extractor, self.engine, self.store)

    def _check_tasks(self, tasks: Iterable[str]) -> None:
        given = list(tasks)
        if not given:
            raise BadInput("there are no data to learn on. Give samples of each task, or one mixed stream.")
        unknown = [task for task in given if task and task not in self.family_.networks]
        if unknown:
            known = ", ".join(self.family_.networks)
            raise BadInput(f"there are data of {unknown[0]!r} and no such expert; there are {known}.")
