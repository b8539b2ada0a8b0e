"""``taskatlas merge`` with a recipe for networks that were trained apart."""

from pathlib import Path
from typing import Any

from taskatlas.cli.options import Common, emit, table, warn


def merge_networks(recipe: Path, out: Path | None, *, zoo: str | None, common: Common) -> None:
    """Does what the recipe says; without a place for the result, says what it would do."""
    from taskatlas.merge import merge_networks as carry_out
    from taskatlas.merge.network_recipe import NamedNetworks, NetworkRecipe
    from taskatlas.probe.forward import chosen_device
    from taskatlas.zoo import Zoo

    if out is None:
        found = NetworkRecipe.load(recipe)
        named = NamedNetworks.of(found, zoo=None if zoo is None else Zoo.open(zoo), beside=recipe.parent)
        names = [one.name for one in named.checkpoints]
        planned: dict[str, Any] = {"models": names, "samples": len(named.probe), "stop_at": found.stop_at}
        until = "to the end" if found.stop_at is None else f"up to {found.stop_at}"
        said = f"would merge {', '.join(names)} {until} by {found.merge_method}, on {len(named.probe)} samples"
        emit(common, planned, [said])
        return
    result = carry_out(recipe, out, zoo=zoo, seed=common.seed, device=str(chosen_device(common.device)))
    for note in result.notes:
        warn(note)
    together = sum(result.parents[1:], result.parents[0])
    rows = [
        [name, cost.parameters, cost.macs / 1e6, 1e3 * cost.seconds]
        for name, cost in (("merged", result.cost), ("models together", together))
    ]
    document: dict[str, Any] = {
        "out": result.out,
        "files": result.files,
        "parameters": result.cost.parameters,
        "macs": result.cost.macs,
        "seconds_a_batch": result.cost.seconds,
        "models": {"parameters": together.parameters, "macs": together.macs, "seconds_a_batch": together.seconds},
        "notes": result.notes,
        "kept": result.kept,
    }
    kept = " (it was there before)" if result.kept else ""
    lines = [
        f"wrote {out}{kept}: {', '.join(result.files)}",
        table("what it costs", ["network", "parameters", "million MACs a sample", "ms for 32 samples"], rows),
    ]
    emit(common, document, lines)
