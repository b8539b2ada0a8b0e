"""Where features are read."""

import pytest
import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.probe.taps import Tap


class Net(nn.Module):
    """Defines its layers in another order than it calls them, and overwrites what it tapped."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.body = nn.Linear(4, 6)
        self.unused = nn.Linear(3, 3)
        self.rnn = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x, *, scale=1.0):
        hidden = self.body(input=x * scale)
        hidden.relu_()
        sequence, _ = self.rnn(hidden[:, None])
        return self.head(sequence[:, 0])


def read(net, place, *args, **kwargs):
    with torch.no_grad(), Tap(net, place, "net") as tap:
        value = tap.read(net(*args, **kwargs))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    return value, tap.place


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def test_the_default_is_the_input_of_the_linear_layer_called_last():
    net = Net().eval()
    value, place = read(net, None, X)
    assert place == "head:input"
    torch.testing.assert_close(net.head(value), net(X))


def test_named_taps():
    net = Net().eval()
    torch.testing.assert_close(read(net, "head", X)[0], net(X))
    torch.testing.assert_close(read(net, "body:input", X)[0], X)  # passed by keyword
    torch.testing.assert_close(read(net, "body", X)[0], net.body(X))  # before the in-place ReLU
    assert read(net, "rnn", X)[0].shape == (3, 1, 6)  # the first of an LSTM's outputs


def test_a_module_called_twice_counts_with_its_last_call():
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.eye(2)
    torch.testing.assert_close(read(net, "2:input", x)[0], layer(x).relu())
    assert read(net, None, x)[1] == "0:input"


def test_the_last_hidden_state_comes_first():
    class Output(dict):
        pass

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.pooler = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            hidden = self.dense(x)
            return Output(last_hidden_state=hidden, pooled=self.pooler(hidden[:, 0]))

    net, x = Encoder(), torch.rand(2, 3, 4)
    for place in (None, "last_hidden_state"):
        value, found = read(net, place, x)
        assert found == "last_hidden_state"
        torch.testing.assert_close(value, net.dense(x))
    assert read(net, "pooler", x)[0].shape == (2, 4)


def test_the_place_is_settled_by_the_first_pass():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(x) if len(x) > 1 else self.b(x)

    net = Fickle()
    with torch.no_grad(), Tap(net, None, "net") as tap:
        tap.read(net(torch.ones(2, 2)))
        output = net(torch.ones(1, 2))
        with pytest.raises(BadInput, match="never calls 'a:input'"):
            tap.read(output)


@pytest.mark.parametrize(
    ("net", "place", "message"),
    [
        (Net(), "haed", r"no tap 'haed'.*Did you mean head"),
        (Net(), "head:output", "no tap 'head:output'"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), "xyz", "It has 0"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), None, r"calls no nn\.Linear.* Name a module: 0, 1"),
        (nn.Sequential(*[nn.ReLU() for _ in range(30)]), None, "19 and 10 more"),
        (Net(), "unused", "never calls 'unused'"),
        (Net(), "last_hidden_state", "no tensor at the tap 'last_hidden_state'"),
    ],
)
def test_taps_that_are_none(net, place, message):
    with pytest.raises(BadInput, match=message):
        read(net, place, X)
