"""``taskatlas agree``, ``discover``, ``split`` and ``train --split``: files, documents, and sentences."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskatlas.probe import Probe
from taskatlas.tasks import Discovered, Split, Task, adversarial_split, human_tasks, write_tasks
from taskatlas.tasks.files import read_agreements, read_damage

TRAINED = ("--epochs", 10, "--batch-size", 16, "--learning-rate", 0.01)
AGREE = ("agree", "data.npz", "--tasks", "human:2", "--repeats", 2, "--nulls", 1, *TRAINED)
DISCOVER = (
    *("discover", "data.npz", "--tasks", 2, "--steps", 3, "--batch-size", 32, "--asked", 32),
    *("--inner-steps", 4, "--truncate", 0, "--repeats", 1, "--known", "human:2", "--out", "found"),
)
SPLIT = ("split", "data.npz", "--tasks", "human:3", "--target", "0,1", "--repeats", 1, *TRAINED, "--out", "broken")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """data.npz, samples of four classes; photos/, a folder a class; commands run here."""
    draw = np.random.default_rng(0)
    labels = np.arange(160) % 4
    x = 2.5 * draw.standard_normal((4, 6))[labels] + draw.standard_normal((160, 6))
    np.savez(tmp_path / "data.npz", x=x.astype(np.float32), y=labels)
    for label, name in enumerate(("ant", "bee", "cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(16):
            pixels = draw.integers(60 * label, 60 * label + 70, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number:02}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_agree_scores_and_writes(run, run_json, place):
    found = run_json(*AGREE, "--out", "scores")
    assert set(found["scores"]) == {"0+1", "0+2"}
    assert found["held_out"] == 32
    one = found["scores"]["0+1"]
    assert one["lift_over_random"] == pytest.approx(one["agreement"] - one["random_null"])
    back = {score.task: score.agreement for score in read_agreements(Path("scores"))}
    assert back == {name: row["agreement"] for name, row in found["scores"].items()}
    assert {path.name for path in Path("scores").iterdir()} == {
        "agreement.json",
        "agreement.csv",
        "agreement.png",
        "receipt.json",
    }
    assert run("check", "scores").code == 0
    told = run(*AGREE)
    assert "0+1" in told.out
    again = run_json(*AGREE, "--engine", "threads:2")
    assert again["scores"] == found["scores"]


def test_discover_finds_and_shows(run, run_json, place):
    found = run_json(*DISCOVER)
    assert len(found["tasks"]) == 2
    assert set(found["coverage"]) == {"0+1", "0+2"}
    assert all(0 < task["agreement"] <= 1 and task["resembles"] for task in found["tasks"].values())
    files = {path.name for path in Path("found").iterdir()}
    assert files >= {"tasks.csv", "portraits.json", "task-0.png", "task-1.png", "history.png", "receipt.json"}
    assert not [name for name in files if "state" in name]
    assert [task.name for task in Discovered.load("found")] == list(found["tasks"])
    assert run("check", "found").code == 0
    assert run_json(*DISCOVER)["tasks"] == found["tasks"]
    assert len(run_json("agree", "data.npz", "--tasks", "found", "--least", 0, *TRAINED)["scores"]) == 2


def test_split_ranks_and_writes(run, run_json, place):
    found = run_json(*SPLIT)
    assert [row["task"] for row in found["splits"]] != []
    accuracies = [row["found"]["accuracy"] for row in found["splits"]]
    assert accuracies == sorted(accuracies)
    assert len(accuracies) == 2  # the third human task is the target itself
    manifest = json.loads(Path("broken/manifest.json").read_text())
    assert {name for name in manifest if name.startswith("splits/01")} == {
        "splits/01.npz",
        "splits/01-random-task.npz",
        "splits/01-random-split.npz",
    }
    worst = Split.load("broken/splits/01.npz")
    assert worst.name == found["splits"][0]["split"]
    assert Split.load("broken/splits/01.csv").digest == worst.digest
    assert read_damage(Path("broken"))[0].found.accuracy == accuracies[0]
    assert run("check", "broken").code == 0


def test_split_learns_all_classes_and_takes_columns(run_json, place):
    write_tasks("tasks.csv", human_tasks(Probe.open("data.npz")))
    settings = ("--target", "tasks.csv:0+2", "--learn", "classes", "--repeats", 1, *TRAINED, "--controlled", 0)
    found = run_json("split", "data.npz", "--tasks", "tasks.csv:0+3", *settings)
    assert len(found["splits"]) == 1
    assert found["splits"][0]["controls"] == {}
    assert Split.load("splits/splits/01.npz").target.max() == 3


def test_train_follows_a_split(run, run_json, place):
    data = Probe.open("photos")
    target, easy, _ = human_tasks(data)
    adversarial_split(target, easy, reserve=0.1).save("two.npz")
    adversarial_split(target, easy, labels=Task.of_probe("classes", data)).save("four.npz")
    adversarial_split(target, easy).save_group_dro("partition.csv")
    fast = ("train", "photos", "--model", "small_cnn", "--epochs", 3, "--batch-size", 8, "--learning-rate", 0.05)
    two = run_json(*fast, "--split", "two.npz", "--out", "two")
    assert two["classes"] == ["0", "1"]
    assert two["samples"] == len(Split.load("two.npz").train)
    assert set(two["split"]) == {"test", "reserved"}
    again = run(*fast, "--split", "two.npz", "--out", "two")
    assert f"right in the test part: {two['split']['test']:.3f}" in again.out
    assert run_json(*fast, "--split", "four.npz", "--out", "four")["classes"] == ["ant", "bee", "cat", "dog"]
    assert run_json(*fast, "--split", "partition.csv", "--out", "bare")["classes"] == ["ant", "bee", "cat", "dog"]
    refused = run(*fast, "--split", "two.npz", "--classes", "x.json", "--out", "no")
    assert refused.code == 2
    assert "a split says itself" in refused.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("agree", "data.npz", "--tasks", "gone.csv"), "cannot be read as a table"),
        (("agree", "data.npz", "--tasks", "human:x"), "names no number of tasks"),
        (("agree", "data.npz", "--tasks", "human", "--differ", "colour"), "cannot differ in"),
        (("agree", "data.npz", "--tasks", "other.csv"), "has no label for 160 of 160 samples"),
        (("agree", "data.npz", "--tasks", "rare.csv", "--batch-size", 16), "nearly constant"),
        (("agree", "data.npz", "--tasks", "human", "--batch-size", 999), "fewer than a batch"),
        (("agree", "data.npz", "--tasks", "human", "--learner", "no.py:net"), "there is no file"),
        (("discover", "data.npz", "--batch-size", 999), "fewer than a batch"),
        (("discover", "data.npz", "--features", "few.npy"), "features of 3 samples"),
        (
            ("discover", "data.npz", "--width", 1, "--classes", 4, "--batch-size", 32, "--asked", 32),
            "do not fit into 1 dimensions",
        ),
        (("split", "data.npz", "--tasks", "human", "--target", "7"), "there is no class '7'"),
        (("split", "constant.npz", "--tasks", "random"), "at least two classes"),
        (("split", "data.npz", "--tasks", "random", "--train-share", 0.999), "cannot be had"),
        (("train", "photos", "--model", "small_cnn", "--split", "gone.npz"), "there is no split"),
    ],
)
def test_bad_input_is_one_sentence(run, place, as_installed, arguments, said):
    ids = range(160)
    Path("other.csv").write_text("id,t\n" + "".join(f"x{i},{i % 2}\n" for i in ids))
    Path("rare.csv").write_text("id,t\n" + "".join(f"{i},{int(i < 2)}\n" for i in ids))
    np.save("few.npy", np.zeros((3, 2)))
    np.savez("constant.npz", x=np.random.default_rng(0).standard_normal((9, 2)), y=np.ones(9, dtype=int))
    ran = run(*arguments)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_a_rate_that_is_too_high_is_a_failure(run, place):
    ran = run(*DISCOVER, "--inner-rate", 1e30)
    assert ran.code == 1
    assert "inner step" in ran.err
    assert "Try an inner rate below" in ran.err
