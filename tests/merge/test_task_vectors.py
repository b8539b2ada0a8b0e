"""Task vectors as a matrix, against loops over dictionaries and against autograd."""

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import merge_data as reference
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.flat_model import FlatModel
from taskatlas.merge.methods import METHODS, merge_tensor
from taskatlas.merge.operands import Operands
from taskatlas.merge.task_vectors import TaskVectors, differing

SHAPES = ((), (1,), (0,), (3,), (2, 3), (2, 1, 2))


@st.composite
def families(draw, dtype=torch.float64):
    """A base, experts and coefficients; differences may be zero."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = [*draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5)), (2,)]
    base = {f"t{i}": torch.as_tensor(random.normal(size=shape)).to(dtype) for i, shape in enumerate(shapes)}
    experts = {
        name: {key: value + float(random.integers(0, 2)) * torch.as_tensor(random.normal(size=value.shape)).to(dtype)
               for key, value in base.items()}
        for name in draw(st.sampled_from(["a", "ab", "cab", "dacb"]))
    }  # fmt: skip
    last = f"t{len(shapes) - 1}"
    for its in experts.values():
        its[last] = its[last] + 1.0
    layerwise = draw(st.booleans())
    return base, experts, random.normal(size=(len(experts), len(base)) if layerwise else len(experts))


def plain(tensors):
    return {name: value.double().numpy() for name, value in tensors.items()}


@given(families())
@settings(max_examples=60, deadline=None)
def test_merging_is_the_loop_over_dictionaries(family):
    base, experts, coefficients = family
    vectors = TaskVectors.of(base, experts, dtype=torch.float64)
    found = vectors.state(vectors.merged(torch.as_tensor(coefficients)))
    expected = reference.task_arithmetic(plain(base), [plain(experts[name]) for name in sorted(experts)], coefficients)
    assert list(found) == list(base)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12)
        assert found[name].shape == value.shape


@given(families())
@settings(max_examples=40, deadline=None)
def test_the_gradient_is_that_through_an_explicit_merge(family):
    base, experts, coefficients = family
    vectors = TaskVectors.of(base, experts, dtype=torch.float64)
    wanted = torch.as_tensor(coefficients).requires_grad_()
    loss = 0.0
    for t, (name, value) in enumerate(base.items()):
        column = wanted[:, t] if wanted.ndim == 2 else wanted
        merged = value + sum(c * (experts[e][name] - value) for c, e in zip(column, sorted(experts), strict=True))
        loss = loss + torch.sin(merged * (t + 1)).sum()
    (expected,) = torch.autograd.grad(loss, wanted)

    model = FlatModel(vectors)
    model.merge(wanted)
    for t, name in enumerate(base):  # a backward pass a tensor: they add up
        model.backward(torch.sin(model.tensors[name] * (t + 1)).sum())
    found = model.gradient_of_coefficients("layer" if wanted.ndim == 2 else "task")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in range(3)]
    vectors = TaskVectors.of(nets[0], {"a": nets[1], "b": nets[2]}, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)

    def loss(tensors):
        return torch.func.functional_call(nets[0], dict(tensors), (x,)).logsumexp(-1).sum()

    for shape in ((2,), (2, 4)):
        model, at = FlatModel(vectors), torch.rand(shape, dtype=torch.float64)
        model.merge(at)
        model.backward(loss(model.tensors))
        found = model.gradient_of_coefficients("task" if len(shape) == 1 else "layer")
        for place in np.ndindex(*shape):
            step = torch.zeros(shape, dtype=torch.float64)
            step[place] = 1e-6
            two = [float(loss(vectors.views(vectors.merged(at + sign * step)))) for sign in (1, -1)]
            assert (two[0] - two[1]) / 2e-6 == pytest.approx(float(found[place]), rel=1e-6, abs=1e-8)


def test_merging_again_forgets_the_gradient_and_gives_no_other_tensor_one():
    head = nn.Linear(2, 1)
    model = FlatModel(TaskVectors.of({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}}))
    for _ in range(2):
        model.merge(torch.tensor([0.5]))
        model.backward(head(model.tensors["w"]).sum())
        torch.testing.assert_close(model.gradient, head.weight[0].detach())
    assert head.weight.grad is None
    assert model.reached == {"w"}


def test_tensors_that_a_loss_does_not_depend_on_are_known():
    base = {"w": torch.zeros(2), "text": torch.zeros(3)}
    model = FlatModel(TaskVectors.of(base, {"a": {name: value + 1 for name, value in base.items()}}))
    model.merge(torch.tensor([0.5]))
    model.backward(model.tensors["w"].sum())
    assert model.reached == {"w"}
    assert model.gradient_of_coefficients("layer").tolist() == [[2, 0]]


def test_layerwise_sums_to_taskwise():
    torch.manual_seed(0)
    base = {"a": torch.randn(30, 5), "b": torch.randn(7)}
    vectors = TaskVectors.of(base, {n: {k: v + torch.randn_like(v) for k, v in base.items()} for n in "xyz"})
    g = torch.randn_like(vectors.base)
    torch.testing.assert_close(vectors.gradient(g, "layer").sum(1), vectors.gradient(g, "task"))
    same = torch.rand(3)
    torch.testing.assert_close(vectors.merged(same), vectors.merged(same[:, None].expand(3, 2)))


def test_nothing_that_is_given_changes_and_nothing_that_comes_out_is_shared():
    base = {"w": torch.ones(3), "n": torch.tensor(4)}
    expert = {"w": torch.full((3,), 2.0), "n": torch.tensor(9)}
    vectors = TaskVectors.of(base, {"a": expert})
    for flat in (vectors.merged(torch.tensor([0.0])), vectors.base):
        state = vectors.state(flat)
        for value in state.values():
            value.add_(5)
    vectors.merged(torch.tensor([1.0])).add_(7)
    model = FlatModel(vectors)
    model.merge(torch.tensor([0.3]))
    assert (base["w"].tolist(), base["n"], expert["w"].tolist(), expert["n"]) == ([1, 1, 1], 4, [2, 2, 2], 9)
    assert vectors.base.tolist() == [1, 1, 1]
    assert vectors.state(vectors.base)["n"] == 4


def test_experts_and_their_order():
    base = {"w": torch.zeros(2)}
    experts = {name: {"w": torch.rand(2)} for name in "bca"} | {"same": {"w": torch.zeros(2)}}
    vectors = TaskVectors.of(base, experts)
    assert (vectors.names, vectors.dropped) == (("a", "b", "c"), ("same",))
    turned = TaskVectors.of(base, dict(reversed(experts.items())))
    assert torch.equal(turned.deltas, vectors.deltas)
    assert torch.equal(vectors.matrix, torch.stack([*(experts[name]["w"] for name in "abc"), base["w"]]))
    assert "dropped, equal to the base: same" in repr(vectors)
    assert vectors.bytes == 4 * 2 * (1 + 3)


def test_dead_coefficients():
    base = {"w": torch.zeros(2), "v": torch.zeros(1), "none": torch.zeros(0)}
    vectors = TaskVectors.of(base, {"a": base | {"w": torch.ones(2)}, "b": base | {"v": torch.ones(1)}})
    assert vectors.dead.tolist() == [[False, True, True], [True, False, True]]


def test_types_are_kept_and_sums_are_float32():
    base = {"w": torch.full((2,), 256.0, dtype=torch.bfloat16)}
    experts = {name: {"w": torch.full((2,), 258.0).bfloat16()} for name in "abc"}
    vectors = TaskVectors.of(base, experts)
    merged = vectors.merged(torch.full((3,), 1 / 3))
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, experts["a"]["w"].float())
    assert vectors.state(merged)["w"].dtype == torch.bfloat16


def test_running_statistics_and_counters_are_no_task_vectors():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)]
    for i, net in enumerate(nets):
        net[1].running_var.fill_(float(i))
        net[1].num_batches_tracked.fill_(i)
    vectors = TaskVectors.of(nets[0], {"a": nets[1], "b": nets[2]})
    assert set(vectors.places) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    state = vectors.state(vectors.merged(torch.tensor([5.0, 5.0])))
    assert state["1.running_var"].tolist() == [1.5, 1.5]
    assert state["1.num_batches_tracked"] == 0
    nets[0].load_state_dict(state)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(self.table(ids))


def test_tied_weights_are_one_tensor():
    torch.manual_seed(0)
    base, expert = Tied(), Tied()
    vectors = TaskVectors.of(base, {"a": expert})
    assert (list(vectors.places), dict(vectors.ties)) == (["table.weight"], {"out.weight": "table.weight"})
    model, ids = FlatModel(vectors), torch.tensor([1, 2])
    model.merge(torch.tensor([0.5]))
    with torch.enable_grad():
        model.backward(torch.func.functional_call(base, model.tensors, (ids,)).sum())
    merged = Tied()
    merged.load_state_dict(vectors.state(model.theta))
    merged(ids).sum().backward()
    torch.testing.assert_close(model.gradient.view(4, 2), merged.table.weight.grad)


def test_a_tied_weight_may_be_missing_in_a_file():
    base, expert = Tied(), Tied()
    whole = TaskVectors.of(base, {"a": expert})
    for name in ("out.weight", "table.weight"):
        file = {key: value.clone() for key, value in expert.state_dict().items() if key != name}
        assert torch.equal(TaskVectors.of(base, {"a": file}).deltas, whole.deltas)
    file = {"table.weight": base.table.weight.detach().clone()}
    vectors = TaskVectors.of(file, {"a": expert})
    assert torch.equal(vectors.deltas, whole.deltas)
    assert vectors.own == {"a": {}}  # its other name for the table is none of its own


def test_weights_that_an_expert_untied_stay_apart():
    base, expert = Tied(), {"table.weight": torch.zeros(4, 2), "out.weight": torch.ones(4, 2)}
    vectors = TaskVectors.of(base, {"a": expert})
    assert (list(vectors.places), dict(vectors.ties)) == (["table.weight", "out.weight"], {})


def test_heads_are_each_experts_own():
    base = {"body.w": torch.zeros(2), "head.w": torch.zeros(1)}
    experts = {
        "a": {"body.w": torch.ones(2), "head.w": torch.ones(1), "adapter": torch.ones(1)},
        "b": {"body.w": torch.ones(2), "head.w": torch.ones(1)},
    }
    vectors = TaskVectors.of(base, experts, own=["head.*"])
    assert list(vectors.places) == ["body.w"]
    assert {name: set(its) for name, its in vectors.own.items()} == {"a": {"head.w", "adapter"}, "b": {"head.w"}}
    assert set(vectors.state(vectors.base)) == {"body.w"}
    assert differing(base, experts) == ()
    assert differing(base, experts | {"c": {"head.w": torch.zeros(2)}}) == ("head.w",)


@pytest.mark.parametrize(
    ("base", "experts", "said"),
    [
        ({"w": torch.zeros(2)}, {}, "no experts"),
        ({"w": torch.zeros(2)}, {"a": {"w": torch.zeros(2)}}, "every expert equals the base"),
        ({"n": torch.tensor(1)}, {"a": {"n": torch.tensor(2)}}, "no floating-point tensor"),
        (
            {"w": torch.zeros(2), "v": torch.zeros(1)},
            {"a": {"w": torch.zeros(3), "v": torch.zeros(1)}, "b": {"w": torch.zeros(2)}},
            r"of a, w is \(3,\) there and \(2,\) in the base; b lacks v.*own=",
        ),
        ({"w": torch.zeros(2)}, {"a": {"w": torch.tensor([0.0, torch.nan])}}, "'w' of a holds NaN"),
        ({"w": torch.tensor([torch.inf])}, {"a": {"w": torch.zeros(1)}}, "'w' of the base holds NaN or inf"),
    ],
)
def test_what_gives_no_task_vectors_is_told(base, experts, said):
    with pytest.raises(BadInput, match=said):
        TaskVectors.of(base, experts)


def test_coefficients_have_to_fit(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    base = {"w": torch.zeros(2), "v": torch.zeros(1)}
    vectors = TaskVectors.of(base, {"a": {name: value + 1 for name, value in base.items()}})
    for shape in ((), (2,), (1, 1), (2, 1), (1, 2, 1)):
        with pytest.raises(BadInput, match=r"give \(1,\) or \(1, 2\)"):
            vectors.merged(torch.zeros(shape))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), density=st.sampled_from([0.01, 0.2, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_trimming_and_election_are_those_of_the_reference(seed, n, density):
    random = np.random.default_rng(seed)
    deltas = random.integers(-4, 5, size=(n, 23)) / 8  # many of equal magnitude, many signs that cancel
    deltas[:, 0] = 1.0
    experts = {f"m{i}": {"w": torch.tensor(delta).float()} for i, delta in enumerate(deltas)}
    vectors = TaskVectors.of({"w": torch.zeros(23)}, experts)
    found = vectors.elected(density)
    np.testing.assert_array_equal(found.deltas, reference.trimmed_and_elected(deltas, density).astype(np.float32))
    np.testing.assert_array_equal(vectors.deltas, deltas.astype(np.float32))


def test_election_is_that_of_ties():
    """Half of the method elsewhere: what TIES adds up without a mean."""
    torch.manual_seed(0)
    base, experts = torch.randn(50), {name: torch.randn(50) for name in "abc"}
    vectors = TaskVectors.of({"w": base}, {name: {"w": value} for name, value in experts.items()})
    parameters = ({"weight": 1.0, "density": 0.3},) * 3
    how = {"normalize": False, "lambda": 0.5, "scope": "tensor", "consensus_method": "sum"}
    operands = Operands("w", tuple(experts), tuple(experts.values()), base, parameters, how)
    expected = merge_tensor(METHODS["ties"], operands, torch.float32)
    torch.testing.assert_close(vectors.elected(0.3).merged(torch.full((3,), 0.5)), expected)


@pytest.mark.parametrize("density", [0.0, -1.0, 1.1, float("nan")])
def test_a_density_is_a_share(density):
    with pytest.raises(BadInput, match="density"):
        TaskVectors.of({"w": torch.zeros(1)}, {"a": {"w": torch.ones(1)}}).elected(density)
