"""Fisher information of single samples against back-propagation on paper, and the average that it weighs."""

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import merge_data as reference
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.fisher_information import _vmap_takes, diagonal_fisher, fisher, fisher_merge
from taskatlas.probe import Probe
from taskatlas.zoo import Checkpoint


def network(seed=0, inputs=3, hidden=4, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()


class Stubborn(nn.Module):
    """The same network behind control flow that depends on data, which vmap cannot batch."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if float(x.sum()) < 1e9 else x


class Words(nn.Module):
    """Mean of the embeddings of tokens that are no padding, then a linear layer; a mapping goes in."""

    def __init__(self, tied=False):
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.out = nn.Linear(3, 7 if tied else 2)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, input_ids, attention_mask, scale=1.0):
        kept = attention_mask[..., None].to(self.table.weight.dtype)
        return {"logits": self.out((self.table(input_ids) * kept).sum(1) / kept.sum(1) * scale)}


def data(seed=0, n=5, inputs=3):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, inputs)))


def expected(net, x, labels=None):
    W1, b1, W2, b2 = (p.detach().numpy() for p in net.parameters())
    found = reference.two_layer_fisher(W1, b1, W2, b2, x.numpy(), labels)
    return dict(zip(["0.weight", "0.bias", "2.weight", "2.bias"], found.values(), strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wrap", [lambda net: net, Stubborn], ids=["together", "in turn"])
def test_it_is_what_back_propagation_on_paper_gives(seed, wrap):
    net, x = network(seed), data(seed)
    found = diagonal_fisher(wrap(net), [x[:2], x[2:]])
    for name, value in expected(net, x).items():
        np.testing.assert_allclose(found[f"inner.{name}" if wrap is Stubborn else name], value, rtol=1e-10, atol=1e-14)


def test_both_ways_are_tried_above():
    net, x = network(), data(n=1)
    job = ({"": x}, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.float64))
    assert _vmap_takes(net, dict(net.named_parameters()), *job)
    stubborn = Stubborn(net)
    assert not _vmap_takes(stubborn, dict(stubborn.named_parameters()), *job)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), classes=st.integers(2, 30))
@settings(max_examples=15, deadline=None)
def test_a_softmax_layer_has_a_closed_form(seed, n, classes):
    """F = mean over x of p_c (1 - p_c) x_j²: also above the number of classes at which labels would be drawn."""
    torch.manual_seed(seed % 2**31)
    net, x = nn.Linear(3, classes).double(), data(seed, n)
    p = torch.softmax(net(x), -1).detach()
    found = diagonal_fisher(net, [x], labels="exact")
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(0))
    torch.testing.assert_close(found["weight"], torch.einsum("nc,nj->cj", p * (1 - p), x**2) / n)


def test_drawn_labels_give_the_square_at_the_label():
    net, x = network(), data(n=40)
    draw = torch.rand(40, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cumulative = torch.softmax(net(x), -1).cumsum(-1).detach()
    labels = (draw > cumulative).sum(-1).tolist()
    assert len(set(labels)) == 3
    found = diagonal_fisher(net, [x], labels="sampled", seed=3)
    for name, value in expected(net, x, labels).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10)


def test_drawn_labels_do_not_depend_on_batches_but_on_the_seed():
    net, x = network(), data(n=12)
    whole = diagonal_fisher(net, [x], labels="sampled", seed=1)
    parts = diagonal_fisher(net, list(x.split(5)), labels="sampled", seed=1)
    other = diagonal_fisher(net, [x], labels="sampled", seed=2)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    assert not torch.allclose(other["0.weight"], whole["0.weight"])


def test_drawn_labels_are_right_on_average():
    net, x = network(), data(n=1)
    many = diagonal_fisher(net, [x.expand(4000, 3)], samples=4000, labels="sampled")
    for name, value in expected(net, x).items():
        np.testing.assert_allclose(many[name], value, rtol=0.15, atol=1e-4)


def test_labels_are_drawn_only_where_there_are_many_classes():
    few, many, x = nn.Linear(3, 20).double(), nn.Linear(3, 21).double(), data()
    torch.testing.assert_close(diagonal_fisher(few, [x]), diagonal_fisher(few, [x], labels="exact"))
    torch.testing.assert_close(diagonal_fisher(many, [x]), diagonal_fisher(many, [x], labels="sampled"))


def test_it_is_a_mean_over_samples_and_no_square_of_a_mean():
    net, x = network(), data(n=6)
    whole = diagonal_fisher(net, [x])
    torch.testing.assert_close(diagonal_fisher(net, [x, x.flip(0)]), whole)
    grads = torch.autograd.grad(torch.log_softmax(net(x), -1).mean(0).sum(), net.parameters())
    for value, grad in zip(whole.values(), grads, strict=True):
        assert (value > grad**2).any()


@pytest.mark.parametrize("samples", [1, 3, 7, 100])
def test_the_first_samples_count(samples):
    net, x = network(), data(n=8)
    torch.testing.assert_close(
        diagonal_fisher(net, x.split(3), samples=samples), diagonal_fisher(net, [x[:samples]]), rtol=1e-10, atol=0
    )


def test_token_models_whatever_the_padding():
    torch.manual_seed(0)
    net = Words().double()
    alone = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    padded = {
        "input_ids": torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        "labels": torch.tensor([0, 1]),
        "scale": 1.0,
    }
    first = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in padded.items()}
    torch.testing.assert_close(diagonal_fisher(net, [first]), diagonal_fisher(net, [alone]))
    found = diagonal_fisher(net, [padded])
    assert (found["table.weight"][[1, 2, 3, 4, 5, 6]] > 0).all()
    assert (found["table.weight"][0] == 0).all()


def test_tied_weights_have_one_information_under_both_names():
    net = Words(tied=True)
    batch = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2)}
    found = diagonal_fisher(net, [batch])
    assert torch.equal(found["table.weight"], found["out.weight"])
    untied = Words()
    untied.out = nn.Linear(3, 7)
    untied.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    apart = diagonal_fisher(untied, [batch])
    assert not torch.allclose(apart["out.weight"], found["out.weight"])  # the gradient is that of both uses


def test_a_transformer_is_taken_sample_by_sample():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    net = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=11, num_labels=3, **sizes))
    batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    found = diagonal_fisher(net, [batch])
    net.eval()
    total = torch.zeros_like(net.classifier.weight)
    for n in range(2):
        log_probs = torch.log_softmax(net(**{k: v[n : n + 1] for k, v in batch.items()}).logits[0], -1)
        for label in range(3):
            (grad,) = torch.autograd.grad(log_probs[label], net.classifier.weight, retain_graph=True)
            total += log_probs[label].exp().detach() * grad**2 / 2
    torch.testing.assert_close(found["classifier.weight"], total)
    assert set(found) == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("wrap", [lambda net: net, Stubborn], ids=["together", "in turn"])
def test_nothing_is_left_behind(wrap):
    net = wrap(nn.Sequential(nn.Dropout(0.5), network()))
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    first = diagonal_fisher(net, [data()])
    assert net.training
    assert all(part.training for part in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(diagonal_fisher(net, [data()]), first, rtol=0, atol=0)  # no dropout


def test_half_precision_is_added_up_in_float32():
    net = network().float()
    found = diagonal_fisher(net.bfloat16(), [data()])
    assert {value.dtype for value in found.values()} == {torch.float32}
    for name, value in expected(network(), data()).items():
        np.testing.assert_allclose(found[name], value, rtol=0.3, atol=2e-3)


def test_a_checkpoint_is_measured_once(monkeypatch):
    net, probe = network().float(), Probe.from_arrays(data(n=30).numpy())
    checkpoint = Checkpoint("net", module=net.eval())
    found = fisher(checkpoint, probe, samples=10, batch_size=4)
    rows = np.sort(np.random.default_rng(0).permutation(30)[:10])
    torch.testing.assert_close(found, dict(sorted(diagonal_fisher(net, [data(n=30)[rows]]).items())))
    monkeypatch.setattr(Checkpoint, "open", lambda *_: pytest.fail("opened again"))
    torch.testing.assert_close(fisher(checkpoint, probe, samples=10, batch_size=7), found, rtol=0, atol=0)


def test_other_settings_are_measured_anew():
    checkpoint, probe = Checkpoint("net", module=network().float().eval()), Probe.from_arrays(data(n=30).numpy())
    found = [
        fisher(checkpoint, probe, **how)["0.weight"]
        for how in ({"samples": 10}, {"samples": 11}, {"samples": 10, "seed": 1}, {"samples": 10, "labels": "sampled"})
    ]
    assert all(not torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("module", "batches", "how", "said"),
    [
        (network(), [], {}, "no samples"),
        (network(), [data()], {"samples": 0}, "at least 1"),
        (network(), [data()], {"labels": "true"}, "exact, sampled"),
        (network(), [data(inputs=4)], {}, "cannot take a batch"),
        (network(), ["text"], {}, "a batch is a str"),
        (network(), [data()[:0]], {}, "no samples"),
        (nn.Flatten(0), [data()], {}, r"shape \(15,\) for 5 samples"),
        (nn.Linear(3, 2).double(), [data() * float("nan")], {}, "NaN"),
    ],
)
def test_what_cannot_be_measured_is_told(monkeypatch, module, batches, how, said):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(BadInput, match=said):
        diagonal_fisher(module, batches, **how)


# The average


@st.composite
def families(draw):
    n, shape = draw(st.integers(1, 4)), draw(st.sampled_from([(), (1,), (5,), (2, 3), (0,)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    thetas = [random.normal(size=shape) for _ in range(n)]
    fishers = [random.exponential(size=shape) * random.integers(0, 2, size=shape) for _ in range(n)]
    return thetas, fishers, random.uniform(0.1, 3, n)


@given(families())
@settings(max_examples=60, deadline=None)
def test_the_average_is_that_of_the_reference(family):
    thetas, fishers, weights = family
    names = [f"m{i}" for i in range(len(thetas))]
    found = fisher_merge(
        {name: {"w": torch.as_tensor(t)} for name, t in zip(names, thetas, strict=True)},
        {name: {"w": torch.as_tensor(F)} for name, F in zip(names, fishers, strict=True)},
        weights=dict(zip(names, weights, strict=True)),
    )
    np.testing.assert_allclose(found["w"], reference.fisher_mean(thetas, fishers, weights), rtol=1e-12, atol=1e-14)


def models(count=3, dtype=torch.float32):
    torch.manual_seed(1)
    made = {name: {"w": torch.randn(40, 3).to(dtype), "n": torch.tensor(i)} for i, name in enumerate("cab"[:count])}
    return made, {name: {"w": torch.rand(40, 3)} for name in made}


def test_the_order_of_models_changes_no_bit():
    made, known = models()
    expected = fisher_merge(made, known)["w"]
    turned = {name: made[name] for name in reversed(made)}
    assert torch.equal(fisher_merge(turned, known)["w"], expected)


def test_models_that_count_alike_are_averaged_and_one_alone_stays():
    made, known = models()
    alike = dict.fromkeys(made, known["c"])
    mean = torch.stack([its["w"].double() for its in made.values()]).mean(0).float()
    torch.testing.assert_close(fisher_merge(made, alike)["w"], mean)
    torch.testing.assert_close(fisher_merge({"a": made["a"]}, known)["w"], made["a"]["w"], rtol=0, atol=0)
    same = dict.fromkeys(made, made["a"])
    torch.testing.assert_close(fisher_merge(same, known)["w"], made["a"]["w"], rtol=1e-7, atol=0)


def test_tiny_information_still_decides():
    made, known = models(2)
    tiny = {name: {"w": its["w"].double() * 1e-200} for name, its in known.items()}
    torch.testing.assert_close(fisher_merge(made, tiny)["w"], fisher_merge(made, known)["w"])


def test_integers_are_copied_and_types_kept():
    made, known = models(dtype=torch.bfloat16)
    found = fisher_merge(made, known)
    assert found["n"] == made["a"]["n"]
    assert found["w"].dtype == torch.bfloat16
    before = made["a"]["n"].clone()
    found["n"] += 1
    assert made["a"]["n"] == before


def test_own_tensors_are_left_out():
    made, known = models()
    for i, its in enumerate(made.values()):
        its["head.weight"] = torch.zeros(i + 1)
    with pytest.raises(BadInput, match=r"of b, head.weight is \(3,\) there and \(2,\) in a.*own="):
        fisher_merge(made, known)
    assert set(fisher_merge(made, known, own=["head.*"])) == {"w", "n"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made, known: (made, {name: its for name, its in known.items() if name != "b"}), "of 'b'"),
        (lambda made, known: (made, known | {"b": {"w": torch.rand(3)}}), r"is \(3,\) and the tensor \(40, 3\)"),
        (lambda made, known: (made, known | {"b": {"w": -torch.rand(40, 3)}}), "negative"),
        (
            lambda made, known: (made | {"b": {"w": torch.full((40, 3), torch.nan)} | {"n": torch.tensor(0)}}, known),
            "NaN",
        ),
        (lambda made, known: (made | {"b": {"w": torch.rand(40, 3)}}, known), "b lacks n"),
        (lambda made, known: ({}, known), "no models"),
    ],
)
def test_what_cannot_be_averaged_is_told(change, said):
    made, known = change(*models())
    with pytest.raises(BadInput, match=said):
        fisher_merge(made, known)


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, dict.fromkeys("abc", 0.0), {"a": -1.0, "b": 1.0, "c": 1.0}])
def test_weights_have_to_be_weights(weights):
    with pytest.raises(BadInput, match="weight"):
        fisher_merge(*models(), weights=weights)
