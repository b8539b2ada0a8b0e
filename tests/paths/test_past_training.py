"""A folder of checkpoints as a path."""

import numpy as np
import pytest
import torch
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.paths import predict, trace_checkpoints
from taskatlas.probe import Probe
from taskatlas.store import Store

PROBE = Probe.from_arrays(np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32), labels=np.arange(9) % 3)


def network(step=0, classes=3):
    torch.manual_seed(step)
    return nn.Linear(4, classes)


def build():
    return nn.Linear(4, 3)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "run2"
    place.mkdir()
    for step in (0, 5, 10, 100):
        torch.save(network(step).state_dict(), place / f"epoch_{step}.pt")
    return place


def test_checkpoints_are_asked_in_the_order_of_their_steps(folder):
    found = trace_checkpoints(folder, PROBE, builder=build, name="past")
    assert found.steps.tolist() == [0, 5, 10, 100]  # and not 0, 10, 100, 5, as their names sort
    expected = np.stack([predict(network(step), PROBE).log_probs for step in (0, 5, 10, 100)])
    assert np.array_equal(found.log_probs, expected)
    assert (found.name, found.ids, found.probe) == ("past", PROBE.ids, PROBE.digest)
    assert found.labels.tolist() == PROBE.labels.tolist()


def test_what_is_known_is_not_computed_again(folder, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    first = trace_checkpoints(folder, PROBE, builder=build, store=store)
    asked = []
    known = predict

    def counted(*arguments, **settings):
        asked.append(settings["who"])
        return known(*arguments, **settings)

    monkeypatch.setattr("taskatlas.paths.past_training.predict", counted)
    assert trace_checkpoints(folder, PROBE, builder=build, store=store).digest == first.digest
    assert asked == []
    torch.save(network(200).state_dict(), folder / "epoch_200.pt")
    assert len(trace_checkpoints(folder, PROBE, builder=build, store=store)) == 5
    assert asked == ["epoch_200"]


def test_steps_may_be_said():
    zoo = {"late": network(2), "early": network(1)}
    found = trace_checkpoints(zoo, PROBE, steps={"late": 9, "early": 1})
    assert found.steps.tolist() == [1, 9]
    assert np.array_equal(found.log_probs[0], predict(network(1), PROBE).log_probs)
    assert trace_checkpoints(zoo, PROBE, steps=[9, 1]).digest == found.digest


@pytest.mark.parametrize(
    ("zoo", "steps", "words"),
    [
        ({"first": 1, "b2": 2}, None, "'first' has no number"),
        ({"a1": 1, "b1": 2}, None, "'a1' and 'b1' both have step 1"),
        ({"a": 1, "b": 2}, {"a": 1}, "no step for checkpoint 'b'"),
        ({"a": 1, "b": 2}, [1], "1 steps do not fit 2"),
        ({"epoch_0_acc90": 0, "epoch_2_acc88": 2, "epoch_10_acc80": 10}, None, "in different orders"),
    ],
)
def test_steps_that_are_none(zoo, steps, words):
    with pytest.raises(BadInput, match=words):
        trace_checkpoints({name: network(seed) for name, seed in zoo.items()}, PROBE, steps=steps)


def test_numbers_that_rise_together_are_no_matter():
    zoo = {f"run2_epoch={step}-step={100 * step}": network(step) for step in (0, 9, 10)}
    assert trace_checkpoints(zoo, PROBE).steps.tolist() == [0, 900, 1000]


def test_labels_that_are_no_classes_of_the_network():
    probe = Probe.from_arrays(PROBE.inputs, labels=np.full(9, 9))
    with pytest.raises(BadInput, match="labels from 9 to 9, and run 'run' predicts 3 classes"):
        trace_checkpoints({"a1": network()}, probe)


def test_checkpoints_of_two_trainings():
    with pytest.raises(BadInput, match="not one training"):
        trace_checkpoints({"a1": network(), "a2": network(classes=4)}, PROBE)
