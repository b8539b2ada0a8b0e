"""One arithmetic thread: networks here are tiny, and on a busy machine threads would wait for each other."""

import jaxtyping
import numpy as np
import pytest
import torch

from taskatlas.probe import Probe


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Gives the threads back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def as_installed():
    """Annotations unchecked, as for a user: a wrong value reaches the room's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def blobs():
    """``blobs(n, classes)``: samples around centres, with their classes; ids in no order."""

    def make(n=240, classes=4, seed=0, d=6):
        draw = np.random.default_rng(seed)
        labels = np.arange(n) % classes
        centres = 2.5 * draw.standard_normal((classes, d))
        x = (centres[labels] + draw.standard_normal((n, d))).astype(np.float32)
        return Probe.from_arrays(x, labels=labels, ids=[f"s{i:04}" for i in draw.permutation(n)])

    return make
