"""Every method equals its reference on every kind of tensor, to the bit in any order and on any number of threads."""

import hashlib
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import merge_methods as reference

from taskatlas.errors import BadInput
from taskatlas.merge import operands as pieces_of
from taskatlas.merge.composition import model_thresholds
from taskatlas.merge.methods import METHODS, merge_tensor
from taskatlas.merge.operands import Operands
from taskatlas.merge.sparsify import random_numbers
from taskatlas.testing import MERGE_LAWS, MergeLaws, check_merge

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = ((), (1,), (7,), (3, 4), (1, 5), (2, 3, 2), (40,))
SPHERES = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock"}


def operands(method, tensors, base=None, *, seed=0, **given):
    """With defaults, what is given for all models, and what is given in lists for each."""
    row = METHODS[method]
    known = {key: 1.0 if default is None else default for key, default in row.parameters.items()}
    each = [
        {key: given[key][i] if isinstance(given.get(key), list) else given.get(key, known[key]) for key in known}
        for i in range(len(tensors))
    ]
    whole = {key: given.get(key, default) for key, default in row.settings.items()}
    names = tuple(f"model {'cabd'[i]}" for i in range(len(tensors)))
    return Operands("layer.weight", names, tuple(tensors), base, tuple(each), whole, seed)


def merged(method, tensors, base=None, dtype=torch.float32, **given):
    return merge_tensor(METHODS[method], operands(method, tensors, base, **given), dtype)


@st.composite
def merges(draw):
    """A method with parameters and tensors: few distinct values, so that zeros, ties and equal models abound."""
    method = draw(st.sampled_from(sorted(METHODS)))
    row = METHODS[method]
    count = draw(st.integers(row.least, row.most or 4))
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def tensor():
        numbers = random.choice([0, 0, 0, 1, -1, 1, 2, -2, 3, -4, 6], size=shape) / 4
        return torch.tensor(numbers).to(draw(st.sampled_from([dtype, dtype, torch.float32])))

    has_base = row.base == "required" or (row.base == "optional" and draw(st.booleans()))
    base, tensors = tensor() if has_base else None, [tensor()]
    for _ in range(count - 1):
        kind = draw(st.sampled_from(["drawn", "drawn", "drawn", "base", "copy", "opposite"]))
        known = {"base": tensors[0] if base is None else base, "copy": tensors[0], "opposite": -tensors[0]}
        tensors.append(known[kind].clone() if kind in known else tensor())
    densities = [0.3, 0.5, 0.75, 1.0] if method.startswith("della") else [0.0, 0.1, 0.3, 0.5, 0.75, 1.0]
    choices = {
        "density": densities,
        "gamma": [0.0, 0.1, 0.3],
        "epsilon": [0.0, 0.1, 0.25],
        "weight": [1.0, 0.5, 2.0] if method in SPHERES else [1.0, 0.5, 2.0, -0.25],
        "scale": [1.0, -0.5],
        "lambda": [1.0, 0.5],
        "t": [0.0, 0.25, 0.5, 1.0],
        "select_topk": [0.3, 0.5, 1.0],
        "max_iter": [1, 10],
        "consensus_method": ["sum", "count"],
    }
    chosen = {key: [draw(st.sampled_from(choices[key])) for _ in tensors] for key in row.parameters}
    for key, default in row.settings.items():
        values = [True, False] if isinstance(default, bool) else choices.get(key, [default])
        chosen[key] = draw(st.sampled_from(values))
    if sum(chosen.get("weight", [1.0])) == 0:
        chosen["weight"][0] += 1
    return method, tensors, base, chosen


@given(merges(), st.sampled_from([3, 10, 2**18]))
@settings(max_examples=500, deadline=None)
def test_every_method_is_its_reference(case, piece):
    method, tensors, base, given = case
    asked = operands(method, tensors, base, **given)
    wide = any(tensor.dtype == torch.float64 for tensor in asked.everything)
    with patch.object(pieces_of, "PIECE", piece):
        found = merge_tensor(METHODS[method], asked, torch.float64)

    uniforms = [random_numbers(asked, i).reshape(found.shape) / 2**32 for i in range(len(tensors))]
    models = [tensor.double().numpy() for tensor in tensors]
    expected = reference.merge(
        method, models, None if base is None else base.double().numpy(), asked.parameters, asked.settings, uniforms
    )
    off = np.abs(found.numpy() - expected)
    near = 1e-12 if wide and method not in SPHERES else 1e-7 if wide else 3e-6 if method not in SPHERES else 2e-5
    assert (off <= near * (1 + np.abs(expected).max(initial=0))).all()


@pytest.mark.parametrize("laws", MERGE_LAWS, ids=lambda laws: laws.name)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
def test_methods_hold_to_their_laws(laws, seed):
    check_merge(laws, seed)


def test_every_method_has_a_row():
    assert {laws.name.split()[0] for laws in MERGE_LAWS} == set(METHODS)


def test_the_laws_catch_what_breaks_them():
    rows = {laws.name: laws for laws in MERGE_LAWS}
    wrong = {
        "idempotent": replace(rows["ties"], idempotent=True),
        "neutral base": replace(rows["model_stock"], neutral_base=True),
        "scaling": replace(rows["nearswap"], scaling=True),
        "shift": replace(rows["karcher"], shift=True),
        "element order": replace(rows["dare_ties"], element_order=True),
        "model order": MergeLaws("first", lambda models, base: next(iter(models.values())) + 0),
        "deterministic": MergeLaws("random", lambda models, base: torch.rand(5, 8)),
        "leaves its input alone": MergeLaws("greedy", lambda models, base: models["model-a"].add_(1)),
        "a tensor like the models'": MergeLaws("wide", lambda models, base: models["model-a"].double()),
    }
    for law, laws in wrong.items():
        with pytest.raises(AssertionError, match=f"breaks the law [\"']{law}"):
            check_merge(laws, seed=5)


# To the bit


def case_of(method, size=900, count=None):
    """A method with random tensors in rows of 9, in bfloat16, and parameters under which it does something."""
    random = torch.Generator().manual_seed(7)
    row = METHODS[method]
    base = torch.randn(size // 9, 9, generator=random)
    tensors = [
        (base + 0.1 * torch.randn(base.shape, generator=random)).bfloat16() for _ in range(count or row.most or 4)
    ]
    given = {"density": 0.4, "epsilon": 0.2, "gamma": 0.05, "select_topk": 0.5, "t": 0.3, "filter_wise": True}
    given |= {"nuslerp_flatten": False, "weight": [1.0, 0.5, 2.0, 0.7]}
    return operands(method, tensors, None if row.base == "none" else base.bfloat16(), seed=11, **given)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_in_any_order_of_models(method):
    asked = case_of(method)
    expected = merge_tensor(METHODS[method], asked, torch.float32)
    for order in itertools.permutations(range(len(asked.models))):
        moved = replace(
            asked,
            models=tuple(asked.models[i] for i in order),
            tensors=tuple(asked.tensors[i] for i in order),
            parameters=tuple(asked.parameters[i] for i in order),
        )
        assert torch.equal(merge_tensor(METHODS[method], moved, torch.float32), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bits_on_any_number_of_threads(method):
    asked = case_of(method)
    with patch.object(pieces_of, "PIECE", 64):
        alone = merge_tensor(METHODS[method], asked, torch.float32, threads=1)
        for threads in (2, 3, 5):
            assert torch.equal(merge_tensor(METHODS[method], asked, torch.float32, threads=threads), alone)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_same_bits_however_many_threads_torch_has(method):
    asked, before = case_of(method, size=9 * 12_000), torch.get_num_threads()
    alone = merge_tensor(METHODS[method], asked, torch.float32)
    try:
        torch.set_num_threads(3)
        assert torch.equal(merge_tensor(METHODS[method], asked, torch.float32), alone)
    finally:
        torch.set_num_threads(before)


def bits():
    """Of the result of every method."""
    merges = [merge_tensor(METHODS[method], case_of(method), torch.float32) for method in METHODS]
    return hashlib.sha256(torch.stack(merges).numpy().tobytes()).hexdigest()


def test_the_same_bits_whatever_the_hash_seed():
    found = subprocess.run(
        [sys.executable, "-c", "from tests.merge.test_methods import bits; print(bits())"],
        env={**os.environ, "PYTHONHASHSEED": "12", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.strip() == bits()


# Random numbers


def test_random_numbers_follow_seed_tensor_model_and_place_alone():
    whole = case_of("dare_ties").flat()
    first = random_numbers(whole, 0)
    for start, stop in ((0, 3), (3, 10), (7, 8), (100, 900)):
        assert (random_numbers(whole.piece(start, stop), 0) == first[start:stop]).all()
    others = [
        random_numbers(whole, 1),
        random_numbers(replace(whole, seed=12), 0),
        random_numbers(replace(whole, name="bias"), 0),
    ]
    assert all((first != other).mean() > 0.99 for other in others)


def test_random_numbers_are_uniform_and_unrelated():
    zeros = torch.zeros(200_000)
    a, b = (random_numbers(operands("dare_ties", [zeros, zeros], zeros), i) / 2**32 for i in (0, 1))
    for numbers in (a, b):
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 45  # chi-squared with 19 degrees of freedom: 1 in 1000
    for left, right in ((a, b), (a[:-1], a[1:]), (a[:-2], a[2:])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 4 / np.sqrt(len(left))


def test_dropping_at_random_keeps_the_expected_sum():
    base, model = torch.zeros(40_000), torch.rand(40_000)
    for method, more in (("dare_linear", {}), ("della_linear", {"epsilon": 0.15})):
        found = merged(method, [model], base, density=0.2, **more)
        assert abs((found != 0).float().mean() - 0.2) < 0.01
        assert abs(found.sum() / model.sum() - 1) < 0.05
        plain = merged(method, [model], base, density=0.2, rescale=False, **more)
        assert set((plain / model).unique().tolist()) <= {0.0, 1.0}


# Whole vectors


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_ties_over_whole_models_is_its_reference(data):
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any))
    density = data.draw(st.sampled_from([0.1, 0.3, 0.6]))
    numbers = st.sampled_from([0, 0, 1, -1, 2, 3, -4])
    models = [[data.draw(st.lists(numbers, min_size=n, max_size=n)) for n in sizes] for _ in range(3)]
    bases = [torch.zeros(n) for n in sizes]
    asked = [
        operands("ties", [torch.tensor(model[i], dtype=torch.float32) for model in models], bases[i], density=density)
        for i in range(len(sizes))
    ]
    thresholds = model_thresholds(asked)
    together = [
        reference.trimmed_together([np.array(part, dtype=float) for part in model], density) for model in models
    ]
    for i, part in enumerate(asked):
        parameters = tuple({**p, "threshold": t} for p, t in zip(part.parameters, thresholds, strict=True))
        found = merge_tensor(METHODS["ties"], replace(part, parameters=parameters), torch.float64)
        expected = reference.elected([taus[i] for taus in together], [1, 1, 1], True)
        assert found.numpy() == pytest.approx(expected, abs=1e-6)


def test_what_cancels_elects_plus_whatever_the_weights():
    x, zeros = torch.tensor([1.0, -1.0]), torch.zeros(2)
    for weight in (1.0, -1.0, 0.3):  # a model of negative weight votes for the opposite sign
        found = merged("ties", [x, -x], zeros, weight=weight, normalize=False)
        assert found.numpy() == pytest.approx([abs(weight)] * 2)


def test_a_sign_elected_by_count():
    """Two small steps up outvote a large one down; without a base model's vote, zeros abstain."""
    models, zeros = [torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([-6.0, -1.0])], torch.zeros(2)
    assert merged("ties", models, zeros).tolist() == [-6, -1]
    assert merged("ties", models, zeros, consensus_method="count").tolist() == [1.5, -1]
    weighted = merged("ties", models, zeros, consensus_method="count", weight=[1.0, 1.0, -1.0], normalize=False)
    assert weighted.tolist() == [9, 1]  # a model of negative weight votes for the opposite sign


def test_weights_that_cancel_where_they_agree_are_no_divisor():
    """Of weights 0.7, 0.1, -0.8 and 1 the first three agree, and sum to a rounding error."""
    models = [torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([-0.1])]
    found = merged("ties", models, torch.zeros(1), weight=[0.7, 0.1, -0.8, 1.0])
    assert found.item() == pytest.approx(0.7 + 0.1 + 0.8)


# Tensors that are not merged, and bad ones


def test_integers_and_booleans_are_copied_from_the_base_or_the_first_name():
    tensors = [torch.tensor([3, 4]), torch.tensor([5, 6])]
    assert merged("linear", tensors).tolist() == [5, 6]  # model a is second
    assert merged("task_arithmetic", tensors, torch.tensor([1, 2])).tolist() == [1, 2]
    counter = torch.tensor(100)
    copy = merged("task_arithmetic", [counter], counter)
    assert copy.dtype == torch.int64
    assert copy.data_ptr() != counter.data_ptr()
    assert merged("linear", [torch.tensor([True, False])]).dtype == torch.bool


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_tensors_stay_empty(method, shape):
    tensors = [torch.zeros(shape)] * (METHODS[method].most or 2)
    base = torch.zeros(shape) if METHODS[method].base == "required" else None
    found = merged(method, tensors, base, torch.bfloat16, t=0.5)
    assert found.shape == shape
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_rounded_once(method):
    asked = case_of(method)
    exact = merge_tensor(METHODS[method], asked, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(merge_tensor(METHODS[method], asked, dtype), exact.to(dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 5, "base"])
@pytest.mark.parametrize("method", METHODS)
def test_a_number_that_is_none_is_refused_with_tensor_and_model(method, place, bad):
    asked = case_of(method)
    if (place == "base" and asked.base is None) or (method == "passthrough" and bad == bad):
        return  # a single model's infinities are a mask
    tensors, base = [tensor.clone() for tensor in asked.tensors], asked.base
    if place == "base":
        base = base.clone()
        base[3, 3], who = bad, "the base"
    else:
        tensors[-1].view(-1)[place] = bad
        who = asked.models[-1]
    kind = "NaN" if bad != bad else "an infinite number"
    with pytest.raises(BadInput, match=rf"'layer\.weight' of {who} holds {kind}"):
        merge_tensor(METHODS[method], replace(asked, tensors=tuple(tensors), base=base), torch.float32)


def test_a_mask_of_infinities_that_all_share_is_copied():
    mask = torch.tensor([0.0, -float("inf")])
    assert merged("ties", [mask, mask], mask).tolist() == mask.tolist()
    assert merged("linear", [mask, mask], dtype=torch.bfloat16).tolist() == mask.tolist()


def test_a_result_too_large_for_its_type_is_refused():
    large = torch.tensor([60_000.0], dtype=torch.float16)
    with pytest.raises(BadInput, match=r"'layer\.weight' has elements too large for float16"):
        merged("linear", [large, large], dtype=torch.float16, normalize=False)
    assert merged("linear", [large, large], normalize=False).item() == 120_000


@pytest.mark.parametrize("method", METHODS)
def test_floats_of_8_bits_are_merged_as_wider_ones(method):
    asked = case_of(method)
    narrow, wide = [
        replace(
            asked,
            tensors=tuple(tensor.to(torch.float8_e4m3fn).to(dtype) for tensor in asked.tensors),
            base=None if asked.base is None else asked.base.to(torch.float8_e4m3fn).to(dtype),
        )
        for dtype in (torch.float8_e4m3fn, torch.float32)
    ]
    expected = merge_tensor(METHODS[method], wide, torch.float32)
    assert torch.equal(merge_tensor(METHODS[method], narrow, torch.float32), expected)
    found = merge_tensor(METHODS[method], narrow, torch.float8_e4m3fn)
    assert torch.equal(found.float(), expected.to(torch.float8_e4m3fn).float())
    bad = torch.full(asked.shape, float("nan")).to(torch.float8_e4m3fn)
    with pytest.raises(BadInput, match="holds NaN"):
        merge_tensor(METHODS[method], replace(narrow, tensors=(bad, *narrow.tensors[1:])), torch.float32)


def test_complex_tensors_are_copied_or_refused():
    x = torch.tensor([1 + 2j])
    assert merged("linear", [x, x]).item() == 1 + 2j
    with pytest.raises(BadInput, match="complex"):
        merged("linear", [x, x + 1])


@pytest.mark.parametrize(
    ("method", "count", "base", "given", "message"),
    [
        ("linear", 2, False, {"weight": [1.0, -1.0]}, "sum to zero"),
        ("ties", 2, True, {"weight": [1.0, -1.0]}, "sum to zero"),
        ("nuslerp", 2, False, {"weight": [1.0, -1.0]}, "sum to zero"),
        ("multislerp", 2, False, {"weight": [1.0, -1.0]}, "sum to zero"),
        ("linear", 3, False, {"weight": [0.1, 0.2, -0.3]}, "sum to zero, so they cannot be normalised"),  # to 6e-17
        ("multislerp", 3, False, {"weight": [0.1, 0.2, -0.3]}, "set normalize_weights to false"),
        ("linear", 2, False, {"weight": 0.0}, "sum to zero"),
        ("nearswap", 1, True, {"t": -0.1}, "t of the merge is -0.1 at 'layer.weight'. It has to be zero or more"),
        ("ties", 2, True, {"consensus_method": "most"}, "is most at 'layer.weight'. It has to be sum or count"),
        ("task_arithmetic", 2, False, {}, "needs a base"),
        ("karcher", 2, True, {}, "takes no base"),
        ("nuslerp", 3, False, {}, "takes 2 models, not 3"),
        ("model_stock", 1, True, {}, "takes at least 2 models beside the base, not 1"),
        ("ties", 1, True, {"density": 1.5}, "density of model c is 1.5 at 'layer.weight'. It has to be from 0 to 1"),
        ("dare_ties", 1, True, {"density": float("nan")}, "density of model c is nan"),
        (
            "linear",
            1,
            False,
            {"weight": float("inf")},
            "of model c is inf at 'layer.weight'. It has to be finite",
        ),
        ("della", 1, True, {"density": 0.1, "epsilon": 0.2}, "density 0.1 and epsilon 0.2 of model c"),
        ("karcher", 1, False, {"tol": -1.0}, "tol of the merge is -1 at 'layer.weight'. It has to be zero or more"),
    ],
)
def test_what_a_method_does_not_take(method, count, base, given, message):
    x = torch.ones(3)
    with pytest.raises(BadInput) as caught:
        merged(method, [x] * count, x if base else None, **given)
    assert message in str(caught.value)
