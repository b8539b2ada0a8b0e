"""``taskatlas transfer``."""

import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from taskatlas.cli.options import DEFAULTS, Common, Positive, emit, split_names, table

app = App(
    name="transfer",
    help_epilogue="""Examples:

    taskatlas transfer zoo/ --selection selection.json --train a/ --test b/
    taskatlas transfer zoo/ --pick bert-base,gpt2 --train a.conll --test b.conll
""",
)


@app.default
def transfer_zoo(
    zoo: str,
    *,
    train: str,
    test: str,
    selection: Path | None = None,
    pick: str = "",
    sizes: Annotated[str, Parameter(negative=())] = "",
    random: Positive = 20,
    metric: Literal["accuracy", "macro_f1"] = "accuracy",
    builder: str | None = None,
    tap: str | None = None,
    pool: Literal["auto", "first", "last"] = "auto",
    words: Literal["first", "last", "mean"] = "mean",
    batch_size: Positive = 64,
    common: Common = DEFAULTS,
) -> None:
    """Say what a selection is worth on an unseen task, against random selections of the same size.

    One linear head is trained on the picked checkpoints' joined features. With --out, writes transfer.json,
    transfer.png and receipt.json there.

    Args:
        zoo: Folder of checkpoints, or its zoo.yaml.
        train: Labelled samples: a folder with a folder a class, .parquet, .npz, .csv, .tsv or .conll.
        test: Held-out labelled samples.
        selection: What `taskatlas select` wrote.
        pick: Names, separated by commas, in place of a selection.
        sizes: Score the first so many picks, for each of these numbers (1,2,5). Default: all picks.
        random: Distinct random selections to compare with.
        metric: The score.
        builder: For checkpoints that name none.
        tap: Where features are read.
        pool: How maps and tokens become one vector.
        words: How sub-words become a word.
        batch_size: Samples at once in a forward pass.
    """
    from taskatlas.errors import BadInput
    from taskatlas.probe import Probe
    from taskatlas.space import Selection, transfer
    from taskatlas.space.files import write_transfers
    from taskatlas.zoo import Zoo

    given = split_names(pick)
    if (selection is None) == (not given):
        raise BadInput("say what was picked: give either --selection FILE or --pick NAMES.")
    names = tuple(given) if selection is None else Selection.load(selection).names
    started = time.perf_counter()
    opened, probes = Zoo.open(zoo, builder=builder), (Probe.open(train), Probe.open(test))
    results = [
        transfer(
            opened,
            names[:size],
            *probes,
            n_random=random,
            metric=metric,
            seed=common.seed,
            tap=tap,
            pool=pool,
            words=words,
            batch_size=batch_size,
            device=common.device,
            engine=common.engine,
        )
        for size in _sizes(sizes, len(names))
    ]
    files = [] if common.out is None else [f"wrote {common.out}: transfer.json, transfer.png, receipt.json"]
    if common.out is not None:
        settings = {"metric": metric, "tap": tap, "pool": pool, "words": words, "random": random}
        write_transfers(
            results,
            common.out,
            zoo=opened,
            probes=probes,
            settings=settings,
            seed=common.seed,
            started=started,
            sources=[Path(path) for path in (train, test, selection) if path is not None],
        )
    summaries = [
        {
            "picked": one.names,
            "selected": one.selected,
            "random": dict(zip(("low", "median", "high"), one.band, strict=True)) | {"scores": one.random},
            "beaten": one.beaten,
        }
        for one in results
    ]
    rows = [[len(one.names), one.selected, one.band[1], one.band[0], one.band[2], one.beaten] for one in results]
    columns = ["picked", "selected", "random median", "5 %", "95 %", "share of random beaten"]
    document = summaries[-1] | {"metric": metric, "curve": summaries}
    emit(common, document, [table(metric.replace("_", " "), columns, rows), *files])


def _sizes(sizes: str, most: int) -> list[int]:
    from taskatlas.errors import BadInput

    try:
        wanted = sorted({int(size) for size in sizes.split(",")}) if sizes else [most]
    except ValueError as error:
        raise BadInput(f"--sizes is {sizes!r}; give numbers separated by commas, such as 1,2,5.") from error
    if wanted[0] < 1 or wanted[-1] > most:
        raise BadInput(f"--sizes asks for {wanted}, but {most} checkpoints are picked.")
    return wanted
