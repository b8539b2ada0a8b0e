"""Matchings in which every merged feature has exactly one member of each model, and the reference for pairs.

All maximise a sum of correlations. ``permute`` solves a linear assignment of each model to the first. For three models
and more that depends on which is the first, and says nothing about how the others agree among themselves;
``cycle_consistent`` seeks permutations to one common order that maximise the sum over all pairs of models, after
Crisostomi et al. (C2M3, NeurIPS 2024, section 3). ``optimal_pairs`` may pair features of one model, too.
"""

import numpy as np
from jaxtyping import Float, Integer
from scipy.optimize import linear_sum_assignment

from taskatlas.errors import BadInput

Positions = Integer[np.ndarray, "models features"]
"""For each feature of each model its place in the merged network."""


def permute(correlation: Float[np.ndarray, "rows rows"], n_models: int) -> Positions:
    """Every model assigned to the first.

    Example:
        >>> x = np.array([[1, 0, 0.1, 0.9], [0, 1, 0.8, 0], [0.1, 0.8, 1, 0], [0.9, 0, 0, 1]])
        >>> permute(x, 2)
        array([[0, 1],
               [1, 0]])
    """
    return _assigned_to(_blocks(correlation, n_models), 0)


def cycle_consistent(correlation: Float[np.ndarray, "rows rows"], n_models: int) -> Positions:
    """Every model assigned to one common order, all pairs of models counting alike.

    From each model as the reference in turn, one model at a time is assigned to all others as they stand, until none
    moves any more. Every step is exact and raises the sum over pairs, so it ends; the best of the n ends is taken. The
    common order is that of the first model. With two models it is ``permute``.
    """
    blocks = _blocks(correlation, n_models)
    ends = [_settled(blocks, _assigned_to(blocks, reference)) for reference in range(n_models)]
    best = max(ends, key=lambda places: _total(blocks, places))
    return np.argsort(best[0])[best]


def optimal_pairs(correlation: Float[np.ndarray, "rows rows"], n_models: int) -> Positions:
    """The pairs of largest total correlation, also within a model (Edmonds' blossoms): slow, for two models only.

    Raises:
        BadInput: there are not two models.
    """
    import networkx  # type: ignore[import-untyped]  # torch brings it

    if n_models != 2:
        raise BadInput(f"optimal pairs are made of two models, not {n_models}. Choose another method.")
    graph = networkx.Graph()
    rows, columns = np.triu_indices(len(correlation), 1)
    graph.add_weighted_edges_from(
        zip(columns.tolist(), rows.tolist(), correlation[rows, columns].tolist(), strict=True)
    )
    places = np.empty(len(correlation), np.int64)
    for place, pair in enumerate(networkx.max_weight_matching(graph, maxcardinality=True)):
        places[list(pair)] = place
    return places.reshape(2, -1)


def _blocks(correlation: np.ndarray, n_models: int) -> Float[np.ndarray, "models features models features"]:
    width = len(correlation) // n_models
    return correlation.reshape(n_models, width, n_models, width)


def _assigned_to(blocks: np.ndarray, reference: int) -> Positions:
    """Every model's features at the places of the reference's that they are assigned to."""
    places = np.tile(np.arange(blocks.shape[1]), (len(blocks), 1))
    for model in range(len(blocks)):
        if model != reference:
            places[model] = _assignment(blocks[model, :, reference])
    return places


def _settled(blocks: np.ndarray, places: Positions) -> Positions:
    """One model after the other assigned to all others, until a round raises the total no more."""
    total = _total(blocks, places)
    while True:
        moved = places.copy()
        for model in range(len(blocks)):
            likeness = np.zeros_like(blocks[model, :, model])
            for other in range(len(blocks)):
                if other != model:
                    likeness += blocks[model, :, other][:, np.argsort(moved[other])]
            moved[model] = _assignment(likeness)
        reached = _total(blocks, moved)
        if reached <= total + 1e-9 * abs(total):  # rounding would let equal totals alternate for ever
            return places
        places, total = moved, reached


def _assignment(likeness: Float[np.ndarray, "rows columns"]) -> Integer[np.ndarray, " rows"]:
    columns: np.ndarray = linear_sum_assignment(likeness, maximize=True)[1]
    return columns


def _total(blocks: np.ndarray, places: Positions) -> float:
    """Sum of the correlations of features at one place, over all pairs of models."""
    orders = np.argsort(places, axis=1)
    return float(
        sum(
            blocks[one, orders[one], other, orders[other]].sum(dtype=np.float64)
            for one in range(len(blocks))
            for other in range(one)
        )
    )
