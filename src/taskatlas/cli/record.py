"""``taskatlas record``."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from taskatlas.cli.options import DEFAULTS, Common, Positive, emit, warn

app = App(
    name="record",
    help_epilogue="""Examples:

    taskatlas record checkpoints/ --probe photos/ --builder nets.py:build
    taskatlas record zoo.yaml --probe images.parquet --name cats --out runs
    taskatlas record checkpoints/ --probe x.npz --steps steps.csv
""",
)


@app.default
def record(
    zoo: str,
    *,
    probe: str,
    name: str | None = None,
    steps: Annotated[str | None, Parameter(negative=())] = None,
    builder: str | None = None,
    tokens: Annotated[bool, Parameter(negative=())] = False,
    limit: Positive | None = None,
    batch_size: Positive = 64,
    common: Common = DEFAULTS,
) -> None:
    """Turn a past training into a run for `taskatlas trace`: ask each of its checkpoints about a probe.

    Writes NAME.safetensors and receipt.json into --out (default: atlas). Running again goes on where an earlier run
    stopped, and one checkpoint more costs its own predictions.

    Args:
        zoo: Folder with the checkpoints of one training, or its zoo.yaml.
        probe: What they are asked: a folder of images, .parquet, .npz, .npy, .txt, .csv, .tsv or .conll.
        name: Of the run. Default: that of the folder. Runs of one name are seeds of one task.
        steps: Training steps: 0,10,20 in the zoo's order, or a CSV of name,step. Default: the last number in each name.
        builder: For checkpoints that name none: transformers, timm:NAME, torchvision:NAME, file.py:function.
        tokens: Predictions of a language model, a row a token.
        limit: Use only the first samples of the probe.
        batch_size: Samples at once in a forward pass.
    """
    from taskatlas.paths.files import write_past_training
    from taskatlas.paths.past_training import ask_checkpoints
    from taskatlas.paths.run_files import read_steps
    from taskatlas.probe import Probe
    from taskatlas.zoo import Zoo

    started = time.perf_counter()
    opened_zoo, opened_probe = Zoo.open(zoo, builder=builder), Probe.open(probe)
    if limit is not None and limit < len(opened_probe):
        opened_probe = opened_probe.take(range(limit))
    past = ask_checkpoints(
        opened_zoo,
        opened_probe,
        name=name or _name_of(Path(zoo)),
        steps=None if steps is None else read_steps(steps),
        tokens=tokens,
        batch_size=batch_size,
        device=common.device,
        engine=common.engine,
    )
    out = common.out or Path("atlas")
    sources = [Path(one) for one in (probe, steps) if one is not None]
    path = write_past_training(
        past, out, zoo=opened_zoo, settings={"tokens": tokens, "limit": limit}, started=started, sources=sources
    )
    if opened_probe.labels is None and not tokens:
        warn(f"{probe} has no labels, so progress and accuracy will need `taskatlas trace --labels FILE`.")
    snapshots, samples, classes = past.shape
    document = {
        "run": past.name,
        "trajectory": path,
        "steps": past.steps,
        "samples": samples,
        "classes": classes,
        "labels": tokens or opened_probe.labels is not None,
    }
    found = f"{past.name}: {snapshots} snapshots from step {past.steps[0]} to {past.steps[-1]}, {samples} samples"
    emit(common, document, [f"{found}, {classes} classes", f"wrote {path} and {out}/receipt.json"])


def _name_of(zoo: Path) -> str:
    """The folder's name, also where its manifest is given."""
    return (zoo.parent if zoo.suffix in (".yaml", ".yml") else zoo).resolve().name or "run"
