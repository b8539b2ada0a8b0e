r"""Semi-supervised learning: a few labels and many images, against the few labels alone.

    python examples/studies/semi_supervised.py
    python examples/studies/semi_supervised.py --data cifar10.parquet --probe-size 1000 --labelled 0.1 --out cifar

As FixMatch (Sohn et al., NeurIPS 2020): where the network is sure of an unlabelled image, that class is the target for
a varied view of it.
"""

import time
from argparse import Namespace
from collections.abc import Sequence

import numpy as np
import torch
from common import (
    Loss,
    Network,
    new_network,
    open_material,
    parser,
    percent,
    record_run,
    report,
    supervised,
    tensors,
    varied,
)
from torch import Tensor
from torch.nn import functional as F

import taskatlas as ta


def consistency(labelled: ta.Probe, learned: ta.Probe, sure: float, settings: Namespace) -> Loss:
    """Cross-entropy on labelled images, and on views of images whose class the network is sure of."""
    images, labels = tensors(labelled, settings)
    unlabelled, _ = tensors(learned, settings)
    few = max(1, settings.batch_size // 4)

    def loss(network: Network, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (few,), generator=draw)
        others = unlabelled[torch.randint(len(unlabelled), (settings.batch_size - few,), generator=draw)]
        with torch.no_grad():
            surest, guessed = network(others).softmax(1).max(1)
        each = F.cross_entropy(network(varied(others, draw)), guessed, reduction="none")
        return F.cross_entropy(network(varied(images[rows], draw)), labels[rows]) + (each * (surest > sure)).mean()

    return loss


def labelled_part(learned: ta.Probe, share: float) -> ta.Probe:
    """A share of each class, at least one image, the same for all seeds."""
    draw = np.random.default_rng(0)
    rows = [
        draw.permutation(found)[: max(1, round(share * len(found)))]
        for label in np.unique(learned.labels)
        if len(found := np.flatnonzero(learned.labels == label))
    ]
    return learned.take(np.concatenate(rows))


def main(arguments: Sequence[str] | None = None) -> list[ta.Trajectory]:
    options = parser(__doc__)
    options.add_argument("--labelled", type=float, default=0.05, help="share of the images whose label is used")
    options.add_argument("--sure", type=float, default=0.9, help="probability above which a guess becomes a target")
    settings = options.parse_args(arguments)
    started = time.perf_counter()
    material = open_material(settings)
    labelled = labelled_part(material.learned, settings.labelled)
    share = f"{percent(settings.labelled)} of the labels"
    losses = {
        "all classes": supervised(material.learned, settings),
        f"{share} alone": supervised(labelled, settings),
        f"{share}, guesses over {percent(settings.sure)}": consistency(
            labelled, material.learned, settings.sure, settings
        ),
    }
    runs = [
        record_run(name, new_network(material, settings, seed), loss, material, settings, seed)
        for name, loss in losses.items()
        for seed in range(settings.seeds)
    ]
    return report(runs, settings, started)


if __name__ == "__main__":
    main()
