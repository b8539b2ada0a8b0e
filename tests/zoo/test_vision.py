"""timm and torchvision by name; what needs the libraries themselves is skipped where they are not installed."""

import os
import sys

import numpy as np
import pytest
import torch

from taskatlas.errors import BadInput, MissingExtra
from taskatlas.zoo import Checkpoint
from taskatlas.zoo.vision import build_vision, is_vision_builder, published_digest

IMAGES = [np.full((40, 30, 3), 255, dtype=np.uint8), np.zeros((40, 30, 3), dtype=np.uint8)]
WHITE = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


NETWORKS = {"timm": "timm:resnet10t", "torchvision": "torchvision:resnet18"}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A builder whose library is installed."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed: pip install 'taskatlas[vision]'")
    return NETWORKS[request.param]


def test_what_is_a_vision_builder():
    assert is_vision_builder("timm:vit_base_patch16_224.augreg_in21k")
    assert is_vision_builder("torchvision:resnet18")
    assert not is_vision_builder("timm.py:resnet18")
    assert not is_vision_builder(build_vision)
    assert not is_vision_builder(None)


@pytest.mark.parametrize("library", NETWORKS)
@pytest.mark.parametrize("ask", [Checkpoint.open, lambda c: c.digest, lambda c: c.parameters])
def test_a_library_that_is_not_installed(library, ask, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"builder {library}:resnet18.*pip install 'taskatlas\[vision\]'"):
        ask(Checkpoint("x", None, f"{library}:resnet18"))


@pytest.mark.parametrize("library", NETWORKS)
def test_a_builder_that_names_no_model(library):
    with pytest.raises(BadInput, match=f"'{library}:' names no model"):
        Checkpoint("x", None, f"{library}:").open()


def test_weights_of_ones_own_and_published_preprocessing(network, place):
    torch.manual_seed(0)
    module, _ = build_vision(network, {"num_classes": 4}, published=False)
    torch.save(module.state_dict(), place / "net.pt")
    checkpoint = Checkpoint("net", place / "net.pt", network, {"num_classes": 4})
    opened = checkpoint.open()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in opened.module.state_dict().items())
    assert not opened.module.training
    batch = opened.prepare(IMAGES)
    assert batch.shape[:2] == (2, 3)
    torch.testing.assert_close(batch[0].amax((1, 2)), WHITE)
    assert opened.module(batch).shape == (2, 4)
    assert opened.prepare([image[..., :1] for image in IMAGES]).equal(batch)
    assert checkpoint.parameters == Checkpoint("net", None, network, {"num_classes": 4}).parameters


def test_weights_that_do_not_fit(network, place):
    module, _ = build_vision(network, {"num_classes": 4}, published=False)
    torch.save(module.state_dict(), place / "net.pt")
    with pytest.raises(BadInput, match=r"net\.pt, opened with .*: 2 of another shape \(fc\.weight is \(4, 512\)"):
        Checkpoint("net", place / "net.pt", network).open()


def test_the_digest_of_what_is_published(network):
    assert published_digest(network) == published_digest(network)
    other = {"timm:resnet10t": "timm:resnet14t", "torchvision:resnet18": "torchvision:resnet34"}[network]
    assert published_digest(network) != published_digest(other)
    assert Checkpoint("a", None, network).digest == Checkpoint("b", None, network).digest


def test_a_name_that_is_unknown(network):
    library, name = network.split(":")
    with pytest.raises(BadInput, match=f"{library} has no model '{name[1:]}'. Did you mean"):
        Checkpoint("x", None, f"{library}:{name[1:]}").open()


def test_an_argument_that_is_unknown(network, place):
    torch.save({"w": torch.ones(1)}, place / "net.pt")
    with pytest.raises(BadInput, match=f"{network} cannot be built .*depht"):
        Checkpoint("x", place / "net.pt", network, {"depht": 3}).open()


def test_nothing_is_published_for_one_channel():
    pytest.importorskip("timm", reason="timm is not installed: pip install 'taskatlas[vision]'")
    assert build_vision("timm:resnet10t", {"in_chans": 1}, published=False)[1] is None


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """Where torchvision keeps what it fetched for resnet18, so that it fetches nothing."""
    pytest.importorskip("torchvision", reason="torchvision is not installed: pip install 'taskatlas[vision]'")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"


def test_published_weights(downloaded):
    module, _ = build_vision("torchvision:resnet18", {}, published=False)
    torch.save(module.state_dict(), downloaded)
    opened = Checkpoint("x", None, "torchvision:resnet18").open()
    assert torch.equal(opened.module.fc.weight, module.fc.weight)


def test_published_weights_that_need_code_do_not_run(downloaded, tmp_path):
    torch.save({"evil": Payload(tmp_path / "ran")}, downloaded)
    with pytest.raises(BadInput, match="torchvision:resnet18 cannot be built"):
        Checkpoint("x", None, "torchvision:resnet18").open()
    assert not (tmp_path / "ran").exists()
