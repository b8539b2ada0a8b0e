"""How much two runs agree beyond their classes: one run's samples shuffled within each class, again and again.

Two networks that are alike only in how well they do on each class are as close after the shuffle as before. Where they
err on the same samples in the same way, the shuffle moves them apart. Progress does not notice it: it is a sum over
samples, and a class's samples stay with the class.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.paths.compare import at_equal_progress, matched, mean_distance
from taskatlas.paths.simplex import Labels, check_labels
from taskatlas.paths.trajectory import Trajectory, check_same_samples, truth_of


@dataclass(frozen=True, eq=False, repr=False)
class ShuffleNull:
    """A distance between runs beside what it is after shuffles within classes.

    Attributes:
        distance: between the runs, in nats.
        null: distances after each shuffle.
        p_value: share of the shuffles, the given order among them, with a distance no larger.
    """

    distance: float
    null: Float[np.ndarray, " shuffles"]
    p_value: float

    def __repr__(self) -> str:
        return (
            f"ShuffleNull(distance {self.distance:.4f}, shuffled {self.null.mean():.4f} ± {self.null.std():.4f}, "
            f"p = {self.p_value:.3g})"
        )


def shuffle_null(
    a: Trajectory,
    b: Trajectory,
    labels: Labels | None = None,
    *,
    shuffles: int = 99,
    seed: int = 0,
) -> ShuffleNull:
    """The distance between two runs at equal progress, and its null: samples of ``b`` shuffled within each class.

    Args:
        a: a run.
        b: another, on the same samples.
        labels: the true classes; those that a run carries where there are none.
        shuffles: how many.
        seed: of the shuffles.

    Raises:
        BadInput: other samples, no labels, no class with two samples, no common range of progress, or no shuffle.

    Example:
        >>> steps = np.log([[[0.5, 0.5]] * 4, [[0.1, 0.9], [0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]])
        >>> a = Trajectory("a", steps, [0, 1], list("wxyz"), [1, 1, 1, 0])
        >>> found = shuffle_null(a, a, shuffles=19)
        >>> found.distance == 0, bool(found.null.max() > 0.05)
        (True, True)
    """
    if shuffles < 1:
        raise BadInput(f"a null needs at least 1 shuffle, not {shuffles}.")
    check_same_samples([a, b])
    truth = check_labels(a.truth(truth_of([a, b], labels)), *a.log_probs.shape[1:]).numpy()
    members = [rows for label in np.unique(truth) if len(rows := np.flatnonzero(truth == label)) > 1]
    if not members:
        raise BadInput("no class has two samples, so there is nothing to shuffle within classes.")
    sides = matched(at_equal_progress([a], truth), at_equal_progress([b], truth))
    left, right = (side.probabilities() for side in sides)
    distance = mean_distance(left, right)
    random = np.random.default_rng(seed)
    null = np.empty(shuffles)
    for position in track(range(shuffles), "shuffling within classes"):
        order = np.arange(len(truth))
        for rows in members:
            order[rows] = random.permutation(rows)
        null[position] = mean_distance(left, right[:, order])
    no_larger = int((null <= distance * (1 + 1e-9)).sum())  # sums in another order round otherwise
    return ShuffleNull(distance, null, (1 + no_larger) / (1 + shuffles))
