"""Draws the pictures of the README.

    python docs/figures.py space COVARIANCE.npy NAMES.txt
    python docs/figures.py paths RUN.npz...
    python docs/figures.py zip TABLE.csv

The covariance of 34 language models is the one that Huang et al. (NeurIPS 2021) publish in their repository,
github.com/baidu-research/task_space (MIT licence), as a matrix and a file of names. The runs are four trainings of a
ResNet-20 on 10,000 CIFAR-10 images over 8 epochs, recorded on 1,000 test images: two seeds, one with a twentieth of the
learning rate, one on random labels.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

import taskatlas as ta
from taskatlas.paths.drawing import draw_embedding, draw_progress
from taskatlas.paths.run_files import open_runs
from taskatlas.paths.trace import trace_runs

mpl.use("Agg")
FIGURES = Path(__file__).parent / "figures"
NAMES = {"all_a": "seed 1", "all_b": "seed 2", "slow": "slow", "randlab": "random labels"}


def draw_space(covariance: str, names: str) -> None:
    space = ta.TaskSpace.from_matrix(covariance, names)
    ax = space.plot()
    ax.figure.savefig(FIGURES / "language-models.png", dpi=110)
    ax = ta.select(space, stop_at_peak=True).plot()
    ax.figure.savefig(FIGURES / "language-models-selection.png", dpi=110)


def draw_paths(*files: str) -> None:
    runs = [one.run for one in open_runs([Path(file) for file in files])]
    trace = trace_runs(runs, tasks=[NAMES.get(run.name, run.name) for run in runs])
    figure = plt.figure(figsize=(12.5, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    draw_embedding(trace.embedding, left.subplots(), (0, 1), trace.task_of)
    draw_progress(trace.runs, right)
    for ax in right.axes:
        if ax.get_legend() is not None:
            ax.get_legend().remove()  # the colours are those of the map
    figure.savefig(FIGURES / "cifar10-runs.png", dpi=110)


def draw_zip(table: str) -> None:
    """Accuracy against cost, from the table of ``examples/zip_cifar_pair.py``."""
    with Path(table).open(newline="") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")

    def at(ways: Sequence[str]) -> tuple[list[float], list[float]]:
        there = [rows[way] for way in ways if way in rows]
        return [float(row["million_macs"]) for row in there], [float(row["joint"]) for row in there]

    for label, ending, colour in (
        ("least squares", ", least squares", "tab:blue"),
        ("BatchNorm reset", "", "tab:orange"),
    ):
        ax.plot(
            *at([f"zip{ending}", *(f"zip {n} of 20{ending}" for n in (13, 7))]),
            "o-",
            color=colour,
            label=f"zip, {label}",
        )
    for way, marker in (("average", "v"), ("weight matching", "s"), ("permute", "D"), ("ensemble", "*")):
        ax.plot(*at([way]), marker, color="black" if way == "ensemble" else "tab:gray", label=way, markersize=8)
    ax.set(
        title="Two ResNet-20 for five CIFAR-10 classes each, as one",
        xlabel="million multiplications a sample",
        ylabel="right among all ten classes, %",
    )
    ax.legend()
    figure.savefig(FIGURES / "zip-cifar-pair.png", dpi=110)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["space", covariance, names]:
            draw_space(covariance, names)
        case ["paths", *files] if files:
            draw_paths(*files)
        case ["zip", table]:
            draw_zip(table)
        case _:
            sys.exit(__doc__)
