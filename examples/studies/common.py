"""What the studies share: images, one probe and label set for all, one network, one loop, and how a run is recorded.

Every run is read alike: the mean feature of each class on the probe, each sample left out of its own class's mean, and
the softmax of minus the squared distance to these means (``taskatlas.paths.predict_imprinted``). So networks that
learned a part of the classes, episodes, or no labels at all stand on one label set, and differences between runs come
from the training and not from the reading.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import taskatlas as ta
from taskatlas.engine import track
from taskatlas.paths import predict_imprinted
from taskatlas.probe import class_names

SPLIT = 0  # seed of what is asked and what is learned from: the same for all studies and seeds
DECISIVE = ("data", "steps", "snapshots", "batch_size", "learning_rate", "images", "probe_size", "width", "temperature")
Loss = Callable[["Network", torch.Generator], Tensor]


def parser(description: str | None, steps: int = 400) -> argparse.ArgumentParser:
    """The options of every study."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", help="labelled images: Parquet or a folder with a folder a class (default: digits)")
    made.add_argument("--out", type=Path, default=Path("studies"), help="folder of the runs, the same for all studies")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--steps", type=int, default=steps, help="of the optimiser, in every run")
    made.add_argument("--snapshots", type=int, default=30, help="of every run, close together early")
    made.add_argument("--batch-size", type=int, default=128)
    made.add_argument("--learning-rate", type=float, default=2e-3)
    made.add_argument("--images", type=int, default=5000, help="to learn from, at most")
    made.add_argument("--probe-size", type=int, default=500)
    made.add_argument("--width", type=int, default=16, help="channels of the first layer")
    made.add_argument("--temperature", type=float, default=1.0, help="of imprinting")
    made.add_argument("--device", default="cpu")
    return made


@dataclass(frozen=True)
class Material:
    """Two probes of arrays, float32 (n, channels, height, width): what is learned from, and what every run is asked."""

    learned: ta.Probe
    asked: ta.Probe

    @property
    def classes(self) -> tuple[str, ...]:
        return class_names(self.asked)


def open_material(settings: argparse.Namespace) -> Material:
    """The data, split alike for every study, run and seed."""
    if settings.data is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        whole = ta.Probe.from_arrays((digits.images * 15.9).astype(np.uint8)[..., None], labels=digits.target)
    else:
        whole = ta.Probe.open(settings.data)
    if whole.labels is None or whole.kind != "image":
        raise ta.BadInput(f"{settings.data} holds no labelled images; the studies need some.")
    order = np.random.default_rng(SPLIT).permutation(len(whole))
    asked, learned = np.split(order[: settings.probe_size + settings.images], [settings.probe_size])
    return Material(as_arrays(whole.take(learned)), as_arrays(whole.take(asked)))


def as_arrays(images: ta.Probe) -> ta.Probe:
    """Images as numbers from -1 to 1, channels first."""
    decoded = np.stack([np.asarray(image) for image in track(images.inputs, "reading images", total=len(images))])
    pixels = decoded.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    return ta.Probe("array", pixels, images.ids, images.labels, images.class_names)


class Network(nn.Module):
    """Three convolutions with group norms, a mean over space, and a linear head.

    Without batch statistics, because an episode is made up otherwise than a batch.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(3):
            incoming, outgoing = channels if level == 0 else width * 2 ** (level - 1), width * 2**level
            convolution = nn.Conv2d(incoming, outgoing, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.GroupNorm(4, outgoing), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def new_network(material: Material, settings: argparse.Namespace, seed: int, classes: int | None = None) -> Network:
    """A network that starts from the same features in every study."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels = material.asked.inputs.shape[1]
        return Network(channels, classes or len(material.classes), settings.width).to(settings.device)


def record_run(
    name: str,
    network: Network,
    loss: Loss,
    material: Material,
    settings: argparse.Namespace,
    seed: int,
    more: Iterable[Tensor] = (),
) -> ta.Trajectory:
    """Trains a network by a loss and records its way; a run that is in ``--out`` already is not trained again.

    Args:
        name: of the run; seeds share it.
        loss: of one step, drawing what it needs from a generator.
        more: parameters beside the network's that the loss trains.
    """
    file = settings.out / f"{name.replace(' ', '-')}-{seed}.safetensors"
    note = ", ".join(f"{key.replace('_', ' ')} {getattr(settings, key)}" for key in DECISIVE)
    if file.is_file():
        run = ta.Trajectory.load(file)
        if run.note != note:
            raise ta.BadInput(f"{file} is a run with other settings ({run.note}). Give another --out.")
        return run
    due = snapshot_steps(settings.steps, settings.snapshots)
    recorder = ta.Recorder(
        material.asked,
        name=name,
        predict=partial(predict_imprinted, temperature=settings.temperature),
        schedule=lambda step, _: step in due,
        batch_size=250,
    )
    for step in train(network, loss, settings, seed, more, f"{name}, seed {seed}"):
        recorder(network, step)
    run = replace(recorder.trajectory(), note=note)
    run.save(file)
    return run


def train(
    network: Network,
    loss: Loss,
    settings: argparse.Namespace,
    seed: int,
    more: Iterable[Tensor] = (),
    description: str = "training",
) -> Iterator[int]:
    """Adam along a cosine, the same for every study; yields the number of steps done, from 0 on."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([*network.parameters(), *more], lr=settings.learning_rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    yield 0
    for step in track(range(1, settings.steps + 1), description):
        optimizer.zero_grad()
        loss(network.train(), draw).backward()
        optimizer.step()
        falling.step()
        yield step


def snapshot_steps(steps: int, count: int) -> list[int]:
    """About so many steps from 0 to the last: one by one at first, then in a geometric series."""
    chosen = [0]
    for left in range(max(count, 2) - 1, 0, -1):
        last = max(chosen[-1], 1)
        following = round(last * (steps / last) ** (1 / left))
        chosen.append(min(steps, max(chosen[-1] + 1, following)))
    return sorted(set(chosen))


def percent(share: float) -> str:
    """A share in words that two different ones never have in common: runs are found again by their names."""
    return f"{100 * share:.10g}%"


def tensors(probe: ta.Probe, settings: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Images and labels of a probe, on the device."""
    images, labels = torch.from_numpy(probe.inputs), torch.from_numpy(probe.labels)
    return images.to(settings.device), labels.to(settings.device)


def supervised(learned: ta.Probe, settings: argparse.Namespace) -> Loss:
    """Cross-entropy on random batches of labelled images."""
    images, labels = tensors(learned, settings)

    def loss(network: Network, draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (settings.batch_size,), generator=draw)
        return F.cross_entropy(network(images[rows]), labels[rows])

    return loss


def varied(images: Tensor, draw: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth, its contrast and brightness changed, colour images flipped half the time."""
    n, _, height, width = images.shape
    most = max(1, height // 8)
    padded = F.pad(images, (most, most, most, most), mode="reflect")
    top, left = torch.randint(2 * most + 1, (2, n), generator=draw)
    rows, columns = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
    if images.shape[1] == 3:
        flipped = torch.rand(n, generator=draw) < 0.5
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    moved = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]
    contrast, brightness = (torch.rand((2, n, 1, 1, 1), generator=draw) - 0.5).to(images)
    return moved.permute(0, 3, 1, 2) * (1 + contrast) + 0.6 * brightness


def report(runs: Iterable[ta.Trajectory], settings: argparse.Namespace, started: float) -> list[ta.Trajectory]:
    """Prints a table of the runs and where they are; hands them back."""
    from rich.console import Console

    from taskatlas.cli.options import table

    found = list(runs)
    rows = [
        [run.name, float(run.accuracy()[-1]), float(run.progress()[-1]), run.length(), run.tortuosity()]
        for run in found
    ]
    console = Console(highlight=False)
    columns = ["run", "accuracy", "progress", "Fisher length", "tortuosity"]
    console.print(table("Imprinted on the probe, at the end", columns, rows))
    seconds = time.perf_counter() - started
    console.print(
        f"{len(rows)} runs, {seconds:.0f} s; all that is there: taskatlas trace {settings.out}", soft_wrap=True
    )
    return found
