"""``taskatlas agree``, ``discover``, ``split`` and ``train --split``: files, documents, and sentences."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from taskatlas.probe import Probe
from taskatlas.store import load_receipts
from taskatlas.tasks import (
    Discovered,
    Split,
    Task,
    adversarial_split,
    class_group_task,
    human_tasks,
    jobs,
    similarity,
    write_tasks,
)
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


def test_agree_fits_into_eighty_columns(run, place):
    told = run(*(2 if argument == 1 else argument for argument in AGREE))  # two null tasks, for an interval
    assert told.code == 0
    assert max(map(len, told.out.splitlines())) <= 80
    row = next(line for line in told.out.splitlines() if line.startswith("0+1"))
    assert row.count("±") == 3
    assert len(row.split()) == 12


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_of_numbers_are_samples(run_json, place, ending):
    with np.load("data.npz") as archive:
        columns = {f"f{i}": archive["x"][:, i] for i in range(6)} | {"label": archive["y"]}
    table = pa.table({"id": [str(i) for i in range(160)], **columns})
    if ending == "csv":
        pyarrow.csv.write_csv(table, "table.csv")
    else:
        pq.write_table(table, "table.parquet")
    found = run_json("agree", f"table.{ending}", "--tasks", "human:1", "--repeats", 1, "--nulls", 0, *TRAINED)
    assert found["scores"] == run_json(*AGREE[:3], "human:1", "--repeats", 1, "--nulls", 0, *TRAINED)["scores"]


def test_agree_leaves_out_what_is_nearly_constant_and_says_so(run, place):
    rows = "".join(f"{i},{int(i < 2)},{i % 2}\n" for i in range(160))
    Path("two.csv").write_text("id,rare,even\n" + rows)
    ran = run("agree", "data.npz", "--tasks", "two.csv", "--repeats", 1, "--nulls", 0, *TRAINED)
    assert ran.code == 0
    assert "left out: task 'rare' is nearly constant" in ran.err
    assert "even" in ran.out


def test_receipts_name_tasks_and_target(run, place):
    write_tasks("t.csv", human_tasks(Probe.open("data.npz")))
    made = ("--tasks", "t.csv", "--repeats", 1, *TRAINED)
    assert run("agree", "data.npz", *made, "--nulls", 0, "--out", "scores").code == 0
    assert run("split", "data.npz", *made, "--target", "t.csv:0+2", "--controlled", 0, "--out", "broken").code == 0
    for folder, inputs in (("scores", {"data", "tasks"}), ("broken", {"data", "tasks", "target"})):
        assert set(load_receipts(Path(folder))[0].inputs) >= inputs
        assert run("check", folder).code == 0
    write_tasks("t.csv", human_tasks(Probe.open("data.npz"))[::-1])
    for folder in ("scores", "broken"):
        assert run("check", folder).code == 1


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


@pytest.mark.parametrize("repeats", [0, 1])
def test_a_split_by_discovered_tasks_tells_their_scores(run, run_json, place, repeats, monkeypatch):
    atlas = run_json(*DISCOVER)["tasks"]
    asked = ("split", "data.npz", "--tasks", "found", "--target", "0,1", "--repeats", repeats, *TRAINED)
    found = run_json(*asked, "--out", "broken")["splits"]
    target = class_group_task(Probe.open("data.npz"), [0, 1])
    tasks = {task.name: task for task in Discovered.load("found")}
    for row in found:
        assert row["similarity"] == similarity(target, tasks[row["task"]])
        assert row["agreement"] == atlas[row["task"]]["agreement"]
        assert row["lift"] == pytest.approx(min(atlas[row["task"]]["lift"].values()))
        assert set(row["nulls"]) == {"random", "untrained"}
    assert str((place / "found/agreement.json").resolve()) in load_receipts(Path("broken"))[0].sources
    monkeypatch.setenv("COLUMNS", "80")
    told = run(*asked, "--out", "again").out
    assert max(map(len, told.splitlines())) <= 80
    assert {"like", "agree", "lift"} <= set(told.split())
    Path("found/agreement.json").unlink()
    unknown = run_json(*asked, "--out", "third")["splits"]
    assert [(row["similarity"], row["agreement"]) for row in unknown] == [(row["similarity"], None) for row in found]
    assert "agree" not in run(*asked, "--out", "fourth").out


def test_scores_on_samples_that_a_search_saw_are_told(run, place):
    assert run(*DISCOVER, "--seed", 1).code == 0
    asked = ("agree", "data.npz", "--tasks", "found", "--least", 0, "--nulls", 0, "--repeats", 1, *TRAINED)
    assert "samples that networks are asked about" in run(*asked).err
    assert run(*asked, "--seed", 1).err == ""


def test_known_tasks_are_opened_before_the_search(run, place):
    ran = run(*DISCOVER[:-4], "--known", "gone.csv", "--out", "found")
    assert ran.code == 2
    assert "gone.csv cannot be read" in ran.err
    assert not Path("found").exists()


@pytest.mark.parametrize("learn", ["classes", "target"])
def test_halves_are_split_without_training(run, run_json, place, monkeypatch, learn):
    monkeypatch.setattr(jobs, "train", lambda *_, **__: pytest.fail("trained"))
    asked = ("split", "photos", "--tasks", "halves:2", "--learner", "small_cnn", "--learn", learn, "--reserve", 0.25)
    found = run_json(*asked, "--out", "halves")
    assert [row["task"] for row in found["splits"]] == ["untrained 0", "untrained 1"]
    split = Split.load("halves/splits/01.npz")
    train, test = (np.bincount(split.target[rows], minlength=2) for rows in (split.train, split.test))
    assert np.abs(train - test).max() <= 1
    assert (len(split.target), len(split.reserved), len(train)) == (64, 16, 4 if learn == "classes" else 2)
    assert {path.name for path in Path("halves").iterdir()} == {"manifest.json", "splits", "receipt.json"}
    assert Path("halves/splits/02-random-split.npz").is_file()
    assert run("check", "halves").code == 0
    assert "2 splits of" in run(*asked, "--out", "again").out
    assert run("agree", "photos", "--tasks", "halves").code == 2


def test_tasks_that_make_no_split_are_told(run, place):
    assert "left out: split '0+1 by 0+1' has no test samples" in run(*SPLIT).err


def test_published_splits_are_trained_on(run, run_json, place):
    rows = np.arange(64)
    torch.save({"even": (rows[::2], rows[1::2]), "odd": (rows[1::2], rows[::2])}, "two.torch")
    Path("one.json").write_text(json.dumps({"half": [rows[::2].tolist(), rows[1::2].tolist()]}))
    fast = ("train", "photos", "--model", "small_cnn", "--epochs", 1, "--batch-size", 8)
    found = run_json(*fast, "--split", "two.torch:odd", "--out", "odd")
    assert (found["samples"], found["classes"]) == (32, ["ant", "bee", "cat", "dog"])
    assert set(found["split"]) == {"test"}
    assert run_json(*fast, "--split", "one.json", "--out", "half")["samples"] == 32
    for said in ("two.torch", "two.torch:third"):
        refused = run(*fast, "--split", said, "--out", "no")
        assert refused.code == 2
        assert "two.torch holds the splits even, odd; name one of them: two.torch:even" in refused.err


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
        (("agree", "mixed.csv", "--tasks", "human"), "its column 'b' holds other things than numbers"),
        (("split", "data.npz", "--tasks", "human:1", "--target", "0,2", "--batch-size", 999), "a batch of 999"),
        (("discover", "data.npz", "--route", "sequential", "--diversity", "uniformity"), "leave out --diversity"),
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
    Path("mixed.csv").write_text("id,a,b,label\n1,0.5,red,0\n2,1.5,blue,1\n")
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


def test_coverage_of_many_tasks_is_summed_up():
    from taskatlas.cli.discover import _coverage

    assert _coverage({"b": 0.75, "a": 0.5}) == "b 0.750, a 0.500"
    many = {f"task {number}": number / 16 for number in range(16)}
    assert _coverage(many) == "16 tasks, mean 0.469, from task 0 0.000 to task 15 0.938"
