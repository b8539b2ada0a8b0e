"""Draws the pictures of the README.

    python docs/figures.py COVARIANCE.npy NAMES.txt

The covariance of 34 language models is the one that Huang et al. (NeurIPS 2021) publish in their repository,
github.com/baidu-research/task_space (MIT licence), as a matrix and a file of names.
"""

import sys
from pathlib import Path

import matplotlib as mpl

import taskatlas as ta

mpl.use("Agg")
FIGURES = Path(__file__).parent / "figures"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    space = ta.TaskSpace.from_matrix(sys.argv[1], sys.argv[2])
    ax = space.plot()
    ax.figure.savefig(FIGURES / "language-models.png", dpi=110)
    ax = ta.select(space, stop_at_peak=True).plot()
    ax.figure.savefig(FIGURES / "language-models-selection.png", dpi=110)


if __name__ == "__main__":
    main()
