"""Products of patches without writing them out, against patches written out one by one in float64."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.references import matching as reference

from taskatlas.merge.patch_products import patch_products

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))
KERNELS = st.tuples(st.integers(1, 5), st.integers(1, 5))
PADDINGS = st.tuples(st.integers(0, 5), st.integers(0, 5))


def drawn(seed, images, channels, outputs, size, kernel, padding):
    """An input, and numbers where a convolution of it would have its results; float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = [length + 2 * added - offsets + 1 for length, offsets, added in zip(size, kernel, padding, strict=True)]
    x = torch.randn(images, channels, *size, generator=generator, dtype=torch.float64) + 0.5
    return x, torch.randn(images, outputs, *shape, generator=generator, dtype=torch.float64) + 0.5


@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 2),
    groups=st.integers(1, 3),
    size=SIZES,
    kernel=KERNELS,
    padding=PADDINGS,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    memory=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
@example(0, 2, 1, 1, 1, (1, 2), (5, 5), (2, 2), torch.float64, torch.contiguous_format)  # less than half a kernel
@settings(max_examples=150, deadline=None)
def test_products_are_those_of_patches(seed, images, channels, outputs, groups, size, kernel, padding, dtype, memory):
    padding = tuple(max(a, -(-(k - n) // 2)) for a, k, n in zip(padding, kernel, size, strict=True))
    x, y = drawn(seed, images, channels * groups, outputs * groups, size, kernel, padding)
    x, y = (values.to(dtype).contiguous(memory_format=memory) for values in (x, y))
    normal, right = patch_products([x], [y], kernel, padding, groups)
    expected = reference.patch_products(x.double().numpy(), y.double().numpy(), kernel, padding, groups)
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    assert normal.numpy() == pytest.approx(expected[0], abs=rounding * np.abs(expected[0]).max())
    assert right.numpy() == pytest.approx(expected[1], abs=rounding * np.abs(expected[1]).max())


@pytest.mark.parametrize("chunk", [1, 50, 8192])
def test_batches_and_chunks_add_up(chunk, monkeypatch):
    monkeypatch.setattr("taskatlas.merge.patch_products._CHUNK", chunk)
    x, y = drawn(0, 7, 2, 3, (5, 4), (3, 3), (1, 1))
    found = patch_products([x[:4], x[4:]], [y[:4], y[4:]], (3, 3), (1, 1))
    expected = reference.patch_products(x.numpy(), y.numpy(), (3, 3), (1, 1), 1)
    for one, other in zip(found, expected, strict=True):
        assert one.numpy() == pytest.approx(other, abs=1e-9)


def test_single_precision_is_summed_in_double():
    """Sums of many numbers near 1 in float32 would be off by a thousandth of a deviation, or more."""
    x, y = drawn(1, 200, 2, 1, (24, 24), (3, 3), (1, 1))
    x, y = (1 + x / 100).float(), (1 + y / 100).float()
    normal, right = patch_products([x], [y], (3, 3), (1, 1))
    exact = patch_products([x.double()], [y.double()], (3, 3), (1, 1))
    assert normal.dtype == right.dtype == torch.float64
    assert float((normal / exact[0] - 1).abs().max()) < 1e-6
    assert float((right / exact[1] - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_multiplied_in_single(dtype):
    draw = torch.Generator().manual_seed(0)
    x, y = ((20 * torch.randn(8, 2, 16, 16, generator=draw)).to(dtype) for _ in range(2))
    found = patch_products([x], [y], (3, 3), (1, 1))
    for one, other in zip(found, patch_products([x.double()], [y.double()], (3, 3), (1, 1)), strict=True):
        assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max())
