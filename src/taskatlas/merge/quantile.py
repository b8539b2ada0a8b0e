"""The k-th largest of many numbers, exactly, in one pass and without sorting them.

A sample says between which two values the k-th largest almost surely lies. One pass counts what is above and collects
the few in between, among which it is found. Where the sample misled, another pass looks on the side where it must be.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from taskatlas.merge.operands import Operands, each_piece

Values = Callable[[Operands], Iterable[np.ndarray]]
"""From flat operands to one array of numbers, none negative, for each series."""

_BLOCK, _BLOCKS = 16, 4096  # a sample is made of blocks of neighbours, each about a line of cache
_FEW = _BLOCK * _BLOCKS  # so few numbers need no sample
_SPREAD = 6.0  # half of a bracket's width, in standard errors of a sample's quantile (neighbours are alike)


def kth_largest(
    chunks: Iterable[Operands], values: Values, ranks: Sequence[Sequence[int]], threads: int | None = None
) -> list[list[float]]:
    """For each series of values, the k-th largest over all chunks, for each of the series' ranks.

    Args:
        chunks: flat operands; together they are the whole. They are gone through more than once.
        values: works element by element, so that a piece's values are a piece of the values.
        ranks: for each series, from 1 for the largest.
        threads: as many as torch has where None.

    Returns:
        A value that at least k numbers reach and fewer than k exceed; NaN where NaN among the numbers leave none.

    Example:
        >>> x = torch.tensor([3.0, -1.0, 2.0, -2.0])
        >>> operands = Operands("x", ("a",), (x,), None, ({},), {})
        >>> kth_largest([operands], lambda piece: [piece.tensors[0].abs().numpy()], [[1, 2, 4]])
        [[3.0, 2.0, 1.0]]
    """
    sizes = [chunk.shape[0] for chunk in chunks]
    total = sum(sizes)
    searches = [_Search(series, rank, total) for series, several in enumerate(ranks) for rank in several]
    samples = _samples(chunks, sizes, values, len(ranks))
    spread = _SPREAD if total > _FEW else math.inf
    going = searches
    while going:
        for search in going:
            search.start(samples[search.series], spread)
        for chunk in chunks:
            for counts in each_piece(partial(_count, values, going), chunk, threads):
                for search, count in zip(going, counts, strict=True):
                    search.add(*count)
        for search in going:
            search.finish(last=spread == math.inf)
        going = [search for search in going if not search.done]
        spread = spread * 8 if spread < 1000 else math.inf
    found = iter(searches)
    return [[next(found).found for _ in several] for several in ranks]


@dataclass
class _Search:
    """For one rank: a bracket of two values, and how many numbers lie above them."""

    series: int
    rank: int
    total: int
    found: float = math.nan
    done: bool = False
    low: float = -1.0
    high: float = math.inf
    side: int = 0  # of the last bracket on which the value lies: 1 for high or above, -1 for low or below
    exceed: dict[float, int] = field(default_factory=dict)  # how many numbers exceed a value
    reach: dict[float, int] = field(default_factory=dict)  # how many numbers reach a value
    between: list[np.ndarray] = field(default_factory=list)

    def start(self, sample: np.ndarray, spread: float) -> None:
        """Sets a bracket: the sample's quantile, ``spread`` standard errors to both sides or to the one left."""
        size, share = len(sample), 1 - self.rank / self.total
        slack = spread * (1 + math.sqrt(size * share * (1 - share))) if size else math.inf
        low = float(sample[int(size * share - slack)]) if size * share >= slack else -1.0
        high = float(sample[int(size * share + slack)]) if size * share + slack < size else math.inf
        if self.side > 0:
            low, high = self.high, max(self.high, high)
        elif self.side < 0:
            low, high = min(self.low, low), self.low
        self.low, self.high, self.between = low, high, []
        self.exceed[low] = self.reach[high] = 0

    def add(self, exceed: int, reach: int, between: np.ndarray) -> None:
        """Counts a piece."""
        self.exceed[self.low] += exceed
        self.reach[self.high] += reach
        self.between.append(between)

    def finish(self, last: bool) -> None:
        """Finds the value at an end of the bracket or in it, or says on which side it lies."""
        reach, exceed = self.reach[self.high], self.exceed[self.low]
        for end in (self.low, self.high):
            if self.exceed.get(end, self.rank) < self.rank <= self.reach.get(end, 0):
                self.found, self.done = end, True
        if not self.done and reach < self.rank <= exceed:
            # Among few and often equal numbers, sorting is faster than selecting.
            self.found = float(np.sort(np.concatenate(self.between))[exceed - self.rank])
            self.done = True
        self.done = self.done or last
        self.side = 1 if self.rank <= reach else -1


def _count(values: Values, searches: Sequence[_Search], piece: Operands) -> list[tuple[int, int, np.ndarray]]:
    """What a piece adds to each search."""
    series = list(values(piece))
    counts = []
    for search in searches:
        numbers = series[search.series]
        exceed, reach = numbers > search.low, numbers >= search.high
        between = numbers[exceed ^ reach] if search.low < search.high else numbers[:0]
        counts.append((int(np.count_nonzero(exceed)), int(np.count_nonzero(reach)), between))
    return counts


def _samples(chunks: Iterable[Operands], sizes: Sequence[int], values: Values, series: int) -> list[np.ndarray]:
    """Of each series an ascending sample, the same every time, without NaN; none where there are few numbers."""
    blocks = [size // _BLOCK for size in sizes]
    if sum(sizes) <= _FEW or not sum(blocks):
        return [np.empty(0)] * series
    # Random places: evenly spaced ones would fall into the same columns of a matrix again and again.
    drawn = np.sort(np.random.default_rng(0).integers(sum(blocks), size=_BLOCKS))
    first = np.concatenate([[0], np.cumsum(blocks)])
    shares = [drawn[(start <= drawn) & (drawn < stop)] - start for start, stop in pairwise(first)]
    parts = [
        list(values(chunk.take(torch.from_numpy(places), _BLOCK)))
        for chunk, places in zip(chunks, shares, strict=True)
        if len(places)
    ]
    samples = (np.sort(np.concatenate(of_series)) for of_series in zip(*parts, strict=True))
    return [sample[~np.isnan(sample)] for sample in samples]
