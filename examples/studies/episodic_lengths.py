r"""Are episodic runs really many times longer? Supervised and episodic runs of one network, with a correct length.

    python examples/studies/episodic_lengths.py
    python examples/studies/episodic_lengths.py --data cifar10.parquet --probe-size 1000 --steps 600 --out cifar

Ramesh et al. (ICML 2023) report runs of episodic training 10 to 40 times as long as supervised ones. The code published
with the paper measures a step by 2 √(-mean ln Σ p q), with p where √p is meant: by that, a run that stands still at
ignorance among C classes has the length 2 √(ln C) a step. Here both kinds of runs start from the same weights, see
about as many images in as many steps, are recorded at the same steps and read alike, and are measured in six ways:

- Fisher length, the sum over steps of 2 √(mean θ²), with θ the angle between square roots;
- tortuosity, that length over the way between the run's ends;
- length for each unit of progress toward the truth that was gained;
- Fisher length with every second and every fourth snapshot only: what noise between snapshots adds goes down with them;
- Fisher length re-indexed by progress: the same values of progress for all runs of a seed, first passage, so that no
  run is longer for having been sampled more often or for going back and forth;
- the published function, and what it gives a run that stands still at its first snapshot.
"""

import csv
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from common import new_network, open_material, parser, record_run, supervised
from episodic import episodes
from rich.console import Console

import taskatlas as ta
from taskatlas.cli.options import table
from taskatlas.store import atomic_write

PLACES = "accuracy", "progress at start", "highest progress", "equal progress from", "equal progress to"
GRID = 21  # values of progress that all runs are re-indexed by
LENGTH, TORTUOSITY, PER_PROGRESS = "Fisher length", "tortuosity", "length per progress"
SECOND, FOURTH, EQUAL = "every 2nd snapshot", "every 4th snapshot", "at equal progress"
PUBLISHED, STILL = "published function", "standing still"


def common_progress(runs: Sequence[ta.Trajectory]) -> tuple[float, float]:
    """The stretch of progress that all runs pass through."""
    reached = [run.progress() for run in runs]
    low, high = max(float(values[0]) for values in reached), min(float(values.max()) for values in reached)
    if not low < high:
        raise ta.BadInput("the runs of a seed pass through no common progress. Let them take more steps.")
    return low, high


def published_length(run: ta.Trajectory) -> float:
    """The length as in the published code: p in place of √p, so that a run that does not move has one too."""
    probs = [np.exp(snapshot.astype(np.float64)) for snapshot in run.log_probs]
    return sum(published_step(before, after) for before, after in pairwise(probs))


def published_step(p: np.ndarray, q: np.ndarray) -> float:
    return 2 * float(np.sqrt(-np.log((p * q).sum(-1).clip(min=1e-9)).mean()))


def measured(run: ta.Trajectory, low: float, high: float) -> dict[str, float]:
    """All measures of one run; from ``low`` to ``high`` is the stretch of progress that it is re-indexed by."""
    reached = run.progress()
    first = np.exp(run.log_probs[0].astype(np.float64))
    return {
        **dict(zip(PLACES, (run.accuracy()[-1], reached[0], reached.max(), low, high), strict=True)),
        LENGTH: run.length(),
        TORTUOSITY: run.tortuosity(),
        PER_PROGRESS: run.length() / float(reached.max() - reached[0]),
        SECOND: thinned(run, 2).length(),
        FOURTH: thinned(run, 4).length(),
        EQUAL: run.resample(np.linspace(low, high, GRID)).length(),
        PUBLISHED: published_length(run),
        STILL: (len(run) - 1) * published_step(first, first),
    }


def thinned(run: ta.Trajectory, times: int) -> ta.Trajectory:
    """Every so many snapshots, counted from the last, and the first."""
    kept = sorted({0, *range(len(run) - 1, -1, -times)})
    return ta.Trajectory(run.name, run.log_probs[kept], run.steps[kept], run.ids, run.labels)


def in_words(ratios: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """What was found, a sentence for each kind of episodes and one for all."""
    sentences = [
        f"{name}: {said(found[LENGTH])} times the Fisher length of supervised runs, {said(found[PER_PROGRESS])} times "
        f"for each unit of progress, {said(found[EQUAL])} times over the same stretch of progress; by the published "
        f"function {said(found[PUBLISHED])} times."
        for name, found in ratios.items()
    ]
    largest = max(found[key].mean() for found in ratios.values() for key in (LENGTH, TORTUOSITY, PER_PROGRESS, EQUAL))
    verdict = "Nothing here is ten times longer" if largest < 10 else "Some runs here are ten times longer"
    return [*sentences, f"{verdict}: of the ratios by the correct length the largest is {largest:.2f}."]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float | str]]:
    options = parser(__doc__)
    options.add_argument("--ways", default="2,5", help="classes of an episode, for each kind of run")
    settings = options.parse_args(arguments)
    started = time.perf_counter()
    material = open_material(settings)
    losses = {"all classes": supervised(material.learned, settings)}
    for ways in map(int, settings.ways.split(",")):
        losses[f"{ways}-way episodes"] = episodes(material.learned, ways, settings)
    runs = [
        [
            record_run(name, new_network(material, settings, seed), loss, material, settings, seed)
            for seed in range(settings.seeds)
        ]
        for name, loss in losses.items()
    ]
    rows = []
    for seed, compared in enumerate(zip(*runs, strict=True)):
        stretch = common_progress(compared)
        rows += [{"run": run.name, "seed": seed, **measured(run, *stretch)} for run in compared]
    with atomic_write(settings.out / "episodic_lengths.csv") as file, file.open("w", newline="") as text:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    report(rows, list(losses), len(runs[0][0]))
    Console(highlight=False).print(f"{settings.out}/episodic_lengths.csv, {time.perf_counter() - started:.0f} s")
    return rows


def report(rows: Sequence[dict[str, float | str]], names: Sequence[str], snapshots: int) -> None:
    """Means over seeds, ratios to the supervised run of the same seed, and what they say."""
    keys = [key for key in rows[0] if key not in ("run", "seed")]
    values = {name: {key: np.array([row[key] for row in rows if row["run"] == name]) for key in keys} for name in names}
    base, *episodic = names
    ratios = {name: {key: values[name][key] / values[base][key] for key in keys} for name in episodic}
    title = f"{snapshots} snapshots of each run; mean ± standard deviation over {len(rows) // len(names)} seeds"
    console = Console(highlight=False)
    console.print(table(title, ["", *names], [[key, *(said(values[name][key]) for name in names)] for key in keys]))
    compared = [key for key in keys if key not in (*PLACES, STILL)]
    cells = [[key, *(said(ratios[name][key]) for name in episodic)] for key in compared]
    console.print(table(f"Divided by {base} of the same seed", ["", *episodic], cells))
    for sentence in in_words(ratios):
        console.print(sentence, soft_wrap=True)


def said(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


if __name__ == "__main__":
    main()
