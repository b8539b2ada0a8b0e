"""``quiet`` leaves a network and the random generators as they were."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from taskatlas.probe import quiet


def network():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    net.train()
    net[1].eval()  # a frozen norm within a network that trains
    net[3][1].eval()
    return net


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def draw():
    random.random()
    np.random.rand()
    torch.rand(1)


def test_modes_buffers_and_random_states_are_as_found():
    net = network()
    modes = [part.training for part in net.modules()]
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    before = random_states()
    with quiet(net):
        assert not any(part.training for part in net.modules())
        first, second = (net(torch.ones(3, 4)) for _ in range(2))
        assert torch.equal(first, second)
        assert not first.requires_grad
        draw()
    assert random_states() == before
    assert [part.training for part in net.modules()] == modes
    assert True in modes
    assert False in modes
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert torch.is_grad_enabled()


def test_also_when_the_block_raises():
    net = network()
    modes = [part.training for part in net.modules()]
    before = random_states()
    with pytest.raises(KeyError), quiet(net):  # noqa: PT012
        draw()
        net[0].train()
        raise KeyError
    assert random_states() == before
    assert [part.training for part in net.modules()] == modes
    assert torch.is_grad_enabled()


def test_buffers_that_a_forward_pass_changes_or_exchanges_are_restored():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("changed", torch.zeros(2))
            self.register_buffer("exchanged", torch.zeros(2))

        def forward(self, x):
            self.changed += 1
            self.exchanged = self.exchanged + 1
            return x

    net = Counting()
    found = dict(net.named_buffers())
    with quiet(net):
        net(torch.ones(1))
    assert all(getattr(net, name) is buffer for name, buffer in found.items())
    assert not net.changed.any()
    assert not net.exchanged.any()


def test_a_network_that_overrides_train_is_restored_too():
    class AlwaysFrozen(nn.Linear):
        def train(self, mode=True):
            return super().train(False)

    net = nn.Sequential(AlwaysFrozen(2, 2))
    net[0].training = True
    with quiet(net):
        assert not net[0].training
    assert net[0].training
