"""The CIFAR-10 example runs end to end at a tiny size."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from taskatlas.probe import Probe
from taskatlas.tasks import Training

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar_tasks.py"


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("cifar_tasks", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TRAINING", Training(epochs=1, batch_size=16, learning_rate=0.01))
    monkeypatch.setattr(module, "SEEDS", 2)
    monkeypatch.setattr(module, "SIZE", 8)
    return module


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    labels = np.arange(80) % 10
    pixels = draw.integers(0, 60, (80, 8, 8, 3)) + 18 * labels[:, None, None, None]
    Probe.from_arrays(pixels.astype(np.uint8), labels=labels).save(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


@pytest.mark.parametrize("part", ["agreement", "splits"])
def test_each_part_prints_its_rows(example, images, capsys, part):
    example.main([images, "--part", part, "--images", "80"])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 3
    assert all("±" in line and line.count("|") == 6 for line in printed)


def test_discovered_tasks_are_scored(example, tmp_path, capsys):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 250, (400, 8, 8, 3)).astype(np.uint8)
    Probe.from_arrays(pixels).save(tmp_path / "images.parquet")
    example.main([str(tmp_path / "images.parquet"), "--part", "discovered", "--images", "400", "--steps", "2"])
    similarity, row = capsys.readouterr().out.splitlines()
    assert similarity.startswith("similarity of the discovered tasks: 0.5")
    assert row.startswith("| discovered | 4 |")
    assert "±" in row
