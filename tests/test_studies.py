"""The studies in ``examples/studies`` run end to end at a tiny size, and all their runs go onto one map."""

import csv
import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import taskatlas as ta

STUDIES = Path(__file__).parents[1] / "examples" / "studies"
NAMES = {
    "supervised": {"all classes", "first half", "second half", "2 random classes"},
    "random_labels": {"all classes", "100% random labels"},
    "fine_tuning": {"all classes", "fine-tuned from first half", "fine-tuned from second half"},
    "contrastive": {"all classes", "contrastive"},
    "episodic": {"all classes", "2-way episodes"},
    "semi_supervised": {"all classes", "10% of the labels alone", "10% of the labels, guesses over 50%"},
}
MORE = {
    "supervised": ["--subsets", "2"],
    "random_labels": ["--shares", "0,1"],
    "episodic": ["--ways", "2"],
    "semi_supervised": ["--labelled", "0.1", "--sure", "0.5"],
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def study():
    """``study(name)``: the module, which finds its neighbours as it does when it is run as a script."""
    sys.path.insert(0, str(STUDIES))
    known = {path.stem for path in STUDIES.glob("*.py")}
    yield importlib.import_module
    sys.path.remove(str(STUDIES))
    for name in known & sys.modules.keys():
        del sys.modules[name]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all studies, as in the README."""
    return tmp_path_factory.mktemp("studies")


def small(out, *more):
    sizes = {"steps": 8, "snapshots": 5, "batch-size": 20, "images": 300, "probe-size": 100, "width": 4, "seeds": 1}
    given = [text for key, value in sizes.items() if f"--{key}" not in more for text in (f"--{key}", str(value))]
    return [*given, "--out", str(out), *more]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_leaves_runs_that_are_not_trained_again(study, out, name, monkeypatch):
    runs = study(name).main(small(out, *MORE.get(name, ())))
    assert {run.name for run in runs} == NAMES[name]
    assert all(run.steps[0] == 0 and run.steps[-1] == 8 and len(run) == 5 for run in runs)
    assert all(run.log_probs.shape[1:] == (100, 10) for run in runs)
    assert all((run.log_probs[0] == runs[0].log_probs[0]).all() for run in runs if "fine-tuned" not in run.name)
    assert all((run.log_probs[0] != run.log_probs[-1]).any() for run in runs)
    monkeypatch.setattr(study("common"), "train", lambda *_, **__: pytest.fail("a run was trained again"))
    if name != "fine_tuning":  # its first part is no run
        assert [run.digest for run in study(name).main(small(out, *MORE.get(name, ())))] == [run.digest for run in runs]


def test_no_two_settings_share_a_run(study, tmp_path):
    runs = study("random_labels").main(small(tmp_path, "--shares", "0.001,0.004,0.25,0.254", "--steps", "2"))
    assert [run.name.split()[0] for run in runs] == ["0.1%", "0.4%", "25%", "25.4%"]


def test_all_runs_go_onto_one_map(study, out):
    study("supervised").main(small(out, *MORE["supervised"]))
    study("contrastive").main(small(out))
    runs = [ta.Trajectory.load(path) for path in sorted(out.glob("*.safetensors"))]
    assert len(runs) >= 5
    embedding = ta.InPCA(n_components=2).fit(runs)
    assert embedding.embedding_.shape == (sum(map(len, runs)), 2)


def test_a_run_of_other_settings_is_not_taken_for_the_same(study, out):
    study("episodic").main(small(out, "--ways", "2"))
    with pytest.raises(ta.BadInput, match=r"other settings .*steps 8"):
        study("episodic").main(small(out, "--ways", "2", "--steps", "9"))


def test_seeds_decide(study, tmp_path):
    one, two = study("episodic").main(small(tmp_path / "a", "--ways", "2", "--seeds", "2"))[2:]
    again = study("episodic").main(small(tmp_path / "b", "--ways", "2"))[1]
    assert (again.log_probs == one.log_probs).all()
    assert (one.log_probs[0] != two.log_probs[0]).any()


def test_snapshots_are_close_together_early(study):
    steps = study("common").snapshot_steps
    assert steps(600, 30)[:4] == [0, 1, 2, 3]
    assert len(steps(600, 30)) == 30
    assert (np.diff(steps(600, 30)) > 0).all()
    assert steps(600, 30)[-1] == 600
    assert steps(4, 30) == [0, 1, 2, 3, 4]


def test_views_of_an_image_are_moved_and_changed(study):
    varied = study("common").varied
    images = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8).expand(50, 3, 8, 8)
    found = varied(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    assert torch.equal(found, varied(images, torch.Generator().manual_seed(0)))
    assert len({view.numpy().tobytes() for view in found}) == 50
    grey = torch.arange(64.0).view(1, 1, 8, 8).expand(30, 1, 8, 8)
    shades = {round(float(view.amax() - view.amin()), 3) for view in varied(grey, torch.Generator().manual_seed(1))}
    assert len(shades) > 20


# The lengths of episodic runs


def test_the_published_function_gives_a_length_to_what_stands_still(study):
    lengths = study("episodic_lengths")
    still = ta.Trajectory("still", np.full((6, 3, 10), -math.log(10)), range(6), ["a", "b", "c"], [0, 1, 2])
    assert still.length() == 0
    assert lengths.published_length(still) == pytest.approx(2 * 5 * math.sqrt(math.log(10)))
    one, two = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.2, 0.8], [0.9, 0.1]])
    expected = 2 * math.sqrt(-(math.log(0.5) + math.log(0.82)) / 2)
    assert lengths.published_step(one, two) == pytest.approx(expected)


def test_thinning_keeps_the_ends(study):
    run = ta.Trajectory("a", np.full((10, 1, 2), math.log(0.5)), range(10), ["a"], [0])
    assert study("episodic_lengths").thinned(run, 4).steps.tolist() == [0, 1, 5, 9]
    assert study("episodic_lengths").thinned(run, 3).steps.tolist() == [0, 3, 6, 9]


def test_lengths_are_tabled_and_said(study, tmp_path, capsys):
    lengths = study("episodic_lengths")
    rows = lengths.main(small(tmp_path, "--ways", "2", "--seeds", "2", "--steps", "24"))
    with (tmp_path / "episodic_lengths.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [(row["run"], float(row["Fisher length"])) for row in written] == [
        (row["run"], row["Fisher length"]) for row in rows
    ]
    run = ta.Trajectory.load(tmp_path / "2-way-episodes-1.safetensors")
    assert [row["run"] for row in rows] == ["all classes", "2-way episodes"] * 2
    assert rows[3]["Fisher length"] == run.length()
    assert rows[3]["at equal progress"] < run.length()
    said = capsys.readouterr().out
    ratio = np.mean([rows[at + 1]["Fisher length"] / rows[at]["Fisher length"] for at in (0, 2)])
    assert f"2-way episodes: {ratio:.2f} ± " in said
    assert "Nothing here is ten times longer" in said


def test_a_verdict_that_is_the_other_way_round_is_said(study):
    lengths = study("episodic_lengths")
    keys = (lengths.LENGTH, lengths.TORTUOSITY, lengths.PER_PROGRESS, lengths.EQUAL, lengths.PUBLISHED)
    sentences = lengths.in_words({"5-way": dict.fromkeys(keys, np.array([11.0, 13.0]))})
    assert "Some runs here are ten times longer" in sentences[-1]
    assert "12.00 ± 1.41 times" in sentences[0]


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("supervised", ["--data", "gone.parquet"], "gone.parquet"),
        ("supervised", ["--data", "lines.txt"], "no labelled images"),
        ("episodic", ["--ways", "11"], "an episode of 11 needs more"),
    ],
)
def test_what_cannot_be_studied(study, tmp_path, monkeypatch, name, more, message):
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("a\nb\n")
    with pytest.raises(ta.BadInput, match=message):
        study(name).main(small(tmp_path / "out", *more))
