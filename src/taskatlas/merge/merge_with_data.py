"""Merges that look at data, from a recipe to a folder: AdaMerging, data-adaptive fusion, Fisher merging, RegMean.

Experts that have heads of their own become a folder for each task, which ``zoo.yaml`` lists: one model with a head for
each, as ``taskatlas evaluate`` takes it. Of a data-adaptive fusion that is the model merged for the mean coefficients
of the task's samples; ``fusion.safetensors`` and ``per-sample.yaml`` beside it are the fusion itself, in which every
sample has coefficients of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.adamerging import adamerge
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.data_recipe import DataRecipe
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.fisher import fisher, fisher_merge
from taskatlas.merge.fused_network import open_task
from taskatlas.merge.fusion_files import save_model
from taskatlas.merge.merge_result import MergeResult, peak_memory
from taskatlas.merge.opening import open_as_saved
from taskatlas.merge.placement import Placement
from taskatlas.merge.regmean import gram_matrices, regmean
from taskatlas.merge.task_vectors import differing
from taskatlas.merge.unlabelled import Unlabelled
from taskatlas.probe import Probe
from taskatlas.store import file_digest, output_folder
from taskatlas.zoo import Checkpoint, OpenedCheckpoint
from taskatlas.zoo.manifest import MANIFEST, write_manifest
from taskatlas.zoo.weights import weights_files

FUSION, PER_SAMPLE, RECIPE = "fusion.safetensors", "per-sample.yaml", "recipe.yml"


def merge_with_data(
    recipe: DataRecipe, out: str | Path, *, seed: int = 0, device: str = "cpu", started: float | None = None
) -> MergeResult:
    """Merges by a recipe with data into a new folder.

    Args:
        recipe: the recipe.
        out: a folder; new or empty.
        seed: of everything random.
        device: where networks, task vectors and hypernetwork are.
        started: when the work began (``time.perf_counter()``), if that was earlier.

    Raises:
        BadInput: the folder is not empty; models, samples or parameters are wrong, or do not fit together.
        WorkFailed: predictions became NaN.
    """
    started, out = time.perf_counter() if started is None else started, Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is not an empty folder. Name another one for the merged model.")
    checkpoints, data = recipe.experts(), recipe.data()
    others = recipe.others()
    inputs = {f"model/{task}": checkpoint.digest for task, checkpoint in checkpoints.items()}
    inputs |= {f"data/{task}": probe.digest for task, probe in data.items()}
    inputs |= {name: one.digest for name, one in others.items()}
    everything = [*checkpoints.values(), *others.values()]
    read = [file for one in everything if isinstance(one.weights, Path) for file in weights_files(one.weights)]
    networks = {task: open_as_saved(checkpoint, device) for task, checkpoint in checkpoints.items()}
    settings = {"method": recipe.merge_method, "recipe": recipe.digest}
    with output_folder(out, "merge", inputs=inputs, settings=settings, seed=seed, started=started) as place:
        (place / RECIPE).write_text(recipe.text, encoding="utf-8")
        own: Mapping[str, Mapping[str, Tensor]] = {}
        if recipe.merge_method == "data_adaptive":
            fused = _fused(recipe, others, networks, data, seed, device)
            states = {task: fused.merged_for(_samples(recipe, networks[task], data[task]), task) for task in data}
            _write_fusion(place, out, fused)
        else:
            merged, own = _merged(recipe, others, checkpoints, networks, data, seed, device)
            states = {task: {**merged, **own.get(task, {})} for task in data}
        single = recipe.merge_method != "data_adaptive" and not any(own.values())
        folders = {next(iter(data)): place} if single else {task: place / task for task in data}
        for task, folder in folders.items():
            _write_model(folder, checkpoints[task], networks[task].module, states[task])
        if not single:
            _write_zoo(place, folders, checkpoints)
        written = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
    return MergeResult(
        out,
        sum(len(states[task]) for task in folders),
        sum(file.stat().st_size for file in read),
        written,
        peak_memory(),
        time.perf_counter() - started,
    )


def _fused(
    recipe: DataRecipe,
    others: Mapping[str, Checkpoint],
    networks: Mapping[str, OpenedCheckpoint],
    data: Mapping[str, Probe],
    seed: int,
    device: str,
) -> DataAdaptive:
    fused = DataAdaptive(
        open_as_saved(others["base"], device).module,
        {task: opened.module for task, opened in networks.items()},
        Extractor.of(others["extractor"], device=device),
        own=recipe.own,
        seed=seed,
        placement=Placement(vectors=device, hypernetwork=device),
        **recipe.settings,
    )
    return fused.fit({task: _samples(recipe, networks[task], probe) for task, probe in data.items()})


def _merged(
    recipe: DataRecipe,
    others: Mapping[str, Checkpoint],
    checkpoints: Mapping[str, Checkpoint],
    networks: Mapping[str, OpenedCheckpoint],
    data: Mapping[str, Probe],
    seed: int,
    device: str,
) -> tuple[dict[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
    """The merged tensors, and those that are each expert's own."""
    settings, modules = recipe.settings, {task: opened.module for task, opened in networks.items()}
    if recipe.merge_method == "adamerging":
        del settings["batch_size"]
        samples = {task: _samples(recipe, networks[task], probe) for task, probe in data.items()}
        base = open_as_saved(others["base"], device).module
        found = adamerge(base, modules, samples, own=recipe.own, seed=seed, **settings)
        return dict(found.state), found.own
    first, *_ = modules.values()
    own = (*recipe.own, *differing(first, modules))
    rows = {task: _some(probe, settings["samples"], seed) for task, probe in data.items()}
    batch = settings["batch_size"]
    if recipe.merge_method == "fisher":
        information = {
            task: fisher(checkpoints[task], rows[task], samples=settings["samples"], batch_size=batch, device=device)
            for task in data
        }
        merged = fisher_merge(modules, information, own=own)
    else:
        seen = {task: gram_matrices(checkpoints[task], rows[task], batch_size=batch, device=device) for task in data}
        merged = regmean(modules, seen, off_diagonal=settings["off_diagonal"], own=own)
    states = {task: module.state_dict() for task, module in modules.items()}
    return merged, {
        task: {name: value for name, value in state.items() if name not in merged} for task, state in states.items()
    }


def _samples(recipe: DataRecipe, network: OpenedCheckpoint, probe: Probe) -> Unlabelled:
    return Unlabelled(probe, prepare=network.prepare, batch_size=recipe.settings["batch_size"])


def _some(probe: Probe, count: int, seed: int) -> Probe:
    return probe.take(np.sort(np.random.default_rng(seed).permutation(len(probe))[:count]))


def _write_fusion(place: Path, out: Path, fused: DataAdaptive) -> None:
    """The fusion itself, how to open it for every task, and pictures."""
    import matplotlib.pyplot as plt

    fused.save(place / FUSION)
    arguments = {"folder": str(out.resolve()), "content": file_digest(place / FUSION)}
    per_sample = [
        Checkpoint(task, builder=open_task, arguments={**arguments, "task": task}, task=task) for task in fused.tasks_
    ]
    write_manifest(place / PER_SAMPLE, per_sample)
    for picture in ("tasks", "learning", *(("layers",) if fused.level == "layer" else ())):
        ax = fused.plot(picture)
        ax.figure.savefig(place / f"{picture}.png", dpi=150)
        plt.close(ax.figure)


def _write_model(folder: Path, checkpoint: Checkpoint, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    like = checkpoint.weights if isinstance(checkpoint.weights, Path) and checkpoint.weights.is_dir() else None
    save_model(folder, network, state, like)


def _write_zoo(place: Path, folders: Mapping[str, Path], checkpoints: Mapping[str, Checkpoint]) -> None:
    """The models of all tasks, with the builders that their experts have."""
    found = []
    for task, folder in folders.items():
        whole = folder if (folder / "config.json").is_file() else folder / "model.safetensors"
        own = checkpoints[task]
        found.append(Checkpoint(task, whole, own.builder, own.arguments, task))
    write_manifest(place / MANIFEST, found)
