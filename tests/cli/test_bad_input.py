"""Attacks on the command line: each is refused in one sentence, and earlier results stay as they were."""

import errno
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.make import MAP, TRANSFER, snapshot, write_network

from taskatlas.errors import BadInput
from taskatlas.probe import Features
from taskatlas.space import map_features

GOOD = "zoo/a.safetensors"
BAD = "zoo/bad.safetensors"
WRONG_TYPES = b'{"map": {"made_by": "map", "inputs": {}, "settings": {}, "outputs": 3, "seconds": "long"}}'


def truncated():
    Path(BAD).write_bytes(Path(GOOD).read_bytes()[:-9])


def header_cut():
    Path(BAD).write_bytes(Path(GOOD).read_bytes()[:40])


def no_safetensors():
    Path(BAD).write_bytes(b"\xff" * 300)


def nothing():
    Path(BAD).write_bytes(b"")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-ran"),))


def evil_pickle():
    with Path("zoo/bad.pt").open("wb") as file:
        pickle.dump(Evil(), file)


def whole_module():
    torch.save(torch.nn.Linear(2, 2), "zoo/bad.pt")


def evil_checkpoint():
    torch.save({"0.weight": Evil()}, "zoo/bad.pt")


def other_keys():
    save_file({"0.weight": torch.zeros(5, 6), "head.bias": torch.zeros(3)}, BAD)


def other_shape():
    tensors = load_file(GOOD)
    save_file(tensors | {"2.bias": torch.zeros(4)}, BAD)


def nan_weights():
    tensors = load_file(GOOD)
    tensors["0.weight"][0, 0] = float("nan")
    save_file(tensors, BAD)


def infinite_weights():
    tensors = load_file(GOOD)
    tensors["0.bias"][2] = float("inf")
    save_file(tensors, BAD)


def constant_features():
    tensors = load_file(GOOD)
    tensors["0.weight"][:] = 0
    save_file(tensors, BAD)


def two_alike():
    torch.save(load_file(GOOD), "zoo/a.pt")


def emptied():
    for file in Path("zoo").iterdir():
        file.unlink()


def broken_yaml():
    Path("zoo/zoo.yaml").write_text("checkpoints: [a, b")


def unknown_key():
    Path("zoo/zoo.yaml").write_text("checkpoints:\n  a: {weigths: a.safetensors}\n")


def gone_weights():
    Path("zoo/zoo.yaml").write_text("checkpoints:\n  a: {weights: gone.pt}\n")


def twice_in_yaml():
    Path("zoo/zoo.yaml").write_text("checkpoints:\n  a: {weights: a.safetensors}\n  a: {weights: b.safetensors}\n")


def yaml_of_another_kind():
    Path("zoo/zoo.yaml").write_text("- a\n- b\n")


BROKEN_ZOOS: dict[Callable[[], object], tuple[str, ...]] = {
    truncated: ("bad.safetensors", "not a whole safetensors file"),
    header_cut: ("bad.safetensors", "not a whole safetensors file"),
    no_safetensors: ("bad.safetensors", "not a whole safetensors file"),
    nothing: ("bad.safetensors", "is empty"),
    evil_pickle: ("bad.pt", "was not opened"),
    whole_module: ("bad.pt", "needs code", "safetensors"),
    evil_checkpoint: ("bad.pt", "needs code", "safetensors"),
    other_keys: ("bad.safetensors", "nets.py:mlp", "missing", "0.bias", "2.weight", "unexpected", "head.bias"),
    other_shape: ("bad.safetensors", "2.bias", "(4,)", "(3,)"),
    nan_weights: ("bad at 2:input", "NaN"),
    infinite_weights: ("bad at 2:input", "infinite"),
    constant_features: ("bad at 2:input", "the same for every sample"),
    two_alike: ("'a'", "a.pt", "a.safetensors"),
    emptied: ("zoo", "no checkpoints"),
    broken_yaml: ("zoo.yaml", "line 1"),
    unknown_key: ("zoo.yaml", "weigths", "'weights'"),
    gone_weights: ("zoo.yaml", "checkpoints.a.weights", "gone.pt"),
    twice_in_yaml: ("zoo.yaml", "line 3", "'a'"),
    yaml_of_another_kind: ("zoo.yaml",),
}


@pytest.mark.parametrize(("attack", "said"), BROKEN_ZOOS.items(), ids=[attack.__name__ for attack in BROKEN_ZOOS])
def test_a_broken_zoo(refused, run, attack, said):
    attack()
    message = refused(*MAP, "--out", "atlas")
    assert [word for word in said if word not in message] == []
    assert not Path("evil-ran").exists()
    assert run("check", "atlas").code == 0


def replaced(arguments, **changes):
    """The arguments with the values of some options changed."""
    given = list(arguments)
    for option, value in changes.items():
        given[given.index(f"--{option}") + 1] = value
    return given


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probe": "gone.npz"}, "gone.npz"),
        ({"probe": "nets.py"}, "nets.py"),
        ({"probe": "pickled.npz"}, "pickled Python objects"),
        ({"probe": "cut.npz"}, "cut.npz is damaged"),
        ({"probe": "nan.npz"}, "sample '2' holds NaN"),
        ({"probe": "wide.npz"}, "a cannot take samples"),
        ({"probe": "repeated.npz"}, "stands for two samples"),
        ({"probe": "none.npz"}, "none.npz"),
        ({"probe": "one.npz"}, "at least two"),
        ({"probe": "zoo"}, "zoo"),
        ({"builder": "gone.py:mlp"}, "gone.py"),
        ({"builder": "nets.py:mlpp"}, "Did you mean 'mlp'?"),
        ({"builder": "nets.py"}, "is not a builder"),
    ],
    ids=str,
)
def test_a_bad_probe_or_builder(refused, changes, said):
    x = np.load("probe.npz")["x"]
    np.savez("pickled.npz", x=np.array([{}], dtype=object))
    Path("cut.npz").write_bytes(Path("probe.npz").read_bytes()[:200])
    np.savez("nan.npz", x=np.where(np.arange(30)[:, None] == 2, np.nan, x))
    np.savez("wide.npz", x=np.zeros((4, 7)))
    np.savez("repeated.npz", x=x[:3], ids=["i", "j", "i"])
    np.savez("none.npz", x=x[:0])
    np.savez("one.npz", x=x[:1])
    assert said in refused(*replaced(MAP, **changes), "--out", "atlas")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--engine", "slurm"), "there is no engine 'slurm'"),
        (("--engine", "processes:0"), "processes:4"),
        (("--engine", "threads:many"), "threads:many"),
        (("--tap", "layer4"), "'layer4'"),
    ],
)
def test_a_bad_setting(refused, more, said):
    assert said in refused(*MAP, *more, "--out", "atlas")


def test_a_zoo_that_is_not_there(refused):
    assert "there is no zoo at nowhere" in refused("map", "nowhere", *MAP[2:], "--out", "atlas")


def test_checkpoints_without_a_builder(refused):
    message = refused("map", "zoo", "--probe", "probe.npz", "--out", "atlas")
    assert "no builder" in message
    assert "--builder" in message


@pytest.mark.parametrize(
    "arguments",
    [(*MAP, "--out", "taken"), ("select", "atlas", "-k", 2, "--out", "taken"), ("report", "atlas", "--out", "taken")],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("below", ["", "/deeper"])
def test_an_out_that_is_a_file(refused, arguments, below):
    Path("taken").write_text("mine")
    message = refused(*arguments[:-1], arguments[-1] + below)
    assert "cannot write taken" in message
    assert Path("taken").read_text() == "mine"


def matrix(name, values):
    np.save(name, np.array(values, dtype=float))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("asymmetric.npy", "-k", 2), "from 'x' to 'y'"),
        (("indefinite.npy", "-k", 2), "not positive definite"),
        (("nan.npy", "-k", 2), "'x' and 'z' is nan"),
        (("negative.npy", "-k", 2), "the variance of 'y'"),
        (("oblong.npy", "-k", 2), "(2, 3)"),
        (("pickled.npy", "-k", 2), "pickled.npy"),
        (("cut.npy", "-k", 2), "cut.npy"),
        (("words.csv", "-k", 2), "words.csv"),
        (("gone.npy", "-k", 2), "there is no gone.npy"),
        (("zoo", "-k", 2), "zoo holds no space.npz"),
        (("nets.py", "-k", 2), "nets.py"),
        (("good.npy", "-k", 4), "k is 4"),
        (("good.npy", "-k", 0), "k is 0"),
        (("good.npy", "-k", 3, "--exclude", "x"), "only 2"),
        (("good.npy",), "how many"),
        (("good.npy", "-k", 2, "--start", "q"), "'q'"),
        (("good.npy", "-k", 2, "--exclude", "xx"), "Did you mean 'x'?"),
        (("good.npy", "-k", 2, "--start", "x", "--exclude", "x"), "'x' is both"),
        (("good.npy", "-k", 2, "--names", "alike.txt"), "two checkpoints are named 'x'"),
        (("good.npy", "-k", 2, "--names", "short.txt"), "for 2 names"),
        (("good.npy", "-k", 2, "--names", "binary.txt"), "cannot read names from binary.txt"),
        (("good.npy", "-k", 2, "--names", "gone.txt"), "cannot read names from gone.txt"),
        (("good.npy", "-k", 2, "--names", "zoo"), "cannot read names from zoo"),
        (("good.npy", "-k", 2, "--budget", 1), "costs"),
        (("good.npy", "--cost", "cost.csv", "--budget", 0.5), "the budget is 0.5"),
        (("good.npy", "-k", 2, "--method", "entropy", "--weights", "cost.csv"), "weights"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_bad_matrix_or_request(refused, more, said):
    good = np.array([[1, 0.5, 0.2], [0.5, 1, 0.3], [0.2, 0.3, 1]])
    matrix("good.npy", good)
    matrix("asymmetric.npy", good + np.triu(np.full((3, 3), 0.1), 1) * [[0, 1, 0]] * 3)
    matrix("indefinite.npy", [[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]])
    matrix("nan.npy", np.where(good == 0.2, np.nan, good))
    matrix("negative.npy", good * [[1, 1, 1], [1, -1, 1], [1, 1, 1]])
    matrix("oblong.npy", good[:2])
    np.save("pickled.npy", np.array([Evil()], dtype=object))
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:-8])
    Path("words.csv").write_text("x,y,z\n1,half,0\nhalf,1,0\n0,0,1\n")
    Path("names.txt").write_text("x\ny\nz\n")
    Path("alike.txt").write_text("x\ny\nx\n")
    Path("short.txt").write_text("x\ny\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("cost.csv").write_text("x,1\ny,1\nz,1\n")
    names = () if "--names" in more else ("--names", "names.txt")
    assert said in refused("select", *more, *names, "--out", "atlas")
    assert not Path("evil-ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name,cost\na,1\nb,two\nc,3\n", "line 3"),
        (b"a,1\n\nb\nc,3\n", "line 3"),
        (b"a,1,1\nb,2,2\nc,3,3\n", "line 1"),
        (b"a,1\nb,2\na,3\nc,1\n", "names 'a' again"),
        (b"a,1\nb,2\n", "nothing of 'c'"),
        (b"", "nothing of 'a'"),
        (b"a,1\nb,-2\nc,3\n", "'b' is -2"),
        (b"a,1\nb,0\nc,3\n", "'b' is 0"),
        (b"a,1\nb,nan\nc,3\n", "'b' is nan"),
        (b"a,1\nb,inf\nc,3\n", "'b' is inf"),
        (b"a,1\nb,1\nc,1\nd,1\n", "'d'"),
        (b"\xff\xfe\x00a", "cannot read cost.csv"),
        (b"a,1\nb,\x00\nc,1\n", "cost.csv"),
    ],
)
def test_a_bad_list_of_costs(refused, content, said):
    Path("cost.csv").write_bytes(content)
    assert said in refused("select", "atlas", "-k", 2, "--cost", "cost.csv", "--out", "atlas")


def test_costs_as_spreadsheets_write_them(run_json, atlas):
    Path("cost.csv").write_bytes(b"\xef\xbb\xbfcheckpoint,cost\r\na,1\r\n b ,1e9\r\nc,1.5\r\n")
    assert run_json("select", "atlas", "--budget", 2.4, "--cost", "cost.csv")["selected"] in (["a"], ["c"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--selection FILE or --pick NAMES"),
        (("--pick", "a", "--selection", "atlas/selection.json"), "--selection FILE or --pick NAMES"),
        (("--pick", ","), "--selection FILE or --pick NAMES"),
        (("--pick", "a,a"), "twice"),
        (("--pick", "a,zebra"), "'zebra'"),
        (("--selection", "gone.json"), "gone.json"),
        (("--selection", "nets.py"), "nets.py"),
        (("--selection", "atlas/transfer.json"), "transfer.json"),
        (("--pick", "a,b", "--sizes=few"), "'few'"),
        (("--pick", "a,b", "--sizes=1,,2"), "'1,,2'"),
        (("--pick", "a,b", "--sizes=,"), "','"),
        (("--pick", "a,b", "--sizes=1.5"), "'1.5'"),
        (("--pick", "a,b", "--sizes=0"), "2 checkpoints are picked"),
        (("--pick", "a,b", "--sizes=-1"), "2 checkpoints are picked"),
        (("--pick", "a,b", "--sizes=1,3"), "2 checkpoints are picked"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_bad_transfer(refused, more, said):
    assert said in refused(*TRANSFER, *more, "--out", "atlas")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": "probe.npz"}, "train samples have no labels"),
        ({"test": "probe.npz"}, "test samples have no labels"),
        ({"train": "gone.csv"}, "gone.csv"),
        ({"test": "third.npz"}, "class 2"),
        ({"train": "single.npz"}, "one label"),
        ({"train": "short.npz"}, "short.npz"),
    ],
    ids=str,
)
def test_bad_samples_for_a_transfer(refused, changes, said):
    x = np.load("train.npz")["x"]
    np.savez("third.npz", x=x, y=np.arange(20) % 3)
    np.savez("single.npz", x=x, y=np.zeros(20, dtype=int))
    np.savez("short.npz", x=x, y=np.zeros(19, dtype=int))
    assert said in refused(*replaced(TRANSFER, **changes), "--pick", "a", "--out", "atlas")


@pytest.mark.parametrize("command", ["report", "check"])
@pytest.mark.parametrize("folder", ["gone", "empty", "nets.py"])
def test_a_folder_without_results(refused, command, folder):
    Path("empty").mkdir()
    assert folder in refused(command, folder)
    assert not list(Path("empty").iterdir())


@pytest.mark.parametrize("file", ["space.npz", "selection.json", "transfer.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b'{"names": 3}', b"PK\x03\x04cut"])
def test_a_damaged_result_in_a_report(run, atlas, file, content):
    (atlas / file).write_bytes(content)
    before = snapshot(atlas)
    ran = run("report", "atlas")
    assert (ran.code, ran.out) == (2, "")
    assert file in ran.err
    assert ran.err.count("\n") == 1
    assert snapshot(atlas) == before


@pytest.mark.parametrize("content", [b"", b"[]", b'{"map": {}}', b'{"map": 3}', WRONG_TYPES, b"\xff"])
def test_a_damaged_receipt(run, atlas, content):
    (atlas / "receipt.json").write_bytes(content)
    for command in ("check", "report"):
        ran = run(command, "atlas")
        assert (ran.code, ran.out) == (2, "")
        assert "receipt.json is not a taskatlas receipt" in ran.err


def test_features_of_other_samples():
    features = [
        Features(np.eye(3, dtype=np.float32), ids, name, "2:input", "probe", name)
        for name, ids in {"one": ("i", "j", "k"), "two": ("i", "k", "j")}.items()
    ]
    with pytest.raises(BadInput, match="row 1 is 'j' in one and 'k' in the other"):
        map_features(features)


@pytest.fixture
def small_disk(place):
    """A file system of 256 KiB, and a function that leaves just so many bytes of it."""
    disk = place / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: this needs root")

    def leave(free):
        filler = disk / "filler"
        filler.unlink(missing_ok=True)
        left = shutil.disk_usage(disk).free
        filler.write_bytes(b"\0" * max(left - free, 0))

    yield disk, leave
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("free", [0, 4096, 16384])
def test_a_full_disk_leaves_old_results_whole(run, small_disk, free):
    disk, leave = small_disk
    out = disk / "atlas"
    assert run(*MAP, "--out", out).code == 0
    leave(free)
    before = snapshot(out)
    ran = run(*MAP, "--kernel", "procrustes", "--out", out)
    assert (ran.code, ran.out) == (2, "")
    assert "no space left to write" in ran.err
    assert snapshot(out) == before
    assert run("check", out).code == 0


def test_a_disk_that_fills_up_at_any_point(run, small_disk, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b"."))
    disk, leave = small_disk
    out = disk / "atlas"
    assert run(*MAP, "--out", out).code == 0
    before = snapshot(out)
    for pages in range(40):
        leave(4096 * pages)
        ran = run("select", out, "-k", 2, "--out", out)
        if ran.code == 0:
            break
        assert (ran.code, ran.out) == (2, "")
        assert "no space left to write" in ran.err
        assert snapshot(out) == before
    assert 1 < pages < 40
    assert run("check", out).code == 0


def test_a_full_store_is_refused_and_works_when_there_is_space(run, small_disk, monkeypatch):
    disk, leave = small_disk
    monkeypatch.setenv("TASKATLAS_STORE", str(disk / "store"))
    leave(0)
    ran = run(*MAP, "--out", "mapped")
    assert (ran.code, ran.out) == (2, "")
    assert "no space left to write" in ran.err
    assert not Path("mapped").exists()
    leave(1 << 20)
    assert run(*MAP, "--out", "mapped").code == 0


@pytest.fixture
def full(monkeypatch):
    """``full(call)``: a call, ``module.function``, that finds the disk full."""

    def fill(call):
        def fails(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(call, fails)

    return fill


@pytest.mark.parametrize(
    "call",
    ["numpy.savez_compressed", "matplotlib.figure.Figure.savefig", "tempfile.mkdtemp"],
)
def test_a_disk_that_fills_up_while_a_map_is_written(run, atlas, full, call, monkeypatch):
    before = snapshot(atlas)
    assert run(*MAP, "--kernel", "rbf_cka", "--out", "elsewhere").code == 0
    with monkeypatch.context():
        full(call)
        ran = run(*MAP, "--kernel", "rbf_cka", "--out", "atlas")
    assert (ran.code, ran.out) == (2, "")
    assert "no space left to write" in ran.err
    assert snapshot(atlas) == before


def test_a_bad_checkpoint_keeps_nothing_and_costs_the_others_nothing(run, place):
    nan_weights()
    assert run(*MAP).code == 2
    kept = list(Path(os.environ["TASKATLAS_STORE"]).rglob("features.json"))
    assert len(kept) == 2  # of a and b, which come before it
    write_network(BAD, 3, 8)
    assert run(*MAP).code == 0
    assert len(list(Path(os.environ["TASKATLAS_STORE"]).rglob("features.json"))) == 4
