"""Recipes for networks that were trained apart, and the two commands: what they write, and what they refuse."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.zip import networks

import taskatlas as ta
from taskatlas.cli import main

NETS = """
import torch
def net():
    return torch.nn.Sequential(
        torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 7), torch.nn.Tanh(), torch.nn.Linear(7, 4))
"""


@pytest.fixture
def place(tmp_path):
    """A folder with two networks of which one is a permuted copy, their builder, and samples."""
    torch.manual_seed(0)
    net, x = networks.mlp(), torch.randn(80, 6)
    groups = ta.AxisGroups.of(net, x[:2])
    save_file(net.state_dict(), tmp_path / "one.safetensors")
    other = groups.permute(net.state_dict(), groups.random_permutations(1))
    save_file({name: value.contiguous() for name, value in other.items()}, tmp_path / "other.safetensors")
    broken = {name: value * float("nan") for name, value in net.state_dict().items()}
    save_file(broken, tmp_path / "nan.safetensors")
    (tmp_path / "nets.py").write_text(NETS)
    np.savez(tmp_path / "x.npz", x=x.numpy())
    return tmp_path


def recipe(place, **changes):
    content = {
        "merge_method": "zip",
        "models": [{"model": "one.safetensors"}, {"model": "other.safetensors"}],
        "builder": "nets.py:net",
        "probe": "x.npz",
    } | changes
    file = place / "recipe.yml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code or 0


@pytest.mark.parametrize("method", ["zip", "permute", "weight_matching"])
def test_a_permuted_copy_merges_into_the_network(place, method, capsys):
    file = recipe(place, merge_method=method, reset_statistics=False)
    assert run("merge", file, place / "out", "--format", "json") == 0
    document = json.loads(capsys.readouterr().out)
    merged, own = load_file(place / "out" / "model.safetensors"), load_file(place / "one.safetensors")
    assert all(torch.allclose(merged[name], own[name], atol=1e-6) for name in own)
    assert document["parameters"] == sum(value.numel() for value in own.values())
    assert document["models"]["macs"] == 2 * document["macs"]
    rows = list(csv.DictReader((place / "out" / "agreements.csv").open()))
    assert [row["units"] for row in rows] == ["10", "7"]
    assert all(float(row["agreement"]) > 0.999 for row in rows)
    assert run("check", place / "out") == 0


def test_up_to_a_stop_one_file_holds_all_heads(place):
    result = ta.merge_networks(recipe(place, stop_at="2:input"), place / "out")
    assert result.cost.parameters < sum(cost.parameters for cost in result.parents) + 200
    with pytest.raises(ta.BadInput, match=r"exported program zipped\.pt2.*torch\.export\.load\('.*zipped\.pt2'\)"):
        ta.Zoo.open(place / "out")
    opened = torch.export.load(place / "out" / "zipped.pt2").module()
    x = torch.randn(5, 6)
    net = networks.mlp()
    net.load_state_dict(load_file(place / "one.safetensors"))
    for output in opened(x):
        assert torch.allclose(output, net(x), atol=1e-3)


def test_a_network_that_cannot_be_followed_takes_groups_from_a_file(place, capfd):
    torch.manual_seed(0)
    net = networks.Branching().eval()
    hidden = {
        "name": "hidden",
        "size": 6,
        "members": [
            {"tensor": "one.weight", "axis": 0},
            {"tensor": "one.bias", "axis": 0},
            {"tensor": "two.weight", "axis": 1, "role": "in"},
        ],
    }
    (place / "groups.json").write_text(json.dumps({"groups": [hidden]}))
    groups = ta.AxisGroups.load(place / "groups.json")
    other = groups.permute(net.state_dict(), groups.random_permutations(1))
    save_file(net.state_dict(), place / "one.safetensors")
    save_file({name: value.contiguous() for name, value in other.items()}, place / "other.safetensors")
    changes = {"builder": "tests.zip.networks:Branching", "reset_statistics": False}
    assert run("merge", recipe(place, **changes), place / "out") == 2
    said = capfd.readouterr().err
    assert "if x.sum() > 0" in said
    assert len(said.splitlines()) < 8  # and no graph of torch's
    assert run("merge", recipe(place, **changes, groups="groups.json"), place / "out") == 0
    merged = load_file(place / "out" / "model.safetensors")
    assert all(torch.allclose(merged[name], value, atol=1e-6) for name, value in net.state_dict().items())


def test_a_second_run_keeps_what_is_there_and_another_recipe_replaces_it(place):
    assert not ta.merge_networks(recipe(place), place / "out").kept
    before = (place / "out" / "model.safetensors").stat().st_mtime_ns
    assert ta.merge_networks(recipe(place), place / "out").kept
    assert (place / "out" / "model.safetensors").stat().st_mtime_ns == before
    (place / "out" / "model.safetensors").write_bytes(b"")
    assert not ta.merge_networks(recipe(place), place / "out").kept
    assert load_file(place / "out" / "model.safetensors")


def test_a_dry_run_writes_nothing(place, capsys):
    assert run("merge", recipe(place, samples=50), place / "out", "--dry-run") == 0
    assert "would merge one, other to the end by zip, on 50 samples" in capsys.readouterr().out
    assert not (place / "out").exists()


def test_a_recipe_survives_its_file(place):
    read = ta.NetworkRecipe.load(recipe(place, a=0.01, stop_at="2", outputs=["logits"]))
    read.save(place / "again.yml")
    assert ta.NetworkRecipe.load(place / "again.yml") == read
    assert repr(read) == "NetworkRecipe(zip, 2 models up to 2)"
    assert read.remedy == "least_squares"
    assert ta.NetworkRecipe.load(recipe(place, reset_statistics=True)).remedy == "reset"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": [{"model": "one.safetensors"}]}, "models: name two or more"),
        ({"probe": None}, "probe: Field required"),
        ({"stop": "2"}, "stop: unknown key; did you mean 'stop_at'"),
        ({"a": 1.5}, "a: Input should be less than or equal to 1"),
        ({"models": [{"model": "one.safetensors"}, {"model": "none.pt"}]}, r"models\[1\].model: there are no weights"),
        ({"probe": "none.npz"}, "none.npz"),
        ({"stop_at": "4"}, "no legal stop.*Choose one of: 0, 1, 2, 3"),
        ({"builder": None}, "builder"),
        ({"merge_method": "cycle_consistent"}, r"there is no method 'cycle_consistent'.*Methods are .*zip"),
        ({"calibration": "repair", "reset_statistics": True}, "calibration and reset_statistics both say"),
        ({"groups": "none.json"}, "cannot read axis groups from"),
        (
            {"merge_method": "weight_matching", "models": [{"model": "one.safetensors"}, {"model": "nan.safetensors"}]},
            r"the tensor '0\.weight' of nan holds NaN",
        ),
    ],
)
def test_a_wrong_recipe_is_told(place, change, said, capsys):
    assert run("merge", recipe(place, **change), place / "out") == 2
    printed = " ".join(capsys.readouterr().err.split())
    import re

    assert re.search(said, printed), printed
    assert not (place / "out").exists() or not any((place / "out").iterdir())


def test_a_folder_with_other_things_is_left_alone(place):
    (place / "out").mkdir()
    (place / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ta.BadInput, match="not an empty folder"):
        ta.merge_networks(recipe(place), place / "out")


def test_zip_points_lists_stops(place, capsys):
    arguments = ("zip-points", place / "one.safetensors", "--builder", f"{place / 'nets.py'}:net")
    assert run(*arguments, "--shape", "6", "--format", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [stop["place"] for stop in document["stops"]] == ["0", "1", "2", "3"]
    assert [stop["parameters_before"] for stop in document["stops"]] == [70, 70, 147, 147]
    assert document["groups"] == [{"name": "0", "units": 10}, {"name": "2", "units": 7}]
    assert run(*arguments, "--probe", place / "x.npz") == 0
    assert "legal stops" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "Give --probe, or --shape"), (("--shape", "3,x"), "is no shape"), (("--shape", "5"), "5")],
)
def test_zip_points_says_what_is_missing(place, arguments, said, capsys):
    assert run("zip-points", place / "one.safetensors", "--builder", f"{place / 'nets.py'}:net", *arguments) == 2
    assert said in capsys.readouterr().err
