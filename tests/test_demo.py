"""The demo: trains once, says what it found, leaves results that hold."""

import json
import shutil

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import taskatlas.demo
from taskatlas.cli import main
from taskatlas.demo import QUESTIONS, run_demo
from taskatlas.merge import Evaluation
from taskatlas.paths import read_record
from taskatlas.paths.files import read_trace
from taskatlas.space import Selection, TaskSpace
from taskatlas.space.files import read_transfers
from taskatlas.store import check_receipts
from taskatlas.tasks.agreement import load_agreements
from taskatlas.zoo import Zoo

FILES = {"ten digits #1": "digits-0.record", "ten digits #2": "digits-1.record", "shuffled labels": "shuffled.record"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny products wait longer for a second thread than they take, above all where other tests run beside."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """The folder of a finished demo, and what it found."""
    folder = tmp_path_factory.mktemp("tour") / "demo"
    before = torch.random.get_rng_state()
    result = run_demo(folder, quick=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    return folder, result


def test_files_are_there_and_hold(toured):
    folder, result = toured
    names = {path.name for path in folder.iterdir()}
    results = {"space.npz", "covariance.csv", "selection.json", "transfer.json", "atlas.html", "receipt.json"}
    assert names >= results | {"space.png", "selection.png", "transfer.png", "zoo"}
    assert names >= {"trace.json", "points.csv", "inpca.png", "inpca-3d.png", "progress.png", "distances.png", "runs"}
    assert result.document["out"] == str(folder)
    assert result.document["report"] == str(folder / "atlas.html")
    assert check_receipts(folder)[1] == []


def test_networks_answer_their_questions(toured):
    folder, result = toured
    scores = result.document["accuracy"]
    assert scores.keys() == QUESTIONS.keys()
    assert min(scores.values()) > 0.8
    zoo = Zoo.open(folder / "zoo")
    assert list(zoo) == list(QUESTIONS)
    assert [zoo[name].task for name in zoo] == list(QUESTIONS)
    for name, answers in QUESTIONS.items():
        outputs = zoo[name].open().module(torch.zeros(1, 64))
        assert outputs.shape == (1, max(answers) + 1)


def test_results_are_those_that_are_told(toured):
    folder, result = toured
    document = result.document
    space = TaskSpace.load(folder / "space.npz")
    assert space.names == tuple(QUESTIONS)
    first, second = document["closest"]["names"]
    assert space[first, second] == document["closest"]["covariance"]
    assert (space.covariance - np.eye(len(space))).max() == document["closest"]["covariance"]
    picked = Selection.load(folder / "selection.json").names
    assert document["selected"] == picked
    assert set(picked) < set(QUESTIONS)
    assert [point["k"] for point in document["transfer"]] == list(range(1, len(document["transfer"]) + 1))
    for point in document["transfer"]:
        low, median, high = (point["random"][end] for end in ("low", "median", "high"))
        assert 0.1 < low <= median <= high < 1
        assert 0.1 < point["selected"] < 1
    # More networks tell more digits apart; whether picks beat chance is what the demo is there to measure.
    assert document["transfer"][-1]["selected"] > document["transfer"][0]["selected"]


def test_trainings_are_recorded_and_random_labels_lead_nowhere(toured):
    folder, result = toured
    trace = read_trace(folder)
    assert result.document["paths"].keys() == {"ten digits #1", "ten digits #2", "shuffled labels"}
    for run in trace.runs:
        told = result.document["paths"][run.name]
        assert (told["length"], told["progress"]) == (run.length, run.progress[-1])
        assert run.steps[0] == 0
        assert np.isclose(run.length, read_record(folder / "runs" / FILES[run.name]).length())
    first, second, shuffled = trace.runs
    assert min(first.accuracy[-1], second.accuracy[-1]) > 0.8
    assert min(first.progress[-1], second.progress[-1]) > 0.5
    assert shuffled.accuracy[-1] < 0.3
    assert shuffled.progress.max() < 0.2


def test_aligned_networks_merge_and_others_do_not(toured):
    folder, result = toured
    right = result.document["merged"]
    assert Evaluation.load(folder / "evaluation.json").models() == tuple(right)
    own = min(right["digits-0"], right["digits-1"])
    assert right["their average"] < 0.6 < 0.75 < right["aligned, averaged, calibrated"]
    assert right["aligned, averaged, calibrated"] > own - 0.05


def test_networks_agree_on_questions_and_not_on_random_ones(toured):
    folder, result = toured
    assert [one.task for one in load_agreements(folder / "agreement.json")] == list(result.document["agreement"])
    for found in result.document["agreement"].values():
        assert found["agreement"] > found["random"] + 0.1


def test_lines_say_where_to_look(toured):
    folder, result = toured
    text = "\n".join(result.lines)
    assert str(folder / "atlas.html") in text
    assert all(name in text for name in result.document["selected"])
    assert f"{result.document['transfer'][-1]['selected']:.3f}" in text
    assert all(f"{name}: a path of length" in text for name in result.document["paths"])


def test_a_second_run_neither_trains_nor_extracts_and_finds_the_same(toured, monkeypatch, capsys):
    folder, result = toured
    scores = {len(one.names): one for one in read_transfers(folder)}

    def fails(*_, **__):
        pytest.fail("the demo did its work again")

    # The heads of the transfer are trained anew each time, which tests of the transfer look at.
    monkeypatch.setattr(taskatlas.demo, "transfer", lambda zoo, names, *_, **__: scores[len(names)])
    monkeypatch.setattr(taskatlas.demo, "train", fails)
    monkeypatch.setattr("torch.optim.AdamW.step", fails)
    monkeypatch.setattr("taskatlas.zoo.checkpoint.Checkpoint.open", fails)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--quick", "--out", str(folder), "--format", "json"])
    assert not stop.value.code
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "8/8" in err
    timeless = {key: value for key, value in result.document.items() if key != "seconds"}
    assert {key: value for key, value in found.items() if key != "seconds"} == json.loads(json.dumps(timeless))
    assert check_receipts(folder)[1] == []


@pytest.mark.parametrize("change", ["seed", "weights"])
def test_another_seed_or_a_damaged_network_trains_again(toured, tmp_path, monkeypatch, change):
    folder, _ = toured
    copy = shutil.copytree(folder / "zoo", tmp_path / "zoo").parent
    if change == "weights":
        (copy / "zoo" / "odd.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(taskatlas.demo, "train", lambda *_, **__: pytest.fail("trained again"))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        run_demo(copy, quick=True, seed=1 if change == "seed" else 0)


def test_the_report_has_every_section(toured):
    text = (toured[0] / "atlas.html").read_text()
    titles = ("Task space", "Selection", "Transfer", "Paths", "Accuracy on tasks", "Agreement")
    assert all(f"<h2>{title}</h2>" in text for title in titles)


def test_questions_show_every_digit_to_someone_and_never_ask_which_one_it_is():
    answers = np.array(list(QUESTIONS.values()))
    assert answers.shape == (len(QUESTIONS), 10)
    assert (answers >= 0).any(axis=0).all()
    for row in answers:
        classes = sorted(set(row.tolist()) - {-1})
        assert classes == list(range(len(classes)))
        assert 2 <= len(classes) < 10


def test_an_out_that_is_a_file_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setattr(taskatlas.demo, "train", lambda *_, **__: None)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--quick", "--out", str(tmp_path / "taken")])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "cannot write" in err
    assert (tmp_path / "taken").read_text() == "mine"
