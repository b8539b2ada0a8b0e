"""A folder that ``trace`` left: tables that say what the trace says, a round trip, and results that are damaged."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tests.paths.make import run

from taskatlas.errors import BadInput
from taskatlas.paths import Embedding, TaskTree, Trajectory, trace_runs
from taskatlas.paths.files import read_trace, trace_document, write_trace
from taskatlas.paths.run_files import open_runs
from taskatlas.store import check_receipts, file_digest


@pytest.fixture(autouse=True)
def unpainted(monkeypatch):
    """Pictures of one byte: what they show has tests of its own."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b"."))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    for file, name, seed, steps in (("a0", "a", 0, 6), ("a1", "a", 1, 5), ("b", "b", 2, 7)):
        run(name, seed, steps=steps).save(place / f"{file}.safetensors")
    return place


def traced(files, out, **settings):
    opened = open_runs([files])
    trace = trace_runs([one.run for one in opened], n_components=4, **settings)
    write_trace(trace, out, runs=opened, settings={"components": 4}, seed=0)
    return trace


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_folder_holds_what_it_should_and_the_receipt_knows_it(files, tmp_path):
    traced(files, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    tables = {"points.csv", "eigenvalues.csv", "runs.csv", "distances.csv"}
    pictures = {"inpca.png", "inpca-3d.png", "progress.png", "distances.png"}
    assert names == {"trace.json", "embedding.npz", "tree.npz", "tree.nwk", "receipt.json"} | tables | pictures
    assert check_receipts(tmp_path) == (1, [])
    receipt = json.loads((tmp_path / "receipt.json").read_text())["trace"]
    assert receipt["inputs"] == {
        name: file_digest(files / f"{file}.safetensors") for name, file in (("a #1", "a0"), ("a #2", "a1"), ("b", "b"))
    }
    before = (tmp_path / "trace.json").read_bytes()
    (tmp_path / "trace.json").write_text("{}")
    assert "trace.json changed" in check_receipts(tmp_path)[1][0]
    traced(files, tmp_path)
    assert (tmp_path / "trace.json").read_bytes() == before


def test_signed_coordinates_of_the_table_give_the_distances_back(files, tmp_path):
    opened = [one.run for one in open_runs([files])]
    trace = trace_runs(opened, n_components=18)
    write_trace(trace, tmp_path, runs=open_runs([files]), settings={}, seed=0)
    rows = [row for row in table(tmp_path / "points.csv") if row["kind"] == "snapshot"]
    signs = [1 if row["kind"] == "space-like" else -1 for row in table(tmp_path / "eigenvalues.csv")]
    assert -1 in signs
    columns = [f"axis_{axis + 1}{'_time_like' if sign < 0 else ''}" for axis, sign in enumerate(signs)]
    X = np.array([[float(row[column]) for column in columns] for row in rows])
    D = (np.square(X[:, None] - X) * signs).sum(-1)
    from taskatlas.paths import bhattacharyya

    np.testing.assert_allclose(D, bhattacharyya(np.concatenate([one.probabilities() for one in opened])), atol=1e-6)


def test_tables_say_what_the_trace_says(files, tmp_path):
    trace = traced(files, tmp_path)
    rows = table(tmp_path / "points.csv")
    snapshots = [row for row in rows if row["kind"] == "snapshot"]
    assert [row["run"] for row in snapshots] == list(trace.embedding.runs)
    assert [float(row["progress"]) for row in snapshots] == np.concatenate(
        [one.progress for one in trace.runs]
    ).tolist()
    assert [float(row["accuracy"]) for row in snapshots] == np.concatenate(
        [one.accuracy for one in trace.runs]
    ).tolist()
    assert [float(row["axis_1"]) for row in snapshots] == trace.embedding.coordinates[:, 0].tolist()
    assert {row["residual"] for row in snapshots} == {""}
    truth, mean = trace.embedding.paths
    for kind, path in (("truth", truth), ("mean", mean)):
        found = [row for row in rows if row["kind"] == kind]
        assert [float(row["progress"]) for row in found] == path.places.tolist()
        assert [float(row["residual"]) for row in found] == path.residuals.tolist()
        assert {row["step"] for row in found} == {""}
    axes = table(tmp_path / "eigenvalues.csv")
    assert [float(row["eigenvalue"]) for row in axes] == trace.embedding.eigenvalues.tolist()
    assert [float(row["explained_stress"]) for row in axes][:4] == trace.embedding.explained_stress.tolist()
    (b,) = [row for row in table(tmp_path / "runs.csv") if row["run"] == "b"]
    assert float(b["length"]) == trace.runs[2].length
    assert b["file"] == str((files / "b.safetensors").resolve())
    assert float(b["best_progress"]) == trace.runs[2].progress.max()
    with (tmp_path / "distances.csv").open(newline="") as file:
        head, *body = csv.reader(file)
    assert head == ["", "a", "b"]
    assert [[float(cell) for cell in row[1:]] for row in body] == trace.tree.distances.tolist()
    assert (tmp_path / "tree.nwk").read_text() == f"{trace.tree.newick()}\n"


def test_what_was_written_is_read_back(files, tmp_path):
    trace = traced(files, tmp_path, bootstrap=2)
    again = read_trace(tmp_path)
    assert again.embedding.digest == trace.embedding.digest
    assert [path.name for path in again.embedding.paths] == ["ignorance to truth", "a"]
    assert again.tree.digest == trace.tree.digest
    assert trace_document(again) == trace_document(trace) == json.loads((tmp_path / "trace.json").read_text())
    assert again.runs[0].regressions == trace.runs[0].regressions


def test_a_trace_without_labels_or_of_one_run_is_written_and_read(files, tmp_path):
    one = run("round", steps=5)
    back = Trajectory("round", np.concatenate([one.log_probs, one.log_probs[:1]]), range(6), one.ids)
    back.save(tmp_path / "round.safetensors")
    opened = open_runs([tmp_path / "round.safetensors"])
    trace = trace_runs([opened[0].run], n_components=2)
    write_trace(trace, tmp_path / "out", runs=opened, settings={}, seed=0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names.isdisjoint({"progress.png", "distances.csv", "tree.npz", "inpca-3d.png"})
    again = read_trace(tmp_path / "out")
    assert again.runs[0].tortuosity == math.inf
    assert again.runs[0].progress is None
    assert again.tree is None
    assert json.loads((tmp_path / "out" / "trace.json").read_text())["tortuosity"] == {"round": None}


def test_damaged_results_are_named(files, tmp_path):
    traced(files, tmp_path)
    for name in ("trace.json", "embedding.npz", "tree.npz"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(BadInput, match=name):
            read_trace(tmp_path)
        (tmp_path / name).write_bytes(content)
    Embedding([[0.0], [1.0]], [1.0, 0.5], ["x", "y"], [0, 0]).save(tmp_path / "embedding.npz")
    with pytest.raises(BadInput, match="other runs"):
        read_trace(tmp_path)


def test_newick_opens_in_a_reader_of_trees():
    tree = TaskTree(["it's", "b c", "d"], [[0, 2, 6], [2, 0, 6], [6, 6, 0]], [[0, 1, 2, 2], [2, 3, 6, 3]])
    assert tree.newick() == "('d':3,('it''s':1,'b c':1):2);"
