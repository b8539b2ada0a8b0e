"""The published settings run at a small size; a search is resumed; pyramids are zipped up to a scale."""

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.zip.test_zip_models import digits, relative, right, run

import taskatlas as ta
from taskatlas.merge.axis_run import generic_weights
from taskatlas.merge.zip_search import search_zip

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Modules of the folder ``examples``."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == EXAMPLES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pictures of four classes that differ in colour, for training and for testing."""
    place, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, count in (("train", 64), ("test", 32)):
        labels = np.arange(count) % 4
        pictures = random.integers(0, 90, (count, 32, 32, 3))
        pictures[np.arange(count), :, :, labels % 3] += 60 + 90 * (labels == 3)[:, None, None]
        np.savez(place / f"{name}.npz", x=pictures.astype(np.uint8), y=labels)
    return place


def small_setting(name, place, **changes):
    content = yaml.safe_load((EXAMPLES / "zip" / name).read_text()) | {"tasks": {"count": 2, "classes": 2}} | changes
    content["training"] |= {"batch_size": 16}
    content["network"]["name"] = content["network"]["name"].replace("resnet20", "resnet8")
    content["samples"] = 40
    file = place / name
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_a_setting_runs_from_training_to_table_once(images, tmp_path, example, monkeypatch):
    protocol = example("zip_protocol")
    ways = [{"method": "permute", "stop_at": "linear:input", "calibration": "reset"}]
    ways += [{"method": "zip", "stop_at": "layer1", "calibration": "reset"}]
    searched = {"a": [0.3], "b": [1], "stop_at": ["linear:input"], "calibration": None}
    file = small_setting("cifar10-resnet20.yml", tmp_path, ways=ways, search=searched)
    arguments = [str(file), "--train", f"{images}/train.npz", "--test", f"{images}/test.npz", "--out", str(tmp_path)]
    arguments += ["--width", "0.5", "--epochs", "1", "--device", "cpu"]
    rows = protocol.main(arguments)
    assert [row["way"].split(",")[0] for row in rows] == [
        *("method alone", "method alone", "method ensemble", "method permute", "method zip"),
    ]
    assert all(0 <= row["joint"] <= row["average"] <= 1 for row in rows)
    assert rows[0]["joint"] == pytest.approx(rows[0]["average"] / 2, abs=1e-3)
    assert rows[3]["macs"] < rows[4]["macs"] < rows[2]["macs"]
    assert len(list(csv.DictReader((tmp_path / "search.csv").open()))) == 1
    other = protocol.main([*arguments, "--seed", "1"])  # in the same folder
    assert [row["seed"] for row in other] == [1] * 5
    monkeypatch.setattr(ta, "zip_models", lambda *_, **__: pytest.fail("it was zipped again"))
    again = protocol.main(arguments)
    assert [(row["way"], float(row["joint"])) for row in again] == [(row["way"], row["joint"]) for row in rows]
    assert {row["seed"] for row in again} == {"0"}


def test_a_way_to_zip_takes_what_was_best_at_its_stop(example):
    tried = [{"a": 0.3, "b": 1.0, "stop_at": "layer1"}, {"a": 0.1, "b": 0.0, "stop_at": ""}]
    best_of = example("zip_protocol").best_of
    assert best_of(tried, {"stop_at": "layer1"}) == {"a": 0.3, "b": 1.0}
    assert best_of(tried, {"stop_at": None}) == {"a": 0.1, "b": 0.0}
    assert best_of(tried, {}) == {"a": 0.3, "b": 1.0, "stop_at": "layer1"}


def test_a_setting_is_trained_at_any_width(images, tmp_path, example):
    file = small_setting("cifar10-resnet20.yml", tmp_path, ways=[])
    content = yaml.safe_load(file.read_text())
    del content["search"]
    file.write_text(yaml.safe_dump(content))
    arguments = [str(file), "--train", f"{images}/train.npz", "--test", f"{images}/test.npz", "--out", str(tmp_path)]
    assert len(example("zip_protocol").main([*arguments, "--width", "0.25", "--epochs", "1", "--device", "cpu"])) == 3


def test_settings_name_what_there_is():
    for file in (EXAMPLES / "zip").glob("*.yml"):
        content = yaml.safe_load(file.read_text())
        if "merge_method" in content:
            assert ta.NetworkRecipe.load(file).merge_method == "zip"
            continue
        assert {"network", "training", "samples", "ways"} <= content.keys(), file
        assert {way["method"] for way in content["ways"]} <= {"identity", "weight_matching", "permute", "zip"}


def test_a_vgg_has_its_layers_and_width(example):
    network, _ = example("zip_networks").network("vgg16", 7, 0.0625)
    network.eval()
    assert sum(isinstance(part, torch.nn.Conv2d) for part in network.modules()) == 13
    assert network.linear.in_features == 32
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_heads_of_vectors_say_how_near_features_are(example, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 8))
    np.save(tmp_path / "vectors.npy", vectors)
    network, _ = example("zip_networks").network("resnet8", 2, 0.25, str(tmp_path / "vectors.npy"), (4, 1))
    network.eval()
    x = torch.randn(3, 3, 32, 32)
    features = (
        network.linear.project(
            network.layer3(network.layer2(network.layer1(torch.relu(network.bn1(network.conv1(x)))))).mean((2, 3))
        )
        .detach()
        .numpy()
    )
    cosine = (
        features
        @ vectors[[4, 1]].T
        / np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(vectors[[4, 1]], axis=1))
    )
    assert network(x).detach().numpy() == pytest.approx(100 * cosine, rel=1e-3)


def test_pyramids_are_zipped_up_to_a_scale(example):
    torch.manual_seed(0)
    network = example("zip_networks").Pyramid(scales=3, width=6).eval()
    own = {name: value for name, value in generic_weights(network).items() if value.is_floating_point()}
    network.load_state_dict(network.state_dict() | own)
    noise = torch.randn(64, 3, 9, 9)
    groups = ta.AxisGroups.of(network, noise[:2])
    assert {"scale0", "scale1"} <= {place for stop in groups.stops for place in (stop.place, *stop.aliases)}
    other = example("zip_networks").Pyramid(scales=3, width=6).eval()
    other.load_state_dict(groups.permute(network.state_dict(), groups.random_permutations(2)))
    zipped = ta.zip_models([network, other], noise, stop_at="scale1", calibration=None, groups=groups)
    for image in run(zipped.network, noise[:4]):
        assert relative(image, run(network, noise[:4])) < 1e-4


def test_a_search_is_sorted_and_goes_on_from_its_table(tmp_path, monkeypatch):
    models, x, y = digits()
    groups = ta.AxisGroups.of(models[0], x[:2])

    def score(zipped):
        return {"right": right(zipped.network, x[1200:1500], y[1200:1500])}

    settings = {"groups": groups, "a": [0.3], "b": [0, 1], "calibration": None, "table": tmp_path / "search.csv"}
    rows = search_zip(models, x[:200], score, **settings)
    assert [row["right"] for row in rows] == sorted((row["right"] for row in rows), reverse=True)
    by_hand = ta.zip_models(models, x[:200], a=0.3, b=1.0, groups=groups, calibration=None)
    assert next(row["right"] for row in rows if row["b"] == 1) == score(by_hand)["right"]
    for change in ({"models": models[::-1]}, {"probe": x[200:400]}, {"seed": 1}):
        given = {"models": models, "probe": x[:200], "score": lambda _: {"right": 2.0}} | settings | change
        assert [row["right"] for row in search_zip(**given)] == [2.0, 2.0]
    with pytest.raises(ta.BadInput, match="says nothing"):
        search_zip(models, x[:200], lambda _: {}, **settings | {"a": [1]})
    monkeypatch.setattr("taskatlas.merge.zip_search.zip_models", lambda *_, **__: pytest.fail("tried again"))
    assert search_zip(models, x[:200], score, **settings) == rows
    assert search_zip(models, x[:200], score, **settings | {"b": [1]}) == [row for row in rows if row["b"] == 1]
    with (tmp_path / "search.csv").open("a") as file:
        file.write("zip,0.3")  # as a run leaves it that is stopped in the middle of a row
    assert search_zip(models, x[:200], score, **settings) == rows
    (tmp_path / "search.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ta.BadInput, match="cannot be read"):
        search_zip(models, x[:200], score, **settings)
    (tmp_path / "search.csv").write_text("name\nx\n")
    with pytest.raises(ta.BadInput, match="no table of such a search"):
        search_zip(models, x[:200], score, **settings)
    with pytest.raises(ta.BadInput, match="nothing to try"):
        search_zip(models, x[:200], score, groups=groups, a=[])


def test_what_scores_nan_is_last():
    models, x, _ = digits()
    scores = iter([0.5, float("nan"), 0.9, 0.1])
    rows = search_zip(
        models,
        x[:60],
        lambda _: {"right": next(scores)},
        groups=ta.AxisGroups.of(models[0], x[:2]),
        a=[0.3, 1],
        b=[0, 1],
        calibration=None,
    )
    assert [row["right"] for row in rows][:3] == [0.9, 0.5, 0.1]


def test_the_pairs_table_has_a_row_for_each_way(example, tmp_path):
    torch.manual_seed(0)
    resnets = example("cifar_resnet_projection")
    for name in ("even", "odd"):
        network = resnets.ProjectionResNet(blocks=1, width=8, classes=5)
        network(torch.randn(8, 3, 32, 32))
        torch.save(network.state_dict(), tmp_path / f"{name}.pt")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=random.integers(0, 256, (30, 32, 32, 3), np.uint8), y=np.arange(30) % 10)
    arguments = [
        f"{tmp_path}/even.pt",
        f"{tmp_path}/odd.pt",
        "--train",
        f"{tmp_path}/x.npz",
        "--test",
        f"{tmp_path}/x.npz",
    ]
    arguments += ["--match", "20", "--score", "30", "--csv", f"{tmp_path}/table.csv"]
    ways = ["odd alone", "ensemble", "zip 7 of 20, least squares", "zip"]
    rows = example("zip_cifar_pair").main([*arguments, "--only", *ways])
    assert [row["way"] for row in rows] == ways
    assert rows[0]["joint"] == pytest.approx(rows[0]["task"] / 2, abs=0.1)
    alone, ensemble, part, whole = (row["million_macs"] for row in rows)
    assert alone == pytest.approx(ensemble / 2, rel=0.03)
    assert whole == pytest.approx(ensemble / 2, rel=0.03)
    assert whole < part < ensemble
    assert [row["way"] for row in csv.DictReader((tmp_path / "table.csv").open())] == [row["way"] for row in rows]
    with pytest.raises(SystemExit):
        example("zip_cifar_pair").main(arguments[:4])
