"""Merges carried out: bytes, files around them, runs that die at any moment, memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.cli.make import interruptible
from tests.merge.material import merged, recipe, snapshot, tensors, write, write_models, write_recipe
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.merge.planning import make_plan
from taskatlas.merge.recipes import merge_recipe
from taskatlas.merge.shards import write_shard
from taskatlas.store import check_receipts, load_receipts
from taskatlas.zoo import read_weights

SOURCE = Path(__file__).parents[2] / "src"
HALVES = {"weight": 0.5}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the models a, b and c."""
    write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def linear(*names, suffix="safetensors", **fields):
    return recipe("linear", [f"{name}.{suffix}" for name in names], parameters=HALVES, **fields)


def mean(one, other):
    return {name: (value + other[name]) / 2 if value.is_floating_point() else value for name, value in one.items()}


# Bytes


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_plain_state_dicts_of_any_format(place, suffix):
    for seed, name in enumerate("ab"):
        write(place / f"{name}.{suffix}", tensors(seed))
    torch.testing.assert_close(merged(linear("a", "b", suffix=suffix), "out"), mean(tensors(0), tensors(1)))


def test_a_residual_network_with_its_running_statistics(place):
    def resnet(seed):
        torch.manual_seed(seed)
        blocks = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)) for _ in range(2)]
        stem = {"conv1": nn.Conv2d(3, 4, 3), "bn1": nn.BatchNorm2d(4)}
        return nn.ModuleDict({**stem, "layer1": nn.Sequential(*blocks), "fc": nn.Linear(4, 2)})

    for seed, name in enumerate("xy"):
        torch.save(
            {"state_dict": {f"module.{key}": value for key, value in resnet(seed).state_dict().items()}}, f"{name}.pth"
        )
    x, y = (resnet(seed).state_dict() for seed in range(2))
    found = merged(linear("x", "y", suffix="pth"), "out")
    torch.testing.assert_close(found, mean(dict(x), dict(y)))
    resnet(0).load_state_dict(found)
    plan = make_plan(recipe("linear", [("x.pth", {"weight": [0, 1]}), ("y.pth", {"weight": 1})]))
    weights = {name: one.parameters[0].get("weight") for name, one in plan.by_name.items()}
    assert (weights["conv1.weight"], weights["layer1.1.0.weight"], weights["fc.bias"]) == (0, 1, 1)


def test_shards_of_sharded_models(place):
    """Both sides in pieces, of which no two are cut alike."""
    for seed, name in enumerate("ab"):
        content = list(tensors(seed).items())
        weight_map = {}
        for number, start in enumerate(range(0, len(content), 4 + seed)):
            write(place / name / f"part{number}.safetensors", dict(content[start : start + 4 + seed]))
            weight_map |= {key: f"part{number}.safetensors" for key, _ in content[start : start + 4 + seed]}
        index = {"metadata": {}, "weight_map": weight_map}
        (place / name / "model.safetensors.index.json").write_text(json.dumps(index))
    made = recipe("linear", ["a", "b"], parameters=HALVES)
    result = merge_recipe(made, "out", shard_size=300)
    torch.testing.assert_close(read_weights("out"), mean(tensors(0), tensors(1)))
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors(0).values())
    assert set(index["weight_map"].values()) == {path.name for path in Path("out").glob("*.safetensors")}
    assert result.bytes_written == sum(path.stat().st_size for path in Path("out").glob("*.safetensors"))
    assert check_receipts(Path("out")) == (1, [])


def test_files_are_aligned_and_say_pt(place):
    for name in "de":
        types = {"half": torch.float16, "byte": torch.uint8, "double": torch.float64}
        mixed = {kind: torch.ones(3, dtype=dtype) for kind, dtype in types.items()}
        write(place / f"{name}.safetensors", mixed | {"empty": torch.ones(0, 3), "number": torch.tensor(2.0)})
    found = merged(linear("d", "e"), "out")
    assert {name: (value.dtype, tuple(value.shape)) for name, value in found.items()} == {
        "half": (torch.float16, (3,)),
        "byte": (torch.uint8, (3,)),
        "double": (torch.float64, (3,)),
        "empty": (torch.float32, (0, 3)),
        "number": (torch.float32, ()),
    }
    with safe_open("out/model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    raw = Path("out/model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    sizes = {"F64": 8, "F32": 4, "F16": 2, "U8": 1}
    assert length % 8 == 0
    assert all(one["data_offsets"][0] % sizes[one["dtype"]] == 0 for one in header.values() if "dtype" in one)


def test_the_same_bytes_whatever_the_order_of_models(place):
    for method, fields in (("linear", {}), ("task_arithmetic", {"base_model": "c.safetensors"})):
        for number, models in enumerate((["a.safetensors", "b.safetensors"], ["b.safetensors", "a.safetensors"])):
            merge_recipe(recipe(method, models, parameters={"weight": 0.3}, **fields), f"{method}{number}")
        first, second = (Path(f"{method}{number}/model.safetensors").read_bytes() for number in range(2))
        assert first == second


def test_seeds_and_names_decide_what_is_random(place):
    made = recipe(
        "dare_linear",
        ["a.safetensors", "b.safetensors"],
        base_model="c.safetensors",
        parameters={"weight": 1, "density": 0.5},
    )
    found = [merged(made, f"out{number}", seed=seed) for number, seed in enumerate((0, 0, 1))]
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(found[0][name], found[1][name])
    assert not torch.equal(found[0][name], found[2][name])


# The receipt


def test_the_receipt_holds_and_notices(place):
    merge_recipe(
        write_recipe("r.yml", merge_method="linear", models=[{"model": "a.safetensors"}], parameters=HALVES), "out"
    )
    (receipt,) = load_receipts(Path("out"))
    assert receipt.made_by == "merge"
    assert set(receipt.outputs) == {"model.safetensors", "README.md", "recipe.yml"}
    assert check_receipts(Path("out")) == (1, [])
    write("a.safetensors", tensors(7))
    assert "a.safetensors changed after merge read it" in check_receipts(Path("out"))[1][0]
    Path("out/model.safetensors").write_bytes(b"")
    assert "model.safetensors changed after merge wrote it" in check_receipts(Path("out"))[1][0]


def test_a_finished_merge_is_left_as_it_is(place):
    merge_recipe(linear("a", "b"), "out")
    before = snapshot("out")
    again = merge_recipe(linear("a", "b"), "out")
    assert snapshot("out") == before
    assert (again.tensors, again.kept, again.bytes_read) == (14, 1, 0)
    for other in (linear("a", "c"), linear("a", "b", dtype="float16")):
        with pytest.raises(BadInput, match="out is not empty"):
            merge_recipe(other, "out")
    write("a.safetensors", tensors(7))
    with pytest.raises(BadInput, match="out is not empty"):
        merge_recipe(linear("a", "b"), "out")
    assert snapshot("out") == before


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_finished_merge_that_has_changed_is_told(place, name):
    merge_recipe(linear("a", "b"), "out")
    raw = Path("out", name).read_bytes()
    Path("out", name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    before = snapshot("out")
    with pytest.raises(BadInput, match=f"out holds this merge, but out/{name} changed after merge wrote it"):
        merge_recipe(linear("a", "b"), "out")
    Path("out", name).unlink()
    with pytest.raises(BadInput, match=f"out/{name} is missing"):
        merge_recipe(linear("a", "b"), "out")
    assert snapshot("out") == {key: value for key, value in before.items() if key != name}


def test_two_runs_do_not_merge_into_one_folder(place, monkeypatch):
    """The second is told, and leaves the first its files."""
    told = []

    def meanwhile(*arguments, **options):
        with pytest.raises(BadInput, match="another run is merging into out") as caught:
            merge_recipe(linear("a", "b"), "out")
        told.append(caught)
        return write_shard(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("taskatlas.merge.execute.write_shard", meanwhile)
        merge_recipe(linear("a", "b"), "out", shard_size=10**9)
    assert told
    assert check_receipts(Path("out")) == (1, [])
    assert not list(Path("out").glob(".merge-*"))


# Runs that die


# In a process of its own: a child for each step of the file system at which a run may die, and then a run that is left
# alone. What every second run leaves has to be the same, to the byte.
DYING = """
import os, sys
from pathlib import Path
from taskatlas.merge.recipes import merge_recipe
from taskatlas.merge.recipe import MergeRecipe

recipe, steps = MergeRecipe.load("recipe.yml"), 0

def run(out, dies_at=None):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    def counted(function):
        def call(*arguments, **options):
            global steps
            steps += 1
            if steps == dies_at:
                os._exit(9)
            return function(*arguments, **options)
        return call
    for name in ("write", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    result = merge_recipe(recipe, out, shard_size=400)
    print(f"{out} {steps} {result.kept}", flush=True)
    os._exit(0)

run("whole")
step = 0
while True:
    step += 1
    if run(f"died{step}", step) == 0:
        break
    if run(f"died{step}") != 0:
        print("failed at", step)
"""


def test_a_run_that_dies_at_any_step_goes_on_to_the_same_bytes(place):
    linear("a", "b", "c").save("recipe.yml")
    out = run_python(DYING)
    whole = snapshot("whole", without=("receipt.json",))
    assert len([name for name in whole if name.endswith(".safetensors")]) >= 3
    places = sorted(path for path in place.glob("died*"))
    assert len(places) > 30
    assert "failed" not in out
    for folder in places:
        assert snapshot(folder, without=("receipt.json",)) == whole, folder
    kept = {int(line.split()[2]) for line in out.splitlines()}
    assert kept == set(range(len(list(Path("whole").glob("*.safetensors"))) + 1))
    for folder in places[::5]:
        assert check_receipts(folder) == (1, [])


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(place, sent):
    """The command itself, killed when its third file of twelve is there."""
    for seed, name in enumerate("xy"):
        content = {
            f"h.{layer}.w": torch.randn(1000, 1000, generator=torch.Generator().manual_seed(seed))
            for layer in range(12)
        }
        write(f"{name}.safetensors", content)
    write_recipe(
        "r.yml", merge_method="linear", models=[{"model": f"{n}.safetensors"} for n in "xy"], parameters=HALVES
    )
    command = [sys.executable, "-m", "taskatlas", "merge", "r.yml", "out", "--shard-size", "4MB"]
    process = subprocess.Popen(
        command,
        env=environment(),
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    while len(list(Path("out").glob(".merge-*/model-*"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(sent)
    said = process.communicate()[1].decode()
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert ("running again goes on from there" in said) == (sent == signal.SIGINT)
    assert not Path("out/receipt.json").exists()
    assert not list(Path("out").glob("model*"))
    kept = {path.name: path.stat().st_ino for path in Path("out").glob(".merge-*/model-*")}
    for out in ("out", "whole"):
        merge_recipe("r.yml", out, shard_size=4_000_000)
    assert snapshot("out", without=("receipt.json",)) == snapshot("whole", without=("receipt.json",))
    assert {name: Path("out", name).stat().st_ino for name in kept} == kept
    assert check_receipts(Path("out")) == (1, [])


def test_unfinished_work_of_another_merge_is_not_mixed_in(place, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("taskatlas.merge.execute.write_beside", stop)
        with pytest.raises(KeyboardInterrupt):
            merge_recipe(linear("a", "b"), "out")
    with pytest.raises(BadInput, match="an unfinished merge of another recipe"):
        merge_recipe(linear("a", "c"), "out")
    assert merge_recipe(linear("a", "b"), "out").kept == 1


# Memory


MEASURING = """
import os, re, sys, threading, time
from pathlib import Path
from taskatlas.merge.recipes import merge_recipe
from taskatlas.merge.recipe import MergeRecipe

def status(key):
    return int(re.search(key + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

def measure(count):
    models = [{"model": f"m{number}.safetensors", "parameters": {"weight": 1}} for number in range(count)]
    recipe = MergeRecipe.from_dict({"merge_method": "linear", "models": models})
    before, private, most, done = status("VmRSS"), status("RssAnon"), [0], []
    def watch():
        while not done:
            most[0] = max(most[0], status("RssAnon"))
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    merge_recipe(recipe, f"out{count}")
    done.append(1)
    watcher.join()
    print(count, status("VmHWM") - before, most[0] - private, flush=True)

merge_recipe(MergeRecipe.load("small.yml"), "small")  # whatever is loaded at first use
for count in (2, 4, 8, 16):
    child = os.fork()
    if not child:
        measure(count)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_models(place):
    """Sixteen models of 32 MB in 16 tensors of 2 MB: a tensor of each is mapped at a time, and little is private."""
    for number in range(16):
        content = {f"h.{layer}.w": torch.full((1024, 1024), float(number)).bfloat16() for layer in range(16)}
        write(f"m{number}.safetensors", content)
    linear("a", "b").save("small.yml")
    rows = {
        int(line.split()[0]): [int(word) for word in line.split()[1:]] for line in run_python(MEASURING).splitlines()
    }
    assert set(rows) == {2, 4, 8, 16}
    everything, private = zip(*(rows[count] for count in (2, 4, 8, 16)), strict=True)
    assert max(private) <= 16 + min(private)  # MB: pieces and results in flight
    assert everything[3] - everything[0] <= 14 * 2 * 2 + 16  # a tensor of each further model, or two while they change
    assert everything[3] < 16 * 32 / 3


# Helpers


def environment():
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_python(code):
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
