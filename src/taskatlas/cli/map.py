"""``taskatlas map``."""

import time
from pathlib import Path
from typing import Literal

from cyclopts import App

from taskatlas.cli.options import DEFAULTS, Common, emit, table

app = App(
    name="map",
    help_epilogue="""Examples:

    taskatlas map zoo/ --probe photos/ --out atlas
    taskatlas map zoo/zoo.yaml --probe lines.txt --kernel debiased_cka --bootstrap 100
    taskatlas map runs/ --builder networks.py:build --probe images.parquet --limit 2000 --format json
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
    bootstrap: int = 0,
    limit: int | None = None,
    batch_size: int = 64,
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
        space, out, zoo=opened_zoo, probe=opened_probe, settings=settings, seed=common.seed, started=started
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
    emit(common, document, [*_closest(space), f"wrote {out}: space.npz, covariance.csv, space.png, receipt.json"])


def _closest(space: "object") -> list[object]:
    """A table of each checkpoint's nearest relative."""
    from taskatlas.space import TaskSpace

    assert isinstance(space, TaskSpace)
    rows = []
    for i, name in enumerate(space.names):
        others = sorted((-space.covariance[i, j], other) for j, other in enumerate(space.names) if j != i)
        mean = sum(-value for value, _ in others) / max(len(others), 1)
        closest, covariance = (others[0][1], float(-others[0][0])) if others else (None, None)
        rows.append([name, closest, covariance, float(mean)])
    return [table(f"{len(space)} checkpoints", ["checkpoint", "closest", "covariance", "mean to all"], rows)]
