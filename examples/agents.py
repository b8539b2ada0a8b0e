r"""The agents experiment: many small networks on random class subsets, and unseen few-shot tasks to pick features for.

Each agent learns some of the classes of one image data set. The zoo is mapped on unlabelled images, k agents are
selected, and a linear head on their joined features learns unseen tasks (other class subsets) from a few images a
class. Compared with random selections, and with "peek": the k agents that are best alone on another unseen task. After
Huang et al. (NeurIPS 2021, section 4.2).

    python examples/agents.py                                     # handwritten digits
    python examples/agents.py --data cifar100.parquet --agents 100 --classes 30 --unseen 20 --shots 10 \
        --network resnet50 --epochs 100 --sizes 1,2,5,10,20 --device cuda      # the published setting

Agents that are trained already are not trained again; the table is also written as CSV.
"""

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

import taskatlas as ta
from taskatlas.engine import track
from taskatlas.learn import mlp, train
from taskatlas.learn import small_cnn as convolutions
from taskatlas.space import head_score
from taskatlas.store import atomic_write


def perceptron(classes: int, shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *mlp(int(np.prod(shape)), (64, 32), classes))


def small_cnn(classes: int, shape: tuple[int, ...]) -> nn.Module:
    return convolutions(shape[0], classes)


def resnet50(classes: int, shape: tuple[int, ...]) -> nn.Module:
    from torchvision.models import resnet50

    assert shape[0] == 3, "torchvision's networks take images of three channels"
    return resnet50(num_classes=classes)


NETWORKS: dict[str, Callable[[int, tuple[int, ...]], nn.Module]] = {
    "perceptron": perceptron,
    "small_cnn": small_cnn,
    "resnet50": resnet50,
}


def build(network: str, classes: int, shape: Sequence[int]) -> nn.Module:
    """The builder that the zoo of agents names."""
    return NETWORKS[network](classes, tuple(shape))


def read_images(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 (n, channels, height, width) in [0, 1], and their classes (n,)."""
    if path is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
    probe = ta.Probe.open(path)
    if probe.labels is None:
        raise ta.BadInput(f"{path} has no labels; agents need classes to learn.")
    images = np.stack([np.asarray(image) for image in track(probe.inputs, "reading images", total=len(probe))])
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 255, probe.labels.astype(np.int64)


def train_agents(folder: Path, images: np.ndarray, labels: np.ndarray, settings: argparse.Namespace) -> ta.Zoo:
    """One network for each random class subset, in ``folder``."""
    subsets = class_subsets(labels, settings.agents, settings.classes, settings.seed)
    checkpoints = {}
    for position, subset in enumerate(track(subsets, "training agents")):
        name = f"agent-{position:03}"
        weights = folder / f"{name}.safetensors"
        if not weights.is_file():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed * 10_000 + position)
                network = build(settings.network, len(subset), images.shape[1:]).to(settings.device)
            shown = np.isin(labels, subset)
            train(
                [network],
                torch.from_numpy(images[shown]).to(settings.device),
                [torch.from_numpy(np.searchsorted(subset, labels[shown])).to(settings.device)],
                epochs=settings.epochs,
                learning_rate=2e-3,
                weight_decay=1e-3,
                seed=position,
                description=name,
            )
            with atomic_write(weights) as file:
                save_file({key: value.cpu().contiguous() for key, value in network.state_dict().items()}, file)
        arguments = {"network": settings.network, "classes": len(subset), "shape": list(images.shape[1:])}
        task = "-".join(map(str, subset))
        checkpoints[name] = ta.Checkpoint(name, weights=weights, builder=build, arguments=arguments, task=task)
    return ta.Zoo.open(checkpoints)


def class_subsets(labels: np.ndarray, count: int, size: int, seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [np.sort(draw.choice(np.unique(labels), size=size, replace=False)) for _ in range(count)]


def few_shot(images: np.ndarray, labels: np.ndarray, subset: np.ndarray, shots: int, draw: np.random.Generator):
    """A task: ``shots`` images of each class of ``subset`` to learn from, and up to 50 others of each to test on."""
    rows = [draw.permutation(np.flatnonzero(labels == label)) for label in subset]
    learn, test = (np.concatenate([row[part] for row in rows]) for part in (slice(shots), slice(shots, shots + 50)))
    return tuple(ta.Probe.from_arrays(images[part], labels=labels[part]) for part in (learn, test))


def scores_alone(zoo: ta.Zoo, learn: ta.Probe, test: ta.Probe, device: str, store: ta.Store) -> dict[str, float]:
    """What each agent's features are worth by themselves."""
    parts = {
        name: [ta.extract(agent, probe, device=device, store=store).values for probe in (learn, test)]
        for name, agent in zoo.items()
    }
    return {name: head_score(x, learn.labels, x_test, test.labels) for name, (x, x_test) in parts.items()}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="labelled images: Parquet or a folder with a folder a class (default: digits)")
    parser.add_argument("--out", type=Path, default=Path("agents"))
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--classes", type=int, default=4, help="classes that an agent, or an unseen task, knows")
    parser.add_argument("--unseen", type=int, default=8, help="unseen tasks")
    parser.add_argument("--shots", type=int, default=10, help="images a class of an unseen task")
    parser.add_argument("--network", choices=NETWORKS, default="perceptron")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--sizes", default="1,2,3,5")
    parser.add_argument("--random", type=int, default=20, help="random selections of each size")
    parser.add_argument("--probe-size", type=int, default=500, help="unlabelled images to map on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)
    started = time.perf_counter()

    images, labels = read_images(settings.data)
    order = np.random.default_rng(settings.seed).permutation(len(labels))
    probe_rows, train_rows, unseen_rows = np.split(
        order, [settings.probe_size, settings.probe_size + (len(order) - settings.probe_size) // 2]
    )
    zoo = train_agents(settings.out / "zoo", images[train_rows], labels[train_rows], settings)
    store = ta.Store(settings.out / ".store")
    probe = ta.Probe.from_arrays(images[probe_rows])
    space = ta.map_tasks(zoo, probe, device=settings.device, store=store)
    space.save(settings.out / "space.npz")
    sizes = [int(size) for size in settings.sizes.split(",")]
    picked = ta.select(space, max(sizes)).names

    draw = np.random.default_rng([settings.seed, 1])
    subsets = class_subsets(labels, settings.unseen, settings.classes, settings.seed + 1)
    tasks = [few_shot(images[unseen_rows], labels[unseen_rows], subset, settings.shots, draw) for subset in subsets]
    how = {"device": settings.device, "store": store, "seed": settings.seed}
    alone = [scores_alone(zoo, *task, settings.device, store) for task in track(tasks, "scoring agents alone")]
    rows = []
    for size in sizes:
        scores = []
        for position, task in enumerate(track(tasks, f"{size} picked")):
            other = alone[(position + 1) % len(tasks)]
            peek = sorted(other, key=lambda name: (-other[name], name))[:size]
            result = ta.transfer(zoo, picked[:size], *task, n_random=settings.random, others={"peek": peek}, **how)
            scores.append((result.selected, result.band[1], result.others["peek"]))
        selected, chance, peek_score = np.array(scores).T
        gain = 100 * (selected - chance)
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else float("nan")
        row = {"k": size, "selected": selected.mean(), "random": chance.mean(), "peek": peek_score.mean()}
        rows.append(row | {"gain_points": gain.mean(), "standard_error": error})
    with atomic_write(settings.out / "agents.csv") as file, file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    report(rows, settings, time.perf_counter() - started)
    return rows


def report(rows: list[dict[str, float]], settings: argparse.Namespace, seconds: float) -> None:
    from taskatlas.cli.options import table

    cells = [[value if key == "k" else float(value) for key, value in row.items()] for row in rows]
    title = f"Accuracy on {settings.unseen} unseen {settings.classes}-way tasks, mean"
    console = Console(highlight=False)
    console.print(table(title, ["k", "selected", "random (median)", "peek", "gain, points", "± s.e."], cells))
    console.print(f"wrote {settings.out}/agents.csv and {settings.out}/space.npz in {seconds:.0f} s", soft_wrap=True)


if __name__ == "__main__":
    main()
