"""Learned coefficients against a plain loop with one graph through everything; what a result says about itself."""

import jaxtyping
import numpy as np
import pytest
import torch
from tests.references import merge_data as reference
from torch import nn

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.merge.adamerged import AdaMerged
from taskatlas.merge.adamerging import adamerge, mean_entropy
from taskatlas.merge.task_vectors import TaskVectors
from taskatlas.merge.unlabelled import Unlabelled
from taskatlas.probe import Probe


def network(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, classes))


def family(count=3):
    return network(0), {name: network(i + 1) for i, name in enumerate("abcdef"[:count])}


def batch(seed, n=8):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 2))).float()


def streams(tasks, batches=4):
    return {task: [batch((i, j)) for j in range(batches)] for i, task in enumerate(tasks)}


@pytest.mark.parametrize("level", ["task", "layer"])
@pytest.mark.parametrize("density", [None, 0.4])
def test_it_is_the_loop_with_one_graph_through_everything(level, density):
    base, experts = family()
    base = base.double()
    experts = {name: expert.double() for name, expert in experts.items()}
    data = {task: [x.double() for x in its] for task, its in streams(experts).items()}
    found = adamerge(base, experts, data, level=level, density=density, steps=6, learning_rate=0.05)

    tensors = {name: value.detach() for name, value in base.named_parameters()}
    theirs = [{name: value.detach() for name, value in experts[e].named_parameters()} for e in experts]
    if density is not None:
        flat = torch.cat([value.flatten() for value in tensors.values()])
        deltas = torch.stack([torch.cat([value.flatten() for value in its.values()]) for its in theirs]) - flat
        kept = torch.from_numpy(reference.trimmed_and_elected(deltas.numpy(), density)) + flat
        sizes = [value.numel() for value in tensors.values()]
        theirs = [
            {
                name: part.view(value.shape)
                for (name, value), part in zip(tensors.items(), row.split(sizes), strict=True)
            }
            for row in kept
        ]
    expected = reference.adamerging(
        lambda merged, x: torch.func.functional_call(base, merged, (x,)),
        tensors,
        theirs,
        [[data[task][step % 4] for task in sorted(data)] for step in range(6)],
        layerwise=level == "layer",
        steps=6,
        learning_rate=0.05,
        initial=0.3,
    )
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-9, atol=1e-11)
    assert abs(expected - 0.3).max() > 0.05


def test_predictions_become_surer_and_the_merged_weights_are_those_of_the_coefficients():
    base, experts = family()
    found = adamerge(base, experts, streams(experts), steps=60, learning_rate=0.02)
    assert found.entropy[-4:].mean() < found.entropy[:4].mean() - 0.02
    assert found.path.shape == (61, 3, 4)
    assert (found.path[0] == 0.3).all()
    assert (found.path[-1] == found.coefficients).all()
    vectors = TaskVectors.of(base, experts)
    expected = vectors.state(vectors.merged(torch.from_numpy(found.coefficients)))
    torch.testing.assert_close(dict(found.state), expected)
    base.load_state_dict(found.state_for("a"))


def test_the_seed_fixes_everything_and_the_order_of_dictionaries_nothing():
    base, experts = family()
    probe = Probe.from_arrays(batch(5, 20).numpy())
    data = {task: Unlabelled(probe, batch_size=6) for task in experts}
    first = adamerge(base, experts, data, steps=5, seed=3)
    torch.rand(7)
    again = adamerge(base, dict(reversed(experts.items())), dict(reversed(data.items())), steps=5, seed=3)
    assert first.digest == again.digest
    assert adamerge(base, experts, data, steps=5, seed=4).digest != first.digest


def test_a_dataloader_and_labels_beside_are_fine():
    base, experts = family(2)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(batch(0, 10), torch.zeros(10)), batch_size=4, shuffle=True
    )
    assert len(adamerge(base, experts, dict.fromkeys(experts, loader), steps=7).entropy) == 7


def test_nothing_is_left_behind():
    base, experts = family()
    for net in (base, *experts.values()):
        net.insert(1, nn.Dropout(0.5))
        net.train()
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in experts.items()}
    state = torch.get_rng_state()
    first = adamerge(base, experts, streams(experts), steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    for name, net in experts.items():
        torch.testing.assert_close(dict(net.state_dict()), before[name], rtol=0, atol=0)
        assert all(part.training for part in net.modules())
        assert all(p.grad is None for p in net.parameters())
    assert adamerge(base, experts, streams(experts), steps=3).digest == first.digest  # no dropout


class Classifier(nn.Module):
    def __init__(self, seed, classes):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, classes)

    def forward(self, x):
        return {"logits": self.head(torch.tanh(self.body(x)))}


def test_heads_of_other_shapes_are_each_tasks_own():
    base, experts = Classifier(0, 2), {"a": Classifier(1, 3), "b": Classifier(2, 4)}
    found = adamerge(base, experts, streams(experts), steps=3)
    assert found.tensors == ("body.weight", "body.bias")
    assert "each expert's own: head.bias, head.weight" in repr(found)
    assert {task: its["head.bias"].shape for task, its in found.own.items()} == {"a": (3,), "b": (4,)}
    for task, expert in experts.items():
        merged = found.state_for(task)
        assert torch.equal(merged["head.weight"], expert.head.weight)
        expert.load_state_dict(merged)


def test_heads_of_one_shape_are_named_or_given_apart():
    base, experts = Classifier(0, 3), {"a": Classifier(1, 3), "b": Classifier(2, 3)}
    data = streams(experts)
    mixed = adamerge(base, experts, data, steps=3)
    named = adamerge(base, experts, data, steps=3, own=["head.*"])
    assert "head.weight" in mixed.tensors
    assert named.tensors == ("body.weight", "body.bias")

    class Body(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return torch.tanh(self.body(x))

    heads = {task: expert.head for task, expert in experts.items()}
    bodies = {task: {"body.weight": e.body.weight, "body.bias": e.body.bias} for task, e in experts.items()}
    apart = adamerge(Body(base.body), bodies, data, heads=heads, steps=3)
    np.testing.assert_allclose(apart.coefficients, named.coefficients, rtol=1e-12)
    assert heads["a"].weight.grad is None


def test_dead_coefficients_stay_and_are_told():
    base, experts = family(2)
    experts["a"].load_state_dict(experts["a"].state_dict() | {"2.weight": base[2].weight})
    experts["same"] = base
    for net in (base, *experts.values()):
        net.register_parameter("unused", nn.Parameter(torch.rand(3)))
    found = adamerge(base, experts, streams(experts), steps=5)
    assert (found.names, found.dropped, found.unreached) == (("a", "b"), ("same",), ("unused",))
    dead = {(found.names[i], found.tensors[t]) for i, t in zip(*np.nonzero(found.dead), strict=True)}
    assert dead == {("a", "2.weight"), ("a", "unused"), ("b", "unused")}
    assert (found.coefficients[found.dead] == 0.3).all()
    assert (found.coefficients[~found.dead] != 0.3).all()
    assert "3 of 10 coefficients dead" in repr(found)
    assert "equal to the base: same" in repr(found)
    assert found.by_expert()["a"] == pytest.approx(found.coefficients[0][~found.dead[0]].mean())


def test_collapse_is_told():
    """Two experts that say one class whatever comes: the surest mixture is the blindest one."""
    base = nn.Linear(2, 2)
    blind = {name: nn.Linear(2, 2) for name in "ab"}
    with torch.no_grad():
        base.weight.copy_(2 * torch.eye(2))
        base.bias.zero_()
        for net in blind.values():
            net.weight.copy_(base.weight)
            net.bias.copy_(torch.tensor([4.0, -4.0]))
    found = adamerge(base, blind, streams(blind), level="task", initial=0.0, learning_rate=0.05, steps=60)
    assert found.collapsed == ("a", "b")
    assert "collapsed: a, b" in repr(found)
    assert adamerge(base, blind, streams(blind), level="task", initial=0.0, steps=5).collapsed == ()


def test_batch_norm_sees_its_batch_and_keeps_pooled_statistics():
    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))

    base, experts = net(0), {"a": net(1), "b": net(2)}
    data = streams(experts)
    found = adamerge(base, experts, data, steps=4)
    seen = torch.cat([x for its in data.values() for x in its])
    hidden = seen @ found.state["0.weight"].T + found.state["0.bias"]
    torch.testing.assert_close(found.state["1.running_mean"], hidden.mean(0))
    torch.testing.assert_close(found.state["1.running_var"], hidden.var(0))
    assert experts["a"][1].num_batches_tracked == 0
    assert experts["a"][1].running_mean.eq(0).all()
    assert found.state["1.num_batches_tracked"] == 0
    with pytest.raises(BadInput, match="more than one sample"):
        adamerge(base, experts, {"a": [batch(0, 1)]}, steps=1)


def test_an_encoder_decoder_is_asked_for_the_first_token():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    sizes = {"vocab_size": 13, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0)

    def net(seed):
        torch.manual_seed(seed)
        return transformers.T5ForConditionalGeneration(config).eval()

    base, experts = net(0), {"a": net(1), "b": net(2)}
    ids = torch.randint(1, 13, (4, 5), generator=torch.Generator().manual_seed(0))
    found = adamerge(base, experts, {task: [{"input_ids": ids}] for task in experts}, level="task", steps=2)
    base.load_state_dict(
        {
            **base.state_dict(),
            **adamerge(
                base,
                experts,
                {task: [{"input_ids": ids}] for task in experts},
                level="task",
                steps=1,
                learning_rate=1e-9,
            ).state,
        }
    )
    with torch.no_grad():
        logits = base(input_ids=ids, decoder_input_ids=torch.zeros(4, 1, dtype=torch.int64)).logits[:, 0]
    assert found.entropy[0, 0] == pytest.approx(float(mean_entropy(logits)[0]), rel=1e-5)


def test_results_name_what_is_transductive():
    base, experts = family(2)
    found = adamerge(base, experts, streams(experts), steps=2, transductive=True)
    assert "transductive" in repr(found)
    assert "transductive" not in repr(adamerge(base, experts, streams(experts), steps=2))
    assert found.plot().get_title().endswith("on the scored samples")


@pytest.mark.parametrize("level", ["task", "layer"])
def test_results_come_back_from_a_file(tmp_path, level):
    base, experts = Classifier(0, 2), {"a": Classifier(1, 3), "b": Classifier(2, 4)}
    found = adamerge(base, experts, streams(experts), level=level, steps=3, density=0.5)
    found.save(tmp_path / "merged.safetensors")
    loaded = AdaMerged.load(tmp_path / "merged.safetensors")
    assert (loaded.digest, repr(loaded), loaded.settings) == (found.digest, repr(found), found.settings)
    torch.testing.assert_close(loaded.state_for("b"), found.state_for("b"), rtol=0, atol=0)
    np.testing.assert_array_equal(loaded.path, found.path)
    ax = loaded.plot()
    assert ax.get_title()
    assert ax.get_xlabel()


def test_damaged_results_are_told(tmp_path):
    path = tmp_path / "merged.safetensors"
    with pytest.raises(BadInput, match="no file"):
        AdaMerged.load(path)
    base, experts = family(2)
    adamerge(base, experts, streams(experts), steps=2).save(path)
    whole = path.read_bytes()
    for cut in (b"", whole[:50], whole[:-9], whole.replace(b"history/path", b"history/pxth"), whole.replace(b"taskatlas.a", b"taskatlas.b")):  # fmt: skip  # noqa: E501
        path.write_bytes(cut)
        with pytest.raises(BadInput, match=r"merged\.safetensors"):
            AdaMerged.load(path)


def test_entropy():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
    p = np.stack([reference.softmax(row) for row in logits.numpy()])
    mean, marginal = mean_entropy(logits)
    assert float(mean) == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-12)
    assert float(marginal) == pytest.approx(-(p.mean(0) * np.log(p.mean(0))).sum(), rel=1e-12)
    assert mean_entropy(1e30 * torch.eye(2)) == (0, pytest.approx(np.log(2)))


BASE, EXPERTS = family(2)


@pytest.mark.parametrize(
    ("experts", "data", "how", "said"),
    [
        (EXPERTS, {}, {}, "no data"),
        (EXPERTS, streams("az"), {}, "data of 'z' and no such expert"),
        (EXPERTS, {"a": []}, {}, "task 'a' give no batch"),
        (EXPERTS, {"a": iter([batch(0)])}, {}, "or give them only once"),
        (EXPERTS, {"a": [torch.zeros(3, 5)]}, {}, "network of task 'a' cannot take a batch"),
        (EXPERTS, streams("a"), {"level": "layers"}, "level='layers' is none. Choose one of: task, layer"),
        (EXPERTS, streams("a"), {"initial": float("nan")}, "cannot start at nan"),
        (EXPERTS, streams("a"), {"steps": 0}, "learn nothing"),
        (EXPERTS, streams("a"), {"learning_rate": 0.0}, "learn nothing"),
        (EXPERTS, streams("a"), {"density": 2.0}, "density"),
        (EXPERTS, streams("ab"), {"heads": {"a": nn.Identity()}}, "task 'b' has no head"),
        (EXPERTS, streams("a"), {"heads": {"a": nn.Flatten(0)}}, "not one row of logits"),
        ({"a": BASE}, streams("a"), {}, "every expert equals the base"),
        ({"a": nn.Linear(2, 3)}, streams("a"), {}, "a lacks 0.weight"),
    ],
)
def test_what_cannot_be_learned_is_told(monkeypatch, experts, data, how, said):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(BadInput, match=said):
        adamerge(BASE, experts, data, **{"steps": 2} | how)


def test_tensors_alone_have_no_network():
    tensors = {name: dict(net.state_dict()) for name, net in EXPERTS.items()}
    with pytest.raises(BadInput, match="no network to run task 'a'"):
        adamerge(dict(BASE.state_dict()), tensors, streams("a"))
    adamerge(BASE, tensors, streams("a"), steps=1)


def test_predictions_that_are_nan_are_told():
    data = {"a": [batch(0), batch(0) * float("nan")], "b": [batch(0)]}
    with pytest.raises(WorkFailed, match="task 'a' became NaN in step 2 of 3"):
        adamerge(BASE, EXPERTS, data, steps=3)
