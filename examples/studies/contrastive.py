r"""Contrastive learning: features from pairs of views alone, no label is seen.

    python examples/studies/contrastive.py
    python examples/studies/contrastive.py --data cifar10.parquet --probe-size 1000 --steps 1000 --out cifar

As SimCLR (Chen et al., ICML 2020): two views of each image, a projection of the features, and the cross-entropy of
finding an image's other view among all of the batch. The path is that of the features before the projection.
"""

import time
from argparse import Namespace
from collections.abc import Sequence

import torch
from common import (
    Loss,
    Network,
    new_network,
    open_material,
    parser,
    record_run,
    report,
    supervised,
    tensors,
    varied,
)
from torch import Tensor, nn
from torch.nn import functional as F

import taskatlas as ta
from taskatlas.learn import mlp

SHARPNESS = 0.2  # the temperature of the published loss


def contrastive(learned: ta.Probe, projection: nn.Module, settings: Namespace) -> Loss:
    """Normalised temperature-scaled cross-entropy over two views of half a batch of images."""
    images, _ = tensors(learned, settings)

    def loss(network: Network, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (settings.batch_size // 2,), generator=draw)
        views = torch.cat([varied(images[rows], draw), varied(images[rows], draw)])
        points = F.normalize(projection(network.encoder(views)), dim=1)
        likeness = (points @ points.T / SHARPNESS).fill_diagonal_(-torch.inf)
        other = torch.arange(len(points), device=points.device).roll(len(rows))
        return F.cross_entropy(likeness, other)

    return loss


def main(arguments: Sequence[str] | None = None) -> list[ta.Trajectory]:
    settings = parser(__doc__).parse_args(arguments)
    started = time.perf_counter()
    material = open_material(settings)
    runs = []
    for seed in range(settings.seeds):
        network = new_network(material, settings, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projection = mlp(4 * settings.width, (4 * settings.width,), 2 * settings.width).to(settings.device)
        loss = contrastive(material.learned, projection, settings)
        runs.append(record_run("contrastive", network, loss, material, settings, seed, projection.parameters()))
        network = new_network(material, settings, seed)
        runs.append(
            record_run("all classes", network, supervised(material.learned, settings), material, settings, seed)
        )
    return report(runs, settings, started)


if __name__ == "__main__":
    main()
