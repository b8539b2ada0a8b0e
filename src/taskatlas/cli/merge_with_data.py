"""``taskatlas merge`` with a recipe that looks at data."""

import time
from dataclasses import asdict
from pathlib import Path

from taskatlas.cli.options import Common, emit, table


def merge_with_data(file: Path, out: Path | None, *, zoo: str | None, common: Common) -> None:
    """Does what the recipe says; without a place for the result, says what it would do."""
    from taskatlas.merge.data_plan import plan_with_data
    from taskatlas.merge.data_recipe import DataRecipe
    from taskatlas.merge.merge_with_data import merge_with_data as carry_out
    from taskatlas.probe.forward import chosen_device

    started = time.perf_counter()
    recipe = DataRecipe.load(file).with_zoo(zoo)
    if out is None:
        data = recipe.data()
        rows = [[entry.name, entry.model, entry.data, len(data[entry.name])] for entry in recipe.models]
        settings = ", ".join(f"{key} {value}" for key, value in recipe.settings.items())
        planned = {"method": recipe.merge_method, "settings": recipe.settings, "tasks": list(recipe.tasks)}
        plan = plan_with_data(recipe)
        title = f"{recipe.merge_method} ({settings})"
        costs = (
            f"{plan.bytes_read / 1e6:,.1f} MB of weights to read, {plan.tensors} tensors and "
            f"{plan.bytes_written / 1e6:,.1f} MB to write, about {plan.peak_bytes / 1e6:,.1f} MB of memory for weights"
        )
        shown = table(title, ["task", "model", "data", "samples"], rows)
        emit(common, {**planned, **plan.document}, [shown, "", costs])
        return
    result = carry_out(recipe, out, seed=common.seed, device=chosen_device(common.device), started=started)
    document = {
        "out": result.out,
        "tensors": result.tensors,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "peak_bytes": result.peak_bytes,
        "seconds": result.seconds,
        "files": sorted(str(place.relative_to(out)) for place in out.rglob("*") if place.is_file()),
        "kept": result.kept,
        "adaptation": None if result.adaptation is None else asdict(result.adaptation),
    }
    learned = "" if result.adaptation is None else f"; {result.adaptation}"
    done = (
        f"wrote {out}: {recipe.merge_method} of {', '.join(recipe.tasks)}, {result.bytes_written / 1e6:,.1f} MB in "
        f"{result.seconds:.1f} s; {result.peak_bytes / 1e6:,.1f} MB of memory{learned}"
    )
    emit(common, document, [done])
