"""Attacks on merging, through the command line: one sentence that names the fault, status 2, nothing half-written."""

import json
import os
import resource
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.merge.material import recipe, snapshot, tensors, write, write_models, write_recipe

from taskatlas.cli import main
from taskatlas.merge.recipes import merge_recipe

GOOD = {"merge_method": "linear", "models": [{"model": "a.safetensors"}, {"model": "b.safetensors"}]}
HALVES = {"weight": 0.5}

Ran = namedtuple("Ran", ["code", "out", "err"])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the models a, b and c, b in two shards, and a good recipe."""
    made = write_models(tmp_path)
    names = list(made["b"])
    for number, part in enumerate((names[:6], names[6:])):
        write(tmp_path / f"b/model-{number}.safetensors", {name: made["b"][name] for name in part})
    places = {
        name: f"model-{number}.safetensors" for number, part in enumerate((names[:6], names[6:])) for name in part
    }
    (tmp_path / "b/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    monkeypatch.chdir(tmp_path)
    write_recipe("r.yml", **GOOD, parameters=HALVES)
    return tmp_path


@pytest.fixture
def run(capsys):
    def command(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return Ran(stop.value.code or 0, *capsys.readouterr())

    return command


@pytest.fixture
def refused(run, place):
    """``refused(*arguments)``: the sentence that refuses a merge, which leaves nothing behind."""

    def command(*arguments):
        before = snapshot(place)
        ran = run("merge", *arguments)
        assert ran.code == 2, ran.err or ran.out
        assert ran.out == ""
        assert ran.err.startswith("taskatlas: ")
        assert ran.err.count("\n") == 1
        assert snapshot(place) == before
        return ran.err

    return command


# What is right


def test_a_merge_and_its_plan(place, run):
    dry = run("merge", "r.yml", "--dry-run", "--format", "json")
    plan = json.loads(dry.out)
    assert dry.code == 0
    assert not Path("out").exists()
    assert {"tensors", "bytes_read", "bytes_written", "peak_bytes", "shards", "work"} <= set(plan)
    done = run("merge", "r.yml", "out", "--format", "json")
    document = json.loads(done.out)
    assert document["out"] == "out"
    assert {key: document[key] for key in ("tensors", "bytes_read", "bytes_written")} == {
        key: plan[key] for key in ("tensors", "bytes_read", "bytes_written")
    }
    assert document["peak_bytes"] > plan["peak_bytes"]
    assert len(plan["work"]) == plan["tensors"] == len(load_file("out/model.safetensors"))
    assert run("check", "out").code == 0
    again = run("merge", "r.yml", "out")
    assert "out was finished before: 14 tensors" in again.out
    assert json.loads(run("merge", "r.yml", "out", "--format", "json").out)["bytes_read"] == 0


def test_a_plan_for_people(place, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    write_recipe("g.yml", **{**GOOD, "models": [{"model": "a.safetensors", "parameters": {"weight": [0.5, 1]}}]})
    said = run("merge", "g.yml", "--dry-run").out
    assert "model.layers.*.mlp.down_proj.weight" in said
    assert "weight of a.safetensors 0.5 to 1" in said
    assert "to read" in said


def test_a_zoo_named_on_the_command_line(place, run):
    write_recipe("z.yml", merge_method="linear", models=[{"model": "a"}, {"model": "c"}], parameters=HALVES)
    Path("b").rename("elsewhere")
    Path("zoo").mkdir()
    for name in "ac":
        Path(f"{name}.safetensors").rename(f"zoo/{name}.safetensors")
    assert run("merge", "z.yml", "--out", "out", "--zoo", "zoo", "--shard-size", "300B").code == 0
    assert Path("out/model.safetensors.index.json").is_file()


# Recipes and models


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"models": [{"model": "a.safetensors", "parameters": {"wieght": 1}}]}, "models[0].parameters.wieght"),
        ({"merge_method": "tiess"}, "did you mean 'ties'?"),
        ({"merge_method": "fisherr"}, "there is no method 'fisherr'"),
        ({"merge_method": "ties"}, "base_model: ties needs one"),
        ({"merge_method": "slerp", "base_model": "a.safetensors", "parameters": {}}, "parameters.t: slerp needs it"),
        ({"parameters": {}}, "models[0].parameters.weight: linear needs it"),
        ({"models": [{"model": "gone.safetensors"}]}, "models[0].model: there is no model 'gone.safetensors'"),
        ({"base_model": "gone/"}, "base_model: there is no model 'gone/'"),
        ({"models": [{"model": "r.yml"}]}, "r.yml is made of itself"),
        ({"zoo": "gone"}, "zoo: there is no zoo"),
        (
            {
                "models": [
                    {"model": f"{name}.safetensors", "parameters": {"weight": w}} for name, w in (("a", 1), ("b", -1))
                ]
            },
            "sum to zero",
        ),
    ],
    ids=str,
)
def test_a_wrong_recipe(refused, content, said):
    write_recipe("r.yml", **{**GOOD, "parameters": HALVES, **content})
    assert said in refused("r.yml", "out")


def test_a_file_that_is_no_recipe(refused):
    Path("no.yml").write_text("models: [a, b")
    assert "no.yml: line 1" in refused("no.yml", "out")
    assert "gone.yml" in refused("gone.yml", "out")
    assert "is no size" in refused("r.yml", "out", "--shard-size", "many")
    assert "there is no place" in refused("r.yml")


# Weights


def truncated():
    Path("a.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:-5])


def no_header():
    Path("a.safetensors").write_bytes(b"\xff" * 100)


def emptied():
    Path("a.safetensors").write_bytes(b"")


def overlapping():
    raw = Path("a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["lm_head.weight"]["data_offsets"] = header["model.norm.weight"]["data_offsets"]
    text = json.dumps(header).encode()
    Path("a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def shard_gone():
    Path("b/model-1.safetensors").unlink()


def shard_cut():
    Path("b/model-1.safetensors").write_bytes(Path("b/model-1.safetensors").read_bytes()[:-9])


def shard_without_its_tensor():
    content = load_file("b/model-1.safetensors")
    content.popitem()
    write("b/model-1.safetensors", content)


def index_damaged():
    Path("b/model.safetensors.index.json").write_text('{"weight_map": 3}')


def index_leads_out():
    Path("b/model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "../a.safetensors"}}')


def nan():
    content = tensors(0)
    content["model.layers.1.mlp.down_proj.weight"][1, 2] = float("nan")
    write("a.safetensors", content)


def infinite():
    content = tensors(0)
    content["model.layers.1.mlp.down_proj.weight"][1, 2] = float("-inf")
    write("a.safetensors", content)


def other_shape():
    write("a.safetensors", tensors(0, words=9))


def a_pickle():
    torch.save({"w": [1, 2]}, "a.safetensors")


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (truncated, ("models[0].model: a.safetensors is not a whole safetensors file",)),
        (no_header, ("a.safetensors is not a whole safetensors file",)),
        (emptied, ("a.safetensors is empty",)),
        (overlapping, ("a.safetensors is not a whole safetensors file",)),
        (shard_gone, ("models[1].model: ", "names the shard model-1.safetensors", "not beside it")),
        (shard_cut, ("b/model-1.safetensors is not a whole safetensors file",)),
        (shard_without_its_tensor, ("in model-1.safetensors, which does not hold it",)),
        (index_damaged, ("is not a shard index",)),
        (index_leads_out, ("which is not a file beside it",)),
        (nan, ("'model.layers.1.mlp.down_proj.weight' of a.safetensors holds NaN",)),
        (infinite, ("'model.layers.1.mlp.down_proj.weight' of a.safetensors holds an infinite number",)),
        (
            other_shape,
            ("lm_head.weight is (9, 4) in a.safetensors and (7, 4) in b", "model.embed_tokens.weight is (9,"),
        ),
        (a_pickle, ("rename it to end in .pt",)),
    ],
)
def test_damaged_weights(refused, attack, said):
    attack()
    write_recipe("r.yml", **{**GOOD, "models": [{"model": "a.safetensors"}, {"model": "b"}]}, parameters=HALVES)
    message = refused("r.yml", "out")
    assert [part for part in said if part not in message] == []
    if attack not in (nan, infinite):  # which reading headers cannot find
        assert message == refused("r.yml", "--dry-run")


def test_nan_where_a_whole_model_is_looked_through(refused):
    nan()
    settings = {"weight": 1, "density": 0.5, "scope": "model"}
    write_recipe("r.yml", **{**GOOD, "merge_method": "ties", "base_model": "c.safetensors"}, parameters=settings)
    assert "'model.layers.1.mlp.down_proj.weight' of a.safetensors holds NaN" in refused("r.yml", "out")


def test_nan_in_what_the_base_alone_has(refused):
    content = tensors(2) | {"extra": torch.tensor([1.0, float("nan")])}
    write("c.safetensors", content)
    write_recipe("r.yml", **GOOD, base_model="c.safetensors", common_only=True, parameters=HALVES)
    assert "'extra' of c.safetensors holds NaN" in refused("r.yml", "out")


def test_a_result_that_its_type_cannot_hold(refused):
    write_recipe("r.yml", **GOOD, parameters={"weight": 1e6, "normalize": False}, dtype="float16")
    assert "elements too large for float16" in refused("r.yml", "out")


def test_a_mask_of_infinities_passes(place):
    for name in "ab":
        write(f"{name}.safetensors", tensors(3) | {"mask": torch.full((2, 2), float("-inf")).triu(1)})
    merge_recipe(recipe("linear", ["a.safetensors", "b.safetensors"], parameters=HALVES), "out")
    assert torch.equal(load_file("out/model.safetensors")["mask"], torch.full((2, 2), float("-inf")).triu(1))


# Places


def test_a_folder_that_is_not_empty(refused):
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    assert "full is not empty (it holds thesis.txt)" in refused("r.yml", "full")
    assert "is a file" in refused("r.yml", "r.yml")
    assert "cannot write" in refused("r.yml", "r.yml/out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(refused, place):
    (place / "locked").mkdir(mode=0o500)
    assert "cannot write" in refused("r.yml", "locked/out")


def test_a_disk_that_is_full_from_the_start(refused, monkeypatch):
    usage = namedtuple("usage", ["total", "used", "free"])(100, 90, 10)
    monkeypatch.setattr("taskatlas.merge.execute.shutil.disk_usage", lambda _: usage)
    assert "no space left for out" in refused("r.yml", "out")


def test_a_disk_that_fills_up_on_the_way(place, run):
    """No file may be longer than 64 kB: what was finished is kept, and the rest follows when there is room."""
    for name in "xy":
        content = {f"h.{layer}.w": torch.full((100, 100 + 100 * (layer == 3)), 1.0) for layer in range(4)}
        write(f"{name}.safetensors", content)
    models = [{"model": f"{name}.safetensors"} for name in "xy"]
    write_recipe("d.yml", merge_method="linear", models=models, parameters=HALVES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        ran = run("merge", "d.yml", "out", "--shard-size", "40KB")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.code == 2
    assert "no space left to write" in ran.err
    assert not list(Path("out").glob("model*"))
    ran = run("merge", "d.yml", "out", "--shard-size", "40KB")
    assert ran.code == 0
    assert "3 of 4 files were finished before" in ran.out
    assert Path("out/receipt.json").is_file()
