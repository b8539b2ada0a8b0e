"""``taskatlas train``: a folder that opens, a record that traces, the same bytes after a kill, and sentences."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.make import snapshot, start

from taskatlas.learn import read_log
from taskatlas.paths import Recorder, geometric, read_record
from taskatlas.probe import Probe, class_subset, random_labels
from taskatlas.zoo import Zoo

TRAIN = ("train", "photos", "--model", "small_cnn", "--epochs", 3, "--batch-size", 8, "--learning-rate", 0.05)
FAST = (*TRAIN, "--out", "run")

# Beside a file "slow", the network says in its third epoch that it was reached, and waits.
WAITING = """
import time
from pathlib import Path

from torch import nn

HERE = Path(__file__).parent


class Net(nn.Sequential):
    calls = 0

    def forward(self, x):
        Net.calls += self.training
        if (HERE / "slow").exists() and Net.calls == 11:
            (HERE / "reached").touch()
            time.sleep(120)
        return super().forward(x)


def build(classes, channels):
    return Net(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, classes))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """photos/ and asked/ with eight pictures or more of each of four classes, and a builder; commands run here."""
    draw = np.random.default_rng(0)
    for folder, count in {"photos": 12, "asked": 6}.items():
        for label, name in enumerate(("ant", "bee", "cat", "dog")):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(60 * label, 60 * label + 70, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{number:02}.png")
    (tmp_path / "nets.py").write_text(WAITING)
    (tmp_path / "tasks.json").write_text(json.dumps({"pets": ["dog", "cat"], "none": [], "typo": ["dgo"]}))
    (tmp_path / "is_a.txt").write_text("animal insect\nanimal pet\ninsect ant\ninsect bee\npet cat\npet dog\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_and_its_record(run_json, run, place):
    found = run_json(*FAST, "--probe", "asked", "--snapshots", "every:5", "--name", "all")
    assert found["classes"] == ["ant", "bee", "cat", "dog"]
    assert (found["samples"], found["steps"], found["snapshots"]) == (48, 18, 5)
    record = read_record("run/predictions.record")
    assert (record.name, record.steps.tolist()) == ("all", [0, 5, 10, 15, 18])
    assert record.ids == Probe.open("asked").ids
    assert record.accuracy()[-1] > 0.5
    rows = read_log(Path("run/log.csv"))
    assert (rows[-1].loss, rows[-1].accuracy) == (found["loss"], found["accuracy"])
    assert run("check", "run").out.startswith("receipts checked: 1, problems: 0")
    opened = Zoo.open("run")["all"].open()
    again = Recorder(Probe.open("asked"), prepare=opened.prepare)
    again.record(opened.module, 18)
    np.testing.assert_allclose(again.trajectory().log_probs[0], record.log_probs[-1], atol=1e-5)
    assert {path.name for path in Path("run").iterdir()} == {
        "weights.safetensors",
        "log.csv",
        "zoo.yaml",
        "receipt.json",
        "predictions.record",
    }


def test_a_finished_run_is_told_again(run, place):
    first = run(*FAST, "--probe", "asked")
    before = snapshot(Path("run"))
    assert run(*FAST, "--probe", "asked").out == first.out
    assert snapshot(Path("run")) == before
    assert "3 " in first.out
    assert "18" in first.out


def test_a_killed_run_goes_on_to_the_same_bytes(run, place):
    arguments = ("train", "photos", "--model", "nets.py:build", "--epochs", 4, "--batch-size", 8, "--crop", "shift")
    arguments = (*arguments, "--flip", "--probe", "asked", "--snapshots", "every:3")
    assert run(*arguments, "--out", "whole", "--name", "a").code == 0
    (place / "slow").touch()
    process = start(place, *arguments, "--out", "broken", "--name", "a")
    for _ in range(600):
        if (place / "reached").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert {path.name for path in Path("broken").iterdir()} == {"training.state", "predictions.record"}
    assert read_record("broken/predictions.record").steps.tolist() == [0, 3, 6, 9]
    (place / "slow").unlink()
    assert run(*arguments, "--out", "broken", "--name", "a", "--workers", 1).code == 0
    whole, broken = snapshot(Path("whole")), snapshot(Path("broken"))
    assert whole.keys() == broken.keys()
    for name in ("weights.safetensors", "log.csv", "predictions.record"):
        assert whole[name] == broken[name], name


def test_some_classes_by_list_and_by_hierarchy(run_json, place):
    found = run_json(*FAST, "--classes", "tasks.json:pets", "--probe", "asked")
    assert (found["classes"], found["samples"]) == (["dog", "cat"], 24)
    record = read_record("run/predictions.record")
    view = class_subset(Probe.open("asked"), ["dog", "cat"])
    assert (record.ids, record.labels.tolist()) == (view.ids, view.labels.tolist())
    below = run_json(*TRAIN, "--out", "b", "--wordnet", "is_a.txt", "--node", "insect")
    assert below["classes"] == ["ant", "bee"]
    assert below["record"] is None


def test_a_probe_keeps_the_numbers_of_the_data_where_it_lacks_a_class(run_json, place):
    for path in Path("asked/bee").iterdir():
        path.unlink()
    Path("asked/bee").rmdir()
    run_json(*FAST, "--probe", "asked", "--snapshots", "every:9")
    record = read_record("run/predictions.record")
    assert record.labels.tolist() == [0] * 6 + [2] * 6 + [3] * 6
    assert record.log_probs.shape[2] == 4
    Path("numbers.json").write_text("[1, 2]")
    run_json(*FAST[:-1], "b", "--classes", "numbers.json", "--probe", "asked")
    chosen = read_record("b/predictions.record")
    assert {name.split("/")[0] for name in chosen.ids} == {"cat"}
    assert chosen.labels.tolist() == [1] * 6


def test_a_probe_of_numbers_has_the_numbers_of_the_data(run_json, place):
    asked = Probe.open("asked")
    np.savez("asked.npz", x=np.stack([np.asarray(image) for image in asked.inputs]), y=asked.labels)
    run_json(*FAST, "--classes", "tasks.json:pets", "--probe", "asked.npz", "--snapshots", "every:9")
    assert read_record("run/predictions.record").labels.tolist() == [1] * 6 + [0] * 6


def test_a_probe_with_a_class_of_its_own_is_refused(run, place, as_installed):
    Path("asked/bee").rename("asked/wasp")
    ran = run(*FAST, "--probe", "asked")
    assert (ran.code, ran.out) == (2, "")
    assert "the probe has the class 'wasp', which the data has not" in ran.err
    assert run(*FAST, "--classes", "tasks.json:pets", "--probe", "asked").code == 0


def test_a_network_of_other_classes_is_recorded_on_all(run_json, place):
    run_json(*FAST, "--classes", "tasks.json:pets", "--probe", "asked", "--imprint", 2)
    record = read_record("run/predictions.record")
    assert record.log_probs.shape[1:] == (24, 4)
    assert record.ids == Probe.open("asked").ids
    assert record.accuracy()[-1] > 0.5


def test_random_labels_are_learned_and_the_probe_keeps_its_own(run_json, place, monkeypatch):
    seen = []
    original = random_labels

    def spied(probe, share, *, seed):
        seen.append(original(probe, share, seed=seed))
        return seen[-1]

    monkeypatch.setattr("taskatlas.probe.random_labels", spied)
    run_json(*FAST, "--random-labels", 1, "--probe", "asked", "--seed", 3)
    assert (seen[0].labels == random_labels(Probe.open("photos"), seed=3).labels).all()
    assert (read_record("run/predictions.record").labels == Probe.open("asked").labels).all()


def test_large_pictures_are_cropped_as_usual(run_json, place):
    for path in Path("photos").rglob("*.png"):
        Image.open(path).resize((80, 70)).save(path)
    run_json("train", "photos", "--model", "small_cnn", "--epochs", 1, "--batch-size", 16, "--out", "run")
    settings = json.loads(Path("run/receipt.json").read_text())["train"]["settings"]
    assert (settings["crop"], settings["flip"], settings["precision"]) == ("resized", True, "float32")
    assert Zoo.open("run")["run"].open().prepare.size == 224


def test_snapshots_by_ratio(run_json, place):
    run_json(*FAST, "--probe", "asked", "--snapshots", "2")
    due, taken = geometric(2.0), []
    for step in range(18):
        if due(step, taken[-1] if taken else None):
            taken.append(step)
    assert read_record("run/predictions.record").steps.tolist() == [*taken, 18]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--classes", "gone.json"), "cannot read classes from gone.json"),
        (("--classes", "tasks.json"), "the keys pets, none, typo"),
        (("--classes", "tasks.json:cats"), "no key 'cats'"),
        (("--classes", "tasks.json:none"), "no sample is of the 0 classes"),
        (("--classes", "tasks.json:typo"), "Did you mean 'dog'?"),
        (("--wordnet", "is_a.txt"), "--node"),
        (("--wordnet", "is_a.txt", "--node", "inset"), "Did you mean 'insect'"),
        (("--wordnet", "gone.txt", "--node", "pet"), "cannot read a hierarchy from gone.txt"),
        (("--wordnet", "is_a.txt", "--node", "pet", "--classes", "tasks.json:pets"), "--classes FILE[:KEY], or by"),
        (("--random-labels", "1.5"), "share of random labels is 1.5"),
        (("--probe", "gone"), "gone"),
        (("--probe", "nets.py"), "nets.py"),
        (("--snapshots", "often", "--probe", "asked"), "'often'"),
        (("--snapshots", "every:0", "--probe", "asked"), "at least 1 step apart"),
        (("--snapshots", "0.5", "--probe", "asked"), "ratio above 1"),
        (("--snapshots", "inf", "--probe", "asked"), "ratio above 1"),
        (("--learning-rate", "0"), "learning rate is 0"),
        (("--learning-rate", "nan"), "learning rate is nan"),
        (("--warmup", "2"), "warmup is 2"),
        (("--model", "timm"), "'timm' names no model"),
        (("--model", "nets.py:bulid"), "Did you mean 'build'?"),
        (("--model", "gone.py:build"), "gone.py"),
        (("--imprint", "0", "--probe", "asked"), "temperature is 0"),
        (("--imprint", "nan", "--probe", "asked"), "temperature is nan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_sentence(run, place, as_installed, more, said):
    kept = [argument for argument in FAST if argument not in (0.05, "--learning-rate") or "--learning-rate" not in more]
    if "--model" in more:
        kept = [argument for argument in kept if argument not in ("--model", "small_cnn")]
    ran = run(*kept, *more)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert said in ran.err
    assert ran.err.startswith("taskatlas: ")
    assert ran.err.count("\n") == 1
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [("gone", "gone"), ("loose", "no labels"), ("lines.txt", "no labels"), ("mixed", "Say to what size")],
)
def test_bad_data(run, place, as_installed, data, said):
    (place / "loose").mkdir()
    (place / "mixed" / "a").mkdir(parents=True)
    for folder in ("loose", "mixed/a"):
        for number in range(3):
            Image.new("RGB", (8, 8 + number)).save(place / folder / f"{number}.png")
    (place / "lines.txt").write_text("a\nb\n")
    ran = run("train", data, *FAST[2:])
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_another_training_leaves_the_folder_as_it_was(run, place, as_installed):
    assert run(*FAST, "--probe", "asked").code == 0
    before = snapshot(place / "run")
    for more in (("--epochs", 4), ("--seed", 5, "--epochs", 3), ("--classes", "tasks.json:pets", "--epochs", 3)):
        kept = [argument for argument in FAST if argument not in (3, "--epochs")]
        ran = run(*kept, *more, "--probe", "asked")
        assert (ran.code, ran.out) == (2, "")
        assert "another" in ran.err
    assert snapshot(place / "run") == before


def test_a_loss_that_is_lost_is_status_1(run, place, as_installed):
    kept = [argument for argument in FAST if argument not in (0.05, "--learning-rate")]
    ran = run(*kept, "--learning-rate", "1e30")
    assert (ran.code, ran.out) == (1, "")
    assert "the loss became NaN or infinite in epoch 1 of 3" in ran.err
