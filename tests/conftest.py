"""What every test shares: shape checks on, a store of its own, and real data where a machine has it."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("taskatlas", "beartype.beartype")

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

REAL_INPUT = Path(os.environ.get("TASKATLAS_REAL_INPUT", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True)
def store_of_this_test(tmp_path_factory, monkeypatch):
    """Results of one test never reach another, nor the user's own store."""
    monkeypatch.setenv("TASKATLAS_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(autouse=True)
def figures_closed():
    """What a test draws and leaves open does not count as left open by the next."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def real_input() -> Path:
    """Real networks, data and published outputs, which a clone does not carry."""
    if not (REAL_INPUT / "golden").is_dir():
        pytest.skip(f"no real input at {REAL_INPUT}; set TASKATLAS_REAL_INPUT to a folder that has it")
    return REAL_INPUT
