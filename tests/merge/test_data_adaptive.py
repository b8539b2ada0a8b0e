"""Data-adaptive fusion against a loop with one graph through everything, and what it says about bad input."""

import copy
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from tests.references import merge_fusion as reference
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.merge.adamerging import adamerge
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.flat_model import FlatModel
from taskatlas.merge.hypernetwork import Hypernetwork
from taskatlas.merge.placement import Placement
from taskatlas.merge.task_vectors import TaskVectors
from taskatlas.merge.unlabelled import Unlabelled
from taskatlas.probe import Probe
from taskatlas.store import Store
from taskatlas.zoo import Zoo


def network(seed, classes=3):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, classes))
    for value in made[3].parameters():
        nn.init.normal_(value, 1.0, 0.3)
    return made


def family(count=3, dtype=torch.float32):
    base = network(0).to(dtype)
    return base, {name: network(i + 1).to(dtype) for i, name in enumerate("abcdef"[:count])}


def extractor(dtype=torch.float32):
    torch.manual_seed(99)
    return Extractor.of(nn.Sequential(nn.Linear(4, 7), nn.Tanh()).to(dtype), tap="")


def batch(seed, n=8, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, size=(n, 4))).float()


def streams(tasks, batches=4):
    return {task: [batch((i, j), shift=2.0 * i) for j in range(batches)] for i, task in enumerate(tasks)}


def fused(level="task", **options):
    base, experts = family()
    options = {"steps": 30, "learning_rate": 3e-3, **options}
    return DataAdaptive(base, experts, extractor(), level=level, **options).fit(streams(experts))


class Checkpointed(nn.Sequential):
    """Computes its first layers again in the backward pass."""

    reentrant = False

    def forward(self, x):
        first = nn.Sequential(*list(self)[:3])
        if self.reentrant:
            x = x.clone().requires_grad_()
        return list(self)[4](list(self)[3](checkpoint(first, x, use_reentrant=self.reentrant)))


class Reentrant(Checkpointed):
    reentrant = True


# Against the reference


@pytest.mark.parametrize("level", ["task", "layer"])
@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_it_is_the_loop_with_one_graph_through_everything(level, diversity):
    base, experts = family(dtype=torch.float64)
    f = extractor(torch.float64)
    data = {task: [x.double() for x in its] for task, its in streams(experts).items()}
    how = {"level": level, "steps": 6, "learning_rate": 0.01, "diversity": diversity, "seed": 4}
    found = DataAdaptive(base, experts, f, **how).fit(data)

    shape = (3,) if level == "task" else (3, 8)
    h = Hypernetwork(7, shape, seed=4).double()
    start = [h.first.weight, h.first.bias, h.second.weight, h.second.bias]
    steps = [[(data[t][i % 4], f.checkpoint.module(data[t][i % 4]).detach()) for t in "abc"] for i in range(6)]
    tensors = [{name: value.detach() for name, value in one.named_parameters()} for one in (base, *experts.values())]
    expected, _ = reference.fuse(
        base, tensors[0], tensors[1:], [value.detach() for value in start], shape, steps, 0.01, diversity
    )
    h = found.hypernetwork_
    for one, other in zip([h.first.weight, h.first.bias, h.second.weight, h.second.bias], expected, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-7, atol=1e-9)
    assert abs(found.coefficients_ - 0.3).max() > 0.02


@pytest.mark.parametrize("learner", ["data-adaptive", "adamerging"])
def test_what_is_computed_again_is_computed_with_the_merged_weights(learner):
    found = []
    for kind in (nn.Sequential, Checkpointed):
        base, experts = family()
        base, experts = kind(*base), {name: kind(*expert) for name, expert in experts.items()}
        if learner == "adamerging":
            found.append(adamerge(base, experts, streams(experts), steps=6, learning_rate=0.05).coefficients)
        else:
            fitted = DataAdaptive(base, experts, extractor(), steps=6, learning_rate=0.05).fit(streams(experts))
            found.append(fitted.coefficients_)
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert abs(found[0] - 0.3).max() > 0.02


def test_what_is_computed_again_has_each_experts_own_tensors():
    found = []
    for kind in (nn.Sequential, Checkpointed):
        base, experts = family()
        tensors = {name: expert.state_dict() for name, expert in experts.items()}
        fitted = DataAdaptive(kind(*base), tensors, extractor(), own=["0.*"], steps=6, learning_rate=0.05)
        found.append(fitted.fit(streams(experts)).coefficients_)
    np.testing.assert_allclose(*found, rtol=1e-5)


class Attached(Checkpointed):
    """Its first part needs a weight again that has its gradient by then."""

    kind = staticmethod(lambda part, x: part(x))

    def forward(self, x):
        norm = self[3]
        part = lambda x: self[2](torch.tanh(self[0](x)) * norm.weight.detach().norm())  # noqa: E731
        return self[4](norm(self.kind(part, x)))


class AttachedAgain(Attached):
    kind = staticmethod(lambda part, x: checkpoint(part, x, use_reentrant=False))


def test_weights_stay_until_the_backward_pass_is_over():
    found = []
    for kind in (Attached, AttachedAgain):
        base, experts = family()
        base, experts = kind(*base), {name: kind(*expert) for name, expert in experts.items()}
        fitted = DataAdaptive(base, experts, extractor(), level="layer", steps=6, learning_rate=0.05)
        found.append(fitted.fit(streams(experts)).coefficients_)
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert abs(found[0] - 0.3).max() > 0.02


@pytest.mark.parametrize("learner", ["data-adaptive", "adamerging"])
def test_a_head_that_is_part_of_the_network_is_not_merged(learner):
    found = []
    for head_of in (lambda network: network[4], lambda network: copy.deepcopy(network[4])):
        base, experts = (Featuring(*family()[0]), {n: Featuring(*e) for n, e in family()[1].items()})
        heads = {name: head_of(expert) for name, expert in experts.items()}
        if learner == "adamerging":
            found.append(
                adamerge(base, experts, streams(experts), heads=heads, steps=6, learning_rate=0.05).coefficients
            )
        else:
            fitted = DataAdaptive(base, experts, extractor(), heads=heads, steps=6, learning_rate=0.05)
            found.append(fitted.fit(streams(experts)).coefficients_)
    np.testing.assert_array_equal(*found)


class Featuring(nn.Sequential):
    def forward(self, x):
        return self[3](self[2](self[1](self[0](x))))


@pytest.mark.parametrize("level", ["task", "layer"])
def test_the_closed_form_gradient_is_that_of_autograd_through_an_explicit_merge(level):
    base, experts = family(dtype=torch.float64)
    tensors = [{name: value.detach() for name, value in one.named_parameters()} for one in (base, *experts.values())]
    torch.manual_seed(5)
    coefficients = torch.rand((3,) if level == "task" else (3, 8), dtype=torch.float64, requires_grad=True)
    x = batch(0).double()
    logits = functional_call(base, reference.merged(tensors[0], tensors[1:], coefficients), (x,))
    reference.entropy(logits).backward()
    model = FlatModel(TaskVectors.of(base, experts, dtype=torch.float64))
    model.merge(coefficients)
    model.backward(reference.entropy(functional_call(base, model.tensors, (x,))))
    torch.testing.assert_close(model.gradient_of_coefficients(level), coefficients.grad, rtol=1e-9, atol=1e-12)
    assert coefficients.grad.abs().max() > 1e-3


@pytest.mark.parametrize("level", ["task", "layer"])
@pytest.mark.parametrize("engine", ["auto", "mixing", "vmap", "merging"])
def test_every_sample_is_predicted_by_its_own_merged_model(level, engine):
    found = fused(level, engine=engine)
    x = batch(7, n=9, shift=1.0)
    features = found.fused_.extractor(x)
    for row, coefficients in enumerate(found.hypernetwork_(features).detach()):
        state = found.family_.vectors.state(found.family_.vectors.merged(coefficients))
        logits = functional_call(found.base, state, (x[row : row + 1],))
        got = found.predict_log_proba(x, task="b")[row]
        np.testing.assert_allclose(got, torch.log_softmax(logits, -1)[0].detach(), atol=1e-5)
    spread = found.coefficients(x).reshape(9, -1).std(0)
    assert spread.max() > 0.01  # the samples do have different models


# What is learned


def test_predictions_become_surer_and_coefficients_depend_on_the_input():
    found = fused(steps=150, collapse=None)
    assert found.learned_.entropy[-8:].mean() < found.learned_.entropy[:8].mean() - 0.05
    assert found.coefficients_.shape == (3, 3)
    assert abs(found.coefficients_[0] - found.coefficients_[2]).max() > 0.02
    assert found.learned_.coefficients.shape == (150, 3, 3)
    np.testing.assert_allclose(found.learned_.coefficients[0], 0.3, atol=1e-6)


def test_training_starts_at_task_arithmetic():
    base, experts = family()
    found = DataAdaptive(base, experts, extractor(), steps=1, learning_rate=1e-12).fit(streams(experts))
    np.testing.assert_allclose(found.coefficients(batch(1)), 0.3, atol=1e-6)


@pytest.mark.parametrize(("bound", "low", "high"), [("clamp", 0.0, 1.0), ("softmax", 0.0, 1.0)])
def test_bounded_coefficients_stay_within(bound, low, high):
    found = fused(bound=bound, learning_rate=0.3, steps=20)
    coefficients = found.coefficients(batch(3, n=50, shift=3.0))
    assert coefficients.min() >= low
    assert coefficients.max() <= high
    if bound == "softmax":
        np.testing.assert_allclose(coefficients.sum(1), 1, atol=1e-5)
    else:
        assert coefficients.max() == 1 or coefficients.min() == 0


def test_standardised_features_move_coefficients_further():
    """Here features differ little from one another, as those of unit norm do."""
    base, experts = family()
    f = nn.Sequential(nn.Linear(4, 7), nn.Tanh())
    with torch.no_grad():
        f[0].weight.mul_(0.01)
    apart = []
    for flag in (False, True):
        how = {"standardise": flag, "steps": 15, "learning_rate": 3e-3}
        found = DataAdaptive(base, experts, Extractor.of(f, tap=""), **how).fit(streams(experts))
        apart.append(np.ptp(found.coefficients_, axis=0).max())
    assert apart[1] > 10 * apart[0]


def test_results_are_the_same_whatever_the_order_of_experts_and_tasks():
    base, experts = family()
    data = streams(experts)
    one = DataAdaptive(base, experts, extractor(), steps=5).fit(data)
    other = DataAdaptive(base, dict(reversed(experts.items())), extractor(), steps=5).fit(dict(reversed(data.items())))
    assert one.names_ == other.names_ == ("a", "b", "c")
    assert (one.coefficients_ == other.coefficients_).all()


def test_networks_extractor_and_random_numbers_stay_as_they_were():
    base, experts = family()
    f = nn.Sequential(nn.Linear(4, 7), nn.Dropout(0.5), nn.BatchNorm1d(7)).train()
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in (base, *experts.values(), f)]
    base.train()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    found = DataAdaptive(base, experts, Extractor.of(f, tap=""), steps=3, learning_rate=0.1).fit(streams(experts))
    found.predict(batch(0), task="a")
    assert torch.equal(torch.rand(3), expected)
    assert base.training
    assert f[1].training
    for one, kept in zip((base, *experts.values(), f), before, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, kept[name]), name


def test_an_extractor_in_training_mode_gives_what_it_gives_in_evaluation():
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(4, 7), nn.Dropout(0.5), nn.BatchNorm1d(7)).train()
    x = batch(0)
    found = Extractor.of(f, tap="")(x)
    assert torch.equal(found, f.eval()(x).detach())


def test_features_of_a_probe_are_computed_once_and_kept_in_the_store():
    base, experts = family()
    calls = []
    f = nn.Sequential(nn.Linear(4, 7), nn.Tanh())
    f.register_forward_hook(lambda *_: calls.append(1))
    probes = {
        task: Probe.from_arrays(np.concatenate([x.numpy() for x in its])) for task, its in streams(experts).items()
    }
    first = DataAdaptive(base, experts, Extractor.of(f, tap=""), steps=12, batch_size=8).fit(probes)
    assert len(calls) == 3  # 32 samples of each task, one pass
    again = DataAdaptive(base, experts, Extractor.of(f, tap=""), steps=12, batch_size=8).fit(probes)
    assert len(calls) == 3
    assert (first.coefficients_ == again.coefficients_).all()


def test_features_follow_how_samples_are_prepared(tmp_path):
    base, experts = family()
    probes = {task: Probe.from_arrays(np.concatenate([x.numpy() for x in its])) for task, its in streams("abc").items()}
    f, store, calls = nn.Sequential(nn.Linear(4, 7), nn.Tanh()), Store(tmp_path), []
    f.register_forward_hook(lambda *_: calls.append(1))

    def learned(factor, store):
        prepares = Extractor.of(f, prepare=lambda rows: factor * torch.from_numpy(np.stack(rows)).float(), tap="")
        found = DataAdaptive(base, experts, prepares, steps=3, learning_rate=0.05, store=store).fit(probes)
        found.coefficients(probes["a"])
        return found.coefficients_

    one, other = learned(1.0, store), learned(-50.0, store)
    assert len(calls) == 6  # both once for each task
    assert abs(one - other).max() > 0.01
    assert (other == learned(-50.0, Store(tmp_path / "fresh"))).all()


def test_features_of_a_loader_are_computed_once_for_each_sample():
    base, experts = family()
    calls = []
    f = nn.Sequential(nn.Linear(4, 7), nn.Tanh())
    f.register_forward_hook(lambda *_: calls.append(1))
    DataAdaptive(base, experts, Extractor.of(f, tap=""), steps=12).fit(streams(experts))
    assert len(calls) == 12  # four batches of three tasks


def test_a_mixed_stream_is_told_apart_by_its_features():
    base, experts = family(2)
    mixed = [torch.cat([batch((0, j)), batch((1, j), shift=6.0)])[torch.randperm(16)] for j in range(5)]
    found = DataAdaptive(base, experts, extractor(), steps=30, learning_rate=3e-3).fit(mixed)
    assert found.tasks_ == ("group 0", "group 1")
    assert abs(found.coefficients_[0] - found.coefficients_[1]).max() > 0.01
    assert np.isfinite(found.learned_.entropy).all()


def test_the_head_can_be_inferred():
    base, experts = family(2)
    with torch.no_grad():
        experts["b"][4].weight.mul_(0)  # never sure of anything
        experts["b"][4].bias.mul_(0)
        experts["a"][4].weight.mul_(20)
    found = DataAdaptive(base, experts, extractor(), own=["4.*"], steps=2).fit(streams(experts))
    x = batch(5, n=20)
    assert set(found.infer_tasks(x)) == {"a"}
    assert (found.predict(x) == found.predict(x, task="a")).all()
    probe = Probe.from_arrays(x.numpy(), labels=found.predict(x, task="a"))
    assert found.score(probe, task="a") == 1.0
    assert found.score(probe) == 1.0


def test_heads_of_experts_that_are_tensors_are_told_apart():
    base, experts = family(2)
    with torch.no_grad():
        experts["a"][4].weight.mul_(0)
        experts["a"][4].bias.mul_(0)
        experts["b"][4].weight.mul_(20)
    tensors = {task: expert.state_dict() for task, expert in experts.items()}
    found = DataAdaptive(base, tensors, extractor(), own=["4.*"], steps=2).fit(streams(experts))
    assert found.family_.different() == ["a", "b"]
    assert set(found.infer_tasks(batch(5, n=20))) == {"b"}
    one_head = {task: {**its, "4.weight": tensors["b"]["4.weight"], "4.bias": tensors["b"]["4.bias"]}
                for task, its in tensors.items()}  # fmt: skip
    same = DataAdaptive(base, one_head, extractor(), own=["4.*"], steps=2).fit(streams(experts))
    assert same.family_.different() == ["a"]


def test_heads_of_other_sizes_and_heads_beside_the_network():
    base = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    torch.manual_seed(1)
    experts = {task: nn.Sequential(nn.Linear(4, 6), nn.Tanh()) for task in "ab"}
    heads = {"a": nn.Linear(6, 3), "b": nn.Linear(6, 5)}
    found = DataAdaptive(base, experts, extractor(), heads=heads, steps=4).fit(streams(experts))
    assert found.predict_log_proba(batch(1), task="a").shape == (8, 3)
    assert found.predict_log_proba(batch(1), task="b").shape == (8, 5)
    inferred = found.predict(batch(1))
    assert inferred.shape == (8,)


def test_the_base_model_gives_its_own_early_features():
    base, experts = family()
    found = DataAdaptive(base, experts, Extractor.early(base, "1"), steps=3).fit(streams(experts))
    assert found.hypernetwork_.first.in_features == 6
    expected = base[:2](batch(3)).detach()
    torch.testing.assert_close(found.fused_.extractor(batch(3)), expected)


def test_batch_of_one():
    base, experts = family()
    data = {task: [x[:1] for x in its] for task, its in streams(experts).items()}
    found = DataAdaptive(base, experts, extractor(), steps=3).fit(data)
    assert found.predict(batch(0, n=1), task="a").shape == (1,)


def test_networks_with_batch_norm_get_statistics_of_their_own_task():
    def net(seed):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        made(torch.randn(64, 4) * (seed + 1))
        return made.eval()

    base, experts = net(0), {"a": net(1), "b": net(2)}
    data = {"a": [batch((0, j)) for j in range(4)], "b": [batch((1, j), shift=5.0) for j in range(4)]}
    before = base[1].running_mean.clone()
    found = DataAdaptive(base, experts, extractor(), steps=4, learning_rate=1e-9).fit(data)
    assert torch.equal(base[1].running_mean, before)
    state = found.merged_for(data["b"], task="b")
    seen = torch.cat(data["b"]) @ state["0.weight"].T + state["0.bias"]
    torch.testing.assert_close(state["1.running_mean"], seen.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["1.running_var"], seen.var(0), rtol=1e-4, atol=1e-5)


def test_frozen_batch_norm_statistics_stay():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    base(torch.randn(64, 4))
    experts = {}
    for task in "ab":
        experts[task] = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        experts[task][1].running_mean.copy_(base[1].running_mean)
        experts[task][1].running_var.copy_(base[1].running_var)
    found = DataAdaptive(base.eval(), experts, extractor(), steps=3).fit(streams(experts))
    assert not found.family_.moving_statistics
    assert torch.equal(found.merged_for(batch(0), task="a")["1.running_mean"], base[1].running_mean)


def test_dead_coefficients_are_found_and_reported():
    base, experts = family()
    with torch.no_grad():
        experts["a"][0].weight.copy_(base[0].weight)
        experts["a"][0].bias.copy_(base[0].bias)
        for expert in experts.values():
            expert[2].bias.copy_(base[2].bias)
    found = DataAdaptive(base, experts, extractor(), level="layer", steps=3).fit(streams(experts))
    assert found.dead_[0, :2].all()
    assert found.dead_[:, found.tensors_.index("2.bias")].all()
    assert found.dead_.sum() == 2 + 3
    assert "5 of 24 coefficients dead" in repr(found)
    np.testing.assert_allclose(found.coefficients_[:, 0, :2], 0.3, atol=1e-6)


def test_unreached_tensors_are_dead():
    class Forgetful(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    experts = {"a": Forgetful(1), "b": Forgetful(2)}
    found = DataAdaptive(Forgetful(0), experts, extractor(), level="layer", steps=2).fit(streams(experts))
    assert [name for name, dead in zip(found.tensors_, found.dead_.all(0), strict=True) if dead] == [
        "unused.weight",
        "unused.bias",
    ]


def test_an_expert_that_is_the_base_is_dropped_and_still_has_a_task():
    base, experts = family(2)
    experts["same"] = base
    found = DataAdaptive(base, experts, extractor(), steps=2).fit(streams(experts))
    assert "dead" not in repr(found)
    assert found.names_ == ("a", "b")
    assert found.tasks_ == ("a", "b", "same")
    assert "equal to the base: same" in repr(found)


def drawn_to_one_class():
    """Experts that differ from the base by a bias alone: the surest predictions are those of one class everywhere."""
    base, experts = nn.Linear(4, 3), {task: nn.Linear(4, 3) for task in "ab"}
    with torch.no_grad():
        for module in (base, *experts.values()):
            module.weight.copy_(torch.eye(3, 4))
            module.bias.zero_()
        experts["a"].bias[0] = 9.0
        experts["b"].bias[0] = 8.0
    return base, experts


def test_collapse_stops_goes_back_and_says_so():
    base, experts = drawn_to_one_class()
    data = {task: [batch((i, j)) for j in range(4)] for i, task in enumerate("ab")}
    how = {"steps": 200, "learning_rate": 2e-3, "initial": 0.05}
    found = DataAdaptive(base, experts, extractor(), **how)
    with pytest.warns(UserWarning, match="a, b became alike"):
        found.fit(data)
    assert set(found.collapsed_) == {"a", "b"}
    assert len(found.learned_.entropy) < 200
    assert "collapsed" in repr(found)
    assert found.learned_.coefficients[-1].max() > 1.05 * found.coefficients_.max()  # it went back
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        through = DataAdaptive(base, experts, extractor(), collapse=None, **how).fit(data)
        kept_apart = DataAdaptive(base, experts, extractor(), diversity=1.0, **how).fit(data)
    assert through.learned_.marginal_entropy[-1].max() < 0.3
    assert kept_apart.learned_.marginal_entropy[-1].min() > 0.8


@pytest.mark.parametrize("steps", [16, 59, 70])
def test_collapse_is_seen_at_the_last_step_and_in_short_runs_and_goes_back_there_too(steps):
    base, experts = drawn_to_one_class()
    data = {task: [batch((i, j)) for j in range(4)] for i, task in enumerate("ab")}
    how = {"learning_rate": 2e-2 if steps < 20 else 2e-3, "initial": 0.05}
    with pytest.warns(UserWarning, match="became alike"):
        found = DataAdaptive(base, experts, extractor(), steps=steps, **how).fit(data)
    assert found.learned_.coefficients[-1].max() > 1.05 * found.coefficients_.max()


_PROBE = """
import numpy as np, torch
from pathlib import Path
from torch import nn
from taskatlas.merge.data_adaptive import DataAdaptive

def memory(field):
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) / 1024

torch.set_num_threads(1)
base = nn.Linear(8, 3)
experts = {name: nn.Linear(8, 3) for name in "abcdefgh"}
f = nn.Sequential(nn.Linear(8, 800), nn.Tanh(), nn.Linear(800, 1))
data = {name: [torch.randn(2, 8)] for name in experts}
how = {"collapse": None}
DataAdaptive(base, experts, f, steps=2, **how).fit(data)
before = memory("VmHWM")
DataAdaptive(base, experts, f, steps=20, **how).fit(data)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process as Linux tells it")
def test_memory_does_not_grow_with_tasks_and_steps():
    """A hypernetwork of 800 features has gradients of 2.5 MB, freed in each of 160 backward passes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC")}
    run = subprocess.run([sys.executable, "-c", _PROBE], check=True, capture_output=True, text=True, env=environment)
    assert float(run.stdout) < 60


def test_transductive_is_named():
    assert "transductive" in repr(fused(transductive=True, steps=2))
    assert fused(steps=2).adaptation_ == "held-out"


def test_scikit_learn_knows_its_parameters():
    base, experts = family()
    found = DataAdaptive(base, experts, extractor(), steps=7, level="layer")
    assert found.get_params(deep=False)["steps"] == 7
    assert found.set_params(steps=9).steps == 9
    assert clone(found, safe=False) is not found
    assert repr(found) == "DataAdaptive(layer-wise, not fitted)"
    with pytest.raises(NotFittedError):
        found.predict(batch(0), task="a")


def test_parts_on_several_devices():
    base, experts = family()
    place = Placement(networks=("cpu", "cpu:0"))
    one = DataAdaptive(base, experts, extractor(), steps=5, placement=place).fit(streams(experts))
    other = DataAdaptive(base, experts, extractor(), steps=5).fit(streams(experts))
    np.testing.assert_allclose(one.coefficients_, other.coefficients_, atol=1e-7)
    with pytest.raises(BadInput, match="no device"):
        Placement(vectors="cuda:7")


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(experts={}), "no experts"),
        (lambda a: a["experts"].update(d=nn.Linear(4, 3)), r"lacks 0\.weight, .*2\.weight"),
        (lambda a: a.update(experts={"a": network(0), "b": network(0)}), "equals the base"),
        (lambda a: a.update(extractor={}), "extractor is a dict"),
        (lambda a: a.update(extractor="nowhere/at/all"), "no extractor at nowhere/at/all"),
        (lambda a: a.update(data=batch(0)), "mixed stream are a Tensor; give a Probe"),
        (lambda a: a["data"].update(a=batch(0)), "the data of task 'a' are a Tensor"),
        (lambda a: a.update(heads={"a": nn.Identity()}), "'b' has no head"),
        (lambda a: a.update(extractor=nn.Linear(5, 2)), "extractor cannot take"),
        (lambda a: a["data"].clear(), "no data"),
        (lambda a: a["data"].update(z=[batch(0)]), "'z' and no such expert"),
        (lambda a: a["data"].update(a=[]), "task 'a' give no batch"),
        (lambda a: a["data"].update(a=iter([batch(0)])), "passed over again"),
        (lambda a: a["data"].update(a=[batch(0)[:0]]), "no samples"),
        (lambda a: a["data"].update(a=[torch.randn(4, 5)]), "cannot take a batch"),
    ],
)
def test_bad_input(change, message):
    base, experts = family()
    arguments = {"base": base, "experts": experts, "extractor": extractor(), "data": streams(experts)}
    change(arguments)
    data = arguments.pop("data")
    with pytest.raises(BadInput, match=message):
        DataAdaptive(**{"steps": 3, **arguments}).fit(data).predict(batch(0), task="a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("level", "tensor"), ("bound", "tanh"), ("engine", "fast"), ("optimizer", "sgd")),
        *(
            ("steps", 0),
            ("steps", 2.5),
            ("steps", "3"),
            ("steps", True),
            ("batch_size", 0),
            ("seed", "x"),
            ("seed", -1),
        ),
        *(("learning_rate", 0.0), ("learning_rate", 1e30), ("learning_rate", "1"), ("learning_rate", float("nan"))),
        *(("initial", float("nan")), ("initial", None), ("diversity", -1.0), ("diversity", float("nan"))),
        *(("collapse", 5.0), ("collapse", -1), ("collapse", float("nan")), ("own", "4.*"), ("own", 5)),
        *(("placement", "cpu"), ("store", "x"), ("base", None), ("experts", None), ("experts", [nn.Linear(1, 1)])),
    ],
)
def test_bad_options(name, value):
    base, experts = family()
    with pytest.raises(BadInput, match=f"^(the )?{name}( is| are|=)"):
        DataAdaptive(base, experts, extractor()).set_params(**{name: value}).fit(streams(experts))


def test_shapes_that_do_not_fit_are_listed():
    base, experts = family(2)
    wrong = {name: value.clone() for name, value in experts["b"].state_dict().items()}
    wrong["0.weight"] = torch.zeros(9, 4)
    vectors = {"a": experts["a"].state_dict(), "b": wrong}
    with pytest.raises(BadInput, match=r"0\.weight is \(9, 4\) there and \(6, 4\) in the base"):
        TaskVectors.of(base, vectors)


def test_experts_of_another_width_are_listed():
    base, experts = family(2)

    def wide(seed, hidden=16, classes=3):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 5), nn.LayerNorm(5), nn.Linear(5, classes))
        )

    listed = (
        r"of a, 0\.weight is \(16, 4\) there and \(6, 4\) in the base, 0\.bias .*2\.weight .*own=\['0\.\*', '2\.\*'"
    )
    for others in ({"a": wide(1), "b": wide(2)}, {"a": wide(1), "b": experts["b"]}, {"a": wide(1, classes=4)}):
        with pytest.raises(BadInput, match=listed):
            DataAdaptive(base, others, extractor(), steps=3).fit(streams(others))


def test_heads_of_other_numbers_of_classes_are_each_experts_own_and_reported():
    base = network(0)
    experts = {"a": network(1, 3), "b": network(2, 5)}
    found = DataAdaptive(base, experts, extractor(), steps=2).fit(streams(experts))
    assert "each expert's own: 4.bias, 4.weight" in repr(found)
    assert found.predict_log_proba(batch(1), task="b").shape == (8, 5)
    rows, more = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)), nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    with pytest.raises(BadInput, match=r"0\.weight is \(9, 4\) there and \(7, 4\)"):  # words, and no classes
        DataAdaptive(rows, {"a": more}, extractor(), steps=2).fit(streams("a"))


def test_checkpoints_bring_their_networks(tmp_path):
    base, experts = family(2)
    for name, module in {"base": base, **experts}.items():
        save_file(module.state_dict(), tmp_path / f"{name}.safetensors")
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), "
        "nn.LayerNorm(5), nn.Linear(5, 3))\n"
    )
    files = {name: tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")}
    zoo = Zoo.open(files, builder=f"{tmp_path / 'nets.py'}:net")
    opened = DataAdaptive(zoo["base"], {task: zoo[task] for task in "ab"}, extractor(), steps=3).fit(streams("ab"))
    given = DataAdaptive(base, experts, extractor(), steps=3).fit(streams("ab"))
    assert (opened.coefficients_ == given.coefficients_).all()
    with pytest.raises(BadInput, match="as a checkpoint with a builder"):
        DataAdaptive(files["base"], {task: files[task] for task in "ab"}, extractor(), steps=3).fit(streams("ab"))


def test_networks_whose_predictions_depend_on_nothing_merged_are_told():
    class Apart(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    experts = {"a": Apart(1), "b": Apart(2)}
    with pytest.raises(BadInput, match="no output of the network of task 'a' depends on a tensor that is merged"):
        DataAdaptive(Apart(0), experts, extractor(), own=["used.*"], steps=2).fit(streams(experts))


@pytest.mark.parametrize("labels", [[1], [1, 2], [[1]] * 8])
def test_scores_need_a_label_for_each_sample(labels):
    with pytest.raises(BadInput, match="for 8 samples"):
        fused(steps=2).score(batch(0), labels, task="a")


def test_a_last_step_that_breaks_the_hypernetwork_fails(monkeypatch):
    monkeypatch.setattr("taskatlas.merge.fusion_learning.spread_of", lambda logits: logits.sum() * float("nan"))
    base, experts = family()
    with pytest.raises(WorkFailed, match="NaN or infinite in step 1 of 1"):
        DataAdaptive(base, experts, extractor(), diversity=0.5, steps=1).fit(streams(experts))


def test_a_mixed_stream_of_equal_samples_is_one_group():
    base, experts = family(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = DataAdaptive(base, experts, extractor(), steps=3).fit([torch.ones(8, 4)])
    assert found.tasks_ == ("group 0",)
    assert np.isfinite(found.coefficients_).all()


def with_batch_norm(seed):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    made(torch.randn(64, 4) * (seed + 1))
    return made.eval()


def test_a_sample_that_is_alone_in_its_group_does_not_stop_batch_norm():
    mixed = [torch.cat([batch((0, j), n=7), batch((1, j), n=1, shift=6.0)]) for j in range(5)]
    experts = {"a": with_batch_norm(1), "b": with_batch_norm(2)}
    found = DataAdaptive(with_batch_norm(0), experts, extractor(), steps=4).fit(mixed)
    assert np.isfinite(found.coefficients_).all()
    with pytest.raises(BadInput, match="more than one sample"):
        DataAdaptive(with_batch_norm(0), experts, extractor(), steps=4).fit([batch(0, n=1), batch(1, n=1)])


def test_batch_norm_statistics_that_were_not_estimated_are_told():
    base, experts = with_batch_norm(0), {"a": with_batch_norm(1), "b": with_batch_norm(2)}
    found = DataAdaptive(base, experts, extractor(), steps=3).fit(streams(experts))
    assert "estimate_statistics" not in repr(found)
    with pytest.warns(UserWarning, match="Call estimate_statistics"):
        other = found.transferred(base, experts)
    assert "BatchNorm statistics are the experts' mean, see estimate_statistics" in repr(other)
    other.estimate_statistics(streams(experts))
    assert "estimate_statistics" not in repr(other)


def test_networks_that_torch_cannot_go_through_in_parts_are_told():
    base, experts = family()
    base, experts = Reentrant(*base), {name: Reentrant(*expert) for name, expert in experts.items()}
    for learn in (
        lambda: DataAdaptive(base, experts, extractor(), steps=1).fit(streams(experts)),
        lambda: adamerge(base, experts, streams(experts), steps=1),
    ):
        with pytest.raises(BadInput, match="network of task 'a' is checkpointed with use_reentrant=True"):
            learn()


def test_networks_without_statistics_have_none_to_estimate():
    found = fused(steps=2)
    before = found.predict_log_proba([batch(0)], "a")
    assert found.estimate_statistics(streams("abc")) is found
    np.testing.assert_array_equal(found.predict_log_proba([batch(0)], "a"), before)


def test_predictions_that_are_nan_fail_with_the_task_and_the_step():
    base, experts = family()

    class Breaks(nn.Module):
        def forward(self, x):
            return x / 0 * 0

    heads = {task: (Breaks() if task == "b" else nn.Identity()) for task in experts}
    with pytest.raises(WorkFailed, match="'b' became NaN in step 1 of 3"):
        DataAdaptive(base, experts, extractor(), heads=heads, steps=3).fit(streams(experts))


def test_nan_features_are_refused():
    base, experts = family()
    data = streams(experts)
    data["a"][0][0, 0] = float("nan")
    with pytest.raises(BadInput, match="NaN"):
        DataAdaptive(base, experts, extractor(), steps=3).fit(data)


def test_batches_do_not_serve_an_extractor_that_needs_raw_samples():
    base, experts = family()
    f = Extractor.of(nn.Linear(4, 3), prepare=lambda rows: torch.from_numpy(np.stack(rows)).float() * 2, tap="")
    with pytest.raises(BadInput, match="Give a Probe"):
        DataAdaptive(base, experts, f, steps=3).fit(streams(experts))
    probes = {task: Probe.from_arrays(its[0].numpy()) for task, its in streams(experts).items()}
    found = DataAdaptive(base, experts, f, steps=3).fit(
        {task: Unlabelled(p, batch_size=4) for task, p in probes.items()}
    )
    assert found.predict(probes["a"], task="a").shape == (8,)


def test_an_unknown_task_is_told():
    with pytest.raises(BadInput, match="no task 'z'; there are a, b, c"):
        fused(steps=2).predict(batch(0), task="z")
