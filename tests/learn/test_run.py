"""A training as a folder: whole or resumable, opened again as it was trained, and not trained twice."""

import numpy as np
import pytest
import torch
from tests.learn.make import pictures, same
from torch import nn

from taskatlas.errors import BadInput
from taskatlas.learn import Preparation, Recipe, Stream, new_network, read_log, train_to_folder
from taskatlas.learn.run import STATE
from taskatlas.probe import Probe
from taskatlas.store import check_receipts
from taskatlas.zoo import Zoo

RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.05)

BUILDERS = """
import torch
from torch import nn

def flat(classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

def own(num_classes, in_chans):
    return nn.Linear(in_chans, num_classes), mean_colour

def mean_colour(images):
    return torch.stack([torch.from_numpy(image.copy()).float().mean((0, 1)) / 255 for image in images])

def fixed():
    return nn.Linear(3, 3), mean_colour
"""


@pytest.fixture
def builders(tmp_path):
    (tmp_path / "nets.py").write_text(BUILDERS)
    return f"{tmp_path}/nets.py"


def train(folder, model="small_cnn", probe=None, recipe=RECIPE, size=None, **how):
    probe = probe or pictures()
    network = new_network(model, probe, 3, size=size)
    rows = train_to_folder(folder, network, Stream(probe, recipe, network.prepare), name="a", device="cpu", **how)
    return network, rows


def outputs(opened, probe):
    with torch.no_grad():
        return opened.module(opened.prepare(list(probe.inputs)))


@pytest.mark.parametrize("model", ["small_cnn", "flat", "own", "fixed"])
def test_what_was_trained_opens_as_it_was_trained(tmp_path, builders, model):
    probe = pictures()
    network, rows = train(tmp_path / "run", model if model == "small_cnn" else f"{builders}:{model}", probe)
    opened = Zoo.open(tmp_path / "run")["a"].open()
    assert same(opened.module, network.module)
    expected = network.module.eval()(network.prepare(list(probe.inputs)))
    assert torch.equal(outputs(opened, probe), expected)
    assert read_log(tmp_path / "run" / "log.csv") == rows
    assert check_receipts(tmp_path / "run") == (1, [])
    assert not (tmp_path / "run" / STATE).exists()


def test_pictures_are_brought_to_a_size(tmp_path):
    train(tmp_path / "run", size=5)
    opened = Zoo.open(tmp_path / "run")["a"].open()
    assert opened.prepare == Preparation(5)


def test_builders_by_name(builders):
    grey = Probe("image", [np.zeros((8, 8, 1), np.uint8)], ("a",), np.array([0]))
    assert new_network("small_cnn", grey, 7).arguments == {"classes": 7, "channels": 1}
    assert new_network(f"{builders}:flat", grey, 2, size=3).arguments == {"classes": 2, "shape": [1, 3, 3]}
    arrays = Probe.from_arrays(np.zeros((2, 5)), labels=[0, 1])
    assert new_network(f"{builders}:own", arrays, 2).arguments == {"num_classes": 2, "in_chans": 5}
    one, two, other = (new_network("small_cnn", grey, 7, seed=seed).module for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)
    before = torch.get_rng_state()
    new_network("small_cnn", grey, 7)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(BadInput, match="is not a builder"):
        new_network("big_cnn", grey, 7)


def test_named_models_are_asked_for_classes_and_channels(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "taskatlas.learn.run.build_vision",
        lambda name, arguments, published: asked.append((name, arguments, published)) or (nn.Linear(1, 1), "theirs"),
    )
    grey = Probe("image", [np.zeros((8, 8, 1), np.uint8)], ("a",), np.array([0]))
    assert new_network("timm:resnet50", pictures(), 12, size=224).prepare == Preparation(224)
    new_network("timm:resnet50", grey, 12)
    new_network("torchvision:resnet50", pictures(), 12)
    assert asked == [
        ("timm:resnet50", {"num_classes": 12}, False),
        ("timm:resnet50", {"num_classes": 12, "in_chans": 1}, False),
        ("torchvision:resnet50", {"num_classes": 12}, False),
    ]


def test_a_finished_training_is_not_done_again(tmp_path):
    _, rows = train(tmp_path / "run")
    calls = []
    again = train(tmp_path / "run", hook=lambda *_: calls.append(1))[1]
    assert (again, calls) == (rows, [])
    (tmp_path / "run" / "weights.safetensors").unlink()
    train(tmp_path / "run", hook=lambda *_: calls.append(1))
    assert len(calls) == 11
    assert check_receipts(tmp_path / "run") == (1, [])


def test_another_training_does_not_go_into_the_folder(tmp_path):
    train(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for other in ({"recipe": Recipe(epochs=3, batch_size=8)}, {"settings": {"more": 1}}, {"inputs": {"probe": "x"}}):
        with pytest.raises(BadInput, match="holds another training"):
            train(tmp_path / "run", **other)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_the_receipt_counts_what_the_hook_wrote(tmp_path):
    def hook(_, step):
        with (tmp_path / "run" / "steps.txt").open("a") as file:
            file.write(f"{step} ")

    (tmp_path / "run").mkdir()
    train(tmp_path / "run", hook=hook, written=["steps.txt"])
    assert (tmp_path / "run" / "steps.txt").read_text() == "0 1 2 3 4 5 6 7 8 9 10 "
    assert check_receipts(tmp_path / "run") == (1, [])
    (tmp_path / "run" / "steps.txt").write_text("0")
    assert "steps.txt changed" in check_receipts(tmp_path / "run")[1][0]


def test_files_are_copied_where_a_second_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    train(tmp_path / "run", written=["mine.txt"])
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"
    assert check_receipts(tmp_path / "run") == (1, [])


@pytest.mark.parametrize("content", [b"", b"epoch,step\n1,2\n", b"epoch,step,learning_rate,loss,accuracy\na,b,c,d,e\n"])
def test_logs_that_are_none(tmp_path, content):
    (tmp_path / "log.csv").write_bytes(content)
    if content:
        with pytest.raises(BadInput, match="no log of a training"):
            read_log(tmp_path / "log.csv")
    with pytest.raises(BadInput, match="no log of a training"):
        read_log(tmp_path / "gone.csv")
