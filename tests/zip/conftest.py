"""What the tests of zipping share: annotations that can be switched off, and one arithmetic thread."""

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
