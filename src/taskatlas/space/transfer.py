"""What a selection is worth: one linear head on the picked checkpoints' joined features, against random selections."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import comb
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from taskatlas.engine import Engine, run_jobs, single_threaded_products
from taskatlas.errors import BadInput
from taskatlas.probe import Features, Probe, extract
from taskatlas.probe.pooling import Pool, WordPool
from taskatlas.space.selection import Selection
from taskatlas.store import Store, atomic_write, digest
from taskatlas.zoo import Checkpoint, Zoo

Metric = Literal["accuracy", "macro_f1"]
Reader = Callable[[Checkpoint, Probe], Features]


@dataclass(frozen=True)
class Transfer:
    """Scores of one selection on one unseen task, of random selections of the same size, and of others to compare."""

    names: tuple[str, ...]
    selected: float  # score of ``names``, in [0, 1]
    random: tuple[float, ...]  # scores of distinct random selections
    random_names: tuple[tuple[str, ...], ...]
    others: Mapping[str, float]  # label -> score of a selection that was handed in
    metric: str

    @property
    def band(self) -> tuple[float, float, float]:
        """The 5 %, 50 % and 95 % quantile of the random selections."""
        low, median, high = np.quantile(self.random, [0.05, 0.5, 0.95])
        return float(low), float(median), float(high)

    @property
    def beaten(self) -> float:
        """The share of random selections that score less, ties counted half."""
        return float(np.mean([(score < self.selected) + 0.5 * (score == self.selected) for score in self.random]))

    @property
    def digest(self) -> str:
        """Digest of every selection and score."""
        return digest(asdict(self))

    def __repr__(self) -> str:
        low, median, high = self.band
        return (
            f"Transfer({self.metric} {self.selected:.3f} with {len(self.names)} picked; random {median:.3f} "
            f"[{low:.3f}, {high:.3f}])"
        )

    def save(self, path: Path | str) -> None:
        """Writes the scores as JSON."""
        save_transfers([self], Path(path))

    @classmethod
    def load(cls, path: Path | str) -> "Transfer":
        """Reads what ``save`` wrote.

        Raises:
            BadInput: the file is missing or holds no such scores.
        """
        return load_transfers(Path(path))[-1]

    def plot(self, ax: Any = None) -> Any:
        """Draws the selection's score beside the band of random selections; returns the axes."""
        from taskatlas.space.drawing import draw_transfer

        return draw_transfer([self], ax)


def transfer(
    zoo: Zoo,
    pick: Selection | Sequence[str],
    train: Probe,
    test: Probe,
    *,
    n_random: int = 20,
    others: Mapping[str, Sequence[str]] | None = None,
    metric: Metric = "accuracy",
    seed: int = 0,
    tap: str | None = None,
    pool: Pool = "auto",
    words: WordPool = "mean",
    batch_size: int = 64,
    device: str = "auto",
    engine: Engine = "local",
    store: Store | None = None,
) -> Transfer:
    """Trains one linear head on the picked checkpoints' joined features (Huang et al., NeurIPS 2021, section 4.1).

    The head is logistic regression on features scaled to unit variance on the training samples.

    Args:
        zoo: the checkpoints, picked or not.
        pick: a selection or names.
        train: labelled samples (or words) of the unseen task.
        test: held-out ones.
        n_random: distinct random selections of the same size; all of them where there are fewer.
        others: label -> names of selections to compare with, such as the best on another task.
        metric: ``accuracy`` or ``macro_f1`` (mean over classes of the F1 score).
        seed: of the random selections.
        tap: as in ``extract``, like the five that follow.
        pool: how maps and tokens become one vector.
        words: how sub-words become a word.
        batch_size: samples at once in a forward pass.
        device: ``auto``, ``cpu`` or ``cuda``.
        engine: where features are computed and heads are trained.
        store: where features are kept; None takes the user's.

    Raises:
        BadInput: an unknown name, nothing picked, probes without labels, or a test class that training never saw.
    """
    names = tuple(pick.names if isinstance(pick, Selection) else pick)
    _check_names(zoo, names, "the selection")
    others = dict(others or {})
    for label, chosen in others.items():
        _check_names(zoo, chosen, label)
    if n_random < 1:
        raise BadInput(f"n_random is {n_random}; compare with at least one random selection.")
    if metric not in get_args(Metric):
        raise BadInput(f"there is no metric {metric!r}. Choose accuracy or macro_f1.")
    y_train, y_test = _labels(train, "train"), _labels(test, "test")
    if len(np.unique(y_train)) < 2:
        raise BadInput("all training samples have one label; a head needs at least two classes.")
    unseen = sorted(set(y_test.tolist()) - set(y_train.tolist()))
    if unseen:
        raise BadInput(f"class {unseen[0]!r} is in the test samples and not in the training samples. Split again.")
    store = store or Store.default()
    read = partial(extract, tap=tap, pool=pool, words=words, batch_size=batch_size, device=device, store=store)
    rivals = random_selections(sorted(zoo), len(names), n_random, seed)
    sets = list(dict.fromkeys(tuple(sorted(chosen)) for chosen in [names, *rivals, *others.values()]))
    needed = sorted({name for chosen in sets for name in chosen})
    extraction = [(read, zoo[name], train, test) for name in needed]
    run_jobs(_extract_both, extraction, engine=engine, description="extracting features")
    jobs = [(read, [zoo[name] for name in chosen], train, test, y_train, y_test, metric) for chosen in sets]
    scores = dict(zip(sets, run_jobs(_score_of_set, jobs, engine=engine, description="training heads"), strict=True))
    return Transfer(
        names=names,
        selected=scores[tuple(sorted(names))],
        random=tuple(scores[rival] for rival in rivals),
        random_names=tuple(rivals),
        others={label: scores[tuple(sorted(chosen))] for label, chosen in others.items()},
        metric=metric,
    )


def head_score(
    x_train: Float[np.ndarray, "n d"],
    y_train: np.ndarray,
    x_test: Float[np.ndarray, "k d"],
    y_test: np.ndarray,
    metric: Metric = "accuracy",
) -> float:
    """Score of a logistic regression on features scaled to unit variance, in [0, 1].

    Example:
        >>> x = np.array([[-1.0], [-2.0], [1.0], [2.0]])
        >>> head_score(x, np.array([0, 0, 1, 1]), x, np.array([0, 0, 1, 1]))
        1.0
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, tol=1e-3))
    with single_threaded_products(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps are far past any change of the score
        predicted = head.fit(x_train, y_train).predict(x_test)
    if metric == "accuracy":
        return float(accuracy_score(y_test, predicted))
    if metric == "macro_f1":
        return float(f1_score(y_test, predicted, average="macro", zero_division=0))
    raise BadInput(f"there is no metric {metric!r}. Choose accuracy or macro_f1.")


def random_selections(names: Sequence[str], k: int, count: int, seed: int) -> list[tuple[str, ...]]:
    """``count`` distinct sets of k names, each sorted; every set there is where there are fewer.

    Example:
        >>> random_selections(["a", "b", "c"], 2, 20, seed=0)
        [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    from itertools import combinations

    names = sorted(names)
    if comb(len(names), k) <= count:
        return list(combinations(names, k))
    draw = np.random.default_rng(seed)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        chosen = draw.choice(len(names), size=k, replace=False)
        found[tuple(sorted(names[i] for i in chosen))] = None
    return list(found)


def save_transfers(transfers: Sequence[Transfer], path: Path) -> None:
    """Writes scores for one or several numbers of picks as JSON."""
    with atomic_write(path) as file:
        file.write_text(json.dumps([asdict(one) for one in transfers], indent=1) + "\n")


def load_transfers(path: Path) -> tuple[Transfer, ...]:
    """Reads what ``save_transfers`` wrote.

    Raises:
        BadInput: the file is missing or holds no such scores.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list) or not entries:
            raise ValueError("it is no list of scores")
        return tuple(
            Transfer(
                names=tuple(str(name) for name in fields["names"]),
                selected=float(fields["selected"]),
                random=tuple(float(score) for score in fields["random"]),
                random_names=tuple(tuple(str(name) for name in names) for names in fields["random_names"]),
                others={str(label): float(score) for label, score in fields["others"].items()},
                metric=str(fields["metric"]),
            )
            for fields in entries
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path} holds no transfer ({error}). Give a file that `taskatlas transfer` wrote.") from error


def _check_names(zoo: Zoo, names: Sequence[str], label: str) -> None:
    if not names:
        raise BadInput(f"{label} is empty; pick at least one checkpoint.")
    if len(set(names)) < len(names):
        raise BadInput(f"{label} names a checkpoint twice: {', '.join(names)}.")
    unknown = [name for name in names if name not in zoo]
    if unknown:
        raise BadInput(
            f"{label} names {unknown[0]!r}, which is not in the zoo. There are: {', '.join(list(zoo)[:8])} …"
        )


def _labels(probe: Probe, role: str) -> np.ndarray:
    if probe.labels is None:
        raise BadInput(f"the {role} samples have no labels; a transfer needs them.")
    # Each probe numbers its own classes; names, where there are some, mean the same in both.
    return probe.labels if probe.class_names is None else np.array(probe.class_names)[probe.labels]


def _extract_both(read: Reader, checkpoint: Checkpoint, train: Probe, test: Probe) -> None:
    for probe in (train, test):
        read(checkpoint, probe)


def _score_of_set(
    read: Reader,
    checkpoints: Sequence[Checkpoint],
    train: Probe,
    test: Probe,
    y_train: np.ndarray,
    y_test: np.ndarray,
    metric: Metric,
) -> float:
    x_train, x_test = (
        np.concatenate([read(checkpoint, probe).values for checkpoint in checkpoints], axis=1)
        for probe in (train, test)
    )
    return head_score(x_train, y_train, x_test, y_test, metric)
