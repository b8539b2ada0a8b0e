"""Two ResNets trained apart on five CIFAR-10 classes each, made one network in every way there is, and scored.

The protocol is that of Stoica et al. (ZipIt!, ICLR 2024, section 5.1): ``joint`` tells all ten classes apart by the
larger of the two heads' softmaxes; ``task`` is the mean over both heads of what each gets right among its own classes.
A model alone has one head, and names no class of the other's.
Models are matched and calibrated on the first images of the training data, without labels.

    python examples/zip_cifar_pair.py even_w2.pt odd_w2.pt --train cifar10-train.parquet --test cifar10-test.parquet

Settings are to be chosen with ``--validate``, which scores on other training images and leaves the test images alone.
"""

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import taskatlas as ta
from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.probe_batches import ProbeBatches
from taskatlas.merge.zipped import cost_of
from taskatlas.merge.zipping import group_statistics, zip_models

BUILDER = f"{Path(__file__).parent / 'cifar_resnet_projection.py'}:build"
CLASSES = ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))  # of the two heads, in the order of their outputs
BASES = {"even alone": CLASSES[:1], "odd alone": CLASSES[1:]}  # each model by itself knows its own classes
WHOLE, TWO_STAGES, ONE_STAGE = "linear:input", "layer2", "layer1"  # after 19, 13 and 7 of 20 layers
WAYS: dict[str, dict[str, object]] = {
    "zip, least squares": {"stop_at": WHOLE},
    "zip 13 of 20, least squares": {"stop_at": TWO_STAGES},
    "zip 7 of 20, least squares": {"stop_at": ONE_STAGE},
    "permute": {"stop_at": WHOLE, "method": "permute", "calibration": "reset"},
    "average": {"stop_at": WHOLE, "method": "identity", "calibration": "reset"},
    "zip": {"stop_at": WHOLE, "calibration": "reset"},
    "zip 13 of 20": {"stop_at": TWO_STAGES, "calibration": "reset"},
    "zip 7 of 20": {"stop_at": ONE_STAGE, "calibration": "reset"},
    "weight matching": {"stop_at": WHOLE, "method": "weight_matching", "calibration": "reset"},
    "permute, least squares": {"stop_at": WHOLE, "method": "permute"},
    "average, least squares": {"stop_at": WHOLE, "method": "identity"},
    "zip, REPAIR": {"stop_at": WHOLE, "calibration": "repair"},
}


class Ensemble(nn.Module):
    """Both models, one after the other."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(x) for model in self.models)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs=2, type=Path, help="the weights: even classes, odd classes")
    parser.add_argument("--train", type=Path, required=True, help="Parquet file of the training images")
    parser.add_argument("--test", type=Path, help="Parquet file of the test images")
    parser.add_argument("--match", type=int, default=1000, help="training images to match and calibrate on")
    parser.add_argument("--score", type=int, default=2500, help="images to score on")
    parser.add_argument("--validate", action="store_true", help="score on training images from the 45,000th on")
    parser.add_argument("--only", nargs="+", help="only these ways")
    parser.add_argument("-a", type=float, default=1e-4)
    parser.add_argument("-b", type=float, default=0.075)
    parser.add_argument("--csv", type=Path, help="also add the rows to this file")
    chosen = parser.parse_args(arguments)
    if not chosen.validate and chosen.test is None:
        parser.error("give --test, or --validate")

    models, prepare = open_models(chosen.models)
    train = ta.Probe.open(chosen.train)
    matching = train.take(np.arange(chosen.match))
    if chosen.validate:
        scored = train.take(np.arange(45_000, 45_000 + chosen.score))
    else:
        scored = ta.Probe.open(chosen.test).take(np.arange(chosen.score))
    images = list(ProbeBatches(scored, models[0], prepare=prepare, batch_size=100))
    groups = AxisGroups.of(models[0], images[0][:2])

    both = Ensemble(models)
    ways: dict[str, Callable[[], nn.Module]] = {
        **{name: lambda model=model: Ensemble([model]) for name, model in zip(BASES, models, strict=True)},
        "ensemble": lambda: both,
    }
    statistics = cache(lambda: group_statistics(models, matching, groups, prepare=prepare))
    for name, settings in WAYS.items():
        options = {"a": chosen.a, "b": chosen.b, "groups": groups, "prepare": prepare} | settings
        ways[name] = lambda options=options: zip_models(models, matching, statistics=statistics(), **options).network
    rows: list[dict[str, object]] = []
    print(f"{'':28}  joint   task   million MACs   time of ensemble   s to make", flush=True)
    for name, make in ways.items():
        if chosen.only is None or name in chosen.only:
            start = time.perf_counter()
            network = make()
            made = time.perf_counter() - start
            found = score(network, images, scored.labels, BASES.get(name, CLASSES)) | {
                "of_ensemble": against(network, both, images[0][:32])
            }
            rows.append({"way": name} | found | {"seconds_to_make": round(made, 1)})
            print(
                "{way:28}  {joint:5.1f}  {task:5.1f}   {million_macs:12.1f}   {of_ensemble:16.2f}   "
                "{seconds_to_make:9.1f}".format(**rows[-1]),
                flush=True,
            )
            if chosen.csv is not None:
                add_row(chosen.csv, rows[-1])
    return rows


def add_row(place: Path, row: dict[str, object]) -> None:
    """A row more in a table of what has been tried so far."""
    fresh = not place.exists()
    with place.open("a", newline="") as file:
        table = csv.DictWriter(file, list(row))
        if fresh:
            table.writeheader()
        table.writerow(row)


def open_models(places: Sequence[Path]) -> tuple[list[nn.Module], Callable[[list[np.ndarray]], Tensor]]:
    """The two networks, and how images are prepared for them."""
    opened = [ta.Checkpoint(place.stem, place, BUILDER).open() for place in places]
    assert opened[0].prepare is not None
    return [one.module for one in opened], opened[0].prepare


@torch.no_grad()
def score(
    network: nn.Module, images: Sequence[Tensor], labels: np.ndarray, heads: Sequence[tuple[int, ...]] = CLASSES
) -> dict[str, float]:
    """Percent right among all classes and within those of each head, and what the network costs."""
    outputs = [torch.cat(parts) for parts in zip(*(network(batch) for batch in images), strict=True)]
    answers = torch.from_numpy(labels)
    probabilities = torch.cat([output.softmax(1) for output in outputs], dim=1)
    joint = torch.tensor(sum(heads, ()))[probabilities.argmax(1)] == answers
    tasks = []
    for classes, output in zip(heads, outputs, strict=True):
        mine = torch.isin(answers, torch.tensor(classes))
        tasks.append((torch.tensor(classes)[output[mine].argmax(1)] == answers[mine]).float().mean())
    cost = cost_of(network, images[0])
    return {
        "joint": round(100 * float(joint.float().mean()), 1),
        "task": round(100 * float(torch.stack(tasks).mean()), 1),
        "million_macs": round(cost.macs / 1e6, 1),
        "million_parameters": round(cost.parameters / 1e6, 3),
    }


@torch.no_grad()
def against(network: nn.Module, ensemble: nn.Module, batch: Tensor, rounds: int = 9) -> float:
    """A network's time as a share of the ensemble's: the median over rounds in which one follows the other."""
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        network(batch)
        middle = time.perf_counter()
        ensemble(batch)
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return round(float(np.median(ratios)), 2)


if __name__ == "__main__":
    main()
