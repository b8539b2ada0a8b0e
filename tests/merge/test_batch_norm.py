"""Statistics pooled over batches against those of all values at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.batch_norm import Moments, batch_moments, reestimate_batch_norm


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    return net.append(nn.Linear(27, 4)).append(nn.BatchNorm1d(4)).append(nn.Linear(4, 2)).double()


def images(n=11, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 2, size=(n, 2, 5, 5)))


@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_moments_add_up_to_those_of_all_values(seed, sizes):
    parts = [torch.from_numpy(np.random.default_rng((seed, i)).normal(1e3, 1, (n, 3, 2))) for i, n in enumerate(sizes)]
    found = Moments.of(parts[0])
    for part in parts[1:]:
        found = found + Moments.of(part)
    values = np.concatenate([part.numpy() for part in parts]).transpose(1, 0, 2).reshape(3, -1)
    assert found.count == values.shape[1]
    np.testing.assert_allclose(found.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.variance, values.var(1, ddof=1), rtol=1e-6, atol=1e-9)


def test_layers_are_given_the_pooled_statistics_of_batches_normalised_as_in_training():
    net, x = network(), images()
    reestimate_batch_norm(net, [x[:4], x[4:8], x[8:]])
    first, second = [], []
    for batch in (x[:4], x[4:8], x[8:]):
        seen = net[0](batch).detach().numpy()
        mean, variance = seen.mean((0, 2, 3), keepdims=True), seen.var((0, 2, 3), keepdims=True)
        hidden = np.maximum((seen - mean) / np.sqrt(variance + 1e-5), 0)  # weight 1, bias 0
        first.append(seen.transpose(1, 0, 2, 3).reshape(3, -1))
        second.append(net[5](torch.from_numpy(hidden).flatten(1)).detach().numpy().T)
    for layer, values in ((net[1], np.concatenate(first, 1)), (net[6], np.concatenate(second, 1))):
        np.testing.assert_allclose(layer.running_mean, values.mean(1), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(layer.running_var, values.var(1, ddof=1), rtol=1e-10)


def test_one_batch_gives_what_torch_keeps_after_it():
    net, torchs, x = network(), network(), images()
    torchs[1].momentum = torchs[6].momentum = None
    torchs[3].p = 0.0
    torchs.train()(x)
    reestimate_batch_norm(net, [x])
    for layer in (1, 6):
        torch.testing.assert_close(net[layer].running_mean, torchs[layer].running_mean)
        torch.testing.assert_close(net[layer].running_var, torchs[layer].running_var)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(training):
    net = network().train(training)
    net[1].momentum = 0.3
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    assert reestimate_batch_norm(net, [images()]) is net
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{layer}.running_{what}" for layer in (1, 6) for what in ("mean", "var")}
    assert {part.training for part in net.modules()} == {training}
    assert net[1].momentum == 0.3
    assert not net[1]._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), random)


def test_a_merged_network_predicts_again():
    """Two networks whose features differ in sign: the mean of their statistics is not that of their mean."""
    x = images(200)
    nets = [network() for _ in range(2)]
    with torch.no_grad():
        nets[1][0].weight.mul_(-1)
        for net in nets:
            reestimate_batch_norm(net, [x])
    merged = network()
    states = [net.state_dict() for net in nets]
    merged.load_state_dict({k: (states[0][k] + states[1][k]) / 2 if states[0][k].is_floating_point() else v
                            for k, v in states[0].items()})  # fmt: skip
    merged.eval()
    assert merged[:2](x).std() < 0.1  # variance there is what the parents had
    reestimate_batch_norm(merged, [x])
    assert merged[1].running_var.max() < 1e-6  # the convolution is its bias alone


def test_a_network_without_batch_norm_sees_no_data():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert reestimate_batch_norm(net, iter(lambda: pytest.fail("asked for data"), None)) is net


def test_moments_with_other_tensors_write_to_none():
    net, x = network(), images()
    tensors = {name: value * 2 for name, value in net.state_dict().items()}
    before = {name: value.clone() for name, value in tensors.items()}
    own = {name: value.clone() for name, value in net.state_dict().items()}
    found = batch_moments(net, [x], tensors=tensors)
    torch.testing.assert_close(tensors, before, rtol=0, atol=0)
    torch.testing.assert_close(dict(net.state_dict()), own, rtol=0, atol=0)
    doubled = network()
    doubled.load_state_dict(before)
    torch.testing.assert_close(found["6"].mean, batch_moments(doubled, [x])["6"].mean)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "no batches"),
        ([images(1)], "more than one sample"),
        ([images()[:, :1]], "cannot take a batch"),
        ([images(), images() * float("inf")], "input of 1 in net is NaN"),
    ],
)
def test_what_cannot_be_estimated_is_told_and_changes_nothing(batches, said):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(BadInput, match=said):
        reestimate_batch_norm(net, batches, who="net")
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert not net[1]._forward_pre_hooks
