"""One network from a stream: a straight loop, of which no interruption, worker or onlooker changes a bit."""

import random

import numpy as np
import pytest
import torch
from jaxtyping import config
from tests.learn.make import network, pictures, same
from torch import nn

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn import Recipe, Stream, small_cnn, streamed, train_streamed
from taskatlas.probe import Probe

RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.05, crop="shift", flip=True, seed=2)  # 15 steps


def trained(state=None, hook=None, workers=0, recipe=RECIPE, probe=None, stream=None):
    net = network()
    stream = stream or Stream(probe or pictures(), recipe)
    return net, train_streamed(net, stream, hook=hook, state=state, workers=workers, device="cpu")


class Killed(Exception):
    pass


def killed_at(step):
    def hook(_, done):
        if done == step:
            raise Killed

    return hook


def test_it_follows_a_straightforward_loop():
    recipe = Recipe(epochs=4, batch_size=8, learning_rate=0.1, warmup=0.25, label_smoothing=0.1, weight_decay=0.01)
    probe = pictures()
    net, plain = small_cnn(3, 3, width=2), small_cnn(3, 3, width=2)
    plain.load_state_dict(net.state_dict())
    stream = Stream(probe, recipe)
    rows = train_streamed(net, stream, device="cpu")

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    losses, right = [], []
    for step in range(20):
        batch, labels = stream[step]
        rate = 0.1 * (step + 1) / 5 if step < 5 else 0.1 * (1 + np.cos(np.pi * (step - 5) / 15)) / 2
        optimizer.param_groups[0]["lr"] = rate
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        logits = plain((batch / 255 - mean[:, None, None]) / deviation[:, None, None])
        chances = torch.log_softmax(logits, 1)
        smooth = 0.9 * nn.functional.one_hot(labels, 3) + 0.1 / 3
        loss = -(smooth * chances).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        right.append((logits.argmax(1) == labels).float().mean().item())
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert [row.loss for row in rows] == pytest.approx(np.reshape(losses, (4, 5)).mean(1), rel=1e-5)
    assert [row.accuracy for row in rows] == pytest.approx(np.reshape(right, (4, 5)).mean(1))
    assert [(row.epoch, row.step) for row in rows] == [(1, 5), (2, 10), (3, 15), (4, 20)]
    assert rows[0].learning_rate == pytest.approx(0.1)


def test_it_learns():
    _, rows = trained(recipe=Recipe(epochs=25, batch_size=8, learning_rate=0.1))
    assert rows[-1].accuracy > 0.9


@pytest.mark.parametrize("step", [3, 5, 9])  # within an epoch, at its end, within the next
@pytest.mark.parametrize("often", [False, True])
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, monkeypatch, step, often):
    monkeypatch.setattr(streamed, "_SAVE_SECONDS", 0.0 if often else 300.0)
    whole, rows = trained()
    state = tmp_path / "training.state"
    with pytest.raises(Killed):
        trained(state, killed_at(step))
    torch.manual_seed(77)  # whatever the new process drew before
    seen = []
    again, rows_again = trained(state, lambda _, done: seen.append(done))
    assert seen[0] == (step if often else (step - 1) // 5 * 5 + 1 if step > 5 else 0)  # no call twice behind the state
    assert seen[-1] == 15
    assert same(whole, again)
    assert rows == rows_again
    finished, rows_finished = trained(state)
    assert same(whole, finished)
    assert rows_finished == rows


def test_neither_workers_nor_order_change_a_bit(tmp_path):
    alone, _ = trained()
    assert same(alone, trained(workers=2)[0])
    whole = pictures()
    assert same(alone, trained(probe=whole.take(np.random.default_rng(1).permutation(40)))[0])
    assert not same(alone, trained(recipe=Recipe(**vars(RECIPE) | {"seed": 3}))[0])


def test_an_onlooker_changes_nothing():
    def look(net, _):
        torch.rand(7)
        np.random.rand(3)
        random.random()
        net.eval()
        net(torch.zeros(2, 3, 8, 8))

    assert same(trained()[0], trained(hook=look)[0])


def test_random_state_and_modes_are_as_before(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # checks of annotations draw random numbers themselves
    net = network().train()
    net[3].eval()
    modes = [part.training for part in net.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    train_streamed(net, Stream(pictures(), RECIPE), device="cpu")
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_hook_sees_every_step_and_the_start():
    seen = []
    trained(hook=lambda net, step: seen.append((step, net[1].num_batches_tracked.item())))
    assert seen == [(step, step) for step in range(16)]


def test_arrays_and_outputs_with_logits():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return type("Output", (), {"logits": self.inner(x)})

    x = np.random.default_rng(0).normal(size=(30, 2))
    probe = Probe.from_arrays(x, labels=(x[:, 0] > 0).astype(int))
    rows = train_streamed(Wrapped(), Stream(probe, Recipe(epochs=40, batch_size=10, learning_rate=1.0)), device="cpu")
    assert rows[-1].accuracy > 0.9


def test_half_precision_is_close_and_repeats():
    half = Recipe(**vars(RECIPE) | {"precision": "bfloat16"})
    (one, rows), (two, _) = trained(recipe=half), trained(recipe=half)
    assert same(one, two)
    assert not same(one, trained()[0])
    assert rows[-1].loss == pytest.approx(trained()[1][-1].loss, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in one.parameters())


# What goes wrong


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (nn.Flatten(), pictures()), "no parameter to train"),
        (lambda: (network(2), pictures()), "class 2, but the network gives 2 outputs"),
        (lambda: (nn.Conv2d(3, 3, 1), pictures()), "a row of logits"),
        (lambda: (nn.Linear(5, 3), pictures()), "cannot take the samples of step 0: RuntimeError"),
    ],
)
def test_networks_that_do_not_fit(make, message):
    module, probe = make()
    with pytest.raises(BadInput, match=message):
        train_streamed(module, Stream(probe, RECIPE), device="cpu")


def test_a_loss_that_is_lost_is_said_and_not_saved(tmp_path):
    state = tmp_path / "training.state"
    with pytest.raises(WorkFailed, match=r"epoch 1 of 3.*below 1e\+20"):
        trained(state, recipe=Recipe(**vars(RECIPE) | {"learning_rate": 1e20, "warmup": 0.0}))
    assert torch.load(state, weights_only=True)["done"] == 0


def test_another_training_is_refused_also_before_the_first_epoch_ended(tmp_path):
    state = tmp_path / "training.state"
    with pytest.raises(Killed):
        trained(state, killed_at(2))
    with pytest.raises(BadInput, match="state of another training"):
        trained(state, recipe=Recipe(**vars(RECIPE) | {"learning_rate": 0.01}))


def test_states_that_are_none_or_of_another_training(tmp_path):
    state = tmp_path / "training.state"
    trained(state)
    whole = state.read_bytes()
    for other in (
        {"recipe": Recipe(**vars(RECIPE) | {"epochs": 4})},
        {"probe": pictures(39)},
        {"recipe": Recipe(**vars(RECIPE) | {"seed": 9})},
    ):
        with pytest.raises(BadInput, match="state of another training"):
            trained(state, **other)
    for content in (b"", b"hello", whole[:-100], whole[:50]):
        state.write_bytes(content)
        with pytest.raises(BadInput, match="damaged"):
            trained(state)
        assert state.read_bytes() == content


class Evil:
    def __reduce__(self):
        return (open, ("evil-ran", "w"))


def test_a_state_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"key": Evil()}, "training.state")
    with pytest.raises(BadInput, match="damaged"):
        trained(tmp_path / "training.state")
    assert not (tmp_path / "evil-ran").exists()


class Dies(Stream):
    """Where its worker is killed, as for want of memory."""

    def __getitem__(self, step):
        if torch.utils.data.get_worker_info() is not None:
            import os

            os._exit(9)
        return super().__getitem__(step)


def test_a_worker_that_dies_is_told():
    with pytest.raises(WorkFailed, match="a worker that makes batches died"):
        trained(stream=Dies(pictures(), RECIPE), workers=1)
