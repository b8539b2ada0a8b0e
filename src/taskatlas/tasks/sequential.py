"""The sequential route of discovery: one task after the other, each kept only if it is unlike those before."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.probe import Probe
from taskatlas.tasks.discovery import ConstantTasks, Discovered, Search, discover_tasks
from taskatlas.tasks.jobs import seed_of
from taskatlas.tasks.samples import Learner
from taskatlas.tasks.similarity import similarity_matrix
from taskatlas.tasks.task import Task, least_rate

_TRIES = 3  # searches that may fail for each task


def discover_in_turn(
    data: Probe,
    learner: Learner = "mlp",
    *,
    n_tasks: int = 8,
    known: Sequence[Task] = (),
    bound: float = 0.6,
    search: Search | None = None,
    width: int | None = None,
    seed: int = 0,
    states: Path | None = None,
    **settings: Any,
) -> Discovered:
    """Finds tasks one by one, with an encoder of its own each (Atanov et al., NeurIPS 2022, section 3.4, the pool).

    A search for a single task keeps it apart from the known and the accepted ones by mutual information; what it finds
    is accepted if its ``similarity`` to each of them stays below the bound and no class has less than its
    ``least_rate``.

    Args:
        data: as ``discover_tasks``, like all else.
        learner: the networks that shall agree.
        n_tasks: how many tasks are wanted; fewer come back where three searches in a row for each find no more.
        known: tasks that are not to be found again.
        bound: on the similarity, between a half and 1.
        search: settings of each search; its diversity is mutual information.
        width: dimensions of each encoder's output; None: 2, or as many as the classes.
        seed: of everything random.
        states: where searches are saved, each with its number added.
        **settings: as ``discover_tasks``.

    Raises:
        BadInput: a bound out of its range, a known task that lacks a sample, or as ``discover_tasks``.
        WorkFailed: no task was found at all.
    """
    if not 0.5 < bound <= 1:
        raise BadInput(f"a bound of {bound:g} on similarity cannot be kept; give a number above 0.5, up to 1.")
    if n_tasks < 1:
        raise BadInput(f"{n_tasks} tasks cannot be found; give at least 1.")
    search = replace(search or Search(), diversity="information")
    pool = [task.among(data.ids) for task in known]
    accepted: list[Task] = []
    parts: list[Discovered] = []
    refused = 0
    while len(accepted) < n_tasks and refused < _TRIES:
        number = len(accepted) * _TRIES + refused
        try:
            found = discover_tasks(
                data,
                learner,
                n_tasks=1,
                width=max(2, settings.get("classes", 2)) if width is None else width,
                search=search,
                known=[*pool, *accepted],
                seed=seed_of(seed, "turn", number),
                split_seed=seed,
                state=None if states is None else states.with_name(f"{states.name}-{number}"),
                **settings,
            )
        except ConstantTasks:
            refused += 1
            continue
        except WorkFailed:
            _remove(states)
            raise
        task = found[0]
        alike = similarity_matrix([task], [*pool, *accepted]).max(initial=0.0)
        if alike > bound or task.class_rates.min() < least_rate(task.classes):
            refused += 1
            continue
        name = f"discovered {len(accepted)}"
        accepted.append(Task(name, task.labels, task.ids, task.certainty, task.note))
        parts.append(found)
        refused = 0
    if not parts:
        _remove(states)
        raise WorkFailed("no search found a task that is not nearly constant. Raise the coefficient of diversity.")
    return _joined(parts, accepted, n_tasks, bound, seed)


def _remove(states: Path | None) -> None:
    """What the searches saved, of which one failed: other settings shall find nothing in their way."""
    for file in () if states is None else states.parent.glob(f"{states.name}-*"):
        file.unlink()


def _joined(parts: list[Discovered], tasks: list[Task], wanted: int, bound: float, seed: int) -> Discovered:
    """The tasks together; their embeddings side by side, each head asking its own."""
    widths = [part.embedding.shape[1] for part in parts]
    starts = np.cumsum([0, *widths])
    heads = np.zeros((len(parts), parts[0].heads.shape[1], int(starts[-1])))
    for position, part in enumerate(parts):
        heads[position, :, starts[position] : starts[position + 1]] = part.heads[0]
    steps = len(parts[0].history)
    history = [row._replace(step=row.step + i * steps) for i, part in enumerate(parts) for row in part.history]
    notes = [note for part in parts for note in part.notes]
    if len(parts) < wanted:
        notes.append(f"only {len(parts)} of {wanted} tasks were found whose similarity stays below {bound:g}")
    settings = parts[0].settings | {"route": "sequential", "bound": bound, "n_tasks": wanted, "seed": seed}
    return Discovered(
        tuple(tasks),
        np.concatenate([part.embedding for part in parts], axis=1),
        heads,
        parts[0].held_out,
        tuple(history),
        settings,
        tuple(dict.fromkeys(notes)),
    )
