"""The map of a zoo: its parts, its files in every form, and attacks on them."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.space.make import covariance, features, space_of

from taskatlas.errors import BadInput
from taskatlas.space import TaskSpace, map_features

NAMES = ("b", "a", "d", "c")


@pytest.fixture
def mapped():
    """A space with everything that a space may hold."""
    return map_features(features(0, 60, (5, 6, 7)), kernel="rbf_cka", bootstrap=5, seed=9)


def same(one, other):
    return (
        (one.names, one.kernel, one.probe, one.features, one.seed)
        == (other.names, other.kernel, other.probe, other.features, other.seed)
        and (one.covariance == other.covariance).all()
        and (one.replicates is None) == (other.replicates is None)
        and (one.replicates is None or (one.replicates == other.replicates).all())
    )


# Parts


def test_what_a_space_says_of_itself():
    space = space_of([[1, 0.2, 0.4], [0.2, 1, 0.6], [0.4, 0.6, 1]])
    assert repr(space) == "TaskSpace(3 checkpoints, mean covariance 0.400, kernel unknown)"
    assert len(space) == 3
    assert space["task-00", "task-02"] == space["task-02", "task-00"] == 0.4
    assert repr(space_of(np.eye(1))) == "TaskSpace(1 checkpoints, mean covariance 0.000, kernel unknown)"


def test_an_unknown_name_is_named():
    with pytest.raises(BadInput, match=r"'task-09' is not in the task space. There are: task-00, task-01"):
        space_of(np.eye(3))["task-00", "task-09"]


def test_a_subset_keeps_everything_of_its_checkpoints(mapped):
    part = mapped.subset(["net-2", "net-0"])
    assert part.names == ("net-2", "net-0")
    assert part["net-2", "net-0"] == mapped["net-2", "net-0"]
    assert (part.replicates == mapped.replicates[:, [2, 0]][:, :, [2, 0]]).all()
    assert part.features == ("digest 2", "digest 0")
    assert (part.kernel, part.probe, part.seed) == ("rbf_cka", "the probe", 9)
    assert same(part.subset(["net-0", "net-2"]).subset(["net-2", "net-0"]), part)


@pytest.mark.parametrize(
    ("names", "words"),
    [(["net-9"], "'net-9' is not in"), ([], "at least one"), (["net-1", "net-1"], "two checkpoints")],
)
def test_a_subset_of_what_is_not_there(mapped, names, words):
    with pytest.raises(BadInput, match=words):
        mapped.subset(names)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_the_digest_is_of_the_content_and_not_of_the_order(seed, m):
    space = space_of(covariance(seed, m))
    order = [str(name) for name in np.random.default_rng(seed).permutation(space.names)]
    assert space.subset(order).digest == space.digest
    changed = space.covariance.copy()
    changed[-1, -1] += 1e-9
    assert space_of(changed).digest != space.digest
    assert space_of(space.covariance, [f"other-{i:02d}" for i in range(m)]).digest != space.digest


def test_intervals_lie_around_the_covariance(mapped):
    low, high = mapped.interval(0.5)
    wide_low, wide_high = mapped.interval(0.99)
    assert (wide_low <= low).all()
    assert (low <= mapped.covariance).all()
    assert (mapped.covariance <= high).all()
    assert (high <= wide_high).all()
    spread = mapped.replicates[:, 0, 1] - np.median(mapped.replicates[:, 0, 1])
    assert wide_high[0, 1] == pytest.approx(mapped["net-0", "net-1"] + np.quantile(spread, 0.995), abs=1e-6)
    assert (np.diagonal(high) == 1).all()


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, np.nan])
def test_a_level_is_a_share(mapped, level):
    with pytest.raises(BadInput, match=f"the level is {level}"):
        mapped.interval(level)


def test_no_interval_without_replicates():
    with pytest.raises(BadInput, match="no bootstrap replicates"):
        space_of(np.eye(3)).interval()


def test_the_tree_joins_the_closest_first():
    linkage = space_of([[1, 0.1, 0.9], [0.1, 1, 0.2], [0.9, 0.2, 1]]).linkage()
    assert set(linkage[0, :2]) == {0, 2}
    assert linkage[0, 2] == pytest.approx(0.1)
    # Ward: the pair's centre to the third, from the three distances .1, .9, .8.
    assert linkage[1, 2] == pytest.approx(np.sqrt((2 * 0.9**2 + 2 * 0.8**2 - 0.1**2) / 3))
    with pytest.raises(BadInput, match="at least two"):
        space_of(np.eye(1)).linkage()


# What is no covariance


@pytest.mark.parametrize(
    ("names", "matrix", "words"),
    [
        ((), np.empty((0, 0)), "at least one checkpoint"),
        (("a", "b", "a"), np.eye(3), "two checkpoints are named 'a'"),
        (("a", "b"), np.eye(3), r"shape \(3, 3\), but there are 2"),
        (("a", "b"), np.ones((2, 3)), r"shape \(2, 3\), but there are 2"),
        (("a", "b"), np.array([[1, np.nan], [np.nan, 1]]), "covariance of 'a' and 'b' is nan"),
        (("a", "b"), np.array([[1, 0], [0, np.inf]]), "covariance of 'b' and 'b' is inf"),
        (("a", "b"), np.array([[1, 0.5], [0.4, 1]]), "not symmetric: 0.5 from 'a' to 'b', and 0.4 back"),
        (("a", "b"), np.array([[1, 0], [0, 0.0]]), "variance of 'b' is 0"),
        (("a", "b"), np.array([[-1, 0], [0, 1.0]]), "variance of 'a' is -1"),
    ],
)
def test_what_is_no_covariance_is_refused(as_installed, names, matrix, words):
    with pytest.raises(BadInput, match=words):
        TaskSpace(names, matrix)


def test_asymmetry_of_rounding_is_fine():
    assert len(space_of([[1, 0.5], [0.5 + 1e-7, 1]])) == 2


def test_replicates_and_digests_must_fit(as_installed):
    with pytest.raises(BadInput, match=r"replicates have shape \(4, 2, 2\), but there are 3"):
        TaskSpace(("a", "b", "c"), np.eye(3), replicates=np.ones((4, 2, 2)))
    with pytest.raises(BadInput, match="2 digests of features, but 3 checkpoints"):
        TaskSpace(("a", "b", "c"), np.eye(3), features=("x", "y"))


# Its own file


def test_a_saved_space_loads_the_same(mapped, tmp_path):
    mapped.save(tmp_path / "deep" / "space.npz")
    assert same(TaskSpace.load(tmp_path / "deep" / "space.npz"), mapped)
    bare = space_of(covariance(1, 4), ["ä", "b c", "d/e", "名"])
    bare.save(str(tmp_path / "bare.npz"))
    assert same(TaskSpace.load(str(tmp_path / "bare.npz")), bare)
    assert TaskSpace.load(tmp_path / "bare.npz").digest == bare.digest


def test_a_file_with_the_bare_minimum_loads(tmp_path):
    np.savez(tmp_path / "space.npz", names=["a", "b"], covariance=np.eye(2, dtype=np.float32))
    space = TaskSpace.load(tmp_path / "space.npz")
    assert (space.names, space.kernel, space.probe, space.features, space.seed) == (("a", "b"), "unknown", "", (), 0)
    assert space.covariance.dtype == np.float64


def test_saving_replaces_whole_or_not_at_all(mapped, tmp_path, monkeypatch):
    path = tmp_path / "space.npz"
    mapped.save(path)
    before = path.read_bytes()

    def half(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(BadInput, match="no space left"):
        mapped.save(path)
    assert path.read_bytes() == before
    assert [place.name for place in tmp_path.iterdir()] == ["space.npz"]


class Attack:
    """Unpickling this would leave a trace."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npz_of_bytes(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def header(shape, descr="<f8"):
    """An .npy that claims a shape and holds nothing."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def npy(array, **kwargs):
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


def whole_file():
    return npz(names=["a", "b"], covariance=np.eye(2))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"no archive at all",
        b"\x00" * 1000,
        pickle.dumps({"names": ["a"]}),
        npy(np.eye(2)),
        whole_file()[:100],
        whole_file()[:-40],
        npz(names=["a", "b"]),
        npz(covariance=np.eye(2)),
        npz_of_bytes(names=npy(np.array(["a", "b"])), covariance=b"garbage"),
        npz_of_bytes(names=npy(np.array(["a", "b"])), covariance=header((2, 2))),
        npz_of_bytes(names=npy(np.array(["a", "b"])), covariance=header((10**9, 10**9))),
        npz(names=["a", "b"], covariance=np.array([["x", "y"], ["z", "w"]])),
        npz(names=["a", "b"], covariance=np.eye(2), seed="soon"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, content):
    path = tmp_path / "space.npz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"space\.npz holds no task space .*`taskatlas map`"):
        TaskSpace.load(path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"names": ["a", "a"], "covariance": np.eye(2)}, r"space\.npz: two checkpoints are named 'a'"),
        ({"names": ["a", "b"], "covariance": np.eye(3)}, r"space\.npz: the covariance has shape \(3, 3\)"),
        ({"names": ["a", "b"], "covariance": np.ones(4)}, r"space\.npz: the covariance has shape \(4,\)"),
        ({"names": ["a", "b"], "covariance": np.full((2, 2), np.nan)}, r"space\.npz: .*must be finite"),
        ({"names": ["a"], "covariance": np.eye(1), "replicates": np.ones(3)}, r"space\.npz: the replicates have shape"),
        ({"names": ["a"], "covariance": np.eye(1), "features": ["x", "y"]}, r"space\.npz: there are 2 digests"),
    ],
)
def test_a_file_with_wrong_content_is_refused(tmp_path, as_installed, arrays, words):
    path = tmp_path / "space.npz"
    path.write_bytes(npz(**arrays))
    with pytest.raises(BadInput, match=words):
        TaskSpace.load(path)


@pytest.mark.parametrize("member", ["names", "covariance", "replicates", "kernel"])
def test_an_archive_with_objects_runs_no_code(tmp_path, member):
    trace = tmp_path / "trace"
    evil = np.empty(1, dtype=object)
    evil[0] = Attack(trace)
    arrays = {"names": np.array(["a"]), "covariance": np.eye(1)} | {member: evil}
    np.savez(tmp_path / "space.npz", **arrays)
    with pytest.raises(BadInput, match=r"holds no task space \(Object arrays cannot be loaded"):
        TaskSpace.load(tmp_path / "space.npz")
    assert not trace.exists()


def test_a_space_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(BadInput, match="holds no task space"):
            TaskSpace.load(path)


# Matrices from elsewhere

MATRIX = covariance(2, 4)
ROWS = [",".join(map(repr, row.tolist())) for row in MATRIX]
BARE = "\n".join(ROWS)
WITH_ROW = "\n".join([",".join(NAMES), *ROWS])
WITH_BOTH = "\n".join(["," + ",".join(NAMES), *(f"{name},{row}" for name, row in zip(NAMES, ROWS, strict=True))])
NUMBERED = "\n".join([",0,1,2,3", *(f"{name},{row}" for name, row in zip("0123", ROWS, strict=True))])


@pytest.fixture
def names_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("b\n  a \n\nd\nc\n")
    return path


@pytest.mark.parametrize(
    "text",
    [
        WITH_ROW,
        WITH_BOTH,
        WITH_BOTH.replace(",b,", "model,b,", 1),
        WITH_BOTH + "\n\n",
        WITH_BOTH.replace("\n", "\r\n"),
        "\ufeff" + WITH_BOTH,
        "\ufeff" + WITH_ROW,
        WITH_ROW.replace(",", " , "),
        '"b","a","d","c"\n' + BARE,
    ],
)
def test_a_csv_may_name_its_checkpoints(tmp_path, text):
    path = tmp_path / "matrix.csv"
    path.write_text(text, encoding="utf-8", newline="")
    space = TaskSpace.from_matrix(path)
    assert space.names == NAMES
    assert (space.covariance == MATRIX).all()


def test_names_of_a_csv_may_be_numbers(tmp_path):
    (tmp_path / "matrix.csv").write_text(NUMBERED)
    assert TaskSpace.from_matrix(tmp_path / "matrix.csv").names == ("0", "1", "2", "3")


def test_a_csv_of_bare_numbers_takes_names_from_a_file(tmp_path, names_file):
    (tmp_path / "matrix.csv").write_text("\ufeff" + BARE)
    space = TaskSpace.from_matrix(tmp_path / "matrix.csv", names_file)
    assert space.names == NAMES
    assert (space.covariance == MATRIX).all()
    with pytest.raises(BadInput, match=r"matrix\.csv names no checkpoints.*--names"):
        TaskSpace.from_matrix(tmp_path / "matrix.csv")


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4"])
def test_an_npy_takes_names_from_a_file(tmp_path, names_file, dtype):
    np.save(tmp_path / "matrix.npy", MATRIX.astype(dtype))
    space = TaskSpace.from_matrix(str(tmp_path / "matrix.npy"), str(names_file))
    assert space.names == NAMES
    assert space.covariance == pytest.approx(MATRIX, abs=1e-6)
    with pytest.raises(BadInput, match=r"matrix\.npy names no checkpoints"):
        TaskSpace.from_matrix(tmp_path / "matrix.npy")


def test_whole_numbers_are_a_matrix_too(tmp_path, names_file):
    np.save(tmp_path / "matrix.npy", np.eye(4, dtype=np.int64))
    assert TaskSpace.from_matrix(tmp_path / "matrix.npy", names_file).covariance.dtype == np.float64


def test_names_win_over_the_first_row(tmp_path, names_file):
    (tmp_path / "matrix.csv").write_text(WITH_ROW.replace("b,a,d,c", "w,x,y,z"))
    assert TaskSpace.from_matrix(tmp_path / "matrix.csv", names_file).names == NAMES


def test_rows_and_columns_in_another_order_are_refused(tmp_path):
    lines = WITH_BOTH.splitlines()
    (tmp_path / "matrix.csv").write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(BadInput, match=r"matrix\.csv holds no matrix .*first row"):
        TaskSpace.from_matrix(tmp_path / "matrix.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ("a,b", r"shape \(0,\) for 2 names"),
        ("a,b\n1,0\n0,x", "holds no matrix"),
        ("a,b\n1,0\n0", "holds no matrix"),
        ("a,b\n1,0\n0,1\n0,0", r"shape \(3, 2\) for 2 names"),
        ("a,b,c\n1,0\n0,1", r"shape \(2, 2\) for 3 names"),
        ("a,a\n1,0\n0,1", "two checkpoints are named 'a'"),
        ("a,b\n1,nan\nnan,1", "must be finite"),
        ("a,b\n1,0.5\n0.4,1", "not symmetric"),
        ("a,b,c\n1,0,0\n0,1,0", r"first row|shape \(2, 3\)"),
        ("a,b\n1;0\n0;1", "holds no matrix|for 2 names"),
    ],
)
def test_a_csv_that_is_no_covariance_is_refused(tmp_path, text, words):
    (tmp_path / "matrix.csv").write_text(text)
    with pytest.raises(BadInput, match=rf"matrix\.csv.*(?:{words})"):
        TaskSpace.from_matrix(tmp_path / "matrix.csv")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy(MATRIX)[:-8],
        npy(MATRIX)[:20],
        whole_file(),
        header((10**9, 10**9)),
        header((-1, 4)),
        header((4, 4), descr="|O") + pickle.dumps([1]),
        npy(np.full((4, 4), "1")),
        npy(MATRIX + 0j),
        npy(np.ones((4, 4), dtype=bool)),
        npy(np.zeros((4, 4), dtype="datetime64[s]")),
        npy(np.zeros((4, 4), dtype=[("x", float)])),
        b"a,b\n1,0\n0,1",
    ],
)
def test_an_npy_that_is_no_matrix_is_refused(tmp_path, names_file, content):
    (tmp_path / "matrix.npy").write_bytes(content)
    with pytest.raises(BadInput, match=r"matrix\.npy holds no matrix .*\.npy or \.csv"):
        TaskSpace.from_matrix(tmp_path / "matrix.npy", names_file)


def test_a_pickled_npy_runs_no_code(tmp_path, names_file):
    trace = tmp_path / "trace"
    evil = np.empty((4, 4), dtype=object)
    evil[0, 0] = Attack(trace)
    np.save(tmp_path / "objects.npy", evil, allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Attack(trace)))
    for name in ("objects.npy", "pickle.npy"):
        with pytest.raises(BadInput, match="holds no matrix"):
            TaskSpace.from_matrix(tmp_path / name, names_file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.eye(3), r"shape \(3, 3\) for 4 names"),
        (np.ones(4), r"shape \(4,\) for 4 names"),
        (np.ones((1, 4, 4)), r"shape \(1, 4, 4\) for 4 names"),
        (MATRIX - np.diag([0.0, 0, 2, 0]), r"matrix\.npy: the variance of 'd' is -1"),
    ],
)
def test_an_npy_of_another_shape_is_refused(tmp_path, names_file, matrix, words):
    np.save(tmp_path / "matrix.npy", matrix)
    with pytest.raises(BadInput, match=words):
        TaskSpace.from_matrix(tmp_path / "matrix.npy", names_file)


def test_files_that_are_not_there(tmp_path, names_file):
    with pytest.raises(BadInput, match=r"none\.csv holds no matrix"):
        TaskSpace.from_matrix(tmp_path / "none.csv")
    np.save(tmp_path / "matrix.npy", MATRIX)
    with pytest.raises(BadInput, match=r"cannot read names from .*none\.txt"):
        TaskSpace.from_matrix(tmp_path / "matrix.npy", tmp_path / "none.txt")
    names_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"cannot read names from .*names\.txt"):
        TaskSpace.from_matrix(tmp_path / "matrix.npy", names_file)


def test_names_alike_in_the_names_file(tmp_path, names_file):
    np.save(tmp_path / "matrix.npy", MATRIX)
    names_file.write_text("a\nb\na\nc\n")
    with pytest.raises(BadInput, match=r"matrix\.npy: two checkpoints are named 'a'"):
        TaskSpace.from_matrix(tmp_path / "matrix.npy", names_file)
