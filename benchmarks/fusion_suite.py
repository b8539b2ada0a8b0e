"""Merging methods compared on real tasks: experts fine-tuned here from one base, merged, scored clean and corrupted.

    python benchmarks/fusion_suite.py images --inputs FOLDER --work WORK          (tasks of five kinds on a ResNet-20)
    python benchmarks/fusion_suite.py texts --inputs FOLDER --encoder MINILM --work WORK
    python benchmarks/fusion_suite.py images --work WORK --table

What is in FOLDER says ``fusion_domains.py``. Every expert, every learned merge and every score is a file in WORK, so a
run that was stopped goes on where it was: ``--minutes 9`` starts nothing new after nine minutes, and exit status 3 says
that there is more to do. Nothing is scored on samples that something was learned on: training, held-out (unlabelled),
validation (scales of task arithmetic and TIES) and test samples are disjoint. BatchNorm's statistics are frozen while
experts are fine-tuned, so that they are those of the base. Heads are each task's own, and known.
"""

# ruff: noqa: D102, B019 (a suite lives as long as the process)

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from fusion_domains import Domain, images, texts
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import taskatlas as ta
from taskatlas.engine import track
from taskatlas.merge import adamerge, diagonal_fisher, fisher_merge, layer_inputs, merge_models, regmean
from taskatlas.merge.adamerged import AdaMerged
from taskatlas.merge.data_adaptive import DataAdaptive
from taskatlas.merge.unlabelled import Unlabelled, call, network_inputs
from taskatlas.store import atomic_write

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # tried on validation samples
LEVELS = ("task", "layer")
MORE_TO_DO = 3


class Suite:
    """One domain at one seed, and the files of its results.

    Attributes:
        domain: tasks and networks.
        seed: of fine-tuning and of everything that is learned.
        work: where files are.
    """

    def __init__(self, domain: Domain, seed: int, work: Path) -> None:
        self.domain = domain
        self.seed = seed
        self.work = work / f"seed-{seed}"
        self.small, self.large = domain.families

    # Files, and what makes them

    def jobs(self) -> Iterator[tuple[Path, Callable[[], object]]]:
        """Every file of results, in an order in which each finds what it needs, with what makes its content."""
        for family in self.domain.families:
            for task in self.domain.tasks:
                yield self.expert_file(family, task), partial(self.fine_tune, family, task)
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
            yield (
                self.score_file(self.small, f"{name}, heads inferred"),
                partial(self.score_fused, self.small, level, known=False),
            )
        for name, state in self.merges(self.large, only=("individual", "base", "average", "task arithmetic")).items():
            yield self.score_file(self.large, name), partial(self.scores, self.large, state)
        for level in LEVELS:
            yield self.score_file(self.large, f"transferred {level}"), partial(self.score_fused, self.large, level)

    def expert_file(self, family: str, task: str) -> Path:
        return self.work / family / "experts" / f"{task}.safetensors"

    def score_file(self, family: str, method: str) -> Path:
        return self.work / family / "scores" / f"{method}.json"

    # Experts

    def network(self, family: str, task: str) -> nn.Module:
        """The base with a task's new head."""
        torch.manual_seed(1000 * self.seed + sorted(self.domain.tasks).index(task))
        return self.domain.families[family](self.domain.classes(task))

    def fine_tune(self, family: str, task: str) -> Mapping[str, Tensor]:
        tuning, probe = self.domain.tuning[family], self.domain.tasks[task]["train"]
        network = self.network(family, task)
        trained = [value for value in network.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=tuning.rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=tuning.steps)
        draw = np.random.default_rng(self.seed)
        for _ in track(range(tuning.steps), f"fine-tuning {task}"):
            rows = draw.integers(len(probe), size=tuning.batch)
            batch = self.domain.prepare([probe.inputs[row] for row in rows])
            loss = F.cross_entropy(call(network, network_inputs(batch, network)), torch.from_numpy(probe.labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return network.state_dict()

    @cache
    def experts(self, family: str) -> dict[str, dict[str, Tensor]]:
        return {task: load_file(self.expert_file(family, task)) for task in sorted(self.domain.tasks)}

    @cache
    def base(self, family: str) -> dict[str, Tensor]:
        return self.body(self.network(family, next(iter(self.domain.tasks))).state_dict())

    def body(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without the head."""
        heads = tuple(pattern.rstrip("*") for pattern in self.domain.own)
        return {name: value.detach() for name, value in state.items() if not name.startswith(heads)}

    # Merges: each a function from a task to the body that it runs with

    def merges(self, family: str, only: tuple[str, ...] | None = None) -> dict[str, Callable[[str], dict[str, Tensor]]]:
        every = {
            "individual": lambda task: self.body(self.experts(family)[task]),
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
        return merge_models(bodies, base=base, method=method, **settings)

    @cache
    def best_scale(self, family: str, method: str, **settings: float) -> dict[str, Tensor]:
        found = {}
        for scale in track(SCALES, f"scales of {method}"):
            state = self.merged(family, method, scale=scale, **settings)
            found[scale] = np.mean([self.right(family, task, state, "validation") for task in self.domain.tasks])
        return self.merged(family, method, scale=max(SCALES, key=found.get), **settings)

    @cache
    def fisher(self, family: str) -> dict[str, Tensor]:
        bodies, information = {}, {}
        for task, state in self.experts(family).items():
            network = self.with_weights(family, task, state)
            found = diagonal_fisher(network, self.held_out(task), who=f"{task}: Fisher")
            bodies[task], information[task] = self.body(state), self.body(found)
        return fisher_merge(bodies, information)

    @cache
    def regmean(self, family: str) -> dict[str, Tensor]:
        bodies = {task: self.body(state) for task, state in self.experts(family).items()}
        seen = {
            task: layer_inputs(self.with_weights(family, task, state), self.held_out(task), who=f"{task}: inputs")
            for task, state in self.experts(family).items()
        }
        return regmean(bodies, seen)

    def adamerge(self, level: str) -> AdaMerged:
        how = self.domain.adaptation
        return adamerge(
            *self.family(self.small),
            {task: self.held_out(task, how.batch) for task in self.domain.tasks},
            level=level,
            own=self.domain.own,
            steps=how.steps,
            learning_rate=how.adamerging_rate,
            seed=self.seed,
        )

    def fuse(self, level: str) -> DataAdaptive:
        how = self.domain.adaptation
        found = DataAdaptive(
            *self.family(self.small),
            self.domain.extractor,
            level=level,
            own=self.domain.own,
            standardise=True,
            steps=how.steps,
            batch_size=how.batch,
            learning_rate=how.rate,
            seed=self.seed,
        )
        return found.fit({task: self.held_out(task, how.batch) for task in self.domain.tasks})

    def fused(self, family: str, level: str) -> DataAdaptive:
        """What was learned on the small family, on this one."""
        file = self.work / self.small / f"data-adaptive-{level}.safetensors"
        found = DataAdaptive.load(file, *self.family(self.small), self.domain.extractor)
        return found if family == self.small else found.transferred(*self.family(family))

    def family(self, family: str) -> tuple[nn.Module, dict[str, nn.Module]]:
        """The base, and each task's network with the weights of its expert."""
        experts = {task: self.with_weights(family, task, state) for task, state in self.experts(family).items()}
        return self.network(family, next(iter(self.domain.tasks))), experts

    def with_weights(self, family: str, task: str, state: Mapping[str, Tensor]) -> nn.Module:
        network = self.network(family, task)
        network.load_state_dict(state)
        return network.eval()

    def held_out(self, task: str, batch: int = 32) -> Unlabelled:
        return Unlabelled(self.domain.tasks[task]["held_out"], prepare=self.domain.prepare, batch_size=batch)

    # Scores: condition -> task -> share of right answers

    def conditions(self) -> list[str]:
        return ["clean", *self.domain.corruptions]

    @cache
    def test(self, task: str, condition: str) -> ta.Probe:
        probe = self.domain.tasks[task]["test"]
        return probe if condition == "clean" else self.domain.corruptions[condition](probe.take(range(len(probe) // 2)))

    def scores(self, family: str, state: Callable[[str], Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
        return {
            condition: {task: self.right(family, task, state(task), condition) for task in self.domain.tasks}
            for condition in track(self.conditions(), "scoring")
        }

    def right(self, family: str, task: str, body: Mapping[str, Tensor], condition: str) -> float:
        network = self.network(family, task)
        tensors = {**self.experts(family)[task], **body}
        probe = self.domain.tasks[task]["validation"] if condition == "validation" else self.test(task, condition)
        answers = []
        with torch.no_grad():
            for batch in Unlabelled(probe, prepare=self.domain.prepare, batch_size=100, shuffle=False):
                inputs = network_inputs(batch, network)
                args, kwargs = ((inputs[""],), {}) if "" in inputs else ((), inputs)
                answers.append(functional_call(network, tensors, args, kwargs).argmax(1))
        return float((torch.cat(answers).numpy() == probe.labels).mean())

    def score_adamerged(self, file: Path) -> dict[str, dict[str, float]]:
        state = self.body(AdaMerged.load(file).state)
        return self.scores(self.small, lambda _: state)

    def score_fused(self, family: str, level: str, known: bool = True) -> dict[str, dict[str, float]]:
        found = self.fused(family, level)
        conditions = self.conditions() if known else ["clean"]
        return {
            condition: {
                task: found.score(
                    Unlabelled(self.test(task, condition), prepare=self.domain.prepare, batch_size=25, shuffle=False),
                    task=task if known else None,
                )
                for task in self.domain.tasks
            }
            for condition in track(conditions, "scoring")
        }


def write(file: Path, content: object) -> None:
    """Weights, something that saves itself, or scores."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, AdaMerged | DataAdaptive):
        content.save(file)
        return
    with atomic_write(file) as place:
        if file.suffix == ".safetensors":
            save_file({name: value.contiguous() for name, value in content.items()}, place)
        else:
            place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run(suites: list[Suite], minutes: float) -> bool:
    """Makes what is missing; False where time ran out first."""
    started = time.monotonic()
    for suite in suites:
        for file, make in suite.jobs():
            if file.exists():
                continue
            if time.monotonic() - started > 60 * minutes:
                return False
            begun = time.monotonic()
            write(file, make())
            print(f"{file.relative_to(suite.work.parent)}: {time.monotonic() - begun:.0f} s", flush=True)
    return True


def table(work: Path) -> list[dict[str, object]]:
    """A row for each family and method: mean accuracy over tasks, clean and corrupted, and its ratio to individual."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for file in sorted(work.glob("seed-*/*/scores/*.json")):
        scores = json.loads(file.read_text())
        corrupt = [np.mean(list(its.values())) for name, its in scores.items() if name != "clean"]
        row = {"clean": float(np.mean(list(scores["clean"].values())))}
        row |= {"corrupted": float(np.mean(corrupt))} if corrupt else {}
        individual = json.loads((file.parent / "individual.json").read_text())["clean"]
        row["ratio"] = float(np.mean([scores["clean"][task] / individual[task] for task in individual]))
        found.setdefault((file.parts[-3], file.stem), []).append(row)
    rows = []
    for (family, method), several in sorted(found.items(), key=lambda item: (item[0][0], item[1][0]["clean"])):
        row: dict[str, object] = {"family": family, "method": method, "seeds": len(several)}
        for column in ("clean", "ratio", "corrupted"):
            values = [one[column] for one in several if column in one]
            row |= {column: np.mean(values) if values else None, f"{column}_sd": np.std(values) if values else None}
        rows.append(row)
    return rows


def show(rows: list[dict[str, object]], work: Path) -> None:
    with atomic_write(work / "table.csv") as file, file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{'family':10} {'method':32} seeds  clean (sd)      of individual (sd)  corrupted (sd)")
    for row in rows:
        cells = [
            "               " if row[name] is None else f"{row[name]:.3f} ({row[f'{name}_sd']:.3f})  "
            for name in ("clean", "ratio", "corrupted")
        ]
        print(f"{row['family']:10} {row['method']:32} {row['seeds']}      {cells[0]} {cells[1]}     {cells[2]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("domain", choices=("images", "texts"))
    parser.add_argument("--inputs", type=Path, help="folder of data and networks")
    parser.add_argument("--encoder", type=Path, help="folder of a sentence encoder, for texts")
    parser.add_argument("--work", type=Path, required=True, help="folder of experts, merges and scores")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so long")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    chosen = parser.parse_args(arguments)
    finished = True
    if not chosen.table:
        domain = (
            images(chosen.inputs, chosen.quick)
            if chosen.domain == "images"
            else texts(chosen.inputs, chosen.quick, chosen.encoder)
        )
        suites = [Suite(domain, int(seed), chosen.work) for seed in chosen.seeds.split(",")]
        finished = run(suites, chosen.minutes)
    rows = table(chosen.work)
    if rows:
        show(rows, chosen.work)
    return 0 if finished else MORE_TO_DO


if __name__ == "__main__":
    sys.exit(main())
