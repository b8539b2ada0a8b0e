"""Predictions from NumPy archives and HDF5 files, and files that are not what they say."""

import sys

import numpy as np
import pytest
from tests.paths.make import labels, learning

from taskatlas.errors import BadInput, MissingExtra
from taskatlas.paths import Trajectory, importers
from taskatlas.store import Store

P = learning(samples=6, steps=3)
KINDS = {"log_probs": np.log(P), "probs": P, "logits": np.log(P) + np.arange(6)[:, None]}


def write_npz(path, **arrays):
    np.savez(path, **arrays)


def write_hdf5(path, **arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                file.create_dataset(name, data=[text.encode() for text in array])
            else:
                file[name] = array


FORMATS = {"npz": (write_npz, Trajectory.from_npz), "hdf5": (write_hdf5, Trajectory.from_hdf5)}


@pytest.fixture(params=FORMATS)
def written(request, tmp_path):
    """Writes arrays in a format and reads them back as a run."""
    write, read = FORMATS[request.param]

    def through(settings=None, **arrays):
        write(tmp_path / f"my.traj.{request.param}", **arrays)
        return read(tmp_path / f"my.traj.{request.param}", **(settings or {}))

    return through


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_prediction(written, kind):
    found = written(**{kind: KINDS[kind], "steps": np.array([0, 4, 9]), "labels": labels(0, 6, 5), "ids": np.arange(6)})
    assert np.allclose(found.probabilities(), P, atol=1e-6)
    assert (found.name, found.steps.tolist(), found.ids) == ("my", [0, 4, 9], tuple("012345"))
    assert found.labels.tolist() == labels(0, 6, 5).tolist()


def test_ids_may_be_texts_and_steps_may_be_missing(written):
    found = written(probs=P, ids=np.array(list("abcdef")))
    assert found.ids == tuple("abcdef")
    assert found.steps.tolist() == [0, 1, 2]
    assert found.labels is None


def test_any_name_will_do_when_it_is_said(written):
    found = written({"predictions": "yh", "kind": "probs", "name": "b"}, yh=P)
    assert found.name == "b"
    assert np.allclose(found.probabilities(), P, atol=1e-6)
    with pytest.raises(BadInput, match="kind="):
        written({"predictions": "yh"}, yh=P)
    with pytest.raises(BadInput, match="has no log_probs or probs or logits; it has yh"):
        written(yh=P)
    with pytest.raises(BadInput, match="has no other"):
        written({"predictions": "other"}, yh=P)


def test_what_the_file_holds_is_checked(written):
    with pytest.raises(BadInput, match="not \\(snapshots, samples, classes\\)"):
        written(probs=P[0])
    with pytest.raises(BadInput, match="sum to"):
        written(probs=P * 1.1)
    with pytest.raises(BadInput, match="snapshot 0, sample 0: a probability is negative"):
        written(probs=-P)
    with pytest.raises(BadInput, match="NaN"):
        written(logits=np.where(P.max() == P, np.inf, P))
    for kind, values in KINDS.items():
        with pytest.raises(BadInput, match="float16"):
            written(**{kind: values.astype(np.float16)})
    with pytest.raises(BadInput, match="run 'my': sample 0: label 9"):
        written(probs=P, labels=np.full(6, 9, dtype=np.uint32))
    with pytest.raises(BadInput, match="label 5 is out of range"):
        written(probs=P, labels=np.full(6, 5))
    with pytest.raises(BadInput, match="steps do not fit"):
        written(probs=P, steps=np.arange(4))


def test_steps_and_labels_are_numbers_and_never_rounded(written):
    for arrays, words in (
        ({"labels": np.arange(6) + 0.5}, "labels in .* float64, not a row of numbers"),
        ({"labels": np.zeros((6, 1), int)}, "labels in .*\\(6, 1\\)"),
        ({"steps": np.array(list("abc"))}, "steps in "),
    ):
        with pytest.raises(BadInput, match=words):
            written(probs=P, **arrays)
    assert written(probs=P, steps=np.array([0.5, 1, 2])).steps.tolist() == [0.5, 1, 2]


def test_an_hdf5_file_is_converted_once_and_again_when_it_changed(tmp_path, monkeypatch):
    path, store = tmp_path / "a.h5", Store(tmp_path / "store")
    write_hdf5(path, probs=P)
    first = Trajectory.from_hdf5(path, store=store)
    calls = []
    known = importers.write_run
    monkeypatch.setattr(importers, "write_run", lambda *a, **s: calls.append(1) or known(*a, **s))
    again = Trajectory.from_hdf5(path, name="b", store=store)
    assert (again.name, calls) == ("b", [])
    assert np.array_equal(again.log_probs, first.log_probs)
    owner = again.log_probs
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    path.unlink()
    write_hdf5(path, probs=P[::-1])
    assert np.allclose(Trajectory.from_hdf5(path, store=store).probabilities(), P[::-1], atol=1e-6)
    assert calls == [1]


@pytest.mark.parametrize("extension", FORMATS)
def test_broken_files(tmp_path, extension):
    write, read = FORMATS[extension]
    path = tmp_path / f"a.{extension}"
    with pytest.raises(BadInput, match="no file"):
        read(path)
    write(path, probs=P)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="no whole"):
            read(path)


def test_archives_that_are_damaged_within(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, log_probs=np.log(P).astype(np.float32))
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + b"\xff" * 40 + whole[middle + 40 :]
    unknown = bytearray(whole)
    entry = whole.index(b"PK\x01\x02")
    for place in (8, entry + 10):  # how it is compressed, in both of the archive's headers
        unknown[place : place + 2] = (99).to_bytes(2, "little")
    for content in (damaged, bytes(unknown)):
        path.write_bytes(content)
        with pytest.raises(BadInput, match="no whole NumPy archive"):
            Trajectory.from_npz(path)


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", probs=np.array([{}], dtype=object))
    with pytest.raises(BadInput, match="pickle"):
        Trajectory.from_npz(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", P)
    with pytest.raises(BadInput, match="bare array"):
        Trajectory.from_npz(tmp_path / "b.npy")


def test_without_h5py_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"taskatlas\[io\]"):
        Trajectory.from_hdf5(tmp_path / "a.h5")
