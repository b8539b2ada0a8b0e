"""Zoos from folders, manifests, lists and mappings: lazily, in order, under unique names."""

import builtins
import io
import json
import os
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.zoo import Checkpoint, Zoo


def in_folder(zoo, folder):
    return {name: checkpoint.weights.relative_to(folder).as_posix() for name, checkpoint in zoo.items()}


def model_folder(folder, *files):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for file in files:
        (folder / file).write_bytes(b"garbage")


# Folders


def test_a_folder_holds_its_weights_files_and_model_folders(place):
    (place / "deep/er").mkdir(parents=True)
    for file in ("b.pt", "a.v1.safetensors", "deep/x.th", "deep/er/y.pth", "z.bin", "notes.txt", ".hidden.pt"):
        (place / file).write_bytes(b"garbage")
    (place / ".git").mkdir()
    (place / ".git/c.pt").write_bytes(b"garbage")
    model_folder(place / "bert-v1.0", "model.safetensors", "optimizer.pt", "pytorch_model.bin")
    model_folder(place / "bert-v1.0/checkpoint-5", "pytorch_model.bin.index.json")
    zoo = Zoo.open(place)
    assert in_folder(zoo, place) == {
        "a.v1": "a.v1.safetensors",
        "b": "b.pt",
        "bert-v1.0": "bert-v1.0",
        "bert-v1.0/checkpoint-5": "bert-v1.0/checkpoint-5",
        "deep/er/y": "deep/er/y.pth",
        "deep/x": "deep/x.th",
        "z": "z.bin",
    }
    assert list(zoo) == sorted(zoo)
    assert {name for name, checkpoint in zoo.items() if checkpoint.builder == "transformers"} == {
        "bert-v1.0",
        "bert-v1.0/checkpoint-5",
    }


def test_a_configuration_of_something_else_makes_no_model_folder(place):
    (place / "config.json").write_text('{"learning_rate": 0.1}')
    (place / "model.safetensors").write_bytes(b"garbage")
    (place / "last.pt").write_bytes(b"garbage")
    assert {name: checkpoint.builder for name, checkpoint in Zoo.open(place).items()} == {"last": None, "model": None}


def test_a_damaged_configuration_is_told_when_the_model_is_opened(place):
    model_folder(place / "bert", "model.safetensors")
    (place / "bert/config.json").write_text("{")
    zoo = Zoo.open(place)
    with pytest.raises(BadInput, match="bert"):
        zoo["bert"].open()


def test_a_model_folder_itself_is_a_zoo_of_one(place):
    model_folder(place / "bert", "model.safetensors")
    assert list(Zoo.open(place / "bert")) == ["bert"]


def test_shards_belong_to_their_index(place):
    shards = {"a": "part-one.safetensors", "b": "part-two.safetensors"}
    (place / "net.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for file in (*shards.values(), "other.safetensors"):
        (place / file).write_bytes(b"garbage")
    assert in_folder(Zoo.open(place), place) == {"net": "net.safetensors.index.json", "other": "other.safetensors"}


def test_a_damaged_index_does_not_stop_the_listing(place):
    (place / "net.safetensors.index.json").write_text("{")
    (place / "other.pt").write_bytes(b"garbage")
    assert list(Zoo.open(place)) == ["net", "other"]
    with pytest.raises(BadInput, match="not a shard index"):
        _ = Zoo.open(place)["net"].digest


def test_links_are_followed_but_not_in_circles(place):
    (place / "a").mkdir()
    (place / "a/net.pt").write_bytes(b"garbage")
    (place / "a/up").symlink_to(place)
    (place.parent / "elsewhere").mkdir()
    (place.parent / "elsewhere/far.pt").write_bytes(b"garbage")
    (place / "link").symlink_to(place.parent / "elsewhere")
    (place / "gone.pt").symlink_to(place / "nowhere.pt")
    assert list(Zoo.open(place)) == ["a/net", "link/far"]


def test_a_zoo_of_a_thousand_files_reads_no_weights(place, monkeypatch):
    for number in range(1000):
        (place / f"net{number:03}.{('pt', 'safetensors', 'th')[number % 3]}").write_bytes(b"garbage")
    opened = []

    def counting(function):
        def count(file, *args, **kwargs):
            opened.append(str(file))
            return function(file, *args, **kwargs)

        return count

    for owner, name in ((builtins, "open"), (io, "open"), (os, "open"), (torch, "load"), (safetensors, "safe_open")):
        monkeypatch.setattr(owner, name, counting(getattr(owner, name)))
    zoo = Zoo.open(place, builder="nets.py:f")
    assert len(list(zoo.values())) == 1000
    assert repr(zoo) == "Zoo(1000 checkpoints: net000, net001, net002, net003, ..., net999)"
    assert [file for file in opened if str(place) in file] == []


def test_the_default_builder_is_for_those_that_name_none(place):
    (place / "net.pt").write_bytes(b"garbage")
    model_folder(place / "bert", "model.safetensors")
    zoo = Zoo.open(place, builder="nets.py:f")
    assert {name: checkpoint.builder for name, checkpoint in zoo.items()} == {
        "bert": "transformers",
        "net": "nets.py:f",
    }
    assert Zoo.open(Zoo.open(place), builder="nets.py:f") == zoo


def test_a_folder_of_weights_opens_with_the_default_builder(place, builder):
    save_file(nn.Linear(3, 4).state_dict(), place / "wrong.safetensors")
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    save_file(net.state_dict(), place / "net.safetensors")
    zoo = Zoo.open(place, builder=f"{builder}:mlp")
    x = torch.ones(1, 3)
    assert torch.equal(zoo["net"].open().module(x), net(x))
    with pytest.raises(BadInput, match=r"wrong\.safetensors, opened with .*:mlp, does not fit: 4 missing"):
        zoo["wrong"].open()


# Lists and mappings


def test_a_list_of_all_kinds(place):
    model_folder(place / "bert", "model.safetensors")
    (place / "net.v2.pt").write_bytes(b"garbage")
    own = Checkpoint("own", module=nn.Linear(1, 1))
    zoo = Zoo.open(
        [place / "net.v2.pt", str(place / "bert"), "org/model", "timm:resnet18", "torchvision:resnet18", own],
    )
    assert {name: (c.weights, c.builder) for name, c in zoo.items()} == {
        "net.v2": (place / "net.v2.pt", None),
        "bert": (place / "bert", "transformers"),
        "org/model": ("org/model", "transformers"),
        "timm:resnet18": (None, "timm:resnet18"),
        "torchvision:resnet18": (None, "torchvision:resnet18"),
        "own": (None, None),
    }


def test_a_mapping_names_what_it_holds(place):
    (place / "net.pt").write_bytes(b"garbage")
    module = nn.Linear(1, 1)
    zoo = Zoo.open({"b": module, "a": Checkpoint("x", module=module), "c": place / "net.pt", "d": "org/model"})
    assert list(zoo) == ["b", "a", "c", "d"]
    assert zoo["a"].name == "a"
    assert zoo["b"].module is module


def test_a_zoo_is_a_mapping_that_does_not_change():
    zoo = Zoo.open({"b": nn.Linear(1, 1), "a": nn.Linear(1, 1)})
    assert ("b" in zoo, "c" in zoo, len(zoo), zoo.get("c")) == (True, False, 2, None)
    with pytest.raises(KeyError):
        zoo["c"]
    with pytest.raises(TypeError):
        zoo["c"] = zoo["a"]
    with pytest.raises(AttributeError):
        zoo.checkpoints = ()
    assert list(pickle.loads(pickle.dumps(zoo))) == ["b", "a"]


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_digest_does_not_see_the_order(names):
    torch.manual_seed(0)
    modules = {name: nn.Linear(1, 2) for name in "abcd"}
    zoo = Zoo.open({name: modules[name] for name in names})
    assert list(zoo) == names
    assert zoo.digest == Zoo.open(modules).digest
    assert zoo.digest != Zoo.open({name: modules[name] for name in "abc"}).digest


# Manifests


def manifest(place, text):
    (place / "zoo.yaml").write_text(text)
    return place / "zoo.yaml"


def test_a_manifest(place, builder):
    (place / "w").mkdir()
    torch.save(nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2)).state_dict(), place / "w/net.pt")
    (place / "w/ignored.pt").write_bytes(b"garbage")
    (place / "nets.py").write_bytes(Path(builder).read_bytes())
    file = manifest(
        place,
        """
builder: nets.py:mlp
checkpoints:
  zebra:
    weights: w/net.pt
    arguments: {hidden: 9}
    task: digits
  ant:
    weights: w/net.pt
    builder: nets.py:sized
  roberta:
    weights: FacebookAI/roberta-base
    builder: transformers
  published:
    builder: timm:resnet18
""",
    )
    zoo = Zoo.open(place)
    assert Zoo.open(file) == zoo == Zoo.open(str(file)) == Zoo.load(place)
    assert list(zoo) == ["zebra", "ant", "roberta", "published"]
    assert zoo["zebra"].task == "digits"
    assert zoo["zebra"].open().module[0].out_features == 9
    assert zoo["ant"].open().module[0].out_features == 9
    assert zoo["roberta"].weights == "FacebookAI/roberta-base"
    assert zoo["published"].weights is None


def test_paths_are_seen_from_the_manifest_not_from_the_user(place, builder, monkeypatch):
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict(), place / "net.pt")
    (place / "nets.py").write_bytes(Path(builder).read_bytes())
    manifest(place, "checkpoints: {net: {weights: net.pt, builder: 'nets.py:mlp'}}")
    monkeypatch.chdir("/")
    Zoo.open(place)["net"].open()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("checkpoints: {a: {weigths: x.pt}}", "checkpoints.a.weigths: there is no such key. Did you mean 'weights'?"),
        ("checkpoint: {a: {weights: x.pt}}", "no such key. Did you mean 'checkpoints'?"),
        ("checkpoints: {a: {zzzz: 1, weights: x.pt}}", "Keys are weights, builder, arguments, task."),
        ("checkpoints: {a: {weights: 3}}", "checkpoints.a.weights: Input should be a valid string."),
        ("checkpoints: {a: {weights: net.pt, task: no}}", "checkpoints.a.task: Input should be a valid string."),
        ("checkpoints: {a: net.pt}", "checkpoints.a: Input should be"),
        ("checkpoints: {3: {weights: net.pt}}", "checkpoints.3"),
        ("checkpoints: [a, b]", "checkpoints: Input should be"),
        ("checkpoints: {a: {weights: net.pt, arguments: {d: 2020-01-01}}}", "checkpoints.a.arguments"),
        ("checkpoints: {}", "checkpoints: there are none"),
        ("builder: x.py:f", "checkpoints: Field required"),
        ("", "the whole file: Input should be"),
        ("- a\n- b\n", "the whole file: Input should be"),
        ("checkpoints: {a: {weights: gone.pt}}", "checkpoints.a.weights: there is nothing at"),
        ("checkpoints: {a: {weights: org/model, builder: 'x.py:f'}}", "checkpoints.a.weights: there is nothing at"),
        ("checkpoints: {a: {}}", "checkpoints.a: it names neither weights nor a builder"),
        ("checkpoints: {a: {task: t}}", "checkpoints.a: it names neither weights nor a builder"),
        ("checkpoints:\n  a: {weights: net.pt}\n  a: {weights: net.pt}\n", "line 3: 'a' stands here twice"),
        ("checkpoints:\n  a:\n    weights: net.pt\n    weights: net.pt\n", "line 4: 'weights' stands here twice"),
        ("checkpoints: {a: {weights: net.pt}\n  b", "line 2: this is not YAML"),
        ("checkpoints: !!python/object/apply:os.system ['touch ran']", "this is not YAML"),
        ("checkpoints: {a: {weights: 'a\x01b'}}", "this is not YAML"),
        ("a: 2020-99-99", "this is not YAML"),
        ("a: *b", "this is not YAML"),
        ("a: &a [*a]", "no such key"),
        ("[" * 500, "this is not YAML"),
        (
            "a: &a [1, 1]\n"
            + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in pairwise("abcdefghijklmn")),
            "aliases stand for too much",
        ),
        ("checkpoints: {'': {weights: net.pt}}", "'' is not a name"),
        ("checkpoints: {../a: {weights: net.pt}}", "'../a' is not a name"),
        ("checkpoints: {/a: {weights: net.pt}}", "'/a' is not a name"),
        ("checkpoints: {'a\\b': {weights: net.pt}}", "backslash"),
    ],
)
def test_a_manifest_with_a_fault(place, monkeypatch, text, part):
    monkeypatch.chdir(place)
    (place / "net.pt").write_bytes(b"garbage")
    file = manifest(place, text)
    with pytest.raises(BadInput) as caught:
        Zoo.open(place)
    assert str(file) in str(caught.value)
    assert part in str(caught.value)
    assert not (place / "ran").exists()


def test_a_manifest_that_is_no_text(place):
    (place / "zoo.yaml").write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(BadInput, match=r"zoo\.yaml"):
        Zoo.open(place)


def test_a_folder_called_like_a_manifest(place):
    (place / "zoo.yaml").mkdir()
    with pytest.raises(BadInput, match=r"cannot read .*zoo\.yaml"):
        Zoo.load(place)


# Saving


def test_saving_and_opening_again(place, builder):
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict(), place.parent / "far.pt")
    (place / "sub").mkdir()
    (place / "sub/near.pt").write_bytes((place.parent / "far.pt").read_bytes())
    (place / "nets.py").write_bytes(Path(builder).read_bytes())
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    zoo = Zoo(
        (
            Checkpoint("near", place / "sub/near.pt", f"{place}/nets.py:mlp", {"hidden": 4}, "digits"),
            Checkpoint("far", place.parent / "far.pt", f"{builder}:mlp"),
            Checkpoint("org/model", "org/model", "transformers"),
            Checkpoint("in/memory", builder=f"{builder}:sized", module=module),
            Checkpoint("published", None, "timm:resnet18"),
            Checkpoint("unbuilt", place / "sub/near.pt"),
        )
    )
    zoo.save(place)
    again = Zoo.load(place)
    assert list(again) == list(zoo)
    for name in ("near", "far", "unbuilt"):
        assert again[name].digest == zoo[name].digest
    assert (again["near"].task, again["near"].arguments) == ("digits", {"hidden": 4})
    assert again["org/model"] == zoo["org/model"]
    opened = again["in/memory"].open().module
    assert all(torch.equal(opened.state_dict()[key], value) for key, value in module.state_dict().items())
    text = (place / "zoo.yaml").read_text()
    assert "weights: sub/near.pt\n" in text
    assert "builder: nets.py:mlp\n" in text
    assert "weights: in/memory.safetensors\n" in text
    digest = again["near"].digest
    place.rename(place.parent / "moved")
    moved = Zoo.open(place.parent / "moved")
    assert moved["near"].digest == digest
    moved["near"].open()
    moved["in/memory"].open()


def test_saving_tied_weights(place, tmp_path):
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n"
        "def tied():\n"
        "    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))\n"
        "    net[1].weight = net[0].weight\n"
        "    return net\n"
    )
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    Zoo((Checkpoint("tied", builder=f"{tmp_path}/tied.py:tied", module=module),)).save(place)
    assert torch.equal(Zoo.load(place)["tied"].open().module[1].weight, module[0].weight)


def test_a_module_without_a_builder_is_not_saved(place):
    with pytest.raises(BadInput, match="m is a module in memory without a builder"):
        Zoo.open({"m": nn.Linear(1, 1)}).save(place / "out")
    assert not (place / "out").exists()


def test_a_builder_that_cannot_be_named_is_not_saved(place):
    with pytest.raises(BadInput, match="cannot be named for another process"):
        Zoo((Checkpoint("m", builder=lambda: nn.Linear(1, 1), module=nn.Linear(1, 1)),)).save(place / "out")
    assert not (place / "out").exists()


def test_arguments_that_cannot_be_written(place):
    zoo = Zoo((Checkpoint("m", None, "a.py:f", {"x": object()}),))
    with pytest.raises(BadInput, match="no plain value"):
        zoo.save(place)
    assert not (place / "zoo.yaml").exists()


# Attacks


def test_an_empty_folder(place):
    with pytest.raises(BadInput, match=f"{place} holds no checkpoints"):
        Zoo.open(place)


def test_a_source_that_is_not_there(place):
    with pytest.raises(BadInput, match=r"no zoo at .*gone\. Is the path right"):
        Zoo.open(place / "gone")
    with pytest.raises(BadInput, match=r"zoo.yaml .*\{model: \{weights: org/model, builder: transformers\}\}"):
        Zoo.open("org/model")
    with pytest.raises(BadInput, match=r"no zoo at .*zoo\.yaml"):
        Zoo.open(place / "zoo.yaml")
    with pytest.raises(BadInput, match=r"cannot read .*zoo\.yaml"):
        Zoo.load(place)


def test_two_names_alike(place):
    for file in ("net.pt", "net.safetensors"):
        (place / file).write_bytes(b"garbage")
    with pytest.raises(BadInput, match=r"'net': .*net\.pt and .*net\.safetensors\. Move or rename"):
        Zoo.open(place)
    (place / "b").mkdir()
    (place / "b/net.pt").write_bytes(b"garbage")
    with pytest.raises(BadInput, match="2 checkpoints are called 'net'"):
        Zoo.open([place / "net.pt", place / "b/net.pt"])


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ([], "without checkpoints"),
        ({}, "without checkpoints"),
        ([nn.Linear(1, 1)], "has no name"),
        ({"a": 3}, "int is no checkpoint"),
        ([3], "int is no checkpoint"),
        (["a/b/c/d"], "no weights at a/b/c/d"),
        ({"": nn.Linear(1, 1)}, "'' is not a name"),
        ([Path(__file__).parent], "not a Hugging Face model folder"),
        ([Path(__file__)], "not called like a weights file"),
    ],
)
def test_a_source_of_something_else(source, part):
    with pytest.raises(BadInput, match=part):
        Zoo.open(source)
