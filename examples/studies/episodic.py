r"""Episodic (meta) training: every step is a small task of its own, with a few classes and a few examples of each.

    python examples/studies/episodic.py
    python examples/studies/episodic.py --data cifar10.parquet --probe-size 1000 --ways 2,5,10 --out cifar

Prototypical networks (Snell et al., NeurIPS 2017): the mean feature of a class's examples stands for the class, and
the other images of the episode are told apart by their distances to these means. An episode has about as many images
as a batch of the supervised runs.
"""

import time
from argparse import Namespace
from collections.abc import Sequence

import torch
from common import Loss, Network, new_network, open_material, parser, record_run, report, supervised, tensors
from torch import Tensor
from torch.nn import functional as F

import taskatlas as ta

SHOTS = 5


def episodes(learned: ta.Probe, ways: int, settings: Namespace) -> Loss:
    """Cross-entropy of the queries of a random episode, by their distances to its prototypes."""
    images, labels = tensors(learned, settings)
    rows_of = [rows for label in labels.unique() if len(rows := (labels == label).nonzero()[:, 0].cpu()) > SHOTS]
    if len(rows_of) < ways:
        raise ta.BadInput(f"{len(rows_of)} classes have more than {SHOTS} images; an episode of {ways} needs more.")
    each = max(SHOTS + 1, settings.batch_size // ways)

    def loss(network: Network, draw: torch.Generator) -> Tensor:
        chosen = [rows_of[way] for way in torch.randperm(len(rows_of), generator=draw)[:ways]]
        size = min(each, *(len(rows) for rows in chosen))
        rows = torch.cat([rows[torch.randperm(len(rows), generator=draw)[:size]] for rows in chosen])
        features = network.encoder(images[rows]).view(ways, size, -1)
        prototypes, queries = features[:, :SHOTS].mean(1), features[:, SHOTS:].flatten(0, 1)
        distances = (queries[:, None] - prototypes).square().sum(-1)
        return F.cross_entropy(-distances, torch.arange(ways, device=rows.device).repeat_interleave(size - SHOTS))

    return loss


def main(arguments: Sequence[str] | None = None) -> list[ta.Trajectory]:
    options = parser(__doc__)
    options.add_argument("--ways", default="2,5", help="classes of an episode, for each kind of run")
    settings = options.parse_args(arguments)
    started = time.perf_counter()
    material = open_material(settings)
    losses = {"all classes": supervised(material.learned, settings)}
    for ways in map(int, settings.ways.split(",")):
        losses[f"{ways}-way episodes"] = episodes(material.learned, ways, settings)
    runs = [
        record_run(name, new_network(material, settings, seed), loss, material, settings, seed)
        for name, loss in losses.items()
        for seed in range(settings.seeds)
    ]
    return report(runs, settings, started)


if __name__ == "__main__":
    main()
