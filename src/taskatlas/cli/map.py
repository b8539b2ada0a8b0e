"""``taskatlas map``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from taskatlas.cli.options import DEFAULTS, Common, NotNegative, Positive, counted, emit, table

app = App(
    name="map",
    help_epilogue="""Examples:

    taskatlas map zoo/ --probe photos/ --out atlas
    taskatlas map zoo/zoo.yaml --probe lines.txt --bootstrap 100 --format json
    taskatlas map runs/ --builder nets.py:build --probe images.parquet
""",
)


@app.default
def map_zoo(
    zoo: str,
    *,
    probe: str,
    builder: str | None = None,
    kernel: Literal["cka", "debiased_cka", "minibatch_cka", "rbf_cka", "procrustes", "mutual_knn"] = "cka",
    tap: str | None = None,
    pool: Literal["auto", "first", "last"] = "auto",
    words: Literal["first", "last", "mean"] = "mean",
    standardised: bool = False,
    bootstrap: NotNegative = 0,
    limit: Positive | None = None,
    batch_size: Positive = 64,
    common: Common = DEFAULTS,
) -> None:
    """Measure how a zoo's tasks relate: kernel, tree, heat map.

    Writes space.npz, covariance.csv, space.png and receipt.json into --out (default: atlas). Running again goes on
    where an earlier run stopped, and a checkpoint added to the zoo costs its own features and one row.

    Args:
        zoo: Folder of checkpoints, or its zoo.yaml.
        probe: What every checkpoint sees: a folder of images, .parquet, .npz, .npy, .txt, .csv, .tsv or
            .conll.
        builder: For checkpoints that name none: transformers, timm:NAME, torchvision:NAME,
            module.path:function, file.py:function.
        kernel: How two networks' features are compared.
        tap: Where features are read: a module's name for its output, NAME:input for its input. Default: the
            input of the last linear layer.
        pool: How maps and tokens become one vector.
        words: How sub-words become a word, for probes of words.
        standardised: Scale every feature to unit variance first.
        bootstrap: Replicates on half-probes, for intervals.
        limit: Use only the first samples of the probe.
        batch_size: Samples at once in a forward pass.
    """
    from taskatlas.probe import Probe
    from taskatlas.space import map_tasks
    from taskatlas.space.files import known_space, write_space
    from taskatlas.zoo import Zoo

    started = time.perf_counter()
    opened_zoo = Zoo.open(zoo, builder=builder)
    opened_probe = Probe.open(probe)
    if limit is not None and limit < len(opened_probe):
        opened_probe = opened_probe.take(range(limit))
    out = common.out or Path("atlas")
    space = map_tasks(
        opened_zoo,
        opened_probe,
        kernel=kernel,
        tap=tap,
        pool=pool,
        words=words,
        standardised=standardised,
        bootstrap=bootstrap,
        seed=common.seed,
        batch_size=batch_size,
        device=common.device,
        engine=common.engine,
        known=known_space(out),
    )
    settings = {"kernel": space.kernel, "tap": tap, "pool": pool, "words": words, "bootstrap": bootstrap}
    path = write_space(
        space,
        out,
        zoo=opened_zoo,
        probe=opened_probe,
        settings=settings,
        seed=common.seed,
        started=started,
        sources=[Path(probe)],
    )
    document = {
        "names": space.names,
        "covariance": space.covariance,
        "space": path,
        "kernel": space.kernel,
        "samples": len(opened_probe),
    }
    if space.replicates is not None:
        low, high = space.interval()
        document |= {"interval": {"level": 0.95, "low": low, "high": high}}
    relatives = _closest(space.names, space.covariance.tolist())
    emit(common, document, [relatives, f"wrote {out}: space.npz, covariance.csv, space.png, receipt.json"])


def _closest(names: Sequence[str], covariance: Sequence[Sequence[float]]) -> Any:
    """A table of each checkpoint's nearest relative, the first by name where several are as near."""
    rows: list[list[Any]] = []
    for name, row in zip(names, covariance, strict=True):
        others = {other: value for other, value in zip(names, row, strict=True) if other != name}
        closest = min(others, key=lambda other: (-others[other], other), default=None)
        mean = sum(others.values()) / len(others) if others else None
        rows.append([name, closest, None if closest is None else others[closest], mean])
    return table(counted(len(names), "checkpoint"), ["checkpoint", "closest", "covariance", "mean to all"], rows)
