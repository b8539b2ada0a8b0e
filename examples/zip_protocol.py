"""A published setting from training to table: networks for parts of the classes, merged in every way, and scored.

    cd examples
    python zip_protocol.py zip/cifar10-resnet20.yml --train train.parquet --test test.parquet --out out
    python zip_protocol.py zip/datasets-resnet50.yml --train cub/train pets/train --test cub/test pets/test --out out

The setting says which networks, how many classes each, how they are trained and the ways to merge them. Several data
sets are a task each; one is split into tasks by its classes. Everything goes on where it stopped: trainings from their
last saved epoch, the search and the table from their last row. With ``search`` in the setting, a and b are chosen on a
pair of networks for other classes, on training images that it was not matched on, for every stop that is searched; a
way to zip that names no stop gets the best one, too. ``--width``, ``--epochs`` and ``--images`` make a setting small.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

import taskatlas as ta
from taskatlas.learn import Network, Recipe, Stream, new_network, train_to_folder
from taskatlas.merge.probe_batches import ProbeBatches
from taskatlas.merge.zip_search import search_zip
from taskatlas.merge.zipped import Cost, Zipped, cost_of

BUILDER = f"{Path(__file__).resolve().parent / 'zip_networks.py'}:network"
Pair = dict[str, tuple[ta.Checkpoint, ta.Probe, ta.Probe]]  # task -> network, training samples, test samples


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", type=Path)
    parser.add_argument("--train", nargs="+", required=True, help="labelled samples, as Probe.open takes them")
    parser.add_argument("--test", nargs="+", required=True, help="as many")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vectors", help=".npy with a row for each class, for heads: vectors")
    parser.add_argument("--width", type=float, help="in place of the setting's")
    parser.add_argument("--epochs", type=int, help="in place of the setting's")
    parser.add_argument("--images", type=int, help="at most so many of each of train and test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args(arguments)
    setting = yaml.safe_load(chosen.setting.read_text(encoding="utf-8"))
    for key in ("width", "epochs"):
        if getattr(chosen, key) is not None:
            (setting["network"] if key == "width" else setting["training"])[key] = getattr(chosen, key)

    data = [(opened(one, chosen.images), opened(other, chosen.images)) for one, other in zip_paths(chosen)]
    pair = networks(setting, data, chosen, seed=chosen.seed)
    ways = [dict(way) for way in setting["ways"]]
    if "search" in setting:
        tried = search(setting, networks(setting, data, chosen, seed=chosen.seed + 1), chosen)
        ways = [way | best_of(tried, way) if way["method"] == "zip" else way for way in ways]
    return table(setting, pair, ways, chosen)


def zip_paths(chosen: argparse.Namespace) -> list[tuple[str, str]]:
    if len(chosen.train) != len(chosen.test):
        raise SystemExit("give as many --test as --train")
    return list(zip(chosen.train, chosen.test, strict=True))


def opened(place: str, most: int | None) -> ta.Probe:
    probe = ta.Probe.open(place)
    return probe if most is None or most >= len(probe) else probe.take(np.arange(most))


def networks(setting: Mapping[str, Any], data: Sequence[Any], chosen: argparse.Namespace, seed: int) -> Pair:
    """One trained network for each task; the seed says which classes are together, and where trainings start."""
    views: dict[str, tuple[ta.Probe, ta.Probe]] = {}
    rows: dict[str, list[int]] = {}
    if len(data) > 1:
        views = {Path(place).parent.name or place: both for place, both in zip(chosen.train, data, strict=True)}
    else:
        ((train, test),) = data
        labels = np.unique(train.labels)
        order = np.random.default_rng(seed).permutation(labels)
        each = min(setting["tasks"]["classes"], len(labels) // setting["tasks"]["count"])
        for task in range(setting["tasks"]["count"]):
            classes = sorted(int(label) for label in order[task * each : (task + 1) * each])
            name = "classes " + " ".join(map(str, classes if each <= 10 else [task]))
            views[name] = ta.class_subset(train, classes), ta.class_subset(test, classes)
            rows[name] = classes
    found: Pair = {}
    for position, (task, (train, test)) in enumerate(views.items()):
        folder = chosen.out / "networks" / f"{task} seed {seed}"
        network = untrained(setting, train, chosen, rows.get(task, []), 2 * seed + position)
        train_to_folder(
            folder,
            network,
            Stream(train, Recipe(**setting["training"], seed=seed + position), network.prepare),
            name=task,
            device=chosen.device,
        )
        found[task] = next(iter(ta.Zoo.open(folder).values())), train, test
    return found


def untrained(
    setting: Mapping[str, Any], train: ta.Probe, chosen: argparse.Namespace, rows: Sequence[int], seed: int
) -> Network:
    import torch

    wanted = setting["network"]
    classes = int(train.labels.max()) + 1
    if ":" in wanted["name"]:
        return new_network(wanted["name"], train, classes, size=wanted.get("size"), seed=seed)
    from zip_networks import network, prepare

    given = {"name": wanted["name"], "classes": classes, "width": wanted["width"]}
    given |= {"vectors": chosen.vectors, "rows": list(rows)} if setting.get("heads") == "vectors" else {}
    torch.manual_seed(seed)
    return Network(network(**given)[0], prepare, BUILDER, given)


def best_of(tried: Sequence[Mapping[str, Any]], way: Mapping[str, Any]) -> dict[str, Any]:
    """A and b that were best at the stop of a way, or the stop too where it has none."""
    if "stop_at" not in way:
        return {key: tried[0][key] for key in ("a", "b")} | {"stop_at": tried[0]["stop_at"] or None}
    best = next((row for row in tried if row["stop_at"] == (way["stop_at"] or "")), tried[0])
    return {key: best[key] for key in ("a", "b")}


def search(setting: Mapping[str, Any], pair: Pair, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """All settings on another pair, the best first: by joint accuracy on training images that it is not matched on."""
    models, probe, held_out = matching(pair, setting["samples"])
    first = models[0].open()
    groups = ta.AxisGroups.of(first.module, example(probe, models[0]))
    return search_zip(
        models,
        probe,
        lambda zipped: {"joint": scores(dict(zip(pair, zipped.models.values(), strict=True)), held_out)["joint"]},
        groups=groups,
        **setting["search"],
        table=chosen.out / "search.csv",
    )


def matching(pair: Pair, samples: int) -> tuple[list[ta.Checkpoint], ta.Probe, dict[str, ta.Probe]]:
    """The networks, the samples that they are matched on, of all tasks alike, and as many of each that they are not."""
    models, inputs, held_out = [], [], {}
    for task, (checkpoint, train, _) in pair.items():
        each = min(samples // len(pair), len(train) // 2)
        models.append(checkpoint)
        inputs += [train.inputs[row] for row in range(each)]
        held_out[task] = train.take(np.arange(each, min(2 * each, len(train))))
    return models, ta.Probe.from_arrays(np.stack(inputs)), held_out


def example(probe: ta.Probe, checkpoint: ta.Checkpoint) -> Any:
    opened = checkpoint.open()
    return next(iter(ProbeBatches(probe, opened.module, prepare=opened.prepare, batch_size=2)))


def table(
    setting: Mapping[str, Any], pair: Pair, ways: Sequence[Mapping[str, Any]], chosen: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each network as it is, for all of them as an ensemble, and for each way to merge them.

    Kept in ``table.csv``, where rows of other seeds and sizes may stand beside them.
    """
    place = chosen.out / "table.csv"
    kept: list[dict[str, Any]] = []
    if place.exists():
        with place.open(newline="") as file:
            kept = [dict(row) for row in csv.DictReader(file)]
    made = {"setting": chosen.setting.stem, **setting["network"], "epochs": setting["training"]["epochs"]}
    made |= {"seed": chosen.seed, "images": chosen.images or "all"}
    rows: list[dict[str, Any]] = []
    models, probe, _ = matching(pair, setting["samples"])
    tests = {task: test for task, (_, _, test) in pair.items()}
    batch = example(probe, models[0])
    groups = ta.AxisGroups.of(models[0].open().module, batch)
    for way in [*({"method": "alone", "network": task} for task in pair), {"method": "ensemble"}, *ways]:
        key = made | {"way": ", ".join(f"{name} {value}" for name, value in way.items())}
        before = [row for row in kept if all(row.get(name) == str(value) for name, value in key.items())]
        if before:
            rows += before[:1]
            continue
        if way["method"] in ("alone", "ensemble"):
            its = [way["network"]] if way["method"] == "alone" else list(pair)
            parts = {task: pair[task][0].open().module for task in its}
            cost = sum((cost_of(part, batch) for part in parts.values()), Cost(0, 0.0, 0.0))
        else:
            zipped: Zipped = ta.zip_models(models, probe, groups=groups, seed=chosen.seed, **way)
            parts, cost = dict(zip(pair, zipped.models.values(), strict=True)), cost_of(zipped.network, batch)
        found = scores(parts, {task: tests[task] for task in parts}, models[0].open().prepare)
        if way["method"] == "alone":  # what it was not trained for it never names
            found["joint"] = round(found["joint"] * len(tests[its[0]]) / sum(map(len, tests.values())), 4)
        rows.append(key | found | asdict(cost))
        print("{way:60} joint {joint:.3f}  average {average:.3f}".format(**rows[-1]), flush=True)
        kept.append(rows[-1])
        with place.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in kept for name in row)))
            writer.writeheader()
            writer.writerows(kept)
    return rows


def scores(parts: Mapping[str, nn.Module], tests: Mapping[str, ta.Probe], prepare: Any = None) -> dict[str, Any]:
    """Each task with its own head, their average, and joint: the surest head among all classes."""
    if prepare is None:
        from zip_networks import prepare
    found = ta.evaluate({"net": dict(parts)}, dict(tests), infer="confidence", prepare=prepare, device="cpu")
    each = {
        task: round(score.accuracy.value, 4)
        for task in tests
        for score in found.scores
        if score.task == task and score.heads == "known"
    }
    return {
        "joint": round(found.joint("net").value, 4),
        "average": round(found.average("net", "known").value, 4),
        **each,
    }


if __name__ == "__main__":
    main()
