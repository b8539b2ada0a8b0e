"""What the tests of this room share."""

import jaxtyping
import pytest


@pytest.fixture
def as_installed():
    """Annotations unchecked, as for a user: a wrong value reaches the room's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
