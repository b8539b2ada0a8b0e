"""The laws of the room of task spaces: what every kernel and every selection must hold to.

A method is one row: its function and what it declares. A check draws its material from a seed, tries every law that
the row declares, and raises an AssertionError that names the method, the law and the values that break it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np
from jaxtyping import Float

from taskatlas.space.cka import minibatch_cka_matrix
from taskatlas.space.kernels import KERNELS, Kernel
from taskatlas.space.selection import Selection, select
from taskatlas.space.task_space import TaskSpace

Objective = Callable[[np.ndarray, Sequence[int]], float]
"""(covariance (m, m), picked positions) -> what they are worth, computed from scratch."""

_SAMPLES = 24
_WIDTHS = (5, 3, 40, 4, 1)  # of the networks that a check draws, one wider than the samples
_TASKS = 9
_PICKS = 5


@dataclass(frozen=True)
class KernelLaws:
    """A kernel and what it declares. All are symmetric with a unit diagonal, at most 1, and pure.

    Example:
        >>> def cosine_of_means(features, against=None):
        ...     means = np.array([x.mean() for x in features])
        ...     others = means if against is None else np.array([x.mean() for x in against])
        ...     return np.sign(np.outer(means, others))
        >>> check_kernel(KernelLaws("cosine_of_means", cosine_of_means, rotation=False, shift=False))
        >>> check_kernel(KernelLaws("cosine_of_means", cosine_of_means))
        Traceback (most recent call last):
            ...
        AssertionError: cosine_of_means breaks the law 'rotation' with seed 0: ...
    """

    name: str
    function: Kernel
    rotation: bool = True  # the same for features times an orthogonal matrix
    scale: bool = True  # the same for features times a positive number
    shift: bool = True  # the same for features plus a constant vector
    sample_order: bool = True  # the same when all networks see the samples in another order
    psd: bool = True  # no negative eigenvalue on one probe
    tolerance: float = 1e-8


@dataclass(frozen=True)
class SelectionLaws:
    """A selector, called as ``select(space, k, start=, exclude=)``, and the objective that it maximises greedily.

    Example:
        >>> def first_names(space, k, start=(), exclude=()):
        ...     names = [*start, *sorted(set(space.names) - {*start, *exclude})][:k]
        ...     return Selection(tuple(names), steps=())
        >>> check_selection(SelectionLaws("first_names", first_names, lambda covariance, picked: 0.0))
        Traceback (most recent call last):
            ...
        AssertionError: first_names breaks the law 'one step a pick' with seed 0: 0 steps for 5 picks
    """

    name: str
    select: Callable[..., Selection]
    objective: Objective
    tolerance: float = 1e-8


def check_kernel(laws: KernelLaws, seed: int = 0) -> None:
    """Tries every law that a kernel declares on networks of several widths, some related, drawn from ``seed``.

    Raises:
        AssertionError: a law is broken; names it and the values.

    Example:
        >>> for laws in KERNEL_LAWS:
        ...     check_kernel(laws, seed=1)
    """
    rng = np.random.default_rng(seed)
    features = _draw_features(rng)
    require = _Referee(laws.name, seed, laws.tolerance)
    before = [x.copy() for x in features]
    matrix = laws.function(features, None)
    m = len(features)

    if matrix.shape != (m, m):
        require.broken("one value a pair", f"shape {matrix.shape} for {m} networks")
    if not np.isfinite(matrix).all():
        require.broken("finite", f"values {matrix[~np.isfinite(matrix)]}")
    require.same("symmetric", matrix, matrix.T)
    require.same("unit diagonal", np.diagonal(matrix), np.ones(m))
    if np.abs(matrix).max() > 1 + laws.tolerance:
        require.broken("at most 1", f"a value of {np.abs(matrix).max():.12g}")
    if any((x != y).any() for x, y in zip(features, before, strict=True)):
        require.broken("leaves its input alone", "features were changed")
    if (laws.function(features, None) != matrix).any():
        require.broken("deterministic", "a second call gives other bits")
    require.same("against", laws.function(features[:2], features[2:]), matrix[:2, 2:])
    order = np.arange(m)[::-1]
    require.same("network order", laws.function([features[i] for i in order], None), matrix[np.ix_(order, order)])

    moved: dict[str, list[np.ndarray]] = {}
    if laws.rotation:
        moved["rotation"] = [x @ _random_rotation(rng, x.shape[1]) for x in features]
    if laws.scale:
        moved["scale"] = [x * factor for x, factor in zip(features, np.exp(rng.normal(0, 2, m)), strict=True)]
    if laws.shift:
        moved["shift"] = [x + 5 * rng.standard_normal(x.shape[1]) for x in features]
    if laws.sample_order:
        samples = rng.permutation(_SAMPLES)
        moved["sample order"] = [x[samples] for x in features]
    for law, other in moved.items():
        require.same(law, laws.function(other, None), matrix)
    smallest = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
    if laws.psd and smallest < -laws.tolerance:
        require.broken("positive semi-definite", f"an eigenvalue of {smallest:.3g}")


def check_selection(laws: SelectionLaws, seed: int = 0) -> None:
    """Tries the laws of greedy selection on a covariance drawn from ``seed``, with and without start and exclusions.

    The result does not depend on the order of the names, to the bit; gains and totals are those of the objective
    computed from scratch; no other candidate would have gained more; the start comes first; what is excluded is never
    picked; a larger k only adds picks; of two tasks that are the same one is picked at most.

    Raises:
        AssertionError: a law is broken; names it and the values.

    Example:
        >>> for laws in SELECTION_LAWS:
        ...     check_selection(laws, seed=1)
    """
    rng = np.random.default_rng(seed)
    space = _draw_space(rng)
    require = _Referee(laws.name, seed, laws.tolerance)
    single = laws.select(space, 1).names
    if len(single) != 1:
        require.broken("k different picks", f"{single} for k = 1")
    best = single[0]  # the one that an exclusion must keep out
    a, b = (str(name) for name in rng.choice([name for name in space.names if name != best], 2, replace=False))
    for request in ({}, {"start": [a, b]}, {"exclude": [best]}, {"start": [b, a], "exclude": [best]}):
        _check_picks(laws, require, space, rng, request)

    twin = f"{space.names[0]} again"
    copied = [*range(_TASKS), 0]
    doubled = TaskSpace((*space.names, twin), space.covariance[np.ix_(copied, copied)])
    picked = laws.select(doubled, _TASKS)
    if {twin, space.names[0]} <= set(picked.names) or not {twin, space.names[0]} & set(picked.left_out):
        require.broken("duplicates", f"picked {picked.names} and left out {dict(picked.left_out)}")


def _check_picks(
    laws: SelectionLaws,
    require: "_Referee",
    space: TaskSpace,
    rng: np.random.Generator,
    request: Mapping[str, Sequence[str]],
) -> None:
    """All laws for one request of a start set and exclusions."""
    start, exclude = request.get("start", ()), request.get("exclude", ())
    selection = laws.select(space, _PICKS, **request)

    if len(selection.names) != _PICKS or len(set(selection.names)) != _PICKS:
        require.broken("k different picks", f"{selection.names} for k = {_PICKS}")
    if list(selection.names[: len(start)]) != list(start):
        require.broken("start first", f"{selection.names} for start {start}")
    if set(selection.names) & set(exclude):
        require.broken("exclude", f"{selection.names} for exclude {exclude}")
    if not set(exclude) <= set(selection.left_out):
        require.broken("exclusions are reported", f"left out {dict(selection.left_out)} for exclude {exclude}")
    if tuple(step.picked for step in selection.steps) != selection.names[len(start) :]:
        require.broken("one step a pick", f"{len(selection.steps)} steps for {_PICKS - len(start)} picks")

    shuffled = laws.select(space.subset([str(name) for name in rng.permutation(space.names)]), _PICKS, **request)
    if shuffled.names != selection.names or shuffled.steps != selection.steps:
        require.broken("input order", f"{shuffled.steps} and {selection.steps} for the same space in two orders")
    fewer = laws.select(space, _PICKS - 1, **request)
    if fewer.names != selection.names[:-1]:
        require.broken("a larger k only adds", f"{fewer.names} and then {selection.names}")

    picked = [space.names.index(name) for name in start]
    worth = laws.objective(space.covariance, picked)
    require.same("start total", selection.start_total, worth)
    for step in selection.steps:
        gains = {
            name: laws.objective(space.covariance, [*picked, position]) - worth
            for position, name in enumerate(space.names)
            if position not in picked and name not in exclude
        }
        require.same("gain", step.gain, gains[step.picked])
        require.same("the best candidate", step.gain, max(gains.values()))
        if step.runner_up is not None and step.margin is not None:
            require.same("runner-up", step.margin, step.gain - gains[step.runner_up])
            others = [gain for name, gain in gains.items() if name != step.picked]
            require.same("runner-up is next", gains[step.runner_up], max(others))
        worth += gains[step.picked]
        picked.append(space.names.index(step.picked))
        require.same("total", step.total, worth)


@dataclass(frozen=True)
class _Referee:
    """Says which law is broken, by whom and how; plain asserts would be silent under ``python -O``."""

    name: str
    seed: int
    tolerance: float

    def broken(self, law: str, how: str) -> NoReturn:
        raise AssertionError(f"{self.name} breaks the law {law!r} with seed {self.seed}: {how}")

    def same(self, law: str, found: np.ndarray | float, expected: np.ndarray | float) -> None:
        found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
        if found.shape != expected.shape:
            self.broken(law, f"shape {found.shape} in place of {expected.shape}")
        off = np.abs(found - expected)
        if not (off <= self.tolerance).all():  # NaN breaks every law
            place = np.unravel_index(int(np.nan_to_num(off, nan=np.inf).argmax()), off.shape)
            at = f" at {tuple(int(i) for i in place)}" if place else ""
            self.broken(law, f"{found[place]:.12g} in place of {expected[place]:.12g}{at}")


def _draw_features(rng: np.random.Generator) -> list[np.ndarray]:
    """Networks on the same samples that share some structure, each of another width."""
    shared = rng.standard_normal((_SAMPLES, 3))
    return [
        shared @ rng.standard_normal((3, width)) + strength * rng.standard_normal((_SAMPLES, width))
        for width, strength in zip(_WIDTHS, rng.uniform(0.1, 3, len(_WIDTHS)), strict=True)
    ]


def _random_rotation(rng: np.random.Generator, width: int) -> Float[np.ndarray, "d d"]:
    return np.asarray(np.linalg.qr(rng.standard_normal((width, width)))[0])


def _draw_space(rng: np.random.Generator) -> TaskSpace:
    """A positive definite covariance with unit diagonal, all entries positive, under names in no order."""
    factors = np.abs(rng.standard_normal((_TASKS, _TASKS + 3)))
    covariance = factors @ factors.T + np.eye(_TASKS)
    scale = np.sqrt(np.diagonal(covariance))
    names = [f"task-{letter}" for letter in rng.permutation(list("abcdefghi"))]
    return TaskSpace(tuple(names), covariance / np.outer(scale, scale))


def _log_det(covariance: np.ndarray, picked: Sequence[int]) -> float:
    return float(np.linalg.slogdet(covariance[np.ix_(picked, picked)])[1])


def _mutual_information(covariance: np.ndarray, picked: Sequence[int]) -> float:
    everything = range(len(covariance))
    rest = [v for v in everything if v not in picked]
    return 0.5 * (_log_det(covariance, picked) + _log_det(covariance, rest) - _log_det(covariance, everything))


def _coverage(covariance: np.ndarray, picked: Sequence[int]) -> float:
    known = _log_det(covariance, picked)
    rest = [v for v in range(len(covariance)) if v not in picked]
    return float(sum(0.5 * (np.log(covariance[v, v]) + known - _log_det(covariance, [*picked, v])) for v in rest))


def _entropy(covariance: np.ndarray, picked: Sequence[int]) -> float:
    return float(0.5 * (len(picked) * np.log(2 * np.pi * np.e) + _log_det(covariance, picked)))


def _facility_location(covariance: np.ndarray, picked: Sequence[int]) -> float:
    return float(covariance[:, list(picked)].max(axis=1, initial=0.0).sum())


KERNEL_LAWS: tuple[KernelLaws, ...] = (
    KernelLaws("cka", KERNELS["cka"]),
    KernelLaws("debiased_cka", KERNELS["debiased_cka"]),
    # Batches are made of samples in their order, so another order is another estimate of the same quantity.
    KernelLaws("minibatch_cka", partial(minibatch_cka_matrix, batch_size=10), sample_order=False),
    KernelLaws("rbf_cka", KERNELS["rbf_cka"]),
    KernelLaws("procrustes", KERNELS["procrustes"], psd=False),
    KernelLaws("mutual_knn", KERNELS["mutual_knn"]),
)
"""Every kernel of ``taskatlas.space``, with what it declares."""

SELECTION_LAWS: tuple[SelectionLaws, ...] = (
    SelectionLaws("mutual_information", partial(select, method="mutual_information"), _mutual_information),
    SelectionLaws("coverage", partial(select, method="coverage"), _coverage),
    SelectionLaws("entropy", partial(select, method="entropy"), _entropy),
    SelectionLaws("facility_location", partial(select, method="facility_location"), _facility_location),
)
"""Every method of ``taskatlas.space.select``, with its objective."""
