"""The k-th largest equals that of a sorted list, however the numbers lie and however much the sample misleads."""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskatlas.merge import operands as pieces_of
from taskatlas.merge import quantile
from taskatlas.merge.operands import Operands
from taskatlas.merge.quantile import kth_largest


def chunk(numbers):
    x = torch.as_tensor(numbers)
    return Operands("x", ("a",), (x,), None, ({},), {})


def numbers_of(piece):
    return [piece.tensors[0].abs().numpy()]


def small_samples():
    """As if every tensor were large."""
    return patch.multiple(quantile, _BLOCK=2, _BLOCKS=6, _FEW=12), patch.object(pieces_of, "PIECE", 17)


@st.composite
def tensors(draw):
    """Chunks of numbers: drawn evenly, with few distinct values, sorted, or with outliers in a corner."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chunks = []
    for size in draw(st.lists(st.integers(0, 150), min_size=1, max_size=3).filter(any)):
        kind = draw(st.sampled_from(["normal", "few values", "zeros", "sorted", "outliers", "constant"]))
        x = random.standard_normal(size)
        match kind:
            case "few values":
                x = random.integers(-3, 4, size) / 4
            case "zeros":
                x = x * (random.random(size) < 0.2)
            case "sorted":
                x = np.sort(x)
            case "outliers":
                x[: size // 5] *= 1e6
            case "constant":
                x = np.full(size, 2.5)
        chunks.append(x.astype(draw(st.sampled_from([np.float32, np.float64]))))
    return chunks


@given(tensors(), st.data())
@settings(max_examples=200, deadline=None)
def test_it_is_that_of_a_sorted_list(parts, data):
    everything = np.sort(np.abs(np.concatenate([part.astype(np.float64) for part in parts])))[::-1]
    ranks = data.draw(st.lists(st.integers(1, len(everything)), min_size=1, max_size=3))
    samples, pieces = small_samples()
    with samples, pieces:
        [found] = kth_largest([chunk(part) for part in parts], numbers_of, [ranks])
    assert found == [everything[rank - 1] for rank in ranks]


def test_several_series_at_once_and_none():
    x = torch.tensor([[4.0, 1.0, 3.0], [-1.0, -2.0, 0.5]])
    operands = Operands("x", ("a", "b"), tuple(x), None, ({}, {}), {})
    found = kth_largest([operands], lambda piece: [t.abs().numpy() for t in piece.tensors], [[1, 3], []])
    assert found == [[4, 1], []]


def test_one_pass_over_large_tensors_is_enough():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(600_000, generator=random)
    looks = []

    def counted(piece):
        looks.append(piece.shape[0])
        return numbers_of(piece)

    for numbers in (x, x.bfloat16().float(), x.relu(), x[:1].expand(600_000)):
        looks.clear()
        [[found]] = kth_largest([chunk(numbers)], counted, [[120_000]])
        assert found == numbers.abs().sort(descending=True).values[119_999]
        assert sum(looks) <= 600_000 + quantile._FEW


def test_little_is_collected():
    kept = []
    add = quantile._Search.add

    def counted(search, exceed, reach, between):
        kept.append(len(between))
        add(search, exceed, reach, between)

    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(1))
    with patch.object(quantile._Search, "add", counted):
        kth_largest([chunk(x)], numbers_of, [[200_000]])
    assert sum(kept) < 50_000


def test_a_sample_that_misleads_costs_passes_and_no_error():
    # All large numbers lie in the last, incomplete block, which is never sampled.
    x = np.zeros(101, dtype=np.float32)
    x[-1] = 7
    samples, pieces = small_samples()
    with samples, pieces:
        assert kth_largest([chunk(x)], numbers_of, [[1, 2]]) == [[7, 0]]


def test_infinity_and_nan_end_the_search():
    x = torch.ones(50)
    x[:3] = math.inf
    samples, pieces = small_samples()
    with samples, pieces:
        assert kth_largest([chunk(x)], numbers_of, [[3, 4]]) == [[math.inf, 1]]
        [[found]] = kth_largest([chunk(torch.full((50,), math.nan))], numbers_of, [[5]])
    assert math.isnan(found)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_find_the_same(threads):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    samples, pieces = small_samples()
    with samples, pieces:
        [[found]] = kth_largest([chunk(x)], numbers_of, [[777]], threads)
    assert found == x.abs().sort(descending=True).values[776]
