"""What a small network generalises on in CIFAR-10, and the splits that break it.

    python examples/cifar_tasks.py cifar10-train.parquet --part agreement --epochs 100
    python examples/cifar_tasks.py cifar10-train.parquet --part discovered --epochs 100
    python examples/cifar_tasks.py cifar10-train.parquet --part splits

The file is any labelled image file or folder that ``taskatlas`` opens. The first images of it are brought to 16 × 16
pixels; learners are the small convolutional network. With 100 epochs they fit all labels, random ones too, and each
stops as soon as it does, so that all tasks are compared at the same fit. Each part prints a table in Markdown: means
over repeats, or over splits, with their standard deviation.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import taskatlas as ta
from taskatlas.tasks import group_target, mean_similarity, measure_splits
from taskatlas.tasks.adversarial import controls

SIZE, SEEDS = 16, 3
TRAINING = ta.Training(epochs=12, batch_size=128, learning_rate=3e-3)


def spread(values: Sequence[float]) -> str:
    """A mean and a standard deviation, as .912 ± .004."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}".replace("0.", ".")


def print_scores(kind: str, scores: Sequence[ta.Agreement]) -> None:
    """A row for a kind of task: means over its tasks, the spread over repeats."""
    repeats = np.mean([score.values for score in scores], axis=0)
    accuracy, fit = (np.mean([getattr(score, what) for score in scores]) for what in ("accuracy", "fit"))
    print(f"| {kind} | {len(scores)} | {spread(repeats)} | {accuracy:.3f} | {fit:.3f} |".replace("0.", "."), flush=True)


def agreement(data: ta.Probe, training: ta.Training) -> None:
    """Human, random and untrained tasks."""
    kinds = {
        "human (5 against 5)": ta.human_tasks(data, 2),
        "random labels": ta.random_tasks(data, 2),
        "untrained networks": ta.untrained_tasks("small_cnn", data, 2, size=SIZE),
    }
    for kind, tasks in kinds.items():
        score(kind, tasks, data, training)


def discovered(data: ta.Probe, training: ta.Training, steps: int) -> None:
    """Tasks that a search finds."""
    search = ta.Search(steps=steps, coefficient=1.0, inner_rate=0.5)
    found = ta.discover_tasks(data, "small_cnn", n_tasks=4, search=search, size=SIZE, seed=0)
    print(f"similarity of the discovered tasks: {mean_similarity(found.tasks):.3f}; notes: {found.notes}", flush=True)
    score("discovered", found.tasks, data, training)


def score(kind: str, tasks: Sequence[ta.Task], data: ta.Probe, training: ta.Training) -> None:
    """Measures and prints."""
    settings = {"training": training, "seeds": SEEDS, "nulls": 0, "size": SIZE}
    print_scores(kind, ta.agreement_scores(tasks, "small_cnn", data, **settings))


def splits(data: ta.Probe, training: ta.Training, group: Sequence[int]) -> None:
    """Splits by several untrained networks, and their controls; a network learns each."""
    target = group_target(data, group)
    made = [ta.untrained_split(target, "small_cnn", data, size=SIZE, seed=seed, reserve=0.1) for seed in range(SEEDS)]
    kinds = {
        "untrained network, halved within each class": made,
        "random task (control)": [controls(target, one)["random task"] for one in made],
        "random split (control)": [controls(target, one)["random split"] for one in made],
    }
    for kind, several in kinds.items():
        falls = measure_splits(several, "small_cnn", data, seeds=1, training=training, size=SIZE)
        accuracies = [fall.values[0] for fall in falls]
        reserved = np.mean([fall.reserved for fall in falls])
        fit = np.mean([fall.fit for fall in falls])
        print(
            f"| {kind} | {len(several)} | {spread(accuracies)} | {reserved:.3f} | {fit:.3f} |".replace("0.", "."),
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--part", choices=("agreement", "discovered", "splits"), required=True)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--epochs", type=int, default=TRAINING.epochs, help="at most")
    parser.add_argument("--target", default="0,1,2,3,8", help="classes of group 1")
    parser.add_argument("--steps", type=int, default=60, help="of the search")
    given = parser.parse_args(arguments)
    data = ta.Probe.open(given.data)
    data = data.take(np.arange(min(given.images, len(data))))
    training = replace(TRAINING, epochs=given.epochs)
    if given.part == "agreement":
        agreement(data, training)
    elif given.part == "discovered":
        discovered(data, training, given.steps)
    else:
        splits(data, training, [int(one) for one in given.target.split(",")])


if __name__ == "__main__":
    main()
