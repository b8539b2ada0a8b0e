"""Does one set of distances among tasks follow another? Rank correlation, with a permutation test and a confounder.

The cells of a matrix of distances are not independent, so a correlation's usual p-value is far too small. Mantel's test
(Cancer Research, 1967) compares with the same matrix under other orders of its tasks. Distances between tasks grow with
much besides meaning, above all with the number of classes; the partial test (Smouse, Long and Sokal, Systematic
Zoology, 1986) takes such a thing out of both sides first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real
from scipy.stats import rankdata

from taskatlas.errors import BadInput


@dataclass(frozen=True, eq=False, repr=False)
class Mantel:
    """Result of a Mantel test.

    Attributes:
        correlation: Spearman's, over the pairs of tasks; partial where there was a confounder.
        p_value: share of the orders, the given one among them, with a correlation at least as large.
        null: the correlations under other orders.
    """

    correlation: float
    p_value: float
    null: Float[np.ndarray, " permutations"]

    def __repr__(self) -> str:
        return f"Mantel(correlation {self.correlation:.3f}, p = {self.p_value:.3g}, {len(self.null)} permutations)"


def mantel(
    distances: Float[np.ndarray, "tasks tasks"],
    others: Float[np.ndarray, "_ _"],
    confounder: Float[np.ndarray, "_ _"] | None = None,
    *,
    permutations: int = 999,
    seed: int = 0,
) -> Mantel:
    """Spearman correlation of two matrices of distances over the pairs of tasks, one-sided against permuted tasks.

    Args:
        distances: for example ``TaskTree.path_lengths``.
        others: for example ``hierarchy_distances``, tasks in the same order.
        confounder: distances to take out of both, for example ``difference_matrix`` of the numbers of classes.
        permutations: orders of the tasks to compare with.
        seed: of the orders.

    Raises:
        BadInput: matrices that differ in shape or are not symmetric, fewer than four tasks, a matrix whose distances
            are all alike, or no permutation.

    Example:
        >>> places = np.arange(6.0)[:, None]
        >>> mantel(abs(places - places.T), abs(places - places.T) ** 2)
        Mantel(correlation 1.000, p = 0.004, 999 permutations)
    """
    if permutations < 1:
        raise BadInput(f"a permutation test needs at least 1 permutation, not {permutations}.")
    matrices = [distances, others] + ([] if confounder is None else [confounder])
    for matrix in matrices:
        _check_matrix(np.asarray(matrix), len(distances))
    above = np.triu_indices(len(distances), 1)
    ranks = [_ranks(np.asarray(matrix, dtype=np.float64), above) for matrix in matrices]
    random = np.random.default_rng(seed)

    def correlation(order: np.ndarray) -> float:
        return _partial([ranks[0][np.ix_(order, order)][above], *(matrix[above] for matrix in ranks[1:])])

    observed = correlation(np.arange(len(distances)))
    null = np.array([correlation(random.permutation(len(distances))) for _ in range(permutations)])
    at_least = int((null >= observed - 1e-12).sum())
    return Mantel(observed, (1 + at_least) / (1 + permutations), null)


def hierarchy_distances(names: Sequence[str], parents: Mapping[str, str]) -> Float[np.ndarray, "tasks tasks"]:
    """Edges on the way between tasks in a given hierarchy, WordNet's for example.

    Args:
        names: of the tasks, inner nodes or leaves.
        parents: each node's parent; the root has none.

    Raises:
        BadInput: a task that is not in the hierarchy, two that have no common ancestor, or a circle.

    Example:
        >>> parents = {"cat": "animal", "dog": "animal", "animal": "thing", "truck": "thing"}
        >>> hierarchy_distances(["cat", "dog", "truck"], parents)
        array([[0., 2., 3.],
               [2., 0., 3.],
               [3., 3., 0.]])
    """
    known = {*parents, *parents.values()}
    missing = [name for name in names if name not in known]
    if missing:
        raise BadInput(f"the hierarchy does not have {missing[0]!r}. Name every task as the hierarchy does.")
    lineages = [_lineage(name, parents) for name in names]
    found = np.zeros((len(names), len(names)))
    for i, first in enumerate(lineages):
        height = {node: steps for steps, node in enumerate(first)}
        for j, second in enumerate(lineages[:i]):
            joint = next(((steps, node) for steps, node in enumerate(second) if node in height), None)
            if joint is None:
                raise BadInput(f"the hierarchy has no common ancestor of {names[i]!r} and {names[j]!r}.")
            found[i, j] = found[j, i] = joint[0] + height[joint[1]]
    return found


def difference_matrix(values: Sequence[float | int] | Real[np.ndarray, " _"]) -> Float[np.ndarray, "tasks tasks"]:
    """|a - b| for each pair of tasks: a number for each task, its count of classes say, as a confounder.

    Example:
        >>> difference_matrix([10, 4])
        array([[0., 6.],
               [6., 0.]])
    """
    column = np.asarray(values, dtype=np.float64)[:, None]
    return np.abs(column - column.T)


def _check_matrix(matrix: np.ndarray, tasks: int) -> None:
    if matrix.shape != (tasks, tasks) or tasks < 4:
        raise BadInput(
            f"a Mantel test takes matrices of the same tasks, four at least, not {matrix.shape} and {tasks} tasks."
        )
    if not np.isfinite(matrix).all() or np.abs(matrix - matrix.T).max() > 1e-9 * max(np.abs(matrix).max(), 1e-300):
        raise BadInput("a matrix of distances is finite and symmetric: D[i, j] = D[j, i].")


def _ranks(matrix: np.ndarray, above: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The symmetric matrix of the ranks, centred and scaled to unit length."""
    ranks = rankdata(matrix[above])
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    if length == 0:
        raise BadInput("all distances of one matrix are alike: there is nothing for a correlation to follow.")
    full = np.zeros_like(matrix)
    full[above] = ranks / length
    return full + full.T


def _partial(ranks: list[np.ndarray]) -> float:
    if len(ranks) == 2:
        return float(ranks[0] @ ranks[1])
    a, b, c = ranks
    ab, ac, bc = float(a @ b), float(a @ c), float(b @ c)
    left = (1 - ac**2) * (1 - bc**2)
    return (ab - ac * bc) / float(np.sqrt(left)) if left > 1e-12 else 0.0  # the confounder explains a side wholly


def _lineage(name: str, parents: Mapping[str, str]) -> list[str]:
    nodes = [name]
    while nodes[-1] in parents:
        nodes.append(parents[nodes[-1]])
        if len(nodes) > len(parents) + 1:
            raise BadInput(f"the hierarchy goes round in a circle above {name!r}.")
    return nodes
