"""Inputs of layers against sums of outer products, and the merge against numpy's least squares."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import merge_data as reference
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.regression_mean import LayerInputs, gram_matrices, layer_inputs, regmean
from taskatlas.probe import Probe
from taskatlas.zoo import Checkpoint


def rows(seed=0, n=7, width=3):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)))


def inputs(x, name="weight", input_first=()):
    return LayerInputs({name: x.T @ x / len(x)}, {name: len(x)}, frozenset(input_first))


class Conv1D(nn.Module):
    """As transformers has it: the weight is (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, dtype=torch.float64))

    def forward(self, x):
        return x @ self.weight


class Attention(nn.Module):
    """Three layers see one tensor; the first batch axis has tokens of which some are padding."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(3, 3) for _ in range(4))
        self.pooled = nn.Linear(3, 2)

    def forward(self, x, attention_mask=None):
        mixed = self.out(torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x))
        return self.pooled(input=mixed[:, 0])


# What layers see


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8), width=st.integers(1, 4), size=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_inputs_are_a_mean_of_outer_products(seed, n, width, size):
    x, net = rows(seed, n, width), nn.Linear(width, 2).double()
    found = layer_inputs(net, x.split(size))
    np.testing.assert_allclose(found.grams["weight"], reference.gram(x.numpy()), rtol=1e-12, atol=1e-13)
    assert found.rows == {"weight": n}


def test_layers_within_see_what_comes_before_them():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(), rows()
    found = layer_inputs(net, [x])
    hidden = torch.relu(net[0](x)).detach().numpy()
    np.testing.assert_allclose(found.grams["2.weight"], reference.gram(hidden), rtol=1e-12)


def test_padding_is_left_out_and_layers_of_one_input_agree():
    torch.manual_seed(0)
    net, x = Attention().double(), torch.randn(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    found = layer_inputs(net, [{"x": x, "attention_mask": mask}, {"x": 2 * x, "attention_mask": mask}])
    seen = x[mask.bool()].numpy()
    expected = reference.gram([*seen, *(2 * seen)])
    for name in "qkv":
        np.testing.assert_allclose(found.grams[f"{name}.weight"], expected, rtol=1e-12)
    assert found.rows["q.weight"] == 8
    assert found.rows["pooled.weight"] == 4  # one row a sample: no tokens
    assert torch.linalg.eigvalsh(found.grams["out.weight"]).min() > -1e-12
    assert not torch.allclose(found.grams["out.weight"], found.grams["q.weight"])


def test_a_layer_that_is_called_twice_sees_both():
    shared = nn.Linear(2, 2, bias=False).double()
    net, x = nn.Sequential(shared, nn.Tanh(), nn.Sequential(shared)), rows(width=2)
    found = layer_inputs(nn.ModuleList([net])[0], [x])
    assert found.grams == {}  # and has two names, so it is averaged

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = shared

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    seen = [*x.numpy(), *torch.tanh(shared(x)).detach().numpy()]
    np.testing.assert_allclose(layer_inputs(Twice(), [x]).grams["layer.weight"], reference.gram(seen), rtol=1e-12)


def test_a_convolution_sees_patches():
    torch.manual_seed(0)
    net = nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False).double()
    x = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    found = layer_inputs(net, [x])
    padded, patches = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 1), (0, 0)]), []
    for image in padded:
        for top in range(0, 7 - 1, 2):
            for left in range(7 - 4):
                patches.append(image[:, top : top + 2, left : left + 5 : 2].ravel())
    np.testing.assert_allclose(found.grams["weight"], reference.gram(patches), rtol=1e-12, atol=1e-13)
    assert found.rows["weight"] == len(patches)
    outputs = np.stack(patches) @ net.weight.detach().flatten(1).T.numpy()
    np.testing.assert_allclose(np.sort(outputs.ravel()), np.sort(net(x).detach().numpy().ravel()), atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    ],
)
def test_other_convolutions_are_left_to_the_average(layer):
    assert layer_inputs(layer, [torch.randn(1, 2, 5, 5)]).grams == {}


def test_layers_in_torchs_own_transformer_are_seen():
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    found = layer_inputs(net, [torch.randn(2, 3, 4)])
    assert set(found.grams) == {"linear1.weight", "linear2.weight"}
    assert torch.backends.mha.get_fastpath_enabled()


def test_nothing_is_left_behind():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)).train().double()
    first = layer_inputs(net, [rows()])
    assert net[0].training
    assert not net[1]._forward_pre_hooks
    torch.testing.assert_close(first.grams["1.weight"], layer_inputs(net, [rows()]).grams["1.weight"], rtol=0, atol=0)
    with pytest.raises(BadInput, match="cannot take a batch"):
        layer_inputs(net, [rows(width=4)])
    assert not net[1]._forward_pre_hooks


def test_half_precision_is_multiplied_in_float32():
    x = rows(n=3000)
    found = layer_inputs(nn.Linear(3, 2).bfloat16(), [x])
    assert found.grams["weight"].dtype == torch.float32
    torch.testing.assert_close(found.grams["weight"], (x.T @ x / 3000).float(), rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "no batches"),
        ([torch.zeros(2, 4).double()], "cannot take a batch"),
        ([rows() * float("inf")], "the input of 0 in net is NaN or infinite"),
    ],
)
def test_what_cannot_be_seen_is_told(batches, said):
    with pytest.raises(BadInput, match=said):
        layer_inputs(nn.Sequential(nn.Linear(3, 2)).double(), batches, who="net")


def test_a_checkpoint_is_watched_once_and_saved(tmp_path, monkeypatch):
    net, probe = nn.Linear(3, 2).eval(), Probe.from_arrays(rows(n=20).numpy())
    checkpoint = Checkpoint("net", module=net)
    found = gram_matrices(checkpoint, probe, batch_size=6)
    torch.testing.assert_close(found.grams["weight"], layer_inputs(net, [rows(n=20)]).grams["weight"])
    monkeypatch.setattr(Checkpoint, "open", lambda *_: pytest.fail("opened again"))
    assert gram_matrices(checkpoint, probe).digest == found.digest
    found.save(tmp_path / "seen.safetensors")
    loaded = LayerInputs.load(tmp_path / "seen.safetensors")
    assert (loaded.digest, loaded.rows) == (found.digest, {"weight": 20})


def test_damaged_files_are_told(tmp_path):
    path = tmp_path / "seen.safetensors"
    with pytest.raises(BadInput, match="no file"):
        LayerInputs.load(path)
    inputs(rows()).save(path)
    whole = path.read_bytes()
    for cut in (b"", whole[:20], whole[:-8], whole.replace(b"rows", b"sowr")):
        path.write_bytes(cut)
        with pytest.raises(BadInput, match=r"seen\.safetensors"):
            LayerInputs.load(path)


# The merge


@st.composite
def families(draw):
    n, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    Ws = [random.normal(size=(2, width)) for _ in range(n)]
    Xs = [random.normal(size=(draw(st.integers(width, 9)), width)) for _ in range(n)]
    return Ws, Xs, random.uniform(0.1, 2, n)


@given(families(), st.sampled_from([0.0, 0.1, 0.9, 1.0]))
@settings(max_examples=60, deadline=None)
def test_the_merge_is_that_of_least_squares(family, off_diagonal):
    Ws, Xs, weights = family
    names = [f"m{i}" for i in range(len(Ws))]
    found = regmean(
        {name: {"weight": torch.as_tensor(W)} for name, W in zip(names, Ws, strict=True)},
        {name: inputs(torch.as_tensor(X)) for name, X in zip(names, Xs, strict=True)},
        off_diagonal=off_diagonal,
        weights=dict(zip(names, weights, strict=True)),
    )["weight"]
    expected = reference.regression_mean(Ws, Xs, weights, off_diagonal)
    sharpest = np.linalg.cond(np.concatenate(Xs))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * sharpest**2)


def layers(count=3):
    torch.manual_seed(0)
    names = "cab"[:count]
    nets = {name: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for name in names}
    return nets, {name: layer_inputs(net, [rows(i, 50).float()]) for i, (name, net) in enumerate(nets.items())}


def test_the_order_of_models_changes_no_bit():
    nets, seen = layers()
    expected = regmean(nets, seen)
    torch.testing.assert_close(regmean(dict(reversed(nets.items())), seen), expected, rtol=0, atol=0)


def test_one_model_stays_and_so_do_equal_ones():
    nets, seen = layers()
    own = {name: value.detach() for name, value in nets["a"].state_dict().items()}
    torch.testing.assert_close(regmean({"a": nets["a"]}, seen), own, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(regmean(dict.fromkeys(nets, nets["a"]), seen), own, rtol=1e-6, atol=1e-7)


def test_models_that_see_alike_are_averaged_and_biases_always():
    nets, seen = layers()
    mean = {name: sum(net.state_dict()[name] for net in nets.values()) / 3 for name in nets["a"].state_dict()}
    found = regmean(nets, dict.fromkeys(nets, seen["a"]))
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(regmean(nets, seen)["0.bias"], mean["0.bias"])
    assert not torch.allclose(regmean(nets, seen)["0.weight"], mean["0.weight"])


def test_it_fits_the_models_outputs_better_than_the_average():
    nets, seen = layers()
    first = {name: nn.Linear(3, 4) for name in nets}
    for name, layer in first.items():
        layer.load_state_dict({k.removeprefix("0."): v for k, v in nets[name].state_dict().items() if k[0] == "0"})

    def error(weight):
        apart = [(rows(i, 50).float(), weight - layer.weight.detach()) for i, layer in enumerate(first.values())]
        return sum(float(((x @ difference.T) ** 2).sum()) for x, difference in apart)

    merged = regmean(nets, seen, off_diagonal=1.0)["0.weight"]
    assert error(merged) < error(sum(layer.weight.detach() for layer in first.values()) / 3)


def test_inputs_that_are_always_zero_get_the_mean():
    x = rows()
    x[:, 1] = 0
    models = {"a": {"weight": torch.randn(2, 3).double()}, "b": {"weight": torch.randn(2, 3).double()}}
    found = regmean(models, {"a": inputs(x), "b": inputs(2 * x)})["weight"]
    mean = (models["a"]["weight"] + models["b"]["weight"]) / 2
    torch.testing.assert_close(found[:, 1], mean[:, 1])
    assert not torch.allclose(found[:, 0], mean[:, 0])
    nothing = inputs(torch.zeros(3, 3).double())
    torch.testing.assert_close(regmean(models, {"a": nothing, "b": nothing})["weight"], mean)


def test_fewer_samples_than_inputs_are_no_hindrance():
    torch.manual_seed(0)
    models = {name: {"weight": torch.randn(2, 30)} for name in "ab"}
    seen = {name: inputs(torch.randn(4, 30)) for name in "ab"}
    found = regmean(models, seen, off_diagonal=1.0)["weight"]
    assert found.isfinite().all()
    assert found.abs().max() < 20 * max(its["weight"].abs().max() for its in models.values())


def test_weights_that_lie_the_other_way_round():
    torch.manual_seed(0)
    nets = {name: Conv1D(3, 3) for name in "ab"}
    seen = {name: layer_inputs(net, [rows(i)]) for i, (name, net) in enumerate(nets.items())}
    assert seen["a"].input_first == {"weight"}
    turned = {name: {"weight": net.weight.detach().T} for name, net in nets.items()}
    plain = {name: LayerInputs(its.grams, its.rows, frozenset()) for name, its in seen.items()}
    torch.testing.assert_close(regmean(nets, seen)["weight"], regmean(turned, plain)["weight"].T)


def test_a_convolution_is_merged_as_the_linear_layer_on_its_patches():
    torch.manual_seed(0)
    nets = {name: nn.Conv2d(2, 3, 2, bias=False).double() for name in "ab"}
    seen = {name: layer_inputs(net, [torch.randn(2, 2, 4, 4).double()]) for name, net in nets.items()}
    flat = {name: {"weight": net.weight.detach().flatten(1)} for name, net in nets.items()}
    found = regmean(nets, seen)["weight"]
    assert found.shape == (3, 2, 2, 2)
    torch.testing.assert_close(found.flatten(1), regmean(flat, seen)["weight"])


@pytest.mark.parametrize(
    ("change", "how", "said"),
    [
        (lambda nets, seen: (nets, {"a": seen["a"]}), {}, "inputs of 'b'"),
        (lambda nets, seen: (nets, seen), {"off_diagonal": 1.1}, "off_diagonal"),
        (lambda nets, seen: (nets, seen), {"off_diagonal": float("nan")}, "off_diagonal"),
        (lambda nets, seen: (nets, dict.fromkeys(nets, inputs(rows(width=5), "0.weight"))), {}, r"\(5, 5\).*takes 3"),
        (lambda nets, seen: (nets, dict.fromkeys(nets, inputs(rows() * np.nan, "0.weight"))), {}, "NaN"),
        (lambda nets, seen: (nets | {"a": nn.Linear(3, 4)}, seen), {}, "a lacks 0.weight"),
    ],
)
def test_what_cannot_be_merged_is_told(change, how, said):
    with pytest.raises(BadInput, match=said):
        regmean(*change(*layers()), **how)
