"""The room's results as a folder: written whole with a receipt, read again, and refused where they are not that."""

import csv

import numpy as np
import pytest
from tests.space.make import covariance, features, network, space_of

from taskatlas.errors import BadInput
from taskatlas.probe import Probe
from taskatlas.space import Selection, TaskSpace, Transfer, map_features, select
from taskatlas.space.files import (
    known_space,
    open_space,
    read_numbers,
    read_transfers,
    write_selection,
    write_space,
    write_transfers,
)
from taskatlas.store import check_receipts, load_receipts
from taskatlas.zoo import Zoo

PNG = b"\x89PNG\r\n\x1a\n"
SCORES = Transfer(("a",), 0.8, (0.5, 0.9), (("b",), ("c",)), {}, "accuracy")


@pytest.fixture
def zoo():
    return Zoo.open({"a": network(1), "b": network(2)})


@pytest.fixture
def probe():
    return Probe.from_arrays(np.random.default_rng(0).standard_normal((12, 6)))


@pytest.fixture
def space():
    return map_features(features(0, 40, (4, 5, 6)), bootstrap=2)


def test_a_mapped_folder_holds_the_space_in_three_forms(tmp_path, space, zoo, probe):
    folder = tmp_path / "atlas"
    assert write_space(space, folder, zoo=zoo, probe=probe, settings={"kernel": "cka"}, seed=3) == folder / "space.npz"
    assert sorted(path.name for path in folder.iterdir()) == [
        "covariance.csv",
        "receipt.json",
        "space.npz",
        "space.png",
    ]
    assert open_space(folder).digest == open_space(folder / "space.npz").digest == space.digest
    assert known_space(folder).features == space.features
    again = open_space(folder / "covariance.csv")
    assert again.names == space.names
    assert (again.covariance == space.covariance).all()
    with (folder / "covariance.csv").open() as file:
        assert next(csv.reader(file)) == ["", "net-0", "net-1", "net-2"]
    assert (folder / "space.png").read_bytes().startswith(PNG)
    (receipt,) = load_receipts(folder)
    assert (receipt.made_by, receipt.seed, receipt.settings) == ("map", 3, {"kernel": "cka"})
    assert receipt.inputs == {"zoo": zoo.digest, "probe": probe.digest}
    assert set(receipt.outputs) == {"space.npz", "space.png", "covariance.csv"}
    assert check_receipts(folder) == (1, [])


def test_results_of_one_folder_keep_their_own_receipts(tmp_path, space, zoo, probe):
    write_space(space, tmp_path, zoo=zoo, probe=probe, settings={}, seed=0)
    selection = select(space, 2)
    assert write_selection(selection, tmp_path, space=space) == tmp_path / "selection.json"
    more = [SCORES, Transfer(("a", "b"), 0.9, (0.5, 0.9), (("a", "c"), ("b", "c")), {}, "accuracy")]
    write_transfers(more, tmp_path, zoo=zoo, probes=[probe, probe], settings={}, seed=1)
    assert Selection.load(tmp_path / "selection.json") == selection
    assert read_transfers(tmp_path) == tuple(more)
    for name in ("selection.png", "transfer.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    receipts = load_receipts(tmp_path)
    assert [receipt.made_by for receipt in receipts] == ["map", "select", "transfer"]
    assert receipts[1].inputs == {"space": space.digest}
    assert receipts[2].inputs == {"zoo": zoo.digest, "train": probe.digest, "test": probe.digest}
    assert check_receipts(tmp_path) == (3, [])
    np.save(tmp_path / "space.npz", np.eye(2))
    (tmp_path / "space.npz.npy").replace(tmp_path / "space.npz")
    count, problems = check_receipts(tmp_path)
    assert count == 3
    assert len(problems) == 1
    assert "space.npz changed after map wrote it" in problems[0]


def test_an_empty_selection_has_no_picture(tmp_path):
    space = space_of(np.eye(3))
    write_selection(select(space, stop_at_peak=True), tmp_path, space=space)
    assert not (tmp_path / "selection.png").exists()
    assert Selection.load(tmp_path / "selection.json").names == ()


def test_a_failing_picture_leaves_the_old_results(tmp_path, space, zoo, probe, monkeypatch):
    write_space(space, tmp_path, zoo=zoo, probe=probe, settings={}, seed=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(TaskSpace, "plot", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_space(map_features(features(1, 40, (4, 5))), tmp_path, zoo=zoo, probe=probe, settings={}, seed=0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_opening_what_is_there(tmp_path):
    matrix = covariance(0, 3)
    np.save(tmp_path / "k.npy", matrix)
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    assert open_space(tmp_path / "k.npy", tmp_path / "names.txt").names == ("x", "y", "z")
    with pytest.raises(BadInput, match=r"there is no .*none.*`taskatlas map`"):
        open_space(tmp_path / "none")
    with pytest.raises(BadInput, match=r"holds no space\.npz"):
        open_space(tmp_path)
    assert known_space(tmp_path) is None
    (tmp_path / "space.npz").write_bytes(b"damaged")
    assert known_space(tmp_path) is None
    with pytest.raises(BadInput, match=r"space\.npz holds no task space"):
        open_space(tmp_path)
    with pytest.raises(BadInput, match=r"transfer\.json holds no transfer"):
        read_transfers(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,1\nb,2.5\n", {"a": 1, "b": 2.5}),
        ("name,cost\na,1\n", {"a": 1}),
        ("\ufeffname,cost\r\na,1\r\n\r\n", {"a": 1}),
        ('"a,b", 3e-2\n c ,4', {"a,b": 0.03, "c": 4}),
        ("", {}),
    ],
)
def test_numbers_by_name(tmp_path, text, expected):
    (tmp_path / "n.csv").write_text(text, encoding="utf-8", newline="")
    assert read_numbers(tmp_path / "n.csv") == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,1\nb\n", r"line 2 of .*n\.csv is 'b'; write name,number"),
        (b"a,1\nb,x\n", "line 2 of .* is 'b,x'"),
        (b"a,b,c\n", "line 1 of .* is 'a,b,c'"),
        (b"a,1,2\n", "line 1 of"),
        (b"a,1\nb,2\na,3\n", "line 3 of .* names 'a' again"),
        (b"\xff\xfe\x00", r"cannot read .*n\.csv"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(tmp_path, content, words):
    (tmp_path / "n.csv").write_bytes(content)
    with pytest.raises(BadInput, match=words):
        read_numbers(tmp_path / "n.csv")


def test_numbers_that_are_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"cannot read .*none\.csv"):
        read_numbers(tmp_path / "none.csv")
