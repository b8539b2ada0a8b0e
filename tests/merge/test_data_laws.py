"""Merges with data hold to the laws of all merges, with statistics that belong to the models' names."""

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskatlas.merge import LayerInputs, TaskVectors, fisher_merge, regmean
from taskatlas.testing import MergeLaws, check_merge


def drawn(name, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())), dtype=torch.float64)


def named(models):
    return {name: {"w": tensor} for name, tensor in models.items()}


def by_fisher(models, base):
    return fisher_merge(named(models), {name: {"w": drawn(name, *t.shape)} for name, t in models.items()})["w"]


def by_equal_fisher(models, base):
    return fisher_merge(named(models), {name: {"w": torch.ones_like(t)} for name, t in models.items()})["w"]


def by_regression(models, base):
    inputs = {}
    for name, tensor in models.items():
        rows = drawn(name, 20, tensor.shape[1])
        inputs[name] = LayerInputs({"w": rows.T @ rows / 20}, {"w": 20}, frozenset())
    return regmean(named(models), inputs)["w"]


def by_task_vectors(models, base):
    experts = {name: {"w": tensor} for name, tensor in models.items() if not torch.equal(tensor, base)}
    if not experts:
        return base.clone()
    vectors = TaskVectors.of({"w": base}, experts)
    return vectors.state(vectors.merged(torch.full((len(experts),), 0.3)))["w"]


ROWS = (
    MergeLaws("fisher", by_fisher, element_order=False),
    MergeLaws("fisher (equal)", by_equal_fisher),
    MergeLaws("regmean", by_regression, element_order=False),
    MergeLaws("task vectors", by_task_vectors, base=True, idempotent=False, neutral_base=True),
)


@pytest.mark.parametrize("laws", ROWS, ids=lambda laws: laws.name)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
def test_merges_with_data_hold_to_the_laws(laws, seed):
    check_merge(laws, seed)
