"""Networks of other classes on one label set: features where they are meant, held out, and nothing disturbed."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.paths import Recorder, imprint, predict_imprinted, read_record
from taskatlas.probe import Probe

X = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
Y = np.arange(24) % 3
PROBE = Probe.from_arrays(X, labels=Y)


def network(outputs=7):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, outputs))


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_it_is_the_imprint_of_the_features_before_the_head(held_out, similarity):
    net = network()
    how = {"temperature": 3, "similarity": similarity, "held_out": held_out}
    found = predict_imprinted(net, PROBE, batch_size=5, **how)
    features = net.eval()[:4](torch.from_numpy(X)).detach()
    np.testing.assert_allclose(found.log_probs, imprint(features, Y, **how).numpy(), atol=1e-5)
    assert found.ids == PROBE.ids
    assert found.labels.tolist() == Y.tolist()


def test_another_tap():
    net = network()
    found = predict_imprinted(net, PROBE, tap="0")
    features = net[0](torch.from_numpy(X)).detach()
    np.testing.assert_allclose(found.log_probs, imprint(features, Y).numpy(), atol=1e-5)


def test_maps_become_their_mean_over_space():
    images = np.random.default_rng(1).normal(size=(12, 3, 4, 4)).astype(np.float32)
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU())
    found = predict_imprinted(net, Probe.from_arrays(images, labels=np.arange(12) % 2), tap="1")
    features = net(torch.from_numpy(images)).mean((2, 3)).detach()
    np.testing.assert_allclose(found.log_probs, imprint(features, np.arange(12) % 2).numpy(), atol=1e-5)


def test_a_recorder_takes_it_and_the_network_stays_as_it_was(tmp_path):
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recorder = Recorder(PROBE, tmp_path / "a.record", predict=partial(predict_imprinted, temperature=2))
    for step in range(4):
        recorder(net, step)
    run = read_record(tmp_path / "a.record")
    assert run.log_probs.shape == (4, 24, 3)
    np.testing.assert_array_equal(run.log_probs[0], predict_imprinted(net, PROBE, temperature=2).log_probs)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_networks_of_other_outputs_go_onto_one_label_set():
    shapes = {predict_imprinted(network(outputs), PROBE).log_probs.shape for outputs in (2, 3, 11)}
    assert shapes == {(24, 3)}


def test_named_classes_count_even_where_none_is_left():
    with pytest.raises(BadInput, match="class 3 has no sample"):
        predict_imprinted(network(), Probe("array", X, PROBE.ids, Y, ("a", "b", "c", "d")))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: predict_imprinted(network(), Probe.from_arrays(X)), "one label a sample"),
        (lambda: predict_imprinted(network(), Probe.from_arrays(X, labels=np.arange(24))), "single sample"),
        (lambda: predict_imprinted(network(), PROBE, tap="fc"), "no tap 'fc'"),
        (lambda: predict_imprinted(network(), PROBE, temperature=0), "temperature is 0"),
        (lambda: predict_imprinted(nn.ReLU(), PROBE), "no default tap"),
    ],
)
def test_what_cannot_be_imprinted(ask, message):
    with pytest.raises(BadInput, match=message):
        ask()


def test_features_that_are_lost_name_the_run():
    net = network()
    net[0].weight.data[0] = float("nan")
    with pytest.raises(BadInput, match="run 'run' at step 5: sample 0 has a feature that is NaN"):
        Recorder(PROBE, predict=predict_imprinted).record(net, 5)
