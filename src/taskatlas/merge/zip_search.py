"""Searching the settings of a zip on a pair of networks that is held out: every one tried, one row of a table each."""

import csv
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.calibration import Remedy
from taskatlas.merge.probe_batches import Data
from taskatlas.merge.zipped import Zipped
from taskatlas.merge.zipping import Matching, group_statistics, zip_models
from taskatlas.zoo import Checkpoint

Row = dict[str, Any]


def search_zip(
    models: Sequence[nn.Module | Checkpoint],
    probe: Data,
    score: Callable[[Zipped], Mapping[str, float]],
    *,
    groups: AxisGroups,
    a: Sequence[float | int] = (1e-4, 0.01, 0.1, 0.3, 1),
    b: Sequence[float | int] = (0, 0.075, 0.125, 0.5, 1),
    stop_at: Sequence[str | None] = (None,),
    method: Matching = "zip",
    calibration: Remedy | None = "reset",
    prepare: Callable[[list[Any]], Any] | None = None,
    table: Path | str | None = None,
    seed: int = 0,
) -> list[Row]:
    """Zips models with every combination of settings, and scores each.

    The networks pass over the data once for all alignments. To choose settings, give a pair that is not the one they
    are for, and samples that nothing is tested on.

    Args:
        models: see ``zip_models``.
        probe: see there.
        score: what a zipped network is worth; its first entry decides.
        groups: of the models' architecture.
        a: to try.
        b: to try.
        stop_at: to try.
        method: see ``zip_models``.
        calibration: see there.
        prepare: see there.
        table: a CSV that every row is added to as it comes; the rows that it has already are not made again.
        seed: see there.

    Returns:
        A row for each combination: settings, scores, and the mean agreement of its groups; the best first.

    Raises:
        BadInput: nothing to try, a table of another search, or as ``zip_models``.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> one = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(50, 2)
        >>> groups = AxisGroups.of(one, x[:2])
        >>> error = lambda zipped: {"error": float((zipped.network(x) - one(x)).abs().max())}
        >>> rows = search_zip([one, one], x, error, groups=groups, a=[0.3], b=[0, 1])
        >>> len(rows), rows[0]["agreement"]
        (2, 1.0)
    """
    trials: list[Row] = [
        {"method": method, "a": float(one), "b": float(other), "stop_at": stop or "", "calibration": calibration or ""}
        for one, other, stop in product(a, b, stop_at)
    ]
    if not trials:
        raise BadInput("there is nothing to try. Give at least one value for each of a, b and stop_at.")
    done = _read(table, trials[0]) if table is not None else []
    statistics = None
    for trial in track(trials, "trying settings"):
        if any(all(str(row[key]) == str(value) for key, value in trial.items()) for row in done):
            continue
        if statistics is None:
            statistics = group_statistics(models, probe, groups, prepare=prepare)
        zipped = zip_models(
            models,
            probe,
            stop_at=trial["stop_at"] or None,
            method=method,
            a=trial["a"],
            b=trial["b"],
            calibration=calibration,
            groups=groups,
            statistics=statistics,
            prepare=prepare,
            seed=seed,
        )
        agreed = list(zipped.aligned.agreements.values())
        row = trial | dict(score(zipped)) | {"agreement": round(sum(agreed) / max(len(agreed), 1), 4)}
        done.append(row)
        if table is not None:
            _add(Path(table), row)
    decides = next(key for key in done[0] if key not in trials[0])
    return sorted(done, key=lambda row: float(row[decides]), reverse=True)


def _read(table: Path | str, trial: Row) -> list[Row]:
    if not Path(table).exists():
        return []
    with Path(table).open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    if rows and not trial.keys() <= rows[0].keys():
        raise BadInput(f"{table} is no table of such a search. Name another file, or remove it.")
    settings = {key: type(value) for key, value in trial.items()}
    return [{key: settings.get(key, float)(value) for key, value in row.items()} for row in rows]


def _add(table: Path, row: Row) -> None:
    fresh = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
