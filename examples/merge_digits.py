"""Five experts from one base, each for its own view of handwritten digits, merged with every method and scored.

    python examples/merge_digits.py
    python examples/merge_digits.py --steps 100 --out scores

A small network learns upright digits. Copies of it learn the same digits turned, mirrored, inverted, or with shuffled
rows; each keeps a head of its own, which is never merged. Merges that need data see unlabelled samples that are neither
trained nor scored on. The table also goes to CSV and JSON with ``--out``.
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import taskatlas as ta
from taskatlas.learn import mlp, train
from taskatlas.merge import (
    Evaluation,
    Unlabelled,
    adamerge,
    diagonal_fisher,
    evaluate,
    fisher_merge,
    layer_inputs,
    merge_models,
    regmean,
)

VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "upright": lambda images: images,
    "turned": lambda images: np.rot90(images, axes=(1, 2)),
    "mirrored": lambda images: images[:, :, ::-1],
    "inverted": lambda images: 1 - images,
    "shuffled": lambda images: images[:, [3, 6, 0, 5, 2, 7, 1, 4]],
}

# The papers' settings, or the middle of what they try; nothing is tuned.
METHODS: dict[str, dict[str, object]] = {
    "average": {"method": "linear"},
    "multi-SLERP": {"method": "multislerp"},
    "Karcher mean": {"method": "karcher"},
    "Model Stock": {"method": "model_stock"},
    "task arithmetic": {"method": "task_arithmetic", "scale": 0.3},
    "TIES": {"method": "ties", "density": 0.2, "scale": 1.0},
    "DARE": {"method": "dare_linear", "density": 0.5, "scale": 0.3},
    "DARE-TIES": {"method": "dare_ties", "density": 0.5, "scale": 0.3},
    "DELLA": {"method": "della", "density": 0.5, "scale": 1.0},
    "Breadcrumbs": {"method": "breadcrumbs", "density": 0.9, "scale": 0.3},
    "SCE": {"method": "sce"},
}


class Classifier(nn.Module):
    """A body that is merged and a head that is not."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), *mlp(64, (width, width), width)[:-1])
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def with_body(self, state: Mapping[str, Tensor]) -> "Classifier":
        """A copy with this head and another body."""
        merged = copy.deepcopy(self)
        merged.load_state_dict({**merged.state_dict(), **state})
        return merged


def views(rows: np.ndarray) -> dict[str, ta.Probe]:
    digits = load_digits()
    images, labels = (digits.images[rows] / 16).astype(np.float32), digits.target[rows]
    return {name: ta.Probe.from_arrays(np.ascontiguousarray(see(images)), labels) for name, see in VIEWS.items()}


def train_experts(learn: Mapping[str, ta.Probe], epochs: int) -> tuple[Classifier, dict[str, Classifier]]:
    """A base on upright digits, and for each view an expert from it: first a head on the base, then all of it."""
    tensors = {name: (torch.from_numpy(probe.inputs), torch.from_numpy(probe.labels)) for name, probe in learn.items()}
    base, experts = Classifier(), {}
    train([base], tensors["upright"][0], [tensors["upright"][1]], epochs=20, description="the base")
    for name, (images, labels) in tensors.items():
        expert = copy.deepcopy(base)
        with torch.no_grad():
            seen = expert.body(images)
        expert.head = nn.Linear(seen.shape[1], 10)
        train([expert.head], seen, [labels], epochs=epochs, learning_rate=1e-2, description=f"{name}: head")
        train([expert], images, [labels], epochs=epochs, description=f"{name}: expert")
        experts[name] = expert.eval()
    return base.eval(), experts


def merges(
    base: Classifier, experts: Mapping[str, Classifier], unlabelled: Mapping[str, ta.Probe], steps: int
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Each method's name and merged body."""
    bodies = {name: body_of(expert) for name, expert in experts.items()}
    yield "base", body_of(base)
    for name, settings in METHODS.items():
        needs_none = settings["method"] in ("linear", "multislerp", "karcher")
        yield name, merge_models(bodies, base=None if needs_none else body_of(base), **settings)
    data = {name: Unlabelled(probe, batch_size=32) for name, probe in unlabelled.items()}
    fishers = {name: diagonal_fisher(expert, data[name], who=name) for name, expert in experts.items()}
    yield "Fisher", fisher_merge(experts, fishers, own=["head.*"])
    seen = {name: layer_inputs(expert, data[name], who=name) for name, expert in experts.items()}
    yield "RegMean", regmean(experts, seen, own=["head.*"])
    for name, settings in {
        "AdaMerging, task-wise": {"level": "task"},
        "AdaMerging, layer-wise": {"level": "layer"},
        "AdaMerging++, layer-wise": {"level": "layer", "density": 0.2},
    }.items():
        found = adamerge(base, experts, data, own=["head.*"], steps=steps, **settings)
        print(f"{name}: {found}")
        yield name, found.state


def body_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if name.startswith("body.")}


def main(arguments: Sequence[str] | None = None) -> Evaluation:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of each expert")
    parser.add_argument("--steps", type=int, default=300, help="of AdaMerging")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for evaluation.csv and evaluation.json")
    settings = parser.parse_args(arguments)

    torch.manual_seed(settings.seed)
    order = np.random.default_rng(settings.seed).permutation(len(load_digits().target))
    learn, unlabelled, test = (views(rows) for rows in np.split(order, [1000, 1300]))
    base, experts = train_experts(learn, settings.epochs)
    models = {
        name: {task: expert.with_body(state) for task, expert in experts.items()}
        for name, state in merges(base, experts, unlabelled, settings.steps)
    }
    found = evaluate(models, test, individual=experts)
    print(found.markdown())
    if settings.out is not None:
        found.save(settings.out / "evaluation.csv")
        found.save(settings.out / "evaluation.json")
    return found


if __name__ == "__main__":
    main()
