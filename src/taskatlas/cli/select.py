"""``taskatlas select``."""

import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from taskatlas.cli.options import DEFAULTS, Common, emit, split_names, table

app = App(
    name="select",
    help_epilogue="""Examples:

    taskatlas select atlas -k 5
    taskatlas select kernel.npy --names names.txt -k 5 --format json
    taskatlas select atlas --stop-at-peak --exclude gpt2,gpt2-large --out atlas
""",
)


@app.default
def select_checkpoints(
    space: Path,
    *,
    k: Annotated[int | None, Parameter(name=["-k", "--k"])] = None,
    names: Path | None = None,
    method: Literal["mutual_information", "coverage", "entropy", "facility_location"] = "mutual_information",
    start: str = "",
    exclude: str = "",
    cost: Path | None = None,
    budget: float | None = None,
    weights: Path | None = None,
    stop_at_peak: Annotated[bool, Parameter(negative=())] = False,
    noise: float = 0.0,
    common: Common = DEFAULTS,
) -> None:
    """Pick the few checkpoints that cover the rest, by greedy mutual information.

    With --out, writes selection.json, selection.png and receipt.json there.

    Args:
        space: A folder or space.npz that `taskatlas map` wrote, or a covariance as .npy or .csv.
        k: How many to pick, those of --start included.
        names: For .npy: a text file with one name a line.
        method: What is maximised.
        start: Names that are picked already, separated by commas.
        exclude: Names that must not be picked, separated by commas.
        cost: CSV of name,cost: the largest gain per cost is taken.
        budget: The most that all picks together may cost.
        weights: CSV of name,weight: how much covering each task matters (coverage, facility_location).
        stop_at_peak: Stop where mutual information is largest.
        noise: Variance added to the diagonal, for singular covariances.
    """
    from taskatlas.space import select
    from taskatlas.space.files import open_space, read_numbers, write_selection

    started = time.perf_counter()
    opened = open_space(space, names)
    selection = select(
        opened,
        k,
        method=method,
        start=split_names(start),
        exclude=split_names(exclude),
        cost=None if cost is None else read_numbers(cost),
        budget=budget,
        weights=None if weights is None else read_numbers(weights),
        stop_at_peak=stop_at_peak,
        noise=noise,
    )
    files = [] if common.out is None else [f"wrote {common.out}: selection.json, selection.png, receipt.json"]
    if common.out is not None:
        write_selection(selection, common.out, space=opened, started=started, sources=_sources(space, names))
    rows = [
        [position, step.picked, step.gain, step.total, step.runner_up, step.margin]
        for position, step in enumerate(selection.steps, start=len(selection.start) + 1)
    ]
    left_out = [f"left out: {name} ({reason})" for name, reason in selection.left_out.items()]
    unit = "" if method == "facility_location" else " (nats)"
    columns = ["", "picked", f"gain{unit}", f"total{unit}", "runner-up", "margin"]
    document = {
        "selected": selection.names,
        "mutual_information": selection.totals if method == "mutual_information" else None,
        "method": method,
        "total": selection.totals,
        "gain": [step.gain for step in selection.steps],
        "runner_up": [step.runner_up for step in selection.steps],
        "margin": [step.margin for step in selection.steps],
        "left_out": selection.left_out,
    }
    origin = [f"started from {', '.join(selection.start)}: {selection.start_total:.3f}{unit}"]
    shown = table(method.replace("_", " "), columns, rows)
    emit(common, document, [*(origin if selection.start else []), shown, *left_out, *files])


def _sources(space: Path, names: Path | None) -> list[Path]:
    from taskatlas.space.files import SPACE

    given = [space / SPACE if space.is_dir() else space, names]
    return [path for path in given if path is not None]
