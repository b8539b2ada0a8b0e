"""Trajectories: what they refuse, files whole and broken, and re-indexing by progress."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.paths.make import labels, learning, models, run, shortest

from taskatlas.errors import BadInput
from taskatlas.paths import Trajectory, path_length, progress, tortuosity
from taskatlas.paths.reindex import Regression, find_regressions

SEEDS = st.integers(0, 999)


def made(**changes):
    fields = {
        "name": "a",
        "log_probs": np.log(learning(samples=4, steps=3)),
        "steps": [0, 1, 5],
        "ids": list("wxyz"),
        "labels": [0, 1, 2, 3],
    }
    return Trajectory(**(fields | changes))


def test_fields_are_checked_copied_and_frozen():
    steps = np.array([0, 1, 5])
    found = made(steps=steps)
    steps[0] = 3
    assert found.steps.tolist() == [0, 1, 5]
    assert found.log_probs.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        found.log_probs[0] = 0
    assert len(found) == 3
    assert repr(found) == "Trajectory('a', 3 snapshots from step 0 to 5, 4 samples, 5 classes)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_probs": np.zeros((3, 4))}, "shape"),
        ({"log_probs": np.zeros((3, 4, 5), int)}, "shape"),
        ({"log_probs": np.log(learning(samples=4, steps=3)).astype(np.float16)}, "float16"),
        ({"log_probs": learning(samples=4, steps=3)}, "run 'a', step 0, sample 'w': .*sum to"),
        ({"steps": [0, 1]}, "2,.* steps do not fit 3"),
        ({"steps": [0, 5, 1]}, "do not increase"),
        ({"steps": [0, 1, 1]}, "do not increase"),
        ({"steps": [0, 1, np.nan]}, "do not increase"),
        ({"ids": list("xyz")}, "3 ids do not fit 4"),
        ({"ids": list("wxyx")}, "'x'"),
        ({"labels": [0, 1, 2, 5]}, "run 'a': sample 3: label 5"),
        ({"labels": list("wxyz")}, "run 'a': labels are whole numbers"),
        ({"labels": [0, 1, 2]}, "one label a sample"),
    ],
)
def test_bad_fields(changes, words):
    with pytest.raises(BadInput, match=words):
        made(**changes)


def test_nan_is_named_by_run_step_and_sample():
    log_probs = np.log(learning(samples=4, steps=3))
    log_probs[2, 1, 0] = np.nan
    with pytest.raises(BadInput, match=r"run 'a', step 5, sample 'x': .*NaN"):
        made(log_probs=log_probs)


def test_what_is_ruled_out_is_allowed():
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.eye(5)[labels(0, 4, 5)])[None]
    found = made(log_probs=log_probs, steps=[0], labels=labels(0, 4, 5))
    assert found.progress().tolist() == [1.0]
    assert found.accuracy().tolist() == [1.0]


# Files


def test_it_is_saved_and_loaded_whole_and_stays_on_disk(tmp_path):
    found = made(ids=["a", "ü", "x y", "4"], probe="0123", note="by hand")
    found.save(tmp_path / "run.safetensors")
    again = Trajectory.load(tmp_path / "run.safetensors")
    assert again.digest == found.digest
    assert (again.name, again.ids, again.probe, again.note) == ("a", ("a", "ü", "x y", "4"), "0123", "by hand")
    assert np.array_equal(again.log_probs, found.log_probs)
    owner = again.log_probs
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    made(labels=None).save(tmp_path / "run.safetensors")
    assert Trajectory.load(tmp_path / "run.safetensors").labels is None
    assert np.array_equal(again.log_probs, found.log_probs)  # the old file lives on under the old map


@pytest.mark.parametrize("ids", ["5", '["w", "x", "y", 4]', "[" * 100_000], ids=["number", "mixed", "deep"])
def test_a_file_whose_ids_are_none(tmp_path, ids):
    path = tmp_path / "run.safetensors"
    made().save(path)
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"]["ids"] = ids
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    with pytest.raises(BadInput, match="no whole trajectory"):
        Trajectory.load(path)


def test_other_tools_can_read_the_file(tmp_path):
    from safetensors.numpy import load_file

    found = made()
    found.save(tmp_path / "run.safetensors")
    assert np.array_equal(load_file(tmp_path / "run.safetensors")["log_probs"], found.log_probs)


def test_broken_files(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(BadInput, match="no file"):
        Trajectory.load(path)
    made().save(path)
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="no whole trajectory"):
            Trajectory.load(path)
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"]["format"] = "another"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    with pytest.raises(BadInput, match="no trajectory"):
        Trajectory.load(path)


def test_a_file_whose_numbers_are_none(tmp_path):
    path = tmp_path / "run.safetensors"
    made().save(path)
    whole = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", whole[:8])
    start = 8 + size + json.loads(whole[8 : 8 + size])["log_probs"]["data_offsets"][0]
    whole[start : start + 4] = struct.pack("<f", float("nan"))
    path.write_bytes(whole)
    with pytest.raises(BadInput, match="NaN"):
        Trajectory.load(path)


def test_the_digest_knows_what_it_holds():
    same = made()
    others = [made(name="b"), made(steps=[0, 1, 6]), made(ids=list("wxya")), made(labels=None), made(probe="p")]
    assert len({same.digest, *(other.digest for other in others)}) == 6
    assert made(note="by another way").digest == same.digest == made().digest


# What a run does


def test_measures_are_those_of_the_functions():
    found = run()
    P = np.exp(found.log_probs.astype(float))
    assert np.allclose(found.progress(), progress(P, found.labels), atol=1e-12)
    assert found.length() == pytest.approx(path_length(P))
    assert found.length("bhattacharyya") == pytest.approx(path_length(P, step="bhattacharyya"))
    assert found.tortuosity() == pytest.approx(tortuosity(P))
    assert found.accuracy()[-1] == (P[-1].argmax(-1) == found.labels).mean()
    assert np.array_equal(found.progress(np.eye(5)[found.labels]).round(9), found.progress().round(9))
    assert len(found.step_lengths()) == 8


def test_a_run_that_stands_still():
    still = np.repeat(np.log(models(count=1)), 4, axis=0)
    found = Trajectory("still", still, range(4), range(12), labels())
    assert found.length() == 0.0
    assert found.tortuosity() == 1.0
    assert found.regressions() == ()
    one = Trajectory("one", still[:1], [0], range(12), labels())
    assert one.length() == 0.0
    assert one.tortuosity() == 1.0


def test_no_truth_is_said():
    found = made(labels=None)
    for measure in (found.progress, found.accuracy, found.regressions):
        with pytest.raises(BadInput, match="no labels"):
            measure()
    with pytest.raises(BadInput, match="out of range"):
        found.progress(np.array([0, 1, 2, 9]))


def test_taking_samples():
    found = run()
    part = found.take(["s7", "s2"])
    assert part.ids == ("s7", "s2")
    assert np.array_equal(part.log_probs, found.log_probs[:, [7, 2]])
    assert part.labels.tolist() == found.labels[[7, 2]].tolist()
    with pytest.raises(BadInput, match="no sample 'zz'"):
        found.take(["s1", "zz"])


# Re-indexing


@given(seed=SEEDS, noise=st.floats(0, 1.5))
@settings(max_examples=15, deadline=None)
def test_resampled_points_have_the_progress_asked_for(seed, noise):
    found = run(seed=seed, noise=noise)
    reached = found.progress()
    grid = np.linspace(reached[0], reached.max(), 12)
    again = found.resample(grid)
    assert np.abs(again.progress() - grid).max() < 1e-5
    assert (np.diff(again.steps) > 0).all()
    assert "first passage" in again.note


def test_first_passage_skips_what_falls_back():
    P = learning(noise=0.0)
    back = np.concatenate([P[:6], P[2:4], P[6:]])
    found = Trajectory("a", np.log(back), range(11), range(30), labels(0, 30, 5))
    reached = found.progress()
    grid = np.linspace(reached[0], reached[-1], 25)
    straight = Trajectory("a", np.log(P), range(9), range(30), labels(0, 30, 5)).resample(grid)
    again, early = found.resample(grid), grid <= reached[5]
    assert np.allclose(again.log_probs[early], straight.log_probs[early], atol=1e-5)
    assert (again.steps[early] <= 5).all()
    assert (again.steps[~early] > 7).all()
    assert np.allclose(again.progress(), grid, atol=1e-6)
    assert found.regressions() == (Regression(5.0, 7.0, pytest.approx(reached[5] - reached[6])),)
    assert "1 regressions skipped" in found.resample(grid).note


def test_points_lie_on_the_geodesic_between_snapshots():
    p, q, _ = shortest()
    truth = q.argmax(-1)
    ends = Trajectory("a", np.log([p, q]), [0, 100], range(9), truth)
    low, high = ends.progress()
    if low > high:
        ends = Trajectory("a", np.log([q, p]), [0, 100], range(9), p.argmax(-1))
        low, high = ends.progress()
    again = ends.resample(np.linspace(low, high, 7))
    assert again.length() == pytest.approx(ends.length(), rel=1e-4)
    assert again.tortuosity() == pytest.approx(1, rel=1e-4)
    assert np.allclose(again.steps[[0, -1]], [0, 100])


@pytest.mark.parametrize("grid", [[0.5, 0.4], [], [0.1, 0.1]])
def test_grids_that_are_none(grid):
    with pytest.raises(BadInput, match="increasing"):
        run().resample(grid)


def test_a_grid_beyond_the_run_is_refused_with_its_range():
    found = run()
    low, high = found.progress()[0], found.progress().max()
    for grid in ([low / 2, high], [low, high + 0.01]):
        with pytest.raises(BadInput, match=f"from progress {low:.4f} to {high:.4f}"):
            found.resample(grid)


def test_regressions():
    assert find_regressions(np.array([0.1, 0.2, 0.3]), np.arange(3)) == ()
    found = find_regressions(np.array([0.5, 0.4, 0.45, 0.6, 0.1]), np.array([0, 2, 4, 6, 8]))
    assert [(r.start, r.end, round(r.depth, 9)) for r in found] == [(0, 4, 0.1), (6, 8, 0.5)]


def test_the_picture_says_what_it_shows():
    found = run()
    ax = found.plot()
    assert ax.get_title(loc="left") == "a"
    assert ax.get_xlabel() == "training step"
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert np.array_equal(drawn["progress to the truth"], found.progress())
    assert np.array_equal(drawn["accuracy"], found.accuracy())
