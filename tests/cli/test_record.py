"""``taskatlas record``: a past training becomes a run that ``trace`` takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cli.make import snapshot, write_network

from taskatlas.paths import Trajectory, trace_checkpoints
from taskatlas.probe import Probe

GIVEN = ("--probe", "probe.npz", "--builder", "nets.py:mlp")


@pytest.fixture(autouse=True)
def training(place, monkeypatch):
    """A training's checkpoints, three snapshots of a network of one width."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b"."))
    (place / "training").mkdir()
    for epoch in (0, 2, 10):
        write_network(place / "training" / f"epoch_{epoch}.safetensors", epoch, 5)
    x = np.load("probe.npz")["x"]
    np.savez("labelled.npz", x=x, y=np.arange(len(x)) % 3)
    np.savez("nine.npz", x=x, y=np.full(len(x), 9))
    return place


@pytest.fixture
def no(run, place, as_installed):
    """``no(*arguments)``: the one sentence that refuses, and leaves nothing behind."""

    def command(*arguments):
        before = snapshot(place)
        ran = run("record", *arguments)
        assert (ran.code, ran.out) == (2, ""), ran.err
        assert ran.err.startswith("taskatlas: ")
        assert ran.err.count("\n") == 1
        assert snapshot(place) == before
        return ran.err

    return command


def test_the_run_is_what_the_checkpoints_say(run_json, run, place):
    document = run_json("record", "training", "--probe", "labelled.npz", "--builder", "nets.py:mlp")
    assert document["run"] == "training"
    assert document["steps"] == [0, 2, 10]
    found = Trajectory.load(document["trajectory"])
    expected = trace_checkpoints("training", Probe.open("labelled.npz"), builder="nets.py:mlp", name="training")
    assert found.digest == expected.digest
    assert run("check", "atlas").code == 0
    assert run_json("trace", "atlas")["steps"] == {"training": [0, 2, 10]}
    assert run("check", "atlas").code == 0
    assert json.loads(Path("atlas/receipt.json").read_text()).keys() == {"record training", "trace"}


def test_several_runs_share_a_folder(run_json, place):
    for name in ("first", "second"):
        run_json("record", "training", *GIVEN, "--name", name, "--out", "runs2", "--limit", 12)
    receipts = json.loads(Path("runs2/receipt.json").read_text())
    assert receipts.keys() == {"record first", "record second"}
    document = run_json("trace", "runs2")
    assert document["runs"] == ["first", "second"]
    assert document["samples"] == 12


def test_steps_may_be_said(run_json, place):
    in_order = run_json("record", "zoo", *GIVEN, "--steps", "5,0,9", "--name", "a", "--out", "out")
    Path("steps.csv").write_text("name,step\nc,9\nb,0\na,5\n")
    by_name = run_json("record", "zoo", *GIVEN, "--steps", "steps.csv", "--name", "a", "--out", "out")
    assert in_order == by_name
    assert in_order["steps"] == [0, 5, 9]


def test_a_probe_without_labels_is_a_hint_on_standard_error(run, place):
    ran = run("record", "training", *GIVEN, "--format", "json")
    assert ran.code == 0
    assert ran.json["labels"] is False
    assert "--labels FILE" in ran.err
    assert run("record", "training", "--probe", "labelled.npz", "--builder", "nets.py:mlp").err == ""


def test_a_second_run_asks_only_what_is_new(run_json, place, monkeypatch):
    run_json("record", "training", *GIVEN)
    asked = []
    from taskatlas.paths import past_training

    known = past_training.predict
    monkeypatch.setattr(past_training, "predict", lambda *a, **s: asked.append(s["who"]) or known(*a, **s))
    write_network(place / "training" / "epoch_20.safetensors", 20, 5)
    assert run_json("record", "training", *GIVEN)["steps"] == [0, 2, 10, 20]
    assert asked == ["epoch_20"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gone", *GIVEN), "there is no zoo at gone"),
        (("zoo", *GIVEN), "the name 'a' has no number"),
        (("training", "--probe", "gone.npz"), "gone.npz"),
        (("training", "--probe", "probe.npz"), "no builder"),
        (("training", *GIVEN, "--steps", "1,2"), "2 steps do not fit 3"),
        (("training", *GIVEN, "--steps", "soon"), "'soon' are no steps"),
        (("training", *GIVEN, "--steps", "1,1,2"), "both have step 1"),
        (("training", *GIVEN, "--name", "a/b"), "'a/b' is no name"),
        (("training", *GIVEN, "--tokens"), "input_ids"),
        (("training", "--probe", "nine.npz", *GIVEN[2:]), "labels from 9 to 9, and run 'training' predicts 3 classes"),
        (("training", *GIVEN, "--out", "nets.py"), "cannot write nets.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_recorded(no, arguments, words):
    assert words in no(*arguments)


def test_checkpoints_of_two_trainings(no, place):
    torch.manual_seed(0)
    (place / "nets2.py").write_text(
        "from torch import nn\ndef mlp(weights):\n    return nn.Linear(6, weights['weight'].shape[0])\n"
    )
    (place / "mixed").mkdir()
    for step, classes in enumerate((3, 4)):
        torch.save(torch.nn.Linear(6, classes).state_dict(), place / "mixed" / f"at_{step}.pt")
    message = no("mixed", "--probe", "probe.npz", "--builder", "nets2.py:mlp")
    assert "They are not one training" in message


def test_a_diverged_checkpoint_is_named(no, place):
    tensors = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).state_dict()
    tensors["0.bias"][1] = float("nan")
    torch.save(tensors, place / "training" / "epoch_30.pt")
    assert "epoch_30 gives NaN" in no("training", *GIVEN)
