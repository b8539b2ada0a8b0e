"""Models that are merged together and differentiated together, against one after the other and against autograd."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merge.test_task_vectors import families
from torch import nn
from torch.func import functional_call

from taskatlas.errors import BadInput
from taskatlas.merge import vector_pass
from taskatlas.merge.merged_models import MergedModels
from taskatlas.merge.task_vectors import TaskVectors
from taskatlas.merge.vector_pass import pass_over

CPU = torch.device("cpu")


def long_family(dtype=torch.float64, experts="abcdefghi"):
    """Tensors of several pieces, of one, and of a piece and one element."""
    torch.manual_seed(0)
    shapes = {"long": (3, 5000), "short": (7,), "exact": (4096,), "one more": (4097,), "empty": (0,)}
    base = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    others = {e: {name: value + torch.randn_like(value) for name, value in base.items()} for e in experts}
    return TaskVectors.of(base, others, dtype=dtype)


def tensors_of(vectors, rows):
    """Flat models as ``pass_over`` takes them; they share memory."""
    return [vectors.views(row) for row in rows]


def straight(vectors, gradient, level):
    """⟨g, τ_i⟩ element by element of dictionaries, in float64."""
    g = vectors.views(gradient)
    rows = [
        [float((delta[name].double() * g[name].double()).sum()) for name in g]
        for delta in map(vectors.views, vectors.deltas)
    ]
    found = torch.tensor(rows, dtype=torch.float64)
    return found if level == "layer" else found.sum(1)


def merged(vectors, coefficients):
    """Tensor by tensor, from dictionaries."""
    base, deltas = vectors.views(vectors.base), [vectors.views(row) for row in vectors.deltas]
    columns = coefficients.T if coefficients.ndim == 2 else [coefficients] * len(base)
    return {
        name: value + sum(c * delta[name] for c, delta in zip(column, deltas, strict=True))
        for (name, value), column in zip(base.items(), columns, strict=True)
    }


def check(vectors, ran, following, level, tolerance):
    count = max(ran, following, 1)
    models = torch.randn(count, vectors.base.numel()).to(vectors.base)
    before = models.clone()
    shape = (len(vectors.names), len(vectors.places))[: 1 if level == "task" else 2]
    wanted = torch.randn(following, *shape).to(vectors.base) if following else None
    found = pass_over(vectors, tensors_of(vectors, models), level, ran=ran, coefficients=wanted)
    assert found.dtype == torch.float64
    assert tuple(found.shape) == (ran, *shape)
    for row in range(ran):
        torch.testing.assert_close(found[row], straight(vectors, before[row], level), rtol=tolerance, atol=tolerance)
    for row in range(count):
        expected = before[row]
        if row < following:
            expected = torch.cat([value.reshape(-1) for value in merged(vectors, wanted[row]).values()])
        torch.testing.assert_close(models[row], expected, rtol=tolerance, atol=tolerance)


@given(families(), st.integers(0, 2), st.integers(0, 2), st.sampled_from(["task", "layer"]))
@settings(max_examples=60, deadline=None)
def test_a_pass_is_gradients_and_then_merges(family, ran, following, level):
    base, experts, _ = family
    check(TaskVectors.of(base, experts, dtype=torch.float64), ran, following, level, 1e-12)


@pytest.mark.parametrize("level", ["task", "layer"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("ran", "following"), [(2, 2), (2, 1), (1, 2), (3, 0), (0, 3)])
def test_tensors_of_several_pieces(level, dtype, tolerance, ran, following):
    check(long_family(dtype), ran, following, level, tolerance)


def test_the_compiled_pass_is_the_other_one(monkeypatch):
    vectors = long_family()
    results = []
    for dtypes in (vector_pass._DTYPES, ()):
        monkeypatch.setattr(vector_pass, "_DTYPES", dtypes)
        torch.manual_seed(1)
        models, wanted = torch.randn(2, vectors.base.numel(), dtype=torch.float64), torch.rand(2, 9, 5)
        found = pass_over(vectors, tensors_of(vectors, models), "layer", ran=2, coefficients=wanted)
        results.append((found, models))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_vectors_whose_elements_lie_apart():
    """Addresses would be those of other elements."""
    vectors = long_family()
    check(replace(vectors, matrix=vectors.matrix.T.contiguous().T), 2, 2, "layer", 1e-11)


def test_a_matrix_that_is_cut_from_a_wider_one():
    vectors = long_family()
    wide = torch.randn(len(vectors.matrix), vectors.base.numel() + 7, dtype=vectors.base.dtype)
    wide[:, :-7] = vectors.matrix
    check(replace(vectors, matrix=wide[:, :-7]), 2, 2, "layer", 1e-11)


def test_pieces_are_summed_in_float64():
    """In float32 what the second and the third add to the first would be lost."""
    size = vector_pass._PIECE
    delta = torch.zeros(3 * size)
    delta[:size], delta[size], delta[2 * size] = 2**25 / size, 1.0, 1.0
    vectors = TaskVectors.of({"w": torch.zeros(3 * size)}, {"a": {"w": delta}})
    found = pass_over(vectors, [{"w": torch.ones(3 * size)}], "task", ran=1)
    assert found.tolist() == [[2**25 + 2]]


def test_the_number_of_threads_changes_no_bit():
    vectors = long_family(torch.float32)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5, 64):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            models = torch.randn(2, vectors.base.numel())
            found = pass_over(vectors, tensors_of(vectors, models), "task", ran=2, coefficients=torch.rand(2, 9))
            results.append((found, models))
    finally:
        torch.set_num_threads(before)
    for found, models in results[1:]:
        assert torch.equal(found, results[0][0])
        assert torch.equal(models, results[0][1])


def network():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3)).double()


def experts(count=3):
    torch.manual_seed(1)
    base = network()
    return base, {
        f"e{i}": {name: value + 0.1 * torch.randn_like(value) for name, value in base.state_dict().items()}
        for i in range(count)
    }


def loss_of(base, tensors, x):
    return functional_call(base, tensors, (x,)).logsumexp(-1).mean()


@pytest.mark.parametrize("devices", [[CPU], [CPU, torch.device("cpu", 0)]], ids=["here", "elsewhere"])
@pytest.mark.parametrize("level", ["task", "layer"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_are_those_of_autograd_through_explicit_merges(devices, level, count):
    base, others = experts()
    vectors = TaskVectors.of(base, others, dtype=torch.float64)
    shape = (3,) if level == "task" else (3, len(vectors.places))
    wanted = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    xs = torch.randn(5, 4, 6, 5, dtype=torch.float64)
    models, found = MergedModels(vectors, count), []
    for first in range(0, 5, count):
        together = wanted[first : first + count]
        found += models.turn(together, level)
        for slot in range(len(together)):
            device = devices[(first + slot) % len(devices)]
            tensors = models.tensors(slot, device)
            models.backward(slot, loss_of(base, tensors, xs[first + slot]))
    found += models.turn([], level)
    assert models.reached == set(vectors.places)
    for coefficients, x, gradient in zip(wanted, xs, found, strict=True):
        loss_of(base, merged(vectors, coefficients), x).backward()
        torch.testing.assert_close(gradient, coefficients.grad, rtol=1e-9, atol=1e-12)
        assert coefficients.grad.abs().max() > 1e-3


def test_what_a_loss_does_not_depend_on_has_no_gradient():
    base = {"w": torch.ones(2), "other": torch.ones(3)}
    vectors = TaskVectors.of(base, {"a": {"w": torch.zeros(2), "other": torch.zeros(3)}})
    models = MergedModels(vectors, 1)
    models.turn([torch.full((1, 2), 0.5)], "layer")
    models.backward(0, models.tensors(0, CPU)["w"].sum())
    (found,) = models.turn([], "layer")
    assert found.tolist() == [[-2, 0]]
    assert models.reached == {"w"}


def test_tied_tensors_have_one_gradient_and_no_other_tensor_has_any():
    shared = torch.tensor([1.0, 2.0])
    base = {"w": shared, "tied": shared}
    other = shared + 1
    vectors = TaskVectors.of(base, {"a": {"w": other, "tied": other}})
    head, models = nn.Linear(2, 1), MergedModels(vectors, 1)
    for _ in range(2):
        models.turn([torch.tensor([0.0])], "task")
        tensors = models.tensors(0, CPU)
        assert tensors["w"].tolist() == [1, 2]
        models.backward(0, (tensors["w"] * tensors["tied"]).sum() + head(tensors["w"]).sum())
        (found,) = models.turn([], "task")
        assert float(found) == pytest.approx(2 * 3 + float(head.weight.detach().sum()))
    assert head.weight.grad is None


def test_weights_may_be_used_apart_from_their_gradient():
    """The gradient of v is computed last and needs w, whose memory its own gradient has by then."""
    base = {"w": torch.tensor([1.0, 2.0]), "v": torch.tensor([0.5, 1.0])}
    vectors = TaskVectors.of(base, {"a": {"w": torch.zeros(2), "v": torch.zeros(2)}})
    models, scale = MergedModels(vectors, 1), torch.tensor([0.3], requires_grad=True)

    def loss(tensors):
        return ((tensors["v"] * tensors["w"].detach()).exp() * tensors["w"]).sum()

    models.turn([scale], "task")
    models.backward(0, loss(models.tensors(0, CPU)))
    (found,) = models.turn([], "task")
    loss(merged(vectors, scale)).backward()
    torch.testing.assert_close(found.float(), scale.grad)


class Shared(nn.Module):
    """Torch gives the two weights one gradient, in one piece of memory."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2, 2))

    def forward(self, x):
        return (self.a.view(-1) + self.b.view(-1)) * x


class Split(nn.Module):
    """The gradients of the two weights are parts of one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(2, 3))

    def forward(self, x):
        return torch.cat([self.a, self.b], 1) @ x[:1].expand(6) + torch.cat([self.a, self.b]).square().mean(1)[:2]


class Turned(nn.Module):
    """The gradient lies the other way round."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return self.a.t().contiguous() * x[:, None]


@pytest.mark.parametrize("made", [Shared, Split, Turned])
def test_gradients_that_share_memory_do_not_share_the_next_weights(made):
    torch.manual_seed(0)
    base, other = made(), made()
    vectors = TaskVectors.of(base, {"a": other})
    models, x = MergedModels(vectors, 1), torch.randn(4)
    for scale in (0.3, 0.7, 0.1):
        wanted = torch.tensor([scale], requires_grad=True)
        models.turn([wanted], "task")
        tensors, expected = models.tensors(0, CPU), merged(vectors, wanted)
        for name, value in expected.items():
            torch.testing.assert_close(tensors[name], value)
        models.backward(0, functional_call(base, tensors, (x,)).square().sum())
        (found,) = models.turn([], "task")
        functional_call(base, expected, (x,)).square().sum().backward()
        torch.testing.assert_close(found.float(), wanted.grad, rtol=1e-4, atol=1e-5)


def test_sparse_gradients_are_dense_ones():
    ids, found = torch.tensor([0, 2, 2]), []
    base = {"w": torch.randn(4, 3)}
    vectors = TaskVectors.of(base, {"a": {"w": base["w"] + torch.randn(4, 3)}})
    for sparse in (False, True):
        models = MergedModels(vectors, 1)
        models.turn([torch.tensor([0.3])], "task")
        rows = nn.functional.embedding(ids, models.tensors(0, CPU)["w"], sparse=sparse)
        models.backward(0, rows.square().sum())
        found += models.turn([], "task")
    torch.testing.assert_close(found[0], found[1])
    assert found[0].abs() > 1e-3


def test_a_loss_that_depends_on_nothing_merged_is_refused():
    vectors = TaskVectors.of({"w": torch.ones(2)}, {"a": {"w": torch.zeros(2)}})
    models = MergedModels(vectors, 1)
    with pytest.raises(BadInput, match="no output of task 'x' depends on a tensor that is merged"):
        models.backward(0, torch.tensor(1.0), "task 'x'")


def test_vectors_stay_as_they_were():
    vectors = long_family()
    before = vectors.matrix.clone()
    models = MergedModels(vectors, 2)
    models.turn([torch.rand(9), torch.rand(9)], "task")
    for slot in range(2):
        models.backward(slot, sum(value.square().sum() for value in models.tensors(slot, CPU).values()))
    models.turn([], "task")
    assert torch.equal(vectors.matrix, before)


def test_a_gradient_keeps_no_larger_memory_than_its_own():
    vectors = TaskVectors.of({"w": torch.ones(2)}, {"a": {"w": torch.zeros(2)}})
    models = MergedModels(vectors, 1)
    models.turn([torch.tensor([0.3])], "task")
    together = torch.cat([models.tensors(0, CPU)["w"], torch.ones(1000)])  # its gradient is one piece of 1,002
    models.backward(0, together.square().sum())
    assert models._models[0]["w"].untyped_storage().nbytes() == 8


class Stored(torch.autograd.Function):
    """A product with a stored tensor, which is its gradient."""

    @staticmethod
    def forward(ctx, w, x):
        ctx.x = x
        return (w * x).sum()

    @staticmethod
    def backward(ctx, _):
        return ctx.x.view_as(ctx.x), None


def test_what_others_hold_is_not_written_over():
    vectors = TaskVectors.of({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
    models, x, seen = MergedModels(vectors, 2), torch.tensor([1.0, 2.0]), []
    for turn in range(2):
        found = models.turn([torch.tensor([0.3]), torch.tensor([0.7])], "task")
        assert [float(each) for each in found] == [3, 5][: 2 * turn]
        w = models.tensors(0, CPU)["w"]
        assert w.tolist() == pytest.approx([0.3, 0.3])
        models.backward(0, Stored.apply(w, x))
        w = models.tensors(1, CPU)["w"]
        assert w.tolist() == pytest.approx([0.7, 0.7])
        h = w + torch.zeros(2)
        h.register_hook(lambda gradient: seen.append(gradient.detach()))
        models.backward(1, (h * torch.tensor([2.0, 3.0])).sum())
    assert x.tolist() == [1, 2]
    assert [each.tolist() for each in seen] == [[2, 3], [2, 3]]


def test_a_model_that_reaches_fewer_tensors_than_the_one_before_has_no_gradient_of_it():
    base = {"w": torch.zeros(1), "v": torch.zeros(1)}
    vectors = TaskVectors.of(base, {"a": {"w": torch.ones(1), "v": torch.ones(1)}})
    models = MergedModels(vectors, 2)
    models.turn([torch.tensor([1.0]), torch.tensor([1.0])], "task")
    tensors = models.tensors(0, CPU)
    models.backward(0, (tensors["w"] + tensors["v"]).sum())
    models.backward(1, (2 * models.tensors(1, CPU)["w"]).sum())
    assert [float(each) for each in models.turn([], "task")] == [2, 2]


class Inner(torch.autograd.Function):
    """tanh(x w), with a backward pass of its own within that of the whole, as reversible networks have."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.x, ctx.w = x.detach(), w
        return torch.tanh(x.detach() * w.detach())

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.x.requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(torch.tanh(x * ctx.w), gradient)
        return x.grad, None


def test_gradients_that_arrive_in_parts_are_added():
    vectors = TaskVectors.of({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
    models, scale, x = MergedModels(vectors, 1), torch.tensor([0.4], requires_grad=True), torch.tensor([0.5, 2.0])
    models.turn([scale], "task")
    w = models.tensors(0, CPU)["w"]
    models.backward(0, Inner.apply(Inner.apply(x * w, w), w).sum())
    (found,) = models.turn([], "task")
    w = merged(vectors, scale)["w"]
    torch.tanh(torch.tanh(x * w * w) * w).sum().backward()
    torch.testing.assert_close(found.float(), scale.grad)


@pytest.mark.parametrize(("ran", "shape"), [(3, (1, 9)), (0, (3, 9)), (0, (1, 8)), (0, (1, 9, 4)), (0, (1, 9, 5, 1))])
def test_what_does_not_fit_is_refused_before_anything_is_written(ran, shape):
    vectors = long_family()
    models = torch.ones(2, vectors.base.numel(), dtype=torch.float64)
    with pytest.raises(BadInput, match="do not fit 2 models of 9 experts and 5 tensors"):
        pass_over(vectors, tensors_of(vectors, models), "task", ran=ran, coefficients=torch.rand(shape))
    assert bool((models == 1).all())


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(5000, 3, dtype=torch.float64).T,
        torch.ones(3, 4999, dtype=torch.float64),
        torch.ones(15000, dtype=torch.float64),
        torch.ones(3, 5000),
        torch.ones(3, 5000, dtype=torch.float64, device="meta"),
        None,
    ],
    ids=["not contiguous", "too short", "flat", "another precision", "another device", "missing"],
)
def test_tensors_that_lie_otherwise_are_refused_before_anything_is_written(wrong):
    vectors = long_family()
    good = torch.ones(2, vectors.base.numel(), dtype=torch.float64)
    models = tensors_of(vectors, good)
    models[1].pop("long")
    if wrong is not None:
        models[1]["long"] = wrong
    with pytest.raises(BadInput, match=r"'long' (has to be contiguous, \(3, 5000\), and torch.float64|lies on meta)"):
        pass_over(vectors, models, "task", ran=1, coefficients=torch.rand(2, 9))
    assert bool((good == 1).all())
