r"""Random labels: the same images with none, half, or all of their labels drawn at random.

    python examples/studies/random_labels.py
    python examples/studies/random_labels.py --data cifar10.parquet --shares 0,0.25,0.5,1 --out cifar

The draw belongs to the image's id, so every seed of a run learns the same wrong labels (Zhang et al., ICLR 2017).
"""

import time
from collections.abc import Sequence

from common import new_network, open_material, parser, percent, record_run, report, supervised

import taskatlas as ta
from taskatlas.probe import random_labels


def main(arguments: Sequence[str] | None = None) -> list[ta.Trajectory]:
    options = parser(__doc__)
    options.add_argument("--shares", default="0,0.5,1", help="of the labels that are drawn")
    settings = options.parse_args(arguments)
    started = time.perf_counter()
    material = open_material(settings)
    runs = []
    for share in map(float, settings.shares.split(",")):
        name = f"{percent(share)} random labels" if share else "all classes"
        loss = supervised(random_labels(material.learned, share), settings)
        for seed in range(settings.seeds):
            runs.append(record_run(name, new_network(material, settings, seed), loss, material, settings, seed))
    return report(runs, settings, started)


if __name__ == "__main__":
    main()
