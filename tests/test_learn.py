"""The training loop: stacked and in turn alike, the random state untouched, failures said in words."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn import IGNORED, accuracy, mlp, small_cnn, train
from taskatlas.learn.stacked import _alike, _is_plain, _runnable, _stacked


def blobs(n=60, d=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=generator)
    centres = 3 * torch.randn(classes, d, generator=generator)
    return centres[y] + torch.randn(n, d, generator=generator), y


def seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def three_targets(y):
    half = y.clone()
    half[::2] = IGNORED
    return [y, (y + 1) % 3, half]


@pytest.mark.parametrize(
    ("make", "reshape"),
    [
        (lambda: mlp(5, (8,), 3), lambda x: x),
        (lambda: small_cnn(1, 3, width=4), lambda x: x[:, None, :, None].expand(-1, 1, 5, 5)),
    ],
    ids=["mlp", "cnn"],
)
def test_stacked_learners_end_where_each_would_have_ended_alone(make, reshape):
    x, y = blobs()
    x = reshape(x)
    learners = [seeded(make, seed) for seed in range(3)]
    alone = copy.deepcopy(learners)
    targets = three_targets(y)
    assert _alike(learners) == _runnable(learners, x[:2], apart=False) == [[0, 1, 2]]

    how = {"epochs": 5, "batch_size": 16, "weight_decay": 0.01, "seed": 3}
    losses = train(learners, x, targets, **how)
    losses_alone = [train([one], x, [target], **how)[0] for one, target in zip(alone, targets, strict=True)]

    torch.testing.assert_close(torch.tensor(losses), torch.tensor(losses_alone), rtol=1e-4, atol=1e-5)
    for together, single in zip(learners, alone, strict=True):
        torch.testing.assert_close(parameters(together), parameters(single), rtol=1e-3, atol=1e-4)


def tied():
    net = mlp(6, (6, 6), 6)
    net[2].weight = net[0].weight
    return net


def once_more():
    layer, relu = nn.Linear(6, 6), nn.ReLU()
    return nn.Sequential(layer, relu, layer, relu, nn.Linear(6, 3))


def partly_frozen():
    net = mlp(6, (6,), 3)
    net[0].requires_grad_(False)
    return net


PLAIN = {
    "mlp": lambda: mlp(6, (8, 8), 3),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 3)),
    "nested, without biases": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(6, 8, bias=False), nn.GELU()), nn.Sequential(nn.SiLU(), nn.Linear(8, 3))
    ),
    "tied": tied,
    "a layer twice": once_more,
    "partly frozen": partly_frozen,
    "one layer": lambda: nn.Linear(6, 3),
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("rest", [(), (4,)], ids=["vectors", "tokens"])
@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_plain_layers_are_stacked_to_the_same_outputs_and_gradients(make, rest, apart):
    if make is PLAIN["flattened"]:
        rest = (4,)
    learners = [seeded(make, seed) for seed in range(3)]
    x = torch.randn(3, 7, *rest, 6, generator=torch.Generator().manual_seed(0))
    own = x if apart else x[:1].expand_as(x)
    assert _is_plain(learners[0])
    stack, forward = _stacked(learners, apart)
    found = forward(x if apart else x[0])
    found.square().sum().backward()
    for position, (learner, mine) in enumerate(zip(learners, own, strict=True)):
        alone = learner(mine)
        alone.square().sum().backward()
        torch.testing.assert_close(found[position], alone)
        for name, parameter in learner.named_parameters():
            assert (stack[name].grad is None) == (parameter.grad is None)
            if parameter.grad is not None:
                torch.testing.assert_close(stack[name].grad[position], parameter.grad, rtol=1e-5, atol=1e-5)


def hooked():
    net = mlp(6, (8,), 3)
    net[0].register_forward_hook(lambda module, given, found: 2 * found)
    return net


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        lambda: nn.Sequential(Twice(6, 3)),
        lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)),
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(6, 3)),
        lambda: nn.Sequential(nn.Linear(6, 3), nn.Softmax(0)),
    ],
    ids=["hook", "subclass", "dropout", "flattened otherwise", "over samples"],
)
def test_other_networks_are_not_taken_for_plain_layers(make):
    assert not _is_plain(make())


def test_a_single_learner_follows_a_straightforward_loop():
    x, y = blobs()
    learner = seeded(lambda: mlp(5, (8,), 3), 0)
    plain = copy.deepcopy(learner)
    train([learner], x, [y], epochs=3, batch_size=16, learning_rate=0.01, weight_decay=0.1, seed=7)

    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)
    order = torch.Generator().manual_seed(7)
    for _ in range(3):
        for rows in torch.randperm(60, generator=order).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x[rows]), y[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(parameters(learner), parameters(plain))


def test_it_learns():
    x, y = blobs(n=200)
    learners = [seeded(lambda: mlp(5, (16,), 3), seed) for seed in range(2)]
    losses = train(learners, x, [y, (y + 1) % 3], epochs=30, learning_rate=0.01)
    assert max(losses) < 0.2
    assert accuracy(learners[0], x, y) > 0.95
    assert accuracy(learners[1], x, (y + 1) % 3) > 0.95
    assert accuracy(learners[0], x, (y + 1) % 3) < 0.1


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
def test_the_order_of_learners_does_not_matter(seed, order):
    x, y = blobs(seed=seed)
    targets = three_targets(y)
    learners = [seeded(lambda: mlp(5, (4,), 3), seed + i) for i in range(3)]
    shuffled = [copy.deepcopy(learners[i]) for i in order]
    losses = train(learners, x, targets, epochs=2, seed=seed)
    losses_shuffled = train(shuffled, x, [targets[i] for i in order], epochs=2, seed=seed)
    assert losses_shuffled == pytest.approx([losses[i] for i in order], rel=1e-4)


def test_an_ignored_sample_has_no_influence():
    x, y = blobs()
    y[5] = IGNORED
    learners = [seeded(lambda: mlp(5, (8,), 3), 0) for _ in range(2)]
    train([learners[0]], x, [y], epochs=2)
    x[5] = 1000.0
    train([learners[1]], x, [y], epochs=2)
    assert torch.equal(parameters(learners[0]), parameters(learners[1]))


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), net)])
def test_the_seed_fixes_the_result_and_nothing_else_is_touched(wrap):
    x, y = blobs()
    learners = [seeded(lambda: wrap(mlp(5, (8,), 3)), 0) for _ in range(2)]
    learners[0].eval()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train([learners[0]], x, [y], epochs=2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert train([learners[1]], x, [y], epochs=2, seed=5) == first
    assert torch.equal(parameters(learners[0]), parameters(learners[1]))
    assert not any(part.training for part in learners[0].modules())
    assert all(part.training for part in learners[1].modules())
    assert all(p.grad is None for p in learners[0].parameters())


def test_what_cannot_be_stacked_trains_in_turn():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            return self.head(x * self.scale)

    nets = [Scaled(1.0), Scaled(1.0), Scaled(0.0), mlp(5, (8,), 3), mlp(5, (4,), 3), nn.Sequential(nn.BatchNorm1d(5))]
    assert _alike(nets) == [[0, 1], [2], [3], [4], [5]]
    x, y = blobs()
    losses = train([nets[2], nets[3], nets[0]], x, [y] * 3, epochs=20, learning_rate=0.05)
    assert losses[0] > 0.9  # sees zeros only
    assert max(losses[1:]) < 0.5


def test_recurrent_learners():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(1, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.lstm(x[..., None])[0][:, -1])

    x, y = blobs()
    assert len(train([Recurrent(), Recurrent()], x, [y, y], epochs=1)) == 2


def test_dropout_in_stacked_learners():
    x, y = blobs()
    nets = [seeded(lambda: nn.Sequential(nn.Dropout(0.5), mlp(5, (8,), 3)), 0) for _ in range(4)]
    assert train(nets[:2], x, [y, y], epochs=2, seed=1) == train(nets[2:], x, [y, y], epochs=2, seed=1)
    assert not torch.equal(parameters(nets[0]), parameters(nets[1]))  # masks of their own
    assert torch.equal(parameters(nets[0]), parameters(nets[2]))


@pytest.mark.parametrize("count", [1, 2])
def test_a_loss_that_is_no_number_names_learner_epoch_and_a_way_out(count):
    x, y = blobs()
    learners = [mlp(5, (8,), 3) for _ in range(count)]
    nn.init.constant_(learners[-1][0].weight, 1e38)
    before = torch.get_rng_state()
    with pytest.raises(WorkFailed, match=rf"learner {count - 1} .* epoch 1 of 4.*below 0\.001"):
        train(learners, x, [y] * count, epochs=4)
    assert torch.equal(torch.get_rng_state(), before)


def shared():
    trunk = nn.Linear(5, 3)
    return [nn.Sequential(trunk), nn.Sequential(trunk, nn.ReLU())]


x, y = blobs()


@pytest.mark.parametrize(
    ("modules", "inputs", "targets", "how", "message"),
    [
        ([], x, [], {}, "0 networks"),
        ([mlp(5, (), 3)], x, [y, y], {}, "1 networks and 2 targets"),
        ([mlp(5, (), 3)], x, [y[:-1]], {}, "learner 0 has 59 targets for 60 samples"),
        ([mlp(5, (), 2)], x, [y], {}, "class 2"),
        ([mlp(5, (), 3)], x, [y - 1], {}, "negative target"),
        ([mlp(5, (), 3)], x, [y * 0 + IGNORED], {}, "all its targets are -100"),
        ([mlp(5, (), 3)], x / 0, [y], {}, "NaN or infinite"),
        ([mlp(5, (), 3)], x, [y], {"epochs": 0}, "0 epochs"),
        ([nn.Identity()], x, [y], {}, "no parameter"),
        (shared(), x, [y, y], {}, "learners 0 and 1 share parameters"),
    ],
)
def test_bad_input(modules, inputs, targets, how, message):
    with pytest.raises(BadInput, match=message):
        train(modules, inputs, targets, **{"epochs": 1, **how})


def test_accuracy_leaves_ignored_samples_out():
    outputs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert accuracy(nn.Identity(), outputs, torch.tensor([1, IGNORED, 1])) == 0.5
    with pytest.raises(BadInput, match="no labelled sample"):
        accuracy(nn.Identity(), outputs, torch.full((3,), IGNORED))
