"""Tutorials run as they stand and say what they should."""

import runpy
import shutil
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")
TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


def test_there_is_a_tutorial():
    assert TUTORIALS


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, capsys):
    found = runpy.run_path(str(path))
    printed = capsys.readouterr().out
    if path.stem == "map_a_zoo":
        assert set(found["pick"].names) <= set(found["zoo"])
        assert found["growth"].divergence[0].mean() > found["growth"].divergence[-1].mean()
        assert f"{found['worth'].selected:.3f}" in printed
    if path.stem == "trace_a_training":
        first, second, shuffled = found["trace"].runs
        assert min(first.progress[-1], second.progress[-1]) > 0.5 > 10 * shuffled.progress.max()
        assert found["trace"].tree.distance == "frechet"
        assert found["trace"].tree.distances[0, 1] < 0.5 * found["trace"].tree.distances[0, 2]
        assert f"length {first.length:.2f}, tortuosity {first.tortuosity:.2f}" in printed
        shutil.rmtree(found["folder"])
    if path.stem == "discover_tasks":
        assert found["damage"].found.accuracy < 0.7 < 0.85 < found["damage"].controls["random split"].accuracy
        assert all(score.agreement > score.nulls["random"].agreement for score in found["lifts"])
        assert found["falls"][0].accuracy < found["falls"][1].accuracy
        assert f"untrained {found['falls'][0].accuracy:.3f}" in printed
        shutil.rmtree(found["folder"])
