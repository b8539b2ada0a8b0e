"""Searching the settings of a zip on a pair of networks that is held out: every one tried, one row of a table each."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.calibration import Remedy
from taskatlas.merge.probe_batches import Data
from taskatlas.merge.zipped import Zipped
from taskatlas.merge.zipping import Matching, group_statistics, zip_models
from taskatlas.probe import Probe
from taskatlas.store import atomic_write, digest
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.weights import tensors_digest

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
        table: a CSV that every row is added to as it comes; rows of the same models, samples and settings that it has
            already are not made again.
        seed: see there.

    Returns:
        A row for each combination: settings, digests of models and samples, scores, and the mean agreement of its
        groups; the best first, and last what scores NaN.

    Raises:
        BadInput: nothing to try, a score that says nothing, a table of another search or one that cannot be read, or
            as ``zip_models``.

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
    if not isinstance(probe, Probe | Tensor):
        probe = list(probe)
    what = {
        "models": digest([_checkpoint(model).digest for model in models])[:12],
        "samples": digest(_content(probe), groups.digest)[:12],
        "seed": seed,
    }
    trials: list[Row] = [
        {"method": method, "a": float(one), "b": float(other), "stop_at": stop or "", "calibration": calibration or ""}
        | what
        for one, other, stop in product(a, b, stop_at)
    ]
    if not trials:
        raise BadInput("there is nothing to try. Give at least one value for each of a, b and stop_at.")
    done = _read(table, trials[0]) if table is not None else []
    found: list[Row] = []
    statistics = None
    for trial in track(trials, "trying settings"):
        before = [row for row in done if all(row[key] == value for key, value in trial.items())]
        if before:
            found += before[:1]
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
        row = trial | _score(score(zipped)) | {"agreement": round(sum(agreed) / max(len(agreed), 1), 4)}
        found.append(row)
        done.append(row)
        if table is not None:
            _write(Path(table), done)
    decides = next(key for key in found[0] if key not in trials[0])
    return sorted(found, key=lambda row: (math.isnan(float(row[decides])), -float(row[decides])))


def _checkpoint(model: nn.Module | Checkpoint) -> Checkpoint:
    return model if isinstance(model, Checkpoint) else Checkpoint("model", module=model)


def _content(data: Data) -> str:
    """Digest of samples."""
    if isinstance(data, Probe):
        return data.digest
    batches = [data] if isinstance(data, Tensor) else [dict(one) if isinstance(one, Mapping) else one for one in data]
    leaves = tree_leaves(batches)
    return tensors_digest({str(place): leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)})


def _score(found: Mapping[str, float]) -> Row:
    if not found:
        raise BadInput("the score of a zipped network says nothing. Return a mapping such as {'accuracy': 0.9}.")
    return dict(found)


def _read(table: Path | str, trial: Row) -> list[Row]:
    """The rows of a table that are whole: a run that is stopped may leave half of one."""
    if not Path(table).exists():
        return []
    try:
        with Path(table).open(newline="", encoding="utf-8") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table} cannot be read ({error}). Name another file, or remove it.") from error
    if rows and not trial.keys() < rows[0].keys():
        raise BadInput(f"{table} is no table of such a search. Name another file, or remove it.")
    settings = {key: type(value) for key, value in trial.items()}
    whole = [row for row in rows if None not in row and None not in row.values()]
    try:
        return [{key: settings.get(key, float)(value) for key, value in row.items()} for row in whole]
    except ValueError as error:
        raise BadInput(f"{table} has an entry that is no number ({error}). Remove its row.") from error


def _write(table: Path, rows: Sequence[Row]) -> None:
    with atomic_write(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
