"""What ``trace`` is given: runs in files and folders, labels, groups, and files that are none of these."""

import shutil

import numpy as np
import pytest
from tests.paths.make import labels, run

from taskatlas.errors import BadInput
from taskatlas.paths.record_file import RecordHeader, append_snapshot, start_record
from taskatlas.paths.run_files import group_by, open_runs, read_groups, read_labels, read_steps

IDS = [f"s{i}" for i in range(6)]
TRUTH = labels(0, 6, 4)


def write_record(path, name="run", seed=0, steps=4):
    one = run("x", seed, steps=steps)
    start_record(path, RecordHeader(name, list(one.ids), 5, one.labels.tolist(), "probe"))
    for step, log_probs in zip(one.steps, one.log_probs, strict=True):
        append_snapshot(path, float(step), log_probs)
    return one


@pytest.fixture
def folder(tmp_path):
    """A run of every kind, and files that are none."""
    place = tmp_path / "runs"
    (place / "deeper").mkdir(parents=True)
    run("named", 1).save(place / "b.safetensors")
    write_record(place / "a.record")
    one = run("x", 2)
    np.savez(place / "deeper" / "c.traj.npz", log_probs=one.log_probs, labels=one.labels, ids=one.ids)
    np.savez(place / "labels.npz", labels=one.labels)
    from safetensors.numpy import save_file

    save_file({"0.weight": np.zeros((2, 2), np.float32)}, place / "weights.safetensors")
    (place / "notes.txt").write_text("nothing")
    (place / ".hidden.record").write_bytes((place / "a.record").read_bytes())
    return place


def test_a_folder_gives_its_runs_in_order_and_nothing_else(folder):
    found = open_runs([folder])
    assert [one.run.name for one in found] == ["a", "named", "c"]
    assert [one.path.name for one in found] == ["a.record", "b.safetensors", "c.traj.npz"]
    assert [one.warning for one in found] == ["", "", ""]
    assert found[1].run.digest == run("named", 1).digest


def test_files_come_in_the_order_given_and_once(folder):
    found = open_runs([folder / "b.safetensors", folder, folder / "a.record", folder / "deeper" / ".." / "a.record"])
    assert [one.run.name for one in found] == ["named", "a", "c"]


def test_hdf5_is_told_by_its_beginning(tmp_path):
    h5py = pytest.importorskip("h5py")
    one = run("x", 2)
    for name in ("predictions", "old.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["yh"] = one.probabilities()
            file["labels"] = one.labels
    found = open_runs([tmp_path], predictions="yh", kind="probs")
    assert [opened.run.name for opened in found] == ["old", "predictions"]
    np.testing.assert_allclose(found[0].run.log_probs, one.log_probs, atol=1e-5)
    with pytest.raises(BadInput, match="holds no runs"):
        open_runs([tmp_path])
    with pytest.raises(BadInput, match="it has labels, yh"):
        open_runs([tmp_path / "old.h5"])


def test_names_tell_files_apart(tmp_path):
    for place in ("cats/seed0", "cats/seed1", "dogs/seed0"):
        (tmp_path / place).mkdir(parents=True)
        write_record(tmp_path / place / "run.record")
    names = [one.run.name for one in open_runs([tmp_path])]
    assert names == ["cats/seed0/run", "cats/seed1/run", "dogs/seed0/run"]
    for place in ("cats/seed0", "cats/seed1"):
        (tmp_path / place / "run.record").unlink()
        write_record(tmp_path / place / "run.record", name="cats")
    assert [one.run.name for one in open_runs([tmp_path])] == ["cats", "cats", "dogs/seed0/run"]


def test_a_record_that_was_cut_short_is_read_with_a_warning(tmp_path):
    path = tmp_path / "a.record"
    one = write_record(path)
    path.write_bytes(path.read_bytes()[:-11])
    (found,) = open_runs([path])
    assert len(found.run) == 3
    assert np.array_equal(found.run.log_probs, one.log_probs[:3])
    assert found.warning == f"{path} was cut short: 3 whole snapshots were read, {8 + 4 * 150 + 4 - 11} bytes were not."


def test_a_record_with_a_damaged_snapshot_is_read_with_a_warning(tmp_path):
    path = tmp_path / "a.record"
    one = write_record(path)
    content = bytearray(path.read_bytes()[:-11])
    content[-2 * (8 + 4 * 150 + 4)] ^= 1
    path.write_bytes(content)
    (found,) = open_runs([path])
    assert np.array_equal(found.run.log_probs, one.log_probs[[0, 2]])
    assert found.warning.startswith(f"{path}: 1 of 3 snapshots are damaged and left out. {path} was cut short: 2 whole")


def test_what_is_no_run(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (folder / "cut.safetensors").write_bytes((folder / "b.safetensors").read_bytes()[:-9])
    (folder / "cut.npz").write_bytes((folder / "deeper" / "c.traj.npz").read_bytes()[:200])
    start_record(folder / "nothing.record", RecordHeader("a", ["x"], 2))
    for place, words in {
        "gone": "there is no",
        "notes.txt": "no run",
        "weights.safetensors": "no run",
        "labels.npz": "has no log_probs",
        "cut.safetensors": "no whole trajectory",
        "cut.npz": "no whole NumPy archive",
        "nothing.record": "no whole snapshot",
    }.items():
        with pytest.raises(BadInput, match=words):
            open_runs([folder / place])
    with pytest.raises(BadInput, match="holds no runs"):
        open_runs([tmp_path / "empty"])
    with pytest.raises(BadInput, match=r"cut\.npz"):
        open_runs([folder])
    shutil.rmtree(folder / "deeper")


# Labels


def test_labels_of_every_kind(tmp_path):
    np.save(tmp_path / "a.npy", TRUTH.astype(">u2"))
    np.savez(tmp_path / "a.npz", labels=TRUTH)
    np.savez(tmp_path / "named.npz", y=TRUTH[::-1], ids=IDS[::-1])
    (tmp_path / "a.txt").write_text("".join(f"{label}\n" for label in TRUTH))
    rows = [f"{name}, {label}" for name, label in zip(IDS, TRUTH, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(rows[::-1]))
    (tmp_path / "headed.csv").write_bytes(b"\xef\xbb\xbfid,label\r\n" + "\r\n".join([*rows, "other,0"]).encode())
    for name in ("a.npy", "a.npz", "named.npz", "a.txt", "a.csv", "headed.csv"):
        assert read_labels(tmp_path / name, IDS, 4).tolist() == TRUTH.tolist(), name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.csv", None, "there is no file"),
        ("a.json", b"[]", "no file of labels"),
        ("a.txt", b"0\n1\n2\n3\n0\n4\n", "sample 5: label 4 is out of range"),
        ("a.txt", b"0\n1\n2\n3\n0\n-1\n", "sample 5: label -1 is out of range"),
        ("a.txt", b"0\n1\n2\n", "labels do not fit 6 samples"),
        ("a.txt", b"0\n1\ncat\n3\n0\n1\n", "line 3: 'cat' is no label"),
        ("a.txt", b"\xff\xfe", "no labels that can be read"),
        ("a.csv", b"s0,0\ns1,1\n", r"no label for sample 's2' \(4 of 6"),
        ("a.csv", b"s0,0\ns0,1\n", "line 2 of .* names 's0' again"),
        ("a.csv", b"s0,0,1\n", "line 1"),
        ("a.csv", b"s0,0\ns1,cat\ns2,0\ns3,0\ns4,0\ns5,0\n", "sample 's1': 'cat'"),
        ("a.npy", b"no array", "no labels that can be read"),
        ("a.npz", b"no archive", "no labels that can be read"),
    ],
)
def test_labels_that_are_none(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words) as error:
        read_labels(tmp_path / name, IDS, 4)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (TRUTH.astype(float), "whole numbers"),
        (np.array(["cat"] * 6), "whole numbers"),
        (TRUTH[:, None], "do not fit 6 samples"),
        (np.array([{}] * 6, dtype=object), "pickle"),
    ],
)
def test_arrays_that_are_no_labels(tmp_path, values, words):
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", labels=values)
    np.savez(tmp_path / "twice.npz", labels=TRUTH, ids=[*IDS[:5], IDS[0]])
    with pytest.raises(BadInput, match="two labels for sample 's0'"):
        read_labels(tmp_path / "twice.npz", IDS, 4)
    np.savez(tmp_path / "other.npz", others=TRUTH)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(BadInput, match=words):
            read_labels(tmp_path / name, IDS, 4)
    with pytest.raises(BadInput, match="has no labels; it has others"):
        read_labels(tmp_path / "other.npz", IDS, 4)


# Groups and steps


def test_groups(tmp_path):
    names = ["cats-seed0", "cats-seed1", "dogs"]
    (tmp_path / "g.csv").write_text("run,group\ncats-seed0,c\ndogs,d\ncats-seed1,c\nmore,x\n")
    assert read_groups(tmp_path / "g.csv", names) == ["c", "c", "d"]
    assert group_by("^[a-z]+", names) == ["cats", "cats", "dogs"]
    (tmp_path / "short.csv").write_text("cats-seed0,c\n")
    with pytest.raises(BadInput, match="no group for run 'cats-seed1'; it names cats-seed0"):
        read_groups(tmp_path / "short.csv", names)
    with pytest.raises(BadInput, match="there is no file"):
        read_groups(tmp_path / "gone.csv", names)
    for pattern, words in {
        "(": "no regular expression",
        "(.*)-seed": "finds nothing in the name of run 'dogs'",
    }.items():
        with pytest.raises(BadInput, match=words):
            group_by(pattern, names)


def test_steps(tmp_path):
    (tmp_path / "s.csv").write_text("name,step\nlate,9\nearly,1\n")
    assert read_steps(str(tmp_path / "s.csv")) == {"late": 9, "early": 1}
    (tmp_path / "bad.csv").write_text("late,9\nearly,soon\n")
    with pytest.raises(BadInput, match="'early' the step 'soon'"):
        read_steps(str(tmp_path / "bad.csv"))
    for given in ("1,two", "", "gone.csv", "1.5"):
        with pytest.raises(BadInput, match="no steps"):
            read_steps(given)
