"""Which k checkpoints cover the rest: greedy selection from the covariance of a zoo's tasks.

Tasks are a zero-mean Gaussian process with the covariance Σ; a picked set A is worth the mutual information I(A; V∖A)
between it and the tasks left out (Krause and Guestrin, JMLR 2008; Huang et al., NeurIPS 2021, section 3.2). Adding y
gains

    ½ ln( var(y | A) / var(y | V∖(A∪{y})) )   nats,

which the greedy rule maximises at each step. Both variances are diagonals of Schur complements, var(y | A) of Σ and
1 / var(y | rest) of its inverse, and partial Cholesky factors keep both up to date for all candidates: a pick updates
them in O(k m), so k picks from m tasks cost O(m³ + k² m).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import Float

from taskatlas.errors import BadInput
from taskatlas.space.objectives import Method, make_objective
from taskatlas.space.task_space import TaskSpace
from taskatlas.store import atomic_write, digest

_DUPLICATE = 1 - 1e-6  # a covariance this close to 1 leaves nothing but rounding between two tasks


@dataclass(frozen=True)
class Step:
    """One line of the audit: what was picked, what it gained, and by how much it beat the next best."""

    picked: str
    gain: float  # nats for mutual information, coverage and entropy; no unit for facility location
    total: float  # the objective once this is picked
    runner_up: str | None
    margin: float | None  # the gain of the pick minus the gain of the runner-up


@dataclass(frozen=True)
class Selection:
    """Picked names in order, what each step gained, and what was left out and why."""

    names: tuple[str, ...]  # everything picked, the start set first
    steps: tuple[Step, ...]  # one for each pick after the start set
    start: tuple[str, ...] = ()
    start_total: float = 0.0
    left_out: Mapping[str, str] = field(default_factory=dict)  # name -> reason
    method: str = "mutual_information"
    space: str = ""  # digest of the task space

    @property
    def totals(self) -> list[float]:
        """The objective after each step; for mutual information cumulative, in nats."""
        return [step.total for step in self.steps]

    @property
    def digest(self) -> str:
        """Digest of what was picked, from which space and how."""
        return digest(self.names, self.start, self.method, self.space)

    def __repr__(self) -> str:
        worth = f"{self.totals[-1]:.3f}" if self.steps else f"{self.start_total:.3f}"
        return f"Selection({', '.join(self.names)}; {self.method} {worth})"

    def save(self, path: Path | str) -> None:
        """Writes the selection as JSON."""
        with atomic_write(Path(path)) as file:
            file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "Selection":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing or holds no selection.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                names=_strings(fields["names"]),
                steps=tuple(
                    Step(
                        picked=str(step["picked"]),
                        gain=float(step["gain"]),
                        total=float(step["total"]),
                        runner_up=None if step["runner_up"] is None else str(step["runner_up"]),
                        margin=None if step["margin"] is None else float(step["margin"]),
                    )
                    for step in fields["steps"]
                ),
                start=_strings(fields["start"]),
                start_total=float(fields["start_total"]),
                left_out={name: str(reason) for name, reason in fields["left_out"].items()},
                method=str(fields["method"]),
                space=str(fields["space"]),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BadInput(
                f"{path} holds no selection ({error}). Give a file that `taskatlas select` wrote."
            ) from error

    def plot(self, ax: object = None) -> object:
        """Draws the objective and each step's gain over the picks; returns the axes."""
        from taskatlas.space.drawing import draw_selection

        return draw_selection(self, ax)


def select(
    space: TaskSpace,
    k: int | None = None,
    *,
    method: Method = "mutual_information",
    start: Sequence[str] = (),
    exclude: Collection[str] = (),
    cost: Mapping[str, float] | None = None,
    budget: float | None = None,
    weights: Mapping[str, float] | None = None,
    stop_at_peak: bool = False,
    noise: float = 0.0,
) -> Selection:
    """Picks checkpoints greedily; the result does not depend on the order of the names in ``space``.

    Ties go to the name that sorts first. Of several tasks that are the same (covariance above 1 - 1e-6) only one, a
    start if there is one, else the name that sorts first, stands for all; the others are reported in ``left_out``.

    Args:
        space: names and covariance.
        k: how many to pick, the start set included; None picks while there is something to pick (``stop_at_peak``,
            ``budget``).
        method: ``mutual_information`` (nats; the paper's), ``coverage`` (Σ_v w_v ½ ln(var(v)/var(v|A)) over the tasks
            not picked, in nats: mutual information for tasks that matter unequally), ``entropy`` (½ ln(2πe var(y|A)) a
            step, in nats) or ``facility_location`` (Σ_v w_v max_{a∈A} Σ_va).
        start: names that are picked already, in order.
        exclude: names that must not be picked; they still count among the tasks to be covered.
        cost: name -> positive cost; the step with the largest gain per cost is taken, or the smallest loss.
        budget: the most that all picks together may cost; candidates that no longer fit are passed over.
        weights: name -> importance of covering that task (missing names: 1), for ``coverage`` and
            ``facility_location``.
        stop_at_peak: stop when no candidate adds anything. Mutual information rises, peaks and falls.
        noise: variance added to the diagonal, for covariances that are singular or barely indefinite.

    Returns:
        Names in order with the gain, the running total, the runner-up and the margin of each step.

    Raises:
        BadInput: an unknown name, k out of range, costs that are not positive, a budget that fits nothing, an option
            the method has no use for, or a covariance that is not positive definite.

    Example:
        >>> space = TaskSpace(("a", "b", "c"), np.array([[1, 0.8, 0.1], [0.8, 1, 0.3], [0.1, 0.3, 1]]))
        >>> select(space, 2).names
        ('b', 'c')
    """
    order = sorted(range(len(space.names)), key=space.names.__getitem__)
    names = [space.names[i] for i in order]
    covariance = np.asarray(space.covariance, dtype=np.float64)[np.ix_(order, order)]
    covariance = covariance + noise * np.eye(len(names))
    start_positions = _positions(names, start, "start")
    excluded = set(_positions(names, list(exclude), "exclude"))
    prices = _prices(names, cost)
    _check_request(names, k, start, exclude, stop_at_peak, budget, cost, method)
    importance = _importance(names, weights, method)

    kept, left_out = _without_duplicates(names, covariance, start_positions, excluded)
    available = len(set(kept) - excluded)
    if k is not None and k > available:
        raise BadInput(f"k is {k}, but only {available} distinct checkpoints may be picked. Ask for fewer.")
    if weights is not None or method == "facility_location":
        importance = _importance_of_kept(names, importance, kept, left_out)
    else:
        importance = importance[kept]
    position_of = {old: new for new, old in enumerate(kept)}
    covariance = covariance[np.ix_(kept, kept)]

    objective = make_objective(method, covariance, importance)
    spent = 0.0
    candidates = set(range(len(kept))) - {position_of[i] for i in excluded if i in position_of}
    for position in (position_of[i] for i in start_positions):
        objective.pick(position)
        candidates.discard(position)
        spent += prices[kept[position]]
    start_total = objective.total
    picked = [position_of[i] for i in start_positions]
    steps: list[Step] = []
    while candidates and (k is None or len(picked) < k):
        affordable = sorted(y for y in candidates if budget is None or spent + prices[kept[y]] <= budget * (1 + 1e-12))
        if not affordable:
            break
        gains = objective.gains()
        rising = max(gains[y] for y in affordable) > 0
        # Past the peak every gain is a loss, and a loss divided by a large cost would look small.
        scores = {y: gains[y] / prices[kept[y]] if rising else gains[y] for y in affordable}
        best = _first_best(scores)
        if stop_at_peak and gains[best] <= 0:
            break
        runner_up = _first_best({y: s for y, s in scores.items() if y != best}) if len(scores) > 1 else None
        objective.pick(best)
        steps.append(
            Step(
                picked=names[kept[best]],
                gain=float(gains[best]),
                total=float(objective.total),
                runner_up=None if runner_up is None else names[kept[runner_up]],
                margin=None if runner_up is None else float(gains[best] - gains[runner_up]),
            )
        )
        picked.append(best)
        candidates.discard(best)
        spent += prices[kept[best]]
    for i in sorted(excluded):
        left_out.setdefault(names[i], "excluded")
    return Selection(
        names=tuple(names[kept[i]] for i in picked),
        steps=tuple(steps),
        start=tuple(start),
        start_total=float(start_total),
        left_out=left_out,
        method=method,
        space=space.digest,
    )


def pick_probabilities(space: TaskSpace, k: int, *, method: Method = "mutual_information") -> dict[str, float]:
    """How often each checkpoint is among the k picked when the probe's samples are drawn anew.

    Args:
        space: with bootstrap replicates of its covariance.
        k: how many to pick.
        method: as in ``select``.

    Returns:
        name -> share of replicates in [0, 1], largest first.

    Raises:
        BadInput: the space holds no replicates, or as ``select``.
    """
    if space.replicates is None:
        raise BadInput("this task space holds no bootstrap replicates. Map the zoo with bootstrap=100.")
    counts = dict.fromkeys(space.names, 0)
    for covariance in space.replicates:
        for name in select(TaskSpace(space.names, covariance), k, method=method).names:
            counts[name] += 1
    share = {name: count / len(space.replicates) for name, count in counts.items()}
    return dict(sorted(share.items(), key=lambda item: (-item[1], item[0])))


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("names must be a list of strings")
    return tuple(value)


def _first_best(scores: Mapping[int, float]) -> int:
    """The position of the largest score, the lowest among those equal to rounding."""
    best = max(scores.values())
    return min(y for y, score in scores.items() if score >= best - 1e-12 * max(1.0, abs(best)))


def _positions(names: Sequence[str], wanted: Sequence[str], option: str) -> list[int]:
    from difflib import get_close_matches

    known = {name: position for position, name in enumerate(names)}
    for name in wanted:
        if name not in known:
            close = get_close_matches(name, names, 1)
            hint = f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(names[:5])} …"
            raise BadInput(f"{option} names {name!r}, which is not in the task space.{hint}")
    if len(set(wanted)) < len(wanted):
        raise BadInput(f"{option} names a checkpoint twice: {', '.join(wanted)}.")
    return [known[name] for name in wanted]


def _prices(names: Sequence[str], cost: Mapping[str, float] | None) -> Float[np.ndarray, " m"]:
    if cost is None:
        return np.ones(len(names))
    _positions(names, list(cost), "cost")
    missing = [name for name in names if name not in cost]
    if missing:
        raise BadInput(
            f"cost says nothing of {missing[0]!r} ({len(missing)} missing). Give a cost for every checkpoint."
        )
    prices = np.array([float(cost[name]) for name in names])
    if not (np.isfinite(prices) & (prices > 0)).all():
        worst = names[int(np.argmin(np.where(np.isfinite(prices), prices, -np.inf)))]
        raise BadInput(f"the cost of {worst!r} is {cost[worst]}; costs must be positive numbers.")
    return prices


def _importance(names: Sequence[str], weights: Mapping[str, float] | None, method: Method) -> Float[np.ndarray, " m"]:
    if weights is None:
        return np.ones(len(names))
    if method not in ("coverage", "facility_location"):
        raise BadInput(f"weights have no meaning for {method}. Use method='coverage' or method='facility_location'.")
    _positions(names, list(weights), "weights")
    importance = np.array([float(weights.get(name, 1.0)) for name in names])
    if not (np.isfinite(importance) & (importance >= 0)).all():
        raise BadInput("weights must be finite and not negative.")
    return importance


def _importance_of_kept(
    names: Sequence[str], importance: Float[np.ndarray, " m"], kept: Sequence[int], left_out: Mapping[str, str]
) -> Float[np.ndarray, " k"]:
    """A task that stands for duplicates carries their weight too."""
    position = {names[i]: new for new, i in enumerate(kept)}
    total = importance[list(kept)].copy()
    for i, name in enumerate(names):
        if name in left_out:
            total[position[left_out[name].removeprefix("duplicate of ")]] += importance[i]
    return total


def _check_request(
    names: Sequence[str],
    k: int | None,
    start: Sequence[str],
    exclude: Collection[str],
    stop_at_peak: bool,
    budget: float | None,
    cost: Mapping[str, float] | None,
    method: Method,
) -> None:
    if method not in get_args(Method):
        raise BadInput(f"there is no method {method!r}. Choose one of: {', '.join(get_args(Method))}.")
    if k is None and not stop_at_peak and budget is None:
        raise BadInput("say how many to pick: give k, or stop_at_peak, or a budget with costs.")
    if k is not None and not 1 <= k <= len(names):
        raise BadInput(f"k is {k}, but the task space holds {len(names)} checkpoints. Choose k from 1 to {len(names)}.")
    if k is not None and k < len(start):
        raise BadInput(f"k is {k}, but {len(start)} checkpoints are picked by start already. Choose a larger k.")
    contradicted = [name for name in start if name in exclude]
    if contradicted:
        raise BadInput(f"{contradicted[0]!r} is both in start and in exclude. Drop it from one of them.")
    if budget is not None:
        if cost is None:
            raise BadInput("a budget needs costs. Give cost={name: price}.")
        cheapest = min((cost[name] for name in names if name not in exclude), default=0.0)
        if not start and not budget >= cheapest:
            raise BadInput(f"the budget is {budget}, but the cheapest checkpoint costs {cheapest:g}. Raise it.")
    if stop_at_peak and method != "mutual_information":
        raise BadInput(f"{method} has no peak to stop at; only mutual information has. Give k.")


def _without_duplicates(
    names: Sequence[str], covariance: Float[np.ndarray, "m m"], start: Sequence[int], excluded: Collection[int]
) -> tuple[list[int], dict[str, str]]:
    """Positions that are kept, in order, and the reason for each that is not."""
    scale = np.sqrt(np.diagonal(covariance))
    alike = covariance / np.outer(scale, scale) > _DUPLICATE
    np.fill_diagonal(alike, False)
    # Those who could stand in for another: starts first, and rather a name that may be picked than one that may not.
    doubtful = np.flatnonzero(alike.any(axis=1)).tolist()
    first, last = len(names), 2 * len(names)
    rank = {i: start.index(i) if i in start else (last if i in excluded else first) + i for i in doubtful}
    stand_in: dict[int, int] = {}
    for i in sorted(doubtful, key=rank.__getitem__):
        if i not in stand_in:
            stand_in |= {j: i for j in np.flatnonzero(alike[i]).tolist() if rank[j] > rank[i] and j not in stand_in}
    doubled = [i for i in start if i in stand_in]
    if doubled:
        i = doubled[0]
        raise BadInput(f"start holds {names[stand_in[i]]!r} and {names[i]!r}, which are the same task. Drop one.")
    kept = [i for i in range(len(names)) if i not in stand_in]
    return kept, {names[i]: f"duplicate of {names[j]}" for i, j in sorted(stand_in.items())}
