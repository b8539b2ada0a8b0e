"""Merging whole models: what goes in, what comes out, what is refused."""

import itertools
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.references import merge_methods as reference
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.arguments import complete
from taskatlas.merge.in_memory import _labelled as labelled
from taskatlas.merge.in_memory import merge_models
from taskatlas.merge.methods import METHODS
from taskatlas.merge.state import content_names, tied_names
from taskatlas.zoo import Checkpoint


class Net(nn.Module):
    """Tied weights, a BatchNorm with its counter, a convolution, a mask."""

    def __init__(self, seed=0, words=11):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(words, 6)
        self.convolution = nn.Conv1d(6, 6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, words, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
        self.norm.num_batches_tracked.fill_(seed)
        self.norm.running_var.copy_(torch.rand(6) + 1)


def nets(count=3):
    return [Net(seed) for seed in range(1, count + 1)]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


ENOUGH = {
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.5},
    "della_linear": {"density": 0.5},
    "breadcrumbs": {"density": 0.5},
    "breadcrumbs_ties": {"density": 0.5},
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.1},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_result_loads_strictly_and_stays_tied(method):
    row, base = METHODS[method], Net()
    models = nets(row.most or 3)
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (base, *models)]
    given = {"base": base} if row.base == "required" else {}
    merged = merge_models(models, method=method, **given, **ENOUGH.get(method, {}))

    first = base if given else models[0]
    assert list(merged) == list(first.state_dict())
    assert all(merged[name].dtype == tensor.dtype for name, tensor in first.state_dict().items())
    assert merged["head.weight"].data_ptr() == merged["embedding.weight"].data_ptr()
    assert merged["mask"].tolist() == [0, -float("inf")]
    Net().load_state_dict(merged, strict=True)
    for model, state in zip((base, *models), before, strict=True):
        assert same(model.state_dict(), state)
    theirs = {tensor.data_ptr() for model in (base, *models) for tensor in model.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in merged.values()}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties", "karcher", "model_stock"])
def test_the_order_of_models_does_not_matter(method):
    models = nets()
    given = {"weights": [1.0, 2.0, 0.5]} if "weight" in METHODS[method].parameters else {}
    given |= {"base": Net()} if METHODS[method].base == "required" else {}
    expected = merge_models(models, method=method, **given, **ENOUGH.get(method, {}))
    for order in itertools.permutations(range(3)):
        moved = dict(given)
        if "weights" in given:
            moved["weights"] = [given["weights"][i] for i in order]
        found = merge_models([models[i] for i in order], method=method, **moved, **ENOUGH.get(method, {}))
        counter = "norm.num_batches_tracked"
        assert same({**found, counter: expected[counter]}, expected)


def test_modules_state_dicts_checkpoints_and_files_are_the_same_models(tmp_path):
    a, b = nets(2)
    b.norm.num_batches_tracked.fill_(int(a.norm.num_batches_tracked))  # which one is copied follows names
    plain = {name: tensor for name, tensor in b.state_dict().items() if name != "head.weight"}
    save_file(plain, tmp_path / "b.safetensors")
    torch.save(b.state_dict(), tmp_path / "b.pt")
    expected = merge_models([a, b])
    others = (
        b.state_dict(),
        plain,
        tmp_path / "b.pt",
        str(tmp_path / "b.pt"),
        tmp_path / "b.safetensors",
        Checkpoint("b", module=b),
        Checkpoint("b", weights=tmp_path / "b.safetensors"),
        Checkpoint("b", builder=lambda: b),
    )
    for other in others:
        assert same(merge_models([a, other]), expected)
    # A file that holds a tied tensor once gives a result that does.
    assert merge_models([tmp_path / "b.safetensors", a]).keys() == plain.keys()


def test_ties_is_the_papers_over_the_whole_vector_and_tensor_by_tensor_on_request():
    base, models = Net(), nets()
    names = [name for name, tensor in base.state_dict().items() if tensor.is_floating_point() and name != "mask"]
    names.remove("head.weight")
    start = {name: base.state_dict()[name].double().numpy() for name in names}
    taus = [{name: model.state_dict()[name].double().numpy() - start[name] for name in names} for model in models]
    # The mask is part of the vector, with differences that are no numbers; leave it out of this comparison.
    base, models = ({k: v for k, v in m.state_dict().items() if k != "mask"} for m in (base, *models)), None
    base, *models = base

    whole = merge_models(models, base=base, method="ties")
    trimmed = [dict(zip(names, reference.trimmed_together([tau[n] for n in names], 0.2), strict=True)) for tau in taus]
    each = merge_models(models, base=base, method="ties", scope="tensor", density=0.4, scale=0.5)
    for name in names:
        expected = start[name] + reference.elected([tau[name] for tau in trimmed], [1] * 3, True)
        assert whole[name].numpy() == pytest.approx(expected, abs=1e-5)
        one = reference.elected([reference.trimmed(tau[name], 0.4) for tau in taus], [1] * 3, True)
        assert each[name].numpy() == pytest.approx(start[name] + 0.5 * one, abs=1e-5)


def test_defaults_are_the_papers():
    base, a, b = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, 0, 2, 0])}, {"w": torch.tensor([0.0, 4, 2, 0])}
    assert merge_models([a, b])["w"].tolist() == [0.5, 2, 2, 0]
    assert merge_models([a, b], base=base, method="task_arithmetic")["w"].numpy() == pytest.approx([0.3, 1.2, 1.2, 0])
    assert merge_models([a, b], base=base, method="task_arithmetic", scale=1.0)["w"].tolist() == [1, 4, 4, 0]
    assert merge_models([a, b], base=base, method="ties")["w"].tolist() == [0, 4, 2, 0]
    assert merge_models([a, b], base=base, method="ties", normalize=False, density=1.0)["w"].tolist() == [1, 4, 4, 0]
    assert merge_models([a], method="passthrough", scale=2.0)["w"].tolist() == [2, 0, 4, 0]
    assert merge_models([a], base=b, method="nearswap", t=0.5)["w"].tolist() == [0.5, 3.5, 2, 0]
    assert merge_models([a, b], method="multislerp", normalize=False)["w"].shape == (4,)


def test_numbers_for_each_model_by_place_or_by_name():
    a, b = {"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}
    assert merge_models([a, b], weights=[3.0, 1.0])["w"].item() == 2
    assert merge_models({"a": a, "b": b}, weights={"b": 1.0, "a": 3.0})["w"].item() == 2
    base = {"w": torch.tensor([0.0])}
    assert merge_models([a, b], base=base, method="ties", density=[1.0, 0.0])["w"].item() == 1


def test_numbers_of_numpy_and_torch_are_numbers():
    a, b = {"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}
    for weights in (np.array([3.0, 1.0]), torch.tensor([3, 1]), [np.float32(3), torch.tensor(1.0)]):
        assert merge_models([a, b], weights=weights)["w"].item() == 2
    assert merge_models({"a": a, "b": b}, weights={"a": np.int64(3), "b": np.float64(1)})["w"].item() == 2
    assert merge_models([b], base=a, method="slerp", t=np.float32(0.5))["w"].item() == 3


def test_random_methods_follow_the_seed_and_the_names():
    base, models = Net(), nets()
    first = merge_models(models, base=base, method="dare_ties", density=0.5)
    assert same(merge_models(models, base=base, method="dare_ties", density=0.5), first)
    assert not same(merge_models(models, base=base, method="dare_ties", density=0.5, seed=1), first)
    named = merge_models(dict(zip("abc", models, strict=True)), base=base, method="dare_ties", density=0.5)
    assert not same(named, first)
    # Two equal models get one name and so drop the same elements; their sum is twice one of them.
    one = merge_models(models[:1], base=base, method="dare_linear", density=0.5)
    two = merge_models([models[0], models[0].state_dict()], base=base, method="dare_linear", density=0.5, scale=0.5)
    assert same({**two, "mask": one["mask"]}, one)


def test_a_model_that_is_the_base_itself_takes_no_part():
    base, (a, b) = Net(), nets(2)
    expected = merge_models([a, b], base=base, method="ties")
    assert same(merge_models([a, base, b], base=base, method="ties"), expected)
    by_name = {"base": base, "a": a, "b": b}
    assert same(merge_models(by_name, base="base", method="ties"), expected)
    assert same(merge_models([base, a], base=base, method="slerp", t=1.0), a.state_dict() | counters(base))


def counters(model):
    return {"norm.num_batches_tracked": model.norm.num_batches_tracked}


def test_a_model_equal_to_the_base_adds_nothing():
    base, (a, b) = Net(), nets(2)
    for method in ("task_arithmetic", "ties", "sce"):
        expected = merge_models([a, b], base=base, method=method)
        found = merge_models([a, b, Net().state_dict()], base=base, method=method)
        assert same(found, expected)


def test_types_follow_the_base_and_sums_are_wide():
    a = {"w": torch.tensor([1.0, 2.0], dtype=torch.float16)}
    b = {"w": torch.tensor([2.0, 4.0], dtype=torch.float64)}
    assert merge_models([a, b])["w"].dtype == torch.float16
    assert merge_models([b, a])["w"].dtype == torch.float64
    thousand = [{"w": torch.tensor([2048.0 + (i % 2)], dtype=torch.float16)} for i in range(4)]
    assert merge_models([*thousand, b | {"w": b["w"][:1]}], weights=[0.25] * 4 + [0.0])["w"].item() == 2048


def test_integers_come_from_the_base_or_the_first_by_name():
    models = {"b": {"n": torch.tensor(2), "w": torch.ones(1)}, "a": {"n": torch.tensor(1), "w": torch.ones(1)}}
    assert merge_models(models)["n"].item() == 1
    base = {"n": torch.tensor(0), "w": torch.zeros(1)}
    assert merge_models(models, base=base, method="task_arithmetic")["n"].item() == 0


# What does not fit


def test_other_shapes_are_refused_with_a_list():
    with pytest.raises(BadInput) as caught:
        merge_models([Net(1), Net(2, words=12)], base=Net(), method="task_arithmetic")
    assert "embedding.weight is 12x6 in model 2 and 11x6 in the base" in str(caught.value)
    assert "common_only=True" in str(caught.value)
    with pytest.raises(BadInput, match=r"model 2 has no b; model 1 has no c, which model 2 has"):
        merge_models([{"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "c": torch.ones(1)}])
    many = {f"layer {i}": torch.ones(2) for i in range(20)}
    with pytest.raises(BadInput, match="and 12 more"):
        merge_models([many | {"a": torch.ones(1)}, {"a": torch.ones(1)}])
    with pytest.raises(BadInput, match=re.escape("w is 1 (int64) in model 2 and 1 in model 1")):
        merge_models([{"w": torch.ones(1)}, {"w": torch.ones(1, dtype=torch.int64)}])


def test_the_common_backbone_is_merged_and_the_rest_is_the_bases():
    base, a, b = Net(), Net(1), Net(2, words=12)
    extra = b.state_dict() | {"more": torch.ones(3)}
    found = merge_models([a, extra], base=base, method="task_arithmetic", scale=1.0, common_only=True)
    assert found.keys() == base.state_dict().keys()
    assert torch.equal(found["embedding.weight"], base.embedding.weight)
    assert found["embedding.weight"].data_ptr() == found["head.weight"].data_ptr() != base.embedding.weight.data_ptr()
    expected = a.convolution.weight + b.convolution.weight - base.convolution.weight
    assert torch.allclose(found["convolution.weight"], expected, atol=1e-6)
    # Without a base, the first model's.
    assert merge_models([b, a], common_only=True)["embedding.weight"].shape == (12, 6)
    with pytest.raises(BadInput, match="no tensor of numbers in common with model 1"):
        merge_models([{"a": torch.ones(1)}, {"b": torch.ones(1)}], common_only=True)


def test_tensors_that_are_tied_in_the_result_alone():
    untied = {name: tensor.clone() for name, tensor in Net(1).state_dict().items()}
    assert same(merge_models([Net(1), untied]), Net(1).state_dict())
    untied["head.weight"] += 1
    with pytest.raises(BadInput, match=r"embedding\.weight and head\.weight are one tied tensor .* differ in model 2"):
        merge_models([Net(1), untied])
    assert not tied_names(merge_models([untied, Net(1)]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: merge_models([a, b], method="tie"), "there is no method 'tie'; did you mean 'ties'"),
        (lambda a, b: merge_models([a, b], method="ties"), "ties needs a base model"),
        (lambda a, b: merge_models([a, b], base=a), "linear takes no base model"),
        (lambda a, b: merge_models([]), "linear takes at least 1 model, not 0"),
        (lambda a, b: merge_models([a], base=a, method="ties"), "takes at least 1 model beside the base, not 0"),
        (lambda a, b: merge_models([a, b], weights=[1.0, -1.0]), "the weights of .* sum to zero"),
        (lambda a, b: merge_models([a, b], weights=[1.0]), "1 weights for 2 models"),
        (lambda a, b: merge_models({"a": a, "b": b}, weights={"a": 1.0, "c": 1.0}), "see b, c"),
        (lambda a, b: merge_models([a, b], density=0.5), "linear has no density. It takes weights, normalize"),
        (lambda a, b: merge_models([a, b], scale=2.0), "linear has no scale"),
        (lambda a, b: merge_models([a], base=b, method="slerp", tt=0.5), "slerp has no tt; did you mean 't'"),
        (
            lambda a, b: merge_models([a, b], wieght=3),
            r"no wieght; did you mean 'weights'\? It takes weights, normalize",
        ),
        (lambda a, b: merge_models([a, b], weights=[1, 1], weight=[1, 0]), "weight is called weights here"),
        (lambda a, b: merge_models([a], base=b, method="slerp"), "slerp needs t. Give a number"),
        (lambda a, b: merge_models([a], base=b, method="dare_ties"), "dare_ties needs density"),
        (lambda a, b: merge_models([a], base=b, method="ties", density=2.0), "density of model 1 is 2 at"),
        (lambda a, b: merge_models([a], base=b, method="ties", scope="all"), "scope is 'all'. Choose model or tensor"),
        (lambda a, b: merge_models([a], base=b, method="sce", select_topk="x"), "select_topk is 'x'. Give a number"),
        (lambda a, b: merge_models("nowhere.pt"), "a single str was given"),
        (lambda a, b: merge_models([a, "nowhere.pt"]), "no weights at nowhere.pt"),
        (lambda a, b: merge_models([a, {}]), "model 2 has no tensors"),
        (lambda a, b: merge_models([a, {"x": torch.ones(1).to_sparse()}]), "model 2 has 'x', which is not a dense"),
        (lambda a, b: merge_models([a, {"x": torch.ones(1, device="meta")}]), "not a dense tensor with data"),
        (lambda a, b: merge_models([Checkpoint("x", module=a), Checkpoint("x", module=b)]), "two models are called x"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call(Net(1), Net(2))


def test_values_of_another_kind_are_refused():
    for given, message in (
        ({"weight": ["x", 1.0]}, "weights is 'x'. Give a number, or one for each model"),
        ({"normalize": "yes"}, "normalize is 'yes'. Choose True or False"),
    ):
        with pytest.raises(BadInput, match=message):
            complete(METHODS["linear"], given, ["a", "b"])


def test_a_single_model_is_no_list_of_models():
    for model, kind in ((Net(), "Net"), (Net().state_dict(), "state dict"), ("net.pt", "str")):
        with pytest.raises(BadInput, match=f"a single {kind} was given"):
            labelled(model)


def test_nan_is_refused_with_tensor_and_model():
    a, b = nets(2)
    with torch.no_grad():
        b.convolution.weight[0, 1, 2] = float("nan")
    with pytest.raises(BadInput, match=r"the tensor 'convolution\.weight' of model 2 holds NaN"):
        merge_models([a, b])
    with pytest.raises(BadInput, match=r"of fine-tuned holds NaN"):
        merge_models({"fine-tuned": b}, base=a, method="ties")
    with pytest.raises(BadInput, match=r"of the base holds NaN"):
        merge_models([a], base=b, method="breadcrumbs", density=0.5)


def test_nan_in_what_is_copied_is_refused_and_a_mask_is_not():
    a, b = {"w": torch.ones(1), "m": torch.tensor([float("inf")])}, {"w": torch.ones(1)}
    assert merge_models([a, b], common_only=True)["m"].isinf().all()
    with pytest.raises(BadInput, match="the tensor 'm' of model 1 holds NaN"):
        merge_models([a | {"m": torch.tensor([float("nan")])}, b], common_only=True)


def test_an_adapter_is_refused_with_advice(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    for model in (tmp_path, str(tmp_path), Checkpoint("x", weights=tmp_path)):
        with pytest.raises(BadInput, match=r"is the LoRA adapter .*Merge by a recipe"):
            merge_models({"x": model}, base=Net(), method="task_arithmetic")


# Names from content


def test_content_names_tell_models_apart_by_every_element():
    zeros = {"w": torch.zeros(5000)}
    near = {"w": zeros["w"].clone()}
    near["w"][1] = 1  # between two elements of a sample
    assert len(set(content_names([zeros, near, {"w": torch.ones(5000)}]))) == 3
    assert content_names([zeros, near]) == list(reversed(content_names([near, zeros])))
    assert len(set(content_names([zeros, {"w": zeros["w"].clone()}]))) == 1
    assert np.unique(content_names([zeros, {"v": zeros["w"]}, {"w": zeros["w"].view(50, 100)}])).size == 3
