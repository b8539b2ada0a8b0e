"""One vector a sample, or a word, out of what a network computes: maps over space, tokens over a sentence."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from taskatlas.errors import BadInput

Pool = Literal["auto", "first", "last"]
WordPool = Literal["first", "last", "mean"]


def pooled(
    values: Shaped[Tensor, "batch *rest"],
    pool: Pool = "auto",
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch features"]:
    """One vector a sample.

    Vectors stay as they are; tokens (batch, tokens, features) become their mean over the mask, or the first or last one
    that it keeps; maps (batch, channels, height, width, ...) become their mean over space.

    Args:
        values: what stands at the tap.
        pool: ``auto``, or ``first`` or ``last`` token.
        mask: which tokens are no padding; None: all.

    Raises:
        BadInput: first or last of what are no tokens, or a mask of another number of tokens.

    Example:
        >>> tokens = torch.tensor([[[1.0], [3.0], [100.0]]])
        >>> pooled(tokens, mask=torch.tensor([[True, True, False]]))
        tensor([[2.]])
        >>> pooled(torch.ones(2, 5, 4, 4)).shape
        torch.Size([2, 5])
    """
    values = values.float()
    if values.ndim != 3:
        if pool != "auto":
            raise BadInput(f"pool={pool!r} picks a token, and {_said(values)} are no tokens. Use pool='auto'.")
        return values.reshape(len(values), -1) if values.ndim < 3 else values.flatten(2).mean(2)
    if mask is None:
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    if mask.shape != values.shape[:2]:
        raise BadInput(f"{_said(values)} do not fit an attention mask of shape {tuple(mask.shape)}.")
    if pool == "auto":
        # Padding may hold NaN, which a product with 0 would keep.
        return values.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)
    positions = torch.arange(mask.shape[1], device=mask.device)
    kept = positions.masked_fill(~mask, -1).amax(1) if pool == "last" else mask.int().argmax(1)
    return values[torch.arange(len(values), device=values.device), kept]


def pooled_words(
    values: Float[Tensor, "batch tokens features"],
    word_ids: Sequence[Sequence[int | None]],
    counts: Sequence[int],
    how: WordPool = "mean",
) -> Float[Tensor, "words features"]:
    """One vector a word, sentence after sentence: its first or last sub-word, or the mean of them.

    Args:
        values: a vector for each token.
        word_ids: for each sentence the word that each token belongs to, None for special tokens and padding.
        counts: how many words each sentence has; each must have a token.
        how: which sub-words count.

    Example:
        >>> tokens = torch.tensor([[[0.0], [1.0], [3.0], [7.0]]])
        >>> pooled_words(tokens, [[None, 0, 0, 1]], [2])
        tensor([[2.],
                [7.]])
    """
    tokens: list[tuple[int, int]] = []  # (sentence, token) of each sub-word that counts
    words: list[int] = []  # the row it goes to
    start = 0
    for sentence, (owners, count) in enumerate(zip(word_ids, counts, strict=True)):
        found: dict[int, list[int]] = {}
        for token, word in enumerate(owners):
            if word is not None:
                found.setdefault(word, []).append(token)
        for word in range(count):
            chosen = {"first": found[word][:1], "last": found[word][-1:], "mean": found[word]}[how]
            tokens += [(sentence, token) for token in chosen]
            words += [start + word] * len(chosen)
        start += count
    rows = torch.tensor(words, device=values.device)
    sentences, positions = torch.tensor(tokens, device=values.device).T
    sums = torch.zeros(start, values.shape[-1], device=values.device)
    sums.index_add_(0, rows, values[sentences, positions].float())
    return sums / torch.bincount(rows, minlength=start)[:, None]


def _said(values: Tensor) -> str:
    return f"values of shape {tuple(values.shape)}"
