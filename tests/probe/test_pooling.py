"""Pooling, against loops one would write at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskatlas.errors import BadInput
from taskatlas.probe.pooling import pooled, pooled_words

TOKENS = torch.arange(24.0).reshape(2, 4, 3)
RIGHT = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()


def test_vectors_stay_and_maps_become_their_mean_over_space():
    torch.testing.assert_close(pooled(TOKENS[0]), TOKENS[0])
    assert pooled(torch.ones(5)).shape == (5, 1)
    maps = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(pooled(maps), maps.mean((2, 3)))
    torch.testing.assert_close(pooled(maps[..., None]), maps.mean((2, 3)))


@pytest.mark.parametrize("mask", [RIGHT, RIGHT.flip(1), None])
def test_tokens_that_are_padding_do_not_count(mask):
    values = TOKENS.clone()
    kept = RIGHT | True if mask is None else mask
    values[~kept] = torch.nan
    rows = [value[one] for value, one in zip(values, kept, strict=True)]
    torch.testing.assert_close(pooled(values, "auto", mask), torch.stack([row.mean(0) for row in rows]))
    torch.testing.assert_close(pooled(values, "first", mask), torch.stack([row[0] for row in rows]))
    torch.testing.assert_close(pooled(values, "last", mask), torch.stack([row[-1] for row in rows]))


def test_half_precision_is_summed_in_single():
    values = torch.full((1, 4000, 1), 20.0, dtype=torch.float16)
    assert pooled(values).item() == 20.0
    assert pooled(values).dtype == torch.float32


def test_what_cannot_be_pooled():
    with pytest.raises(BadInput, match=r"pool='last' picks a token"):
        pooled(torch.ones(2, 3), "last")
    with pytest.raises(BadInput, match=r"do not fit an attention mask of shape \(2, 3\)"):
        pooled(TOKENS, "auto", torch.ones(2, 3).bool())


@settings(max_examples=50, deadline=None)
@given(
    pieces=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=4),
    left=st.booleans(),
    seed=st.integers(0, 99),
)
def test_words_are_made_of_their_own_tokens(pieces, left, seed):
    """``pieces``: for each sentence the number of sub-words of each word; special tokens around, padding beside."""
    owners = [[None, *(word for word, n in enumerate(counts) for _ in range(n)), None] for counts in pieces]
    longest = max(map(len, owners))
    padded = [[None] * (longest - len(o)) * left + o + [None] * (longest - len(o)) * (not left) for o in owners]
    values = torch.rand(len(pieces), longest, 2, generator=torch.Generator().manual_seed(seed))
    choose = {"first": lambda own: own[0], "last": lambda own: own[-1], "mean": lambda own: own.mean(0)}
    for how, function in choose.items():
        expected = [
            function(values[sentence][[i for i, owner in enumerate(padded[sentence]) if owner == word]])
            for sentence, counts in enumerate(pieces)
            for word in range(len(counts))
        ]
        found = pooled_words(values, padded, [len(counts) for counts in pieces], how)
        torch.testing.assert_close(found, torch.stack(expected))
