"""Merges that look at data, from a recipe to a folder: AdaMerging, data-adaptive fusion, Fisher merging, RegMean.

Experts that have heads of their own become a folder for each task, which ``zoo.yaml`` lists: one model with a head for
each, as ``taskatlas evaluate`` takes it. Of a data-adaptive fusion that is the model merged for the mean coefficients
of the task's samples; ``fusion.safetensors`` and ``per-sample.yaml`` beside it are the fusion itself, in which every
sample has coefficients of its own.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.adamerging import adamerge
from taskatlas.merge.batch_norm import pooled_statistics
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.data_recipe import DataRecipe
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.fisher_information import fisher, fisher_merge
from taskatlas.merge.folder import CARD, CONFIG, RECIPE, card
from taskatlas.merge.fused_network import open_task
from taskatlas.merge.fusion_files import save_model
from taskatlas.merge.lora import is_adapter
from taskatlas.merge.merge_result import Adaptation, MergeResult, peak_memory
from taskatlas.merge.opening import OpenedExpert, open_as_saved, open_experts
from taskatlas.merge.regression_mean import gram_matrices, regmean
from taskatlas.merge.task_vectors import differing
from taskatlas.merge.unlabelled import Unlabelled
from taskatlas.probe import Probe
from taskatlas.store import RECEIPT, digest, file_digest, output_folder
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.manifest import MANIFEST, write_manifest
from taskatlas.zoo.weights import weights_files

FUSION, PER_SAMPLE = "fusion.safetensors", "per-sample.yaml"


def merge_with_data(
    recipe: DataRecipe, out: str | Path, *, seed: int = 0, device: str = "cpu", started: float | None = None
) -> MergeResult:
    """Merges by a recipe with data into a new folder.

    Args:
        recipe: the recipe.
        out: a folder; new or empty.
        seed: of everything random.
        device: where networks and task vectors are, and what else the recipe does not place.
        started: when the work began (``time.perf_counter()``), if that was earlier.

    Raises:
        BadInput: the folder is not empty; models, samples or parameters are wrong, or do not fit together.
        WorkFailed: predictions became NaN.
    """
    started, out = time.perf_counter() if started is None else started, Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is not an empty folder. Name another one for the merged model.")
    job = _Job(recipe, recipe.experts(), recipe.others(), recipe.data(), seed, device)
    recipe.placed(device)  # what is not here is told before anything is opened
    inputs = {f"model/{task}": _digest(checkpoint) for task, checkpoint in job.experts.items()}
    inputs |= {name: one.digest for name, one in job.others.items()}
    inputs |= {f"data/{task}": probe.digest for task, probe in job.data.items()}
    settings: dict[str, Any] = {"method": recipe.merge_method, "recipe": recipe.digest}
    with output_folder(out, "merge", inputs=inputs, settings=settings, seed=seed, started=started) as place:
        (place / RECIPE).write_text(recipe.text, encoding="utf-8")
        fuses = recipe.merge_method == "data_adaptive"
        count, adaptation = _write_fusion(job, place) if fuses else _write_merge(job, place)
        if adaptation is not None:
            settings["learned"] = asdict(adaptation)  # the receipt is written when all is done
        (place / CARD).write_text(_card(recipe, place), encoding="utf-8")
        written = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
    read = sum(file.stat().st_size for one in (*job.experts.values(), *job.others.values()) for file in _files(one))
    seconds = time.perf_counter() - started
    return MergeResult(out, count, read, written, peak_memory(), seconds, adaptation=adaptation)


def learned_on(place: str | Path) -> str | None:
    """On which samples the merging coefficients of a model were learned, ``held-out`` or ``transductive``.

    Args:
        place: a folder that a merge with data left, a task's folder or ``per-sample.yaml`` in it.

    Returns:
        None where no such merge has left a receipt.

    Example:
        >>> learned_on("nowhere") is None
        True
    """
    for folder in (Path(place), Path(place).parent):
        if (folder / RECEIPT).is_file():
            with suppress(OSError, ValueError, LookupError, TypeError):  # it is not from a merge with data
                receipts = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
                return str(receipts["merge"]["settings"]["learned"]["samples"])
            return None
    return None


@dataclass(frozen=True, eq=False)
class _Job:
    """What a recipe names, and how it is to be merged."""

    recipe: DataRecipe
    experts: Mapping[str, Checkpoint]
    others: Mapping[str, Checkpoint]
    data: Mapping[str, Probe]
    seed: int
    device: str

    def samples(self, experts: Mapping[str, OpenedExpert]) -> dict[str, Unlabelled]:
        """Task -> batches as its network takes them."""
        size = self.recipe.settings["batch_size"]
        return {
            task: Unlabelled(probe, prepare=experts[task].opened.prepare, batch_size=size)
            for task, probe in self.data.items()
        }

    def some_samples(self, experts: Mapping[str, OpenedExpert]) -> dict[str, Unlabelled]:
        """Task -> batches of ``some``, none of a single sample, of which BatchNorm could take no statistics."""
        size, found = max(2, self.recipe.settings["batch_size"]), {}
        for task, probe in self.some().items():
            count = len(probe) - (len(probe) > 1 and len(probe) % size == 1)
            found[task] = Unlabelled(probe.take(range(count)), prepare=experts[task].opened.prepare, batch_size=size)
        return found

    def some(self) -> dict[str, Probe]:
        """Task -> as many samples as the recipe says, drawn by the seed."""
        count = self.recipe.settings["samples"]
        rows = {task: np.random.default_rng(self.seed).permutation(len(probe)) for task, probe in self.data.items()}
        return {task: probe.take(np.sort(rows[task][:count])) for task, probe in self.data.items()}


def _write_fusion(job: _Job, place: Path) -> tuple[int, Adaptation]:
    """The fusion, how to open it for a task, pictures, a model for each task; the number of tensors, and a report."""
    base = open_as_saved(job.others["base"], job.device)
    experts = open_experts(job.experts, base, job.device)
    placement, of_extractor = job.recipe.placed(job.device)
    fused = DataAdaptive(
        base.module,
        {task: one.expert for task, one in experts.items()},
        Extractor.of(job.others["extractor"], device=of_extractor),
        own=job.recipe.own,
        seed=job.seed,
        placement=placement,
        **job.recipe.settings,
    )
    samples = job.samples(experts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the predictions of .* became alike")  # the result says so
        fused.fit(samples)
    fused.save(place / FUSION)
    arguments = {"folder": place, "content": file_digest(place / FUSION)}
    per_sample = [Checkpoint(task, None, open_task, {**arguments, "task": task}, task) for task in job.data]
    write_manifest(place / PER_SAMPLE, per_sample)
    for picture in ("tasks", "learning", *(("layers",) if fused.level == "layer" else ())):
        _save_figure(fused.plot(picture), place / f"{picture}.png")
    like = {
        task: job.others["base"] if isinstance(experts[task].expert, Path) else job.experts[task] for task in job.data
    }
    states = {task: fused.merged_for(its, task) for task, its in samples.items()}
    _write_models(place, like, {task: one.opened.module for task, one in experts.items()}, states)
    dropped = fused.family_.vectors.dropped
    learned = Adaptation.of(fused.adaptation_, fused.level, fused.dead_, dropped, fused.collapsed_)
    return sum(map(len, states.values())), learned


def _write_merge(job: _Job, place: Path) -> tuple[int, Adaptation | None]:
    """One model, or one for each task where experts have tensors of their own; the number of tensors, and a report."""
    adaptation = None
    experts = open_experts(job.experts, None, job.device)
    modules = {task: one.opened.module for task, one in experts.items()}
    settings = job.recipe.settings
    if job.recipe.merge_method == "adamerging":
        del settings["batch_size"]
        base = open_as_saved(job.others["base"], job.device).module
        found = adamerge(base, modules, job.samples(experts), own=job.recipe.own, seed=job.seed, **settings)
        merged, own = dict(found.state), found.own
        samples = "transductive" if found.transductive else "held-out"
        adaptation = Adaptation.of(samples, found.level, found.dead, found.dropped, found.collapsed)
    else:
        merged = _in_closed_form(job, modules)
        states = {task: module.state_dict() for task, module in modules.items()}
        own = {task: {name: one for name, one in its.items() if name not in merged} for task, its in states.items()}
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)  # of the order of samples
            merged |= pooled_statistics(modules, job.some_samples(experts), merged, own)
    if any(own.values()):
        states = {task: {**merged, **own[task]} for task in job.data}
        _write_models(place, job.experts, modules, states)
        return sum(map(len, states.values())), adaptation
    first = next(iter(job.data))
    _write_model(place, job.experts[first], modules[first], merged)
    return len(merged), adaptation


def _in_closed_form(job: _Job, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Fisher merging or RegMean of what experts have in common."""
    settings = job.recipe.settings
    how = {"batch_size": settings["batch_size"], "device": job.device}
    own = (*job.recipe.own, *differing(next(iter(modules.values())), modules))
    if job.recipe.merge_method == "fisher":
        seen = {task: fisher(job.experts[task], probe, samples=len(probe), **how) for task, probe in job.some().items()}
        return fisher_merge(modules, seen, own=own)
    inputs = {task: gram_matrices(job.experts[task], probe, **how) for task, probe in job.some().items()}
    return regmean(modules, inputs, off_diagonal=settings["off_diagonal"], own=own)


def _card(recipe: DataRecipe, place: Path) -> str:
    apart = (place / MANIFEST).is_file()
    more = (
        f"Tasks: {', '.join(recipe.tasks)}. "
        + ("There is a folder for each; `zoo.yaml` lists them." if apart else "One model answers them all.")
        + (f" `{FUSION}` is the fusion itself, which `{PER_SAMPLE}` opens." if (place / FUSION).is_file() else "")
    )
    models, bases = [entry.model for entry in recipe.models], [] if recipe.base_model is None else [recipe.base_model]
    opens = (place / CONFIG).is_file()
    return card(models, bases, recipe.merge_method, recipe.text, name=recipe.name, opens=opens, more=more)


def _digest(checkpoint: Checkpoint) -> str:
    place = checkpoint.weights
    is_lora = isinstance(place, Path) and place.is_dir() and is_adapter(place)
    return digest("adapter", [file_digest(file) for file in _files(checkpoint)]) if is_lora else checkpoint.digest


def _files(checkpoint: Checkpoint) -> list[Path]:
    """What is read of a checkpoint that is here."""
    place = checkpoint.weights
    if not isinstance(place, Path):
        return []
    if place.is_dir() and is_adapter(place):
        return sorted(file for file in place.iterdir() if file.is_file())
    return list(weights_files(place))


def _save_figure(ax: Any, file: Path) -> None:
    import matplotlib.pyplot as plt

    ax.figure.savefig(file, dpi=150)
    plt.close(ax.figure)


def _write_models(
    place: Path,
    like: Mapping[str, Checkpoint],
    networks: Mapping[str, nn.Module],
    states: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """A folder for each task, and ``zoo.yaml`` with the builders that they need."""
    for task, state in states.items():
        _write_model(place / task, like[task], networks[task], state)
    files = {task: place / task / "model.safetensors" for task in states}
    whole = {task: file.parent if (file.parent / "config.json").is_file() else file for task, file in files.items()}
    made = [Checkpoint(task, whole[task], own.builder, own.arguments, task) for task, own in like.items()]
    write_manifest(place / MANIFEST, made)


def _write_model(folder: Path, like: Checkpoint, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    beside = like.weights if isinstance(like.weights, Path) and like.weights.is_dir() else None
    save_model(folder, network, state, beside)
