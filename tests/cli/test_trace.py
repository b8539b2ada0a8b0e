"""``taskatlas trace``: what it prints and leaves, what it is given, and what it refuses."""

import csv
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tests.cli.make import run_apart, snapshot, write_run

from taskatlas.paths import InPCA, Trajectory, task_tree, trace_runs
from taskatlas.paths.files import read_trace
from taskatlas.paths.record_file import RecordHeader, append_snapshot, start_record

NAMES = ["cats-0", "cats-1", "dogs"]


@pytest.fixture(autouse=True)
def unpainted(request, monkeypatch):
    """Pictures of one byte: painting takes most of the time of a trace this small."""
    if "painted" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b"."))


@pytest.fixture
def painted():
    """Pictures as they are."""


@pytest.fixture
def no(run, place, as_installed):
    """``no(*arguments)``: the one sentence that refuses a trace, which leaves nothing behind."""

    def command(*arguments):
        before = snapshot(place)
        ran = run("trace", *arguments)
        assert ran.code == 2, ran.err or ran.out
        assert ran.out == ""
        assert ran.err.startswith("taskatlas: ")
        assert ran.err.count("\n") == 1
        assert snapshot(place) == before
        return ran.err

    return command


def opened():
    return [Trajectory.from_npz(f"runs/{name}.npz") for name in NAMES]


def write_record(path, seed=0, name="run"):
    write_run("source.npz", seed)
    one = Trajectory.from_npz("source.npz")
    Path("source.npz").unlink()
    start_record(Path(path), RecordHeader(name, list(one.ids), 4, one.labels.tolist()))
    for step, log_probs in zip(one.steps, one.log_probs, strict=True):
        append_snapshot(Path(path), float(step), log_probs)
    return one


def test_it_prints_what_it_finds(run_json, place):
    document = run_json("trace", "runs", "--components", 4)
    runs, fit = opened(), InPCA(4).fit(opened())
    assert document["runs"] == NAMES
    assert document["eigenvalues"] == fit.eigenvalues_.tolist()
    assert document["explained_stress"] == fit.explained_stress_.tolist()
    for name, one in zip(NAMES, runs, strict=True):
        assert document["steps"][name] == one.steps.tolist()
        assert document["progress"][name] == one.progress().tolist()
        assert document["accuracy"][name] == one.accuracy().tolist()
        assert document["length"][name] == one.length()
        assert document["tortuosity"][name] == one.tortuosity()
        assert document["regressions"][name] == [fall._asdict() for fall in one.regressions()]
    tree = task_tree(runs)
    np.testing.assert_allclose(document["distances"]["values"], tree.distances, atol=1e-12)
    assert document["tree"]["newick"] == tree.newick()
    assert document["saturated_share"] == 0.0
    assert (document["intervals"], document["means"], document["notes"]) == (None, None, [])
    assert document["trace"] == "atlas/trace.json"


def test_people_see_tables_and_where_the_files_are(run, place, painted):
    ran = run("trace", "runs", "--out", "out", "--bootstrap", 3)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    found = read_trace(Path("out"))
    assert all(f"{one.length:.3f}" in ran.out and one.name in ran.out for one in found.runs)
    assert "task" not in ran.out.splitlines()[1]
    assert "wrote out: distances.csv, distances.png" in ran.out
    pictures = sorted(path.name for path in Path("out").glob("*.png"))
    assert pictures == ["distances.png", "inpca-3d.png", "inpca.png", "progress.png"]
    assert all(plt.imread(Path("out") / name).std() > 0.03 for name in pictures)
    assert run("check", "out").code == 0
    assert run("report", "out").code == 0
    assert "<h2>Paths</h2>" in Path("out/atlas.html").read_text()


def test_people_are_told_how_much_is_the_floor(run, place):
    out = run("trace", "runs").out
    assert "0.0% of samples, over pairs of snapshots, do not overlap and count as 13.8 nats\n" in out
    sure = np.eye(4)[(np.arange(3)[:, None] + np.arange(20)) % 4]
    write_run("sure.npz", steps=3, logits=None, probs=sure)
    ran = run("trace", "sure.npz")
    assert "100.0% of samples, over pairs of snapshots, do not overlap and count as 13.8 nats; --metric hell" in ran.out
    assert "nats" not in run("trace", "sure.npz", "--metric", "hellinger").out


def test_one_file_under_two_names_is_one_run(run_json, place):
    document = run_json("trace", "runs/dogs.npz", place / "runs" / "dogs.npz", "runs/cats-0.npz")
    assert document["runs"] == ["dogs", "cats-0"]


def test_check_notices_a_run_that_changed(run, place):
    assert run("trace", "runs", "--labels", "labels.txt").code == 2
    Path("labels.txt").write_text("".join(f"{label}\n" for label in np.arange(20) % 4))
    assert run("trace", "runs", "--labels", "labels.txt").code == 0
    write_run("runs/dogs.npz", 9)
    Path("labels.txt").write_text("")
    ran = run("check", "atlas")
    assert ran.code == 1
    assert "dogs.npz changed" in ran.out
    assert "labels.txt changed" in ran.out


def test_every_kind_of_run(run_json, place):
    h5py = pytest.importorskip("h5py")
    recorded = write_record("a.record", 4)
    Path("a.record").write_bytes(Path("a.record").read_bytes()[:-5])
    write_run("source.npz", 5)
    saved = Trajectory.from_npz("source.npz")
    saved.save("saved.safetensors")
    with h5py.File("foreign.h5", "w") as file:
        file["yhs"] = saved.probabilities()
        file["labels"] = saved.labels
    given = ("runs/dogs.npz", "a.record", "saved.safetensors")
    document = run_json("trace", *given)
    assert document["runs"] == ["dogs", "a", "source"]
    assert document["steps"]["a"] == recorded.steps.tolist()[:-1]
    foreign = run_json("trace", "foreign.h5", "--predictions", "yhs", "--kind", "probs", "--out", "foreign")
    np.testing.assert_allclose(foreign["progress"]["foreign"], saved.progress(), atol=1e-6)
    with Path("foreign/runs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["file"] == str(Path("foreign.h5").resolve())


def test_a_truncated_record_is_a_warning_and_json_stays_alone(run, place):
    write_record("a.record")
    whole = Path("a.record").read_bytes()
    Path("a.record").write_bytes(whole[: len(whole) // 2])
    ran = run("trace", "a.record", "--format", "json")
    assert ran.code == 0
    assert ran.err.startswith("taskatlas: a.record was cut short: 2 whole snapshots were read")
    assert ran.err.count("\n") == 1
    assert len(ran.json["steps"]["a"]) == 2


def test_seeds_are_grouped_by_name_by_pattern_or_by_file(run_json, place):
    for position, name in enumerate(("cats", "cats", "dogs")):
        write_record(f"{position}.record", position, name)
    named = run_json("trace", "0.record", "1.record", "2.record", "--bootstrap", 4)
    assert named["tasks"] == {"cats #1": "cats", "cats #2": "cats", "dogs": "dogs"}
    by_pattern = run_json("trace", "runs", "--group-by", "[a-z]+", "--bootstrap", 4)
    Path("groups.csv").write_text("run,group\ncats-0,cats\ncats-1,cats\ndogs,dogs\n")
    by_file = run_json("trace", "runs", "--groups", "groups.csv", "--bootstrap", 4)
    assert by_pattern == by_file
    assert by_file["tasks"] == {"cats-0": "cats", "cats-1": "cats", "dogs": "dogs"}
    assert by_file["distances"]["names"] == ["cats", "dogs"]
    assert by_file["means"]["cats"]["length"] == pytest.approx(
        np.mean([by_file["length"][name] for name in ("cats-0", "cats-1")])
    )
    assert set(by_file["intervals"]) == {"resamples", "level", "samples", "seeds"}
    low, high = by_file["intervals"]["seeds"]["length"]["cats"]
    assert low <= by_file["means"]["cats"]["length"] <= high
    with Path("atlas/points.csv").open(newline="") as file:
        assert {row["task"] for row in csv.DictReader(file) if row["kind"] == "mean"} == {"cats"}


def test_labels_replace_those_of_the_runs(run_json, place):
    other = (np.arange(20) + 1) % 4
    rows = [f"{sample},{label}" for sample, label in enumerate(other)]
    Path("labels.csv").write_text("id,label\n" + "\n".join(rows[::-1]))
    found = run_json("trace", "runs", "--labels", "labels.csv")
    assert found["progress"]["dogs"] == opened()[2].progress(other).tolist()
    for name in NAMES:
        write_run(f"runs/{name}.npz", labels=None)
    bare = run_json("trace", "runs")
    assert (bare["progress"], bare["accuracy"]) == (None, None)
    assert bare["distances"]["between"] == "frechet"
    assert not Path("atlas/progress.png").exists() or "progress.png" not in Path("atlas/receipt.json").read_text()


def test_options_reach_the_work(run_json, place):
    kl = run_json("trace", "runs", "--metric", "symmetric_kl", "--distance", "frechet", "--components", 2)
    assert kl["eigenvalues"] == InPCA(2, "symmetric_kl").fit(opened()).eigenvalues_.tolist()
    assert kl["saturated_share"] is None
    np.testing.assert_allclose(kl["distances"]["values"], task_tree(opened(), distance="frechet").distances)
    few = run_json("trace", "runs", "--landmarks", 8, "--seed", 3)
    assert few["eigenvalues"] == trace_runs(opened(), landmarks=8, seed=3).embedding.eigenvalues.tolist()


def test_what_cannot_be_compared_is_said_and_the_rest_is_there(run, place):
    write_run("runs/early.npz", steps=2, logits=1e-3 * np.arange(160).reshape(2, 20, 4) % 0.007)
    write_run("late.npz", 1, steps=9)
    with np.load("late.npz") as late:
        write_run("runs/late.npz", steps=2, labels=late["labels"], logits=late["logits"][-2:])
    given = ("trace", "runs/early.npz", "runs/late.npz", "--format", "json")
    ran = run(*given)
    assert ran.json["distances"]["between"] == "frechet"
    assert "compared as paths" in ran.err
    ran = run(*given, "--distance", "progress")
    assert ran.code == 0
    assert "no progress in common" in ran.err
    assert ran.err.count("\n") == 1
    assert ran.json["distances"] is None
    assert ran.json["length"].keys() == {"early", "late"}


def probabilities(**changes):
    P = np.full((3, 20, 4), 0.25)
    for place, value in changes.pop("at", {}).items():
        P[place] = value
    return {"probs": P, "labels": np.arange(20) % 4} | changes


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"at": {(1, 3, 0): 0.9}}, "run 'bad', step 1, sample '3': the probabilities sum to 1.65"),
        ({"at": {(2, 4): np.nan}}, "run 'bad', step 2, sample '4': a log-probability is NaN"),
        ({"at": {(2, 0): [1.5, -0.5, 0, 0]}}, "'probs' in bad.npz, snapshot 2, sample 0: a probability is negative"),
        ({"labels": np.full(20, 4)}, "run 'bad': sample 0: label 4 is out of range"),
        ({"labels": np.full(20, 4, ">u4")}, "run 'bad': sample 0: label 4 is out of range"),
        ({"labels": np.array(["cat"] * 20)}, "labels in bad.npz"),
        ({"labels": np.zeros(19, int)}, "do not fit 20 samples"),
        ({"ids": np.arange(20) % 19}, "two samples have the id '0'"),
        ({"steps": np.array([0, 2, 1])}, "the steps do not increase"),
        ({"steps": np.array(["a", "b", "c"])}, "steps in bad.npz"),
        ({"probs": np.full((20, 4), 0.25)}, "not (snapshots, samples, classes)"),
        ({"probs": np.zeros((0, 20, 4))}, "not (snapshots, samples, classes)"),
    ],
    ids=str,
)
def test_a_run_with_faults(no, arrays, words):
    np.savez("bad.npz", **probabilities(**arrays))
    assert words in no("bad.npz")


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"samples": 19}, "'dogs' and 'bad' were recorded on other samples (20 and 19, with 19 in common)"),
        ({"ids": np.arange(20)[::-1]}, "in another order"),
        ({"classes": 5}, "have 4 and 5 classes"),
        ({"labels": np.zeros(20, int)}, "other labels for the same samples"),
    ],
    ids=str,
)
def test_runs_that_do_not_belong_together(no, others, words):
    write_run("bad.npz", **others)
    assert words in no("runs/dogs.npz", "bad.npz")


def test_runs_of_unequal_length_do_belong_together(run_json, place):
    lengths = {name: len(steps) for name, steps in run_json("trace", "runs")["steps"].items()}
    assert lengths == {"cats-0": 6, "cats-1": 5, "dogs": 4}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0\n" * 19, "labels.txt: (19,) labels do not fit 20 samples"),
        ("0\n" * 19 + "4\n", "labels.txt: sample 19: label 4 is out of range"),
        ("cat\n" * 20, "labels.txt, line 1: 'cat' is no label"),
        (None, "there is no file labels.txt"),
    ],
    ids=str,
)
def test_labels_that_are_none(no, content, words):
    if content is not None:
        Path("labels.txt").write_text(content)
    assert words in no("runs", "--labels", "labels.txt")


def test_labels_that_miss_an_id(no):
    Path("labels.csv").write_text("".join(f"{sample},0\n" for sample in range(18)))
    assert "no label for sample '18' (2 of 20 are missing)" in no("runs", "--labels", "labels.csv")


def test_what_is_no_run(no):
    Path("empty").mkdir()
    shutil.copy("zoo/a.safetensors", "weights.safetensors")
    Path("nothing.record").write_bytes(b"")
    start_record(Path("headed.record"), RecordHeader("a", ["x"], 2))
    for given, words in {
        "empty": "empty holds no runs",
        "zoo": "zoo holds no runs",
        "gone": "there is no gone",
        "nets.py": "nets.py is no run",
        "weights.safetensors": "weights.safetensors is no run",
        "probe.npz": "probe.npz has no log_probs or probs or logits; it has x",
        "nothing.record": "nothing.record is no run",
        "headed.record": "no whole snapshot",
    }.items():
        assert words in no(given)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--groups", "g.csv", "--group-by", "x"), "not both"),
        (("--groups", "g.csv"), "there is no file g.csv"),
        (("--group-by", "("), "no regular expression"),
        (("--group-by", "fish"), "nothing in the name of run 'cats-0'"),
        (("--components", "99"), "99 axes"),
        (("--landmarks", "9", "--bootstrap", "2"), "landmarks"),
        (("--predictions", "other", "--kind", "probs"), "holds no runs"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit(no, more, words):
    assert words in no("runs", *more)


def test_an_out_that_is_a_file(no):
    Path("taken").write_text("mine")
    assert "cannot write taken" in no("runs", "--out", "taken")


def test_one_model_is_no_map(no):
    write_run("one.npz", steps=1)
    assert "two models at least" in no("one.npz")


def test_real_trainings(run_json, place, real_input):
    document = run_json("trace", real_input / "zoo/cifar10-runs", "--components", 5)
    assert document["runs"] == ["all_a", "all_b", "randlab", "slow"]
    assert document["explained_stress"] == pytest.approx([0.499, 0.754, 0.814, 0.855, 0.884], abs=5e-4)
    assert document["time_like"] == [5]
    assert [document["accuracy"][name][-1] for name in document["runs"]] == pytest.approx([0.663, 0.643, 0.079, 0.625])
    assert document["distances"]["values"][0][1] == pytest.approx(0.1202, abs=5e-5)
    # Both seeds leave the way at step 50, and only there does the first axis pass .3.
    with Path("atlas/points.csv").open(newline="") as file:
        far = [(row["run"], row["step"]) for row in csv.DictReader(file) if float(row["axis_1"]) > 0.3]
    assert far == [("all_a", "50"), ("all_b", "50")]


def test_the_command_prints_one_document_in_a_process_of_its_own(place):
    ran = run_apart(place, "trace", "runs", "--format", "json", TASKATLAS_STORE=str(place / "store"))
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["runs"] == NAMES
