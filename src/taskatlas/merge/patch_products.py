"""Products of a convolution's patches with one another and with its results, without writing out the patches.

Where a kernel moves in steps of 1, XᵀX of its patches X holds the same sums many times over. The entry of one channel
at offset a and another at offset b is the sum of their products over all positions, and depends on b − a alone, up to
the border: for k offsets along an axis there are 2k − 1 differences. These sums are the correlations of the input with
itself. They run over all positions at which the kernel touches the image; at those that the convolution has not, for
want of padding, the products are subtracted again. They lie in a few rows and columns beside the image.

Correlations, and XᵀY with them, are gradients of a convolution's weight, which cost as much as a convolution.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

_CHUNK = 8192  # positions in one product: few enough for float32 to sum

Pair = tuple[int, int]


def patch_products(
    inputs: Sequence[Float[Tensor, "_ _ _ _"]],
    results: Sequence[Float[Tensor, "_ _ _ _"]],
    kernel: Pair,
    padding: Pair,
    groups: int = 1,
) -> tuple[Float[Tensor, "groups unknowns unknowns"], Float[Tensor, "groups unknowns outputs"]]:
    """XᵀX and XᵀY of a convolution whose stride and dilation are 1; a constant 1 is the last unknown.

    Products are made in the precision of the data, at least float32, and summed in float64.

    Args:
        inputs: what the convolution takes, (images, channels, height, width), batch by batch.
        results: numbers for every position and channel of what it gives.
        kernel: its height and width.
        padding: zeros above and below, and to either side.
        groups: of channels.

    Example:
        >>> x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0])  # the patches are (1, 2) and (2, 3)
        >>> normal, right = patch_products([x.view(1, 1, 1, 3)], [y.view(1, 1, 1, 2)], (1, 2), (0, 0))
        >>> normal[0].tolist()
        [[5.0, 8.0, 3.0], [8.0, 13.0, 5.0], [3.0, 5.0, 2.0]]
        >>> right[0].tolist()
        [[21.0], [32.0], [11.0]]
    """
    channels, outputs = inputs[0].shape[1] // groups, results[0].shape[1] // groups
    unknowns = channels * kernel[0] * kernel[1]
    normal = inputs[0].new_zeros((groups, unknowns + 1, unknowns + 1), dtype=torch.float64)
    right = inputs[0].new_zeros((groups, unknowns + 1, outputs), dtype=torch.float64)
    blocks = torch.unflatten(torch.unflatten(normal[:, :-1, :-1], 2, (channels, *kernel)), 1, (channels, *kernel))
    reach = (kernel[0] - 1, kernel[1] - 1)
    onwards: Tensor | float = 0.0  # correlations with what stands in the same row or below
    for x, y in _chunks(inputs, results):
        ones = y.new_ones(1, groups, *y.shape[2:])
        below = F.pad(x, (0, 0, 0, reach[0]))
        onwards = onwards + _gradient(below, x, (kernel[0], 2 * reach[1] + 1), (0, reach[1]), groups)
        right[:, :-1] += _gradient(x, y, kernel, padding, groups).flatten(2).mT
        right[:, -1] += y.sum((0, 2, 3)).view(groups, outputs)
        normal[:, -1, :-1] += _gradient(x.sum(0, keepdim=True), ones, kernel, padding, groups).flatten(1)
        normal[:, -1, -1] += y[:, 0].numel()
        for patches, rows, columns in _patches_beyond(x, kernel, padding, groups):
            part = blocks[:, :, rows, columns, :, rows, columns]
            part -= (patches @ patches.mT).reshape(part.shape)
    normal[:, :-1, -1] = normal[:, -1, :-1]
    assert isinstance(onwards, Tensor)
    backwards = onwards[..., 1:, :].flip(-2, -1).transpose(1, 2)
    correlations = torch.cat([backwards, onwards], dim=-2)
    for row, column in product(range(kernel[0]), range(kernel[1])):
        rows = slice(reach[0] - row, reach[0] - row + kernel[0])
        columns = slice(reach[1] - column, reach[1] - column + kernel[1])
        blocks[:, :, row, column] += correlations[..., rows, columns]
    return normal, right


def _gradient(x: Tensor, y: Tensor, kernel: Pair, padding: Pair, groups: int) -> Float[Tensor, "groups outputs _ _ _"]:
    """For every offset the sum over all positions of y there times x at the offset from there, float64."""
    shape = (y.shape[1], x.shape[1] // groups, *kernel)
    own = torch.backends.cudnn
    with own.flags(own.enabled, own.benchmark, deterministic=own.deterministic, allow_tf32=False):
        found: Tensor = conv2d_weight(x, shape, y, padding=padding, groups=groups)  # type: ignore[no-untyped-call]
    return torch.unflatten(found.double(), 0, (groups, -1))


def _chunks(inputs: Sequence[Tensor], results: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images with what belongs to them, a few at a time, in float32 at least."""
    for batches in zip(inputs, results, strict=True):
        x, y = (batch.to(torch.promote_types(batch.dtype, torch.float32)) for batch in batches)
        images = max(1, _CHUNK // y[0, 0].numel())
        yield from zip(torch.split(x, images), torch.split(y, images), strict=True)


def _patches_beyond(
    x: Tensor, kernel: Pair, padding: Pair, groups: int
) -> Iterator[tuple[Float[Tensor, "groups unknowns positions"], slice, slice]]:
    """Patches at positions that more padding would add, as far as they see the image: with the kernel's part that does.

    First those above and below, at every column; then those to the left and the right, at rows that there are.
    """
    height, width = x.shape[2:]
    everywhere = slice(0, kernel[0]), slice(0, kernel[1])
    for seen, rows in _edges(height, kernel[0], padding[0]):
        strip = F.unfold(x[:, :, seen], (rows.stop - rows.start, kernel[1]), padding=(0, kernel[1] - 1))
        yield _by_group(strip, groups), rows, everywhere[1]
    for seen, columns in _edges(width, kernel[1], padding[1]):
        strip = F.unfold(x[:, :, :, seen], (kernel[0], columns.stop - columns.start), padding=(padding[0], 0))
        yield _by_group(strip, groups), everywhere[0], columns


def _by_group(patches: Float[Tensor, "images _ positions"], groups: int) -> Float[Tensor, "groups unknowns _"]:
    return torch.unflatten(patches, 1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)


def _edges(size: int, kernel: int, padding: int) -> Iterator[tuple[slice, slice]]:
    """Along one axis, for each position beyond the padding what a kernel there sees of the image, and with which part.

    Example:
        >>> list(_edges(size=9, kernel=3, padding=1))  # the first pixel with its last offset, the last with its first
        [(slice(0, 1, None), slice(2, 3, None)), (slice(8, 9, None), slice(0, 1, None))]
    """
    for distance in range(padding + 1, kernel):
        most = kernel - distance
        seen = min(most, size)
        yield slice(0, seen), slice(distance, distance + seen)
        yield slice(size - seen, size), slice(most - seen, most)
