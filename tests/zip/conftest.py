"""What the tests of zipping share: annotations that can be switched off, and one arithmetic thread."""

from dataclasses import replace

import jaxtyping
import pytest
import torch


@pytest.fixture
def as_installed():
    """Annotations unchecked, as for a user: a wrong value reaches the room's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Arrays here are small, and on a busy machine threads would wait for each other; gives them back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_GRAPHS = {}


@pytest.fixture(autouse=True)
def exported_once(request, monkeypatch):
    """What takes most of the time here is torch.export: once for all that have the same classes, sizes and inputs."""
    if request.module.__name__.rpartition(".")[2].startswith("test_axis"):
        return
    from taskatlas.merge.network_graph import NetworkGraph, flat_inputs

    export = NetworkGraph.of

    def of(network, example, outputs=None):
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in flat_inputs(example))
        classes = tuple(map(type, network.modules()))
        key = (str(network), classes, shapes, None if outputs is None else tuple(outputs))
        if key not in _GRAPHS:
            _GRAPHS[key] = export(network, example, outputs)
        found, own = _GRAPHS[key], network.state_dict()
        return replace(found, tensors={name: own.get(name, value) for name, value in found.tensors.items()})

    monkeypatch.setattr(NetworkGraph, "of", of)
