"""Small networks and the files that a zoo is made of."""

from pathlib import Path

import pytest

BUILDER = """
from torch import nn


def mlp(hidden=4):
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def sized(weights):
    return mlp(hidden=weights["0.weight"].shape[0])


def with_preparation(hidden=4):
    return mlp(hidden), lambda samples: samples


def needs(hidden):
    return mlp(hidden)


def open_ended(**settings):
    return mlp(**settings)


def returns_none():
    return None


def fails():
    raise KeyError("layer7")


NOT_A_FUNCTION = 3
"""


@pytest.fixture
def builder(tmp_path) -> str:
    """A Python file of builders: ``builder + ':mlp'`` names one of them."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "nets.py").write_text(BUILDER)
    return str(folder / "nets.py")


@pytest.fixture
def place(tmp_path) -> Path:
    """An empty folder for a zoo."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    return folder
