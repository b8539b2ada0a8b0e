"""The whole flow on a tiny zoo: what each command prints and leaves, what a second run spares, what check notices."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from tests.cli.make import MAP, TRANSFER, run_apart, snapshot, start, write_network

import taskatlas.space.mapping
from taskatlas.space import Selection, TaskSpace, select
from taskatlas.space.files import read_transfers
from taskatlas.store import load_receipts
from taskatlas.zoo import Checkpoint

NAMES = ["a", "b", "c"]
FEW = tuple(argument for argument in TRANSFER if argument not in ("--random", 2))


@pytest.fixture(autouse=True)
def unpainted(monkeypatch):
    """Pictures of one byte: painting takes most of the time of a map this small."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b"."))


@pytest.fixture
def opened(monkeypatch):
    """The names of the checkpoints that were opened to extract features."""
    names = []
    original = Checkpoint.open

    def counted(self, device="cpu"):
        names.append(self.name)
        return original(self, device)

    monkeypatch.setattr(Checkpoint, "open", counted)
    return names


@pytest.fixture
def compared(monkeypatch):
    """For each call of a kernel, how many checkpoints it compared with how many."""
    calls = []
    original = taskatlas.space.mapping.find_kernel

    def counted(kernel):
        function, name = original(kernel)

        def called(features, against):
            calls.append((len(features), len(features if against is None else against)))
            return function(features, against)

        return called, name

    monkeypatch.setattr(taskatlas.space.mapping, "find_kernel", counted)
    return calls


def manifest(file, names):
    entries = {name: {"weights": f"zoo/{name}.safetensors"} for name in names}
    file.write_text(yaml.safe_dump({"builder": "nets.py:mlp", "checkpoints": entries}, sort_keys=False))


def by_name(document):
    return {
        (first, second): document["covariance"][i][j]
        for i, first in enumerate(document["names"])
        for j, second in enumerate(document["names"])
    }


def test_zoo_ls(run, run_json, place):
    found = run_json("zoo", "ls", "zoo", "--builder", "nets.py:mlp")["checkpoints"]
    assert [one["name"] for one in found] == NAMES
    assert [one["parameters"] for one in found] == [6 * h + h + 3 * h + 3 for h in (5, 6, 7)]
    assert len({one["digest"] for one in found}) == 3
    assert {one["builder"] for one in found} == {"nets.py:mlp"}
    shown = run("zoo", "ls", "zoo").out
    assert all(word in shown for word in ("a", "b", "c", "53", "63", "73"))
    assert "digest" not in shown
    assert found[0]["digest"][:12] in run("zoo", "ls", "zoo", "--digests", "--builder", "nets.py:mlp").out


def test_map_writes_what_it_prints(run, run_json, place):
    document = run_json(*MAP, "--out", "atlas")
    covariance = np.array(document["covariance"])
    assert document["names"] == NAMES
    assert document["samples"] == 30
    np.testing.assert_array_equal(covariance, covariance.T)
    np.testing.assert_allclose(np.diagonal(covariance), 1)
    space = TaskSpace.load(document["space"])
    np.testing.assert_array_equal(space.covariance, covariance)
    with Path("atlas/covariance.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["", *NAMES]
    np.testing.assert_array_equal([[float(cell) for cell in row[1:]] for row in rows], covariance)
    (receipt,) = load_receipts(Path("atlas"))
    assert receipt.outputs.keys() == {"space.npz", "covariance.csv", "space.png"}
    shown = run(*MAP, "--out", "atlas").out
    assert f"{np.sort(covariance[0])[-2]:.3f}" in shown


def test_intervals_lie_around_the_covariance(run_json, place):
    document = run_json(*MAP, "--bootstrap", 10)
    low, high = (np.array(document["interval"][end]) for end in ("low", "high"))
    off = ~np.eye(3, dtype=bool)
    covariance = np.array(document["covariance"])
    assert (low <= covariance + 1e-6).all()
    assert (high >= covariance - 1e-6).all()
    assert (high - low)[off].min() > 0


def test_limit_takes_the_first_samples(run_json, place):
    x = np.load("probe.npz")["x"]
    np.savez("first.npz", x=x[:12])
    limited = run_json(*MAP, "--limit", 12, "--out", "limited")
    whole = run_json("map", "zoo", "--probe", "first.npz", "--builder", "nets.py:mlp", "--out", "whole")
    assert limited["samples"] == 12
    assert limited["covariance"] == whole["covariance"]


def test_a_second_run_extracts_and_compares_nothing(run_json, place, opened, compared):
    first = run_json(*MAP, "--out", "atlas")
    assert sorted(opened) == NAMES
    assert compared == [(3, 3)]
    assert run_json(*MAP, "--out", "atlas") == first
    assert sorted(opened) == NAMES
    assert compared == [(3, 3)]


def test_a_new_checkpoint_costs_one_row(run_json, place, opened, compared):
    before = run_json(*MAP, "--out", "atlas", "--bootstrap", 2)
    opened.clear()
    compared.clear()
    write_network(Path("zoo/d.safetensors"), 7, 4)
    after = run_json(*MAP, "--out", "atlas", "--bootstrap", 2)
    assert opened == ["d"]
    assert set(compared) == {(1, 3), (1, 1)}
    assert by_name(before).items() <= by_name(after).items()
    fresh = run_json(*MAP, "--out", "fresh", "--bootstrap", 2)
    np.testing.assert_allclose(after["covariance"], fresh["covariance"], atol=1e-6)


def test_a_retrained_checkpoint_is_not_taken_for_the_old_one(run_json, place, opened):
    run_json(*MAP, "--out", "atlas")
    opened.clear()
    write_network(Path("zoo/b.safetensors"), 99, 6)
    after = run_json(*MAP, "--out", "atlas")
    assert opened == ["b"]
    np.testing.assert_allclose(after["covariance"], run_json(*MAP, "--out", "fresh")["covariance"], atol=1e-6)


@pytest.mark.parametrize("other", [("--kernel", "procrustes"), ("--standardised",), ("--limit", "20")])
def test_an_earlier_map_of_something_else_is_not_mixed_in(run_json, place, other):
    run_json(*MAP, "--out", "atlas")
    again = run_json(*MAP, *other, "--out", "atlas")
    assert again["covariance"] == run_json(*MAP, *other, "--out", "fresh")["covariance"]


def test_a_damaged_earlier_map_is_made_again(run_json, place):
    first = run_json(*MAP, "--out", "atlas")
    Path("atlas/space.npz").write_bytes(b"damaged")
    assert run_json(*MAP, "--out", "atlas") == first


def test_pictures_are_pictures(finished):
    pictures = sorted((finished / "atlas").glob("*.png"))
    assert [picture.name for picture in pictures] == ["selection.png", "space.png", "transfer.png"]
    assert all(plt.imread(picture).std() > 0.05 for picture in pictures)


def test_select_writes_what_it_prints(run, run_json, atlas):
    document = run_json("select", "atlas", "-k", 2, "--out", "picked")
    expected = select(TaskSpace.load(atlas / "space.npz"), 2)
    assert document["selected"] == list(expected.names)
    assert document["mutual_information"] == expected.totals
    np.testing.assert_allclose(np.cumsum(document["gain"]), document["total"])
    assert Selection.load("picked/selection.json") == expected
    assert {path.name for path in Path("picked").iterdir()} == {"selection.json", "selection.png", "receipt.json"}
    shown = run("select", "atlas", "-k", 2).out
    assert all(name in shown for name in expected.names)
    assert all(f"{total:.3f}" in shown for total in expected.totals)


def test_select_without_out_writes_nothing(run, atlas, place):
    before = snapshot(place)
    assert run("select", "atlas", "-k", 2).code == 0
    assert snapshot(place) == before


def test_select_from_a_matrix_with_its_options(run_json, place):
    matrix = np.array([[1, 0.6, 0.2, 0.1], [0.6, 1, 0.3, 0.2], [0.2, 0.3, 1, 0.5], [0.1, 0.2, 0.5, 1]])
    names = ["w", "x", "y", "z"]
    np.save("k.npy", matrix)
    Path("names.txt").write_text("\n".join(names))
    Path("cost.csv").write_text("name,cost\nw,1\nx,10\ny,1\nz,1\n")
    space = TaskSpace(tuple(names), matrix)
    given = ("select", "k.npy", "--names", "names.txt")
    assert run_json(*given, "-k", 2)["selected"] == list(select(space, 2).names)
    started = run_json(*given, "-k", 3, "--start", "z, w", "--exclude", "x")
    assert started["selected"] == ["z", "w", "y"]
    assert started["left_out"] == {"x": "excluded"}
    costs = {"w": 1.0, "x": 10.0, "y": 1.0, "z": 1.0}
    assert run_json(*given, "--cost", "cost.csv", "--budget", 2.0)["selected"] == list(
        select(space, cost=costs, budget=2.0).names
    )
    assert run_json(*given, "--stop-at-peak")["selected"] == list(select(space, stop_at_peak=True).names)
    assert run_json(*given, "-k", 2, "--method", "facility_location")["mutual_information"] is None


def test_csv_that_map_wrote_selects_alike(run_json, atlas):
    assert run_json("select", "atlas/covariance.csv", "-k", 2)["total"] == run_json("select", "atlas", "-k", 2)["total"]


def test_the_published_selection(run_json, real_input):
    golden = real_input / "golden" / "space"
    document = run_json("select", golden / "kappa34.npy", "--names", golden / "names34.txt", "-k", 5)
    first = ["roberta-base", "distilbert-base-uncased", "t5-base", "bert-base-cased", "bart-large"]
    assert document["selected"] == first
    assert document["mutual_information"][0] == pytest.approx(1.2259, abs=5e-5)
    assert document["mutual_information"][-1] == pytest.approx(2.9484, abs=5e-5)
    peak = run_json("select", golden / "kappa34.npy", "--names", golden / "names34.txt", "--stop-at-peak")
    assert len(peak["selected"]) == 15


def test_transfer_scores_each_size(run, run_json, atlas):
    given = (*TRANSFER, "--selection", "atlas/selection.json", "--out", "worth")
    document = run_json(*given, "--sizes", "2,1")
    picked = Selection.load(atlas / "selection.json").names
    assert [point["picked"] for point in document["curve"]] == [list(picked[:1]), list(picked)]
    assert document["selected"] == document["curve"][-1]["selected"]
    scores = [score for point in document["curve"] for score in (point["selected"], *point["random"]["scores"])]
    assert all(0 <= score <= 1 for score in scores)
    assert all(point["random"]["low"] <= point["random"]["high"] for point in document["curve"])
    saved = read_transfers(Path("worth"))
    assert [one.selected for one in saved] == [point["selected"] for point in document["curve"]]
    shown = run(*given).out
    assert f"{document['selected']:.3f}" in shown
    assert "transfer.json" in shown
    by_hand = run_json(*TRANSFER, "--pick", ", ".join(picked))
    assert by_hand["selected"] == document["selected"]


def test_random_selections_follow_the_seed(run_json, place):
    for name in "de":
        write_network(Path(f"zoo/{name}.safetensors"), ord(name), 4)
    given = (*FEW, "--pick", "a,b", "--random", 3)
    first = run_json(*given, "--seed", 1, "--out", "worth")
    picked = read_transfers(Path("worth"))[0].random_names
    assert run_json(*given, "--seed", 1) == first
    run_json(*given, "--seed", 2, "--out", "worth")
    assert len(first["random"]["scores"]) == len(set(picked)) == 3
    assert read_transfers(Path("worth"))[0].random_names != picked


def test_check_passes_and_names_what_was_tampered_with(run, run_json, atlas):
    assert run_json("check", "atlas") == {"checked": 4, "failed": []}
    for file in sorted(path for path in atlas.iterdir() if path.name != "receipt.json"):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        changed = run("check", "atlas")
        file.unlink()
        missing = run("check", "atlas")
        file.write_bytes(content)
        assert (changed.code, missing.code) == (1, 1), file.name
        assert f"{file.name} changed" in changed.out
        assert f"{file.name} is missing" in missing.out
    assert run("check", "atlas").code == 0


def test_check_prints_json_with_status_1(run, atlas):
    (atlas / "covariance.csv").write_text("")
    ran = run("check", "atlas", "--format", "json")
    assert ran.code == 1
    assert ran.json["checked"] == 4
    assert len(ran.json["failed"]) == 1


@pytest.mark.parametrize("source", ["zoo/b.safetensors", "probe.npz"])
def test_check_notices_when_a_source_changed(run, place, source):
    assert run(*MAP, "--out", "atlas").code == 0
    assert run("check", "atlas").code == 0
    (place / source).write_bytes(b"retrained")
    ran = run("check", "atlas")
    assert ran.code == 1
    assert Path(source).name in ran.out


def test_check_notices_what_a_new_map_leaves_behind(run, place):
    for arguments in ((*MAP, "--out", "atlas"), ("select", "atlas", "-k", 2, "--out", "atlas"), ("report", "atlas")):
        assert run(*arguments).code == 0
    write_network(place / "zoo/d.safetensors", 7, 4)
    assert run(*MAP, "--out", "atlas").code == 0
    stale = run("check", "atlas")
    assert stale.code == 1
    assert "run select again" in stale.out
    assert run("report", "atlas").code == 0
    page = (place / "atlas" / "atlas.html").read_text()
    assert "run taskatlas select again" in page
    assert "★" not in page
    for arguments in (("select", "atlas", "-k", 2, "--out", "atlas"), ("report", "atlas"), ("check", "atlas")):
        assert run(*arguments).code == 0


def test_neither_order_nor_workers_nor_hash_seed_change_a_bit(run_json, place):
    manifest(Path("there.yaml"), NAMES)
    manifest(Path("back.yaml"), NAMES[::-1])
    given = ("--probe", "probe.npz", "--bootstrap", 3)
    here = run_json("map", "there.yaml", *given, "--out", "here")
    ran = run_apart(
        place,
        *("map", "back.yaml", *given, "--engine", "processes:2", "--out", "apart", "--format", "json"),
        TASKATLAS_STORE=str(place / "store"),
        PYTHONHASHSEED="1",
    )
    assert (ran.code, ran.err) == (0, "")
    apart = ran.json
    assert apart["names"] == NAMES[::-1]
    assert by_name(apart) == by_name(here)
    for end in ("low", "high"):
        np.testing.assert_array_equal(np.array(apart["interval"][end])[::-1, ::-1], here["interval"][end])


def wait_for(file, process):
    while not file.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_nothing_finished_and_the_next_goes_on(run, run_json, place, opened, sent):
    (place / "slow").touch()
    process = start(place, *MAP, "--out", "atlas")
    try:
        wait_for(place / "reached", process)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in err
    assert not (place / "atlas").exists() or not list((place / "atlas").iterdir())
    finished = [path.parent for path in Path(os.environ["TASKATLAS_STORE"]).rglob("receipt.json")]
    assert len(finished) == 1
    (place / "slow").unlink()
    assert run_json(*MAP, "--out", "atlas")["names"] == NAMES
    assert opened == ["b", "c"]
    assert run("check", "atlas").code == 0


def test_report_is_one_file_with_everything(run_json, atlas):
    path = Path(run_json("report", "atlas", "--out", "elsewhere")["report"])
    assert path == Path("elsewhere/atlas.html")
    page = path.read_text()
    assert all(f"<h2>{title}</h2>" in page for title in ("Task space", "Selection", "Transfer", "How this was made"))
    assert json.loads((path.parent / "receipt.json").read_text())["report"]["outputs"].keys() == {"atlas.html"}
