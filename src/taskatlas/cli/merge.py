"""``taskatlas merge``."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App

from taskatlas.cli.merge_networks import merge_networks
from taskatlas.cli.merge_with_data import merge_with_data
from taskatlas.cli.options import DEFAULTS, Common, emit, table
from taskatlas.errors import BadInput

app = App(
    name="merge",
    help_epilogue="""Examples:

    taskatlas merge recipe.yml merged
    taskatlas merge recipe.yml --dry-run
    taskatlas merge recipe.yml merged --zoo zoo/ --shard-size 2GB --format json
    taskatlas merge data_adaptive.yml fused --seed 1
    taskatlas merge zip.yml zipped
""",
)


@app.default
def merge(
    recipe: Path,
    folder: Path | None = None,
    *,
    zoo: str | None = None,
    shard_size: str = "5GB",
    dry_run: bool = False,
    common: Common = DEFAULTS,
) -> None:
    """Merge models by a recipe, in mergekit's YAML.

    The folder opens with from_pretrained where the models do, and holds the recipe, a model card and receipt.json.
    A run that was stopped goes on when the same is started again.

    The methods adamerging, data_adaptive, fisher and regmean look at data: their recipes name unlabelled samples with
    each model. Experts with heads of their own become a folder for each task, which taskatlas evaluate takes as one.

    With merge_method zip, permute or weight_matching, networks that were trained apart are aligned on a probe and
    merged; the recipe has probe, a, b, stop_at, reset_statistics and builder then.

    Args:
        recipe: The recipe: merge_method, models or slices, base_model, parameters, dtype.
        folder: Where the merged model goes; new or empty.
        zoo: Folder of checkpoints, or its zoo.yaml, that the recipe may name as models.
        shard_size: The most that a file of the result may hold.
        dry_run: Say what would be read, merged and written, and stop.
    """
    from taskatlas.merge import carry_out, make_plan
    from taskatlas.merge.recipe import kind_of
    from taskatlas.merge.shards import parse_size

    out, started = folder or common.out, time.perf_counter()
    if out is None and not dry_run:
        raise BadInput("there is no place for the merged model. Name one: taskatlas merge RECIPE FOLDER.")
    kind = kind_of(recipe)
    if kind == "data":
        merge_with_data(recipe, None if dry_run else out, zoo=zoo, common=common)
        return
    if kind == "networks":
        merge_networks(recipe, None if dry_run else out, zoo=zoo, common=common)
        return
    plan = make_plan(recipe, zoo=zoo, seed=common.seed, shard_size=parse_size(shard_size))
    if dry_run or out is None:
        emit(common, {"out": out, **plan.document}, _plan_lines(plan))
        return
    result = carry_out(plan, out, started=started)
    document = {
        "out": result.out,
        "tensors": result.tensors,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "peak_bytes": result.peak_bytes,
        "seconds": result.seconds,
        "files": [shard.name for shard in plan.shards],
        "kept": result.kept,
    }
    kept = f" ({result.kept} of {len(plan.shards)} files were finished before)" if result.kept else ""
    done = f"{out} was finished before: {result.tensors} tensors, {_megabytes(result.bytes_written)}, all as they were"
    if result.kept < len(plan.shards):
        done = (
            f"wrote {out}: {result.tensors} tensors, {_megabytes(result.bytes_written)} in {result.seconds:.1f} s{kept}"
            f"; {_megabytes(result.bytes_read)} read, {_megabytes(result.peak_bytes)} of memory"
        )
    emit(common, document, [done])


def _plan_lines(plan: Any) -> list[Any]:
    """What is read of each model, what is merged how (one row for all layers), and sums."""
    from taskatlas.merge.layers import layer_of, renumbered

    read: dict[str, list[int]] = {}
    groups: dict[tuple[str, ...], list[tuple[int, dict[str, Any]]]] = {}
    for tensor in plan.tensors:
        for model, name in tensor.reads:
            read.setdefault(model, []).append(plan.sources[model].nbytes(name))
        place = layer_of(tensor.name)
        name = tensor.name if place is None else renumbered(tensor.name, "*")
        shape = "×".join(map(str, tensor.shape)) or "number"
        numbers = {
            f"{key} of {label}": value
            for label, own in zip(tensor.labels, tensor.parameters, strict=True)
            for key, value in own.items()
        }
        group = groups.setdefault((name, shape, str(tensor.dtype).removeprefix("torch."), tensor.method), [])
        group.append((0 if place is None else place[1], numbers | dict(tensor.settings)))
    models = [[model, len(sizes), _megabytes(sum(sizes))] for model, sizes in read.items()]
    every = [numbers for group in groups.values() for _, numbers in group if numbers]
    common = {key: value for key, value in every[0].items() if all(one.get(key) == value for one in every)}
    rows = [[kind[0], len(group), *kind[1:], _numbers(group, common)] for kind, group in groups.items()]
    settings = ", ".join(f"{key} {_short(value)}" for key, value in common.items()) or "no parameters"
    return [
        table("what is read", ["model", "tensors", "read"], models),
        "",
        table(f"what comes out ({settings})", ["tensor", "count", "shape", "type", "method", "parameters"], rows),
        "",
        f"{_megabytes(plan.bytes_read)} to read, {_megabytes(plan.bytes_written)} to write into {len(plan.shards)} "
        f"file{'s' if len(plan.shards) > 1 else ''}, about {_megabytes(plan.peak_bytes)} of memory for tensors",
    ]


def _numbers(group: list[tuple[int, dict[str, Any]]], common: Mapping[str, Any]) -> str:
    """What tensors that differ in their layer have for themselves: a value, or that of the first and of the last."""
    _, first = min(group, key=lambda one: one[0])
    _, last = max(group, key=lambda one: one[0])
    said = []
    for key in first.keys() - common.keys():
        ends = _short(first[key]), _short(last[key])
        said.append(f"{key} {ends[0]}" if ends[0] == ends[1] else f"{key} {ends[0]} to {ends[1]}")
    return ", ".join(sorted(said))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
