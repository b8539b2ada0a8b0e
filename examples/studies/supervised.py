r"""Supervised tasks: all classes, each half of them, and random subsets, on one map.

    python examples/studies/supervised.py
    python examples/studies/supervised.py --data cifar10.parquet --probe-size 1000 --subsets 3,5 --out cifar

After Ramesh et al. (ICML 2023), who train on all of ImageNet and on subsets of its classes.
"""

import time
from collections.abc import Sequence

import numpy as np
from common import new_network, open_material, parser, record_run, report, supervised

import taskatlas as ta
from taskatlas.probe import class_subset


def tasks(classes: Sequence[str], sizes: Sequence[int]) -> dict[str, list[str]]:
    """Classes of each task, by name."""
    half = len(classes) // 2
    found = {"all classes": [*classes], "first half": [*classes[:half]], "second half": [*classes[half:]]}
    for size in sizes:
        subset = np.random.default_rng(size).choice(classes, size=size, replace=False)
        found[f"{size} random classes"] = sorted(subset.tolist(), key=classes.index)
    return found


def main(arguments: Sequence[str] | None = None) -> list[ta.Trajectory]:
    options = parser(__doc__)
    options.add_argument("--subsets", default="2,3", help="sizes of the random subsets")
    settings = options.parse_args(arguments)
    started = time.perf_counter()
    material = open_material(settings)
    sizes = [int(size) for size in settings.subsets.split(",")]
    runs = []
    for name, classes in tasks(material.classes, sizes).items():
        loss = supervised(class_subset(material.learned, classes), settings)
        for seed in range(settings.seeds):
            network = new_network(material, settings, seed, len(classes))
            runs.append(record_run(name, network, loss, material, settings, seed))
    return report(runs, settings, started)


if __name__ == "__main__":
    main()
