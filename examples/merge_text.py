"""A sentence encoder fine-tuned on several text tasks from one base, merged with every method and scored.

    python examples/merge_text.py --model MODEL --data FOLDER --tasks sst2,trec,cola --out merged-text

MODEL is a Hugging Face model folder (an encoder with its tokenizer), FOLDER holds TASK.tsv for each task, with the
columns split (train, val, test), label and text; a task without val gives the last tenth of train for it. Sentences are
the mean of the last hidden states; each task has a linear head of its own, which is never merged.

Scales of task arithmetic and its kin are chosen on labelled validation samples, as is usual; AdaMerging, Fisher and
RegMean see the same samples without labels. Scored are test samples. Experts that are there already in OUT/experts are
not trained again, and `taskatlas evaluate` can open them:

    taskatlas evaluate --individual merged-text/experts/zoo.yaml --on FOLDER/sst2.tsv FOLDER/trec.tsv --split test
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as hugging_face

import taskatlas as ta
from taskatlas.engine import track
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
from taskatlas.store import atomic_write

SCALES = (0.2, 0.3, 0.5, 1.0)  # of task vectors, tried on validation samples
METHODS: dict[str, dict[str, Any]] = {
    "average": {"method": "linear"},
    "Karcher mean": {"method": "karcher"},
    "Model Stock": {"method": "model_stock"},
    "SCE": {"method": "sce"},
    "task arithmetic": {"method": "task_arithmetic", "scale": SCALES},
    "TIES": {"method": "ties", "density": 0.2, "scale": SCALES},
    "DARE": {"method": "dare_linear", "density": 0.5, "scale": SCALES},
    "Breadcrumbs": {"method": "breadcrumbs", "density": 0.9, "scale": SCALES},
}


class SentenceClassifier(nn.Module):
    """An encoder, the mean of its last hidden states over tokens that are no padding, and a linear head."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, classes)

    def forward(self, **inputs: Tensor) -> Tensor:
        states = self.body(**inputs).last_hidden_state
        kept = inputs["attention_mask"][..., None].to(states.dtype)
        return self.head((states * kept).sum(1) / kept.sum(1))


def build(model: str, classes: int, longest: int) -> tuple[SentenceClassifier, Callable[[list[str]], Any]]:
    """The builder that the zoo of experts names."""
    tokenizer = AutoTokenizer.from_pretrained(model)

    def prepare(texts: list[str]) -> dict[str, Tensor]:
        found = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    return SentenceClassifier(AutoModel.from_pretrained(model, add_pooling_layer=False), classes), prepare


def read_tasks(folder: Path, tasks: Sequence[str], settings: argparse.Namespace) -> dict[str, dict[str, ta.Probe]]:
    """For each task its train, val and test samples; of the last two a random part, drawn by the seed."""
    draw = np.random.default_rng(settings.seed)
    found = {}
    for task in tasks:
        parts = {}
        for split in ("train", "val", "test"):
            try:
                parts[split] = ta.Probe.from_table(folder / f"{task}.tsv", split=split)
            except ta.BadInput:
                if split != "val":
                    raise
                train, cut = parts["train"], len(parts["train"]) * 9 // 10
                parts["train"], parts["val"] = train.take(range(cut)), train.take(range(cut, len(train)))
        for split, limit in (("val", settings.validation), ("test", settings.test)):
            parts[split] = parts[split].take(draw.permutation(len(parts[split]))[:limit])
        found[task] = parts
    return found


def fine_tune(network: SentenceClassifier, prepare: Any, probe: ta.Probe, settings: argparse.Namespace) -> None:
    """First the head alone, on the frozen encoder, then everything; both with AdamW, the rate falling to zero."""
    torch.manual_seed(settings.seed)
    parts = (
        (network.head.parameters(), 1e-2, settings.steps // 3),
        (network.parameters(), settings.rate, settings.steps),
    )
    for parameters, rate, steps in parts:
        optimizer = torch.optim.AdamW(parameters, lr=rate, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        network.body.requires_grad_(rate == settings.rate)
        network.train()
        for _ in track(range(steps), "fine-tuning"):
            rows = torch.randint(len(probe), (settings.batch,)).tolist()
            logits = network(**prepare([probe.inputs[row] for row in rows]))
            optimizer.zero_grad()
            F.cross_entropy(logits, torch.from_numpy(probe.labels[rows])).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def train_experts(tasks: Mapping[str, Mapping[str, ta.Probe]], settings: argparse.Namespace) -> ta.Zoo:
    checkpoints = {}
    for task, parts in tasks.items():
        arguments = {
            "model": str(settings.model),
            "classes": int(parts["train"].labels.max()) + 1,
            "longest": settings.longest,
        }
        weights = settings.out / "experts" / f"{task}.safetensors"
        if not weights.exists():
            started = time.perf_counter()
            network, prepare = build(**arguments)
            fine_tune(network, prepare, parts["train"], settings)
            with atomic_write(weights) as file:
                save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
            print(f"{task}: an expert in {time.perf_counter() - started:.0f} s", flush=True)
        builder = f"{Path(__file__).resolve()}:build"
        checkpoints[task] = ta.Checkpoint(task, weights=weights, builder=builder, arguments=arguments, task=task)
    zoo = ta.Zoo.open(checkpoints)
    zoo.save(settings.out / "experts")
    return zoo


class Suite:
    """The tasks, and one encoder that takes each merge in turn, under the heads of all experts."""

    def __init__(self, tasks: Mapping[str, Mapping[str, ta.Probe]], experts: ta.Zoo) -> None:
        self.tasks = tasks
        self.states = {task: load_file(expert.weights) for task, expert in experts.items()}
        network, self.prepare = build(**next(iter(experts.values())).arguments)
        self.base = {name: value.clone() for name, value in body_of(network.state_dict()).items()}
        self.networks = {}
        for task, expert in experts.items():
            self.networks[task] = SentenceClassifier(network.body, expert.arguments["classes"]).eval()

    def with_body(self, state: Mapping[str, Tensor]) -> dict[str, SentenceClassifier]:
        """Each task's network; they share the body."""
        for task, network in self.networks.items():
            network.load_state_dict({**self.states[task], **state})
        return self.networks

    def score(self, name: str, state: Mapping[str, Tensor], split: str = "test") -> Evaluation:
        data = {task: probes[split] for task, probes in self.tasks.items()}
        return evaluate({name: self.with_body(state)}, data, prepare=self.prepare)

    def unlabelled(self, task: str, batch: int) -> Unlabelled:
        return Unlabelled(self.tasks[task]["val"], prepare=self.prepare, batch_size=batch)


def body_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("body.")}


def merges(suite: Suite, settings: argparse.Namespace) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Each method's name and merged body."""
    bodies = {task: body_of(state) for task, state in suite.states.items()}
    yield "base", suite.base
    for name, chosen in METHODS.items():
        base = None if chosen["method"] in ("linear", "karcher") else suite.base
        if "scale" not in chosen:
            yield name, merge_models(bodies, base=base, **chosen)
            continue
        states = {scale: merge_models(bodies, base=base, **(chosen | {"scale": scale})) for scale in chosen["scale"]}
        found = {scale: suite.score(name, state, "val").average(name).value for scale, state in states.items()}
        best = max(found, key=found.get)
        yield f"{name}, λ = {best:g}", states[best]
    fishers, seen = {}, {}
    for task, state in suite.states.items():
        network = suite.with_body(body_of(state))[task]
        fishers[task] = diagonal_fisher(network, suite.unlabelled(task, 16), labels="sampled", who=f"{task}: Fisher")
        seen[task] = layer_inputs(network, suite.unlabelled(task, 32), who=f"{task}: inputs")
    yield "Fisher", fisher_merge(bodies, fishers)
    yield "RegMean", regmean(bodies, seen)
    data = {task: suite.unlabelled(task, settings.batch) for task in suite.states}
    for name, how in {
        "AdaMerging, task-wise": {"level": "task"},
        "AdaMerging, layer-wise": {"level": "layer"},
        "AdaMerging++, layer-wise": {"level": "layer", "density": 0.2},
    }.items():
        base = next(iter(suite.with_body(suite.base).values()))
        how |= {"own": ["head.*"], "steps": settings.adapt, "learning_rate": settings.adapt_rate}
        found = adamerge(base, suite.states, data, **how)
        print(f"{name}: {found}", flush=True)
        yield name, body_of(found.state)


def main(arguments: Sequence[str] | None = None) -> Evaluation:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base encoder")
    parser.add_argument("--data", type=Path, required=True, help="folder of TASK.tsv")
    parser.add_argument("--tasks", default="sst2,trec,ag-news,tweet-emotion,cola")
    parser.add_argument("--out", type=Path, default=Path("merged-text"))
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning, for each task")
    parser.add_argument("--rate", type=float, default=1e-4, help="of fine-tuning")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--longest", type=int, default=48, help="tokens of a text")
    parser.add_argument("--validation", type=int, default=128, help="samples of each task, at most")
    parser.add_argument("--test", type=int, default=300, help="samples of each task, at most")
    parser.add_argument("--adapt", type=int, default=100, help="steps of AdaMerging")
    parser.add_argument("--adapt-rate", type=float, default=5e-3, help="of AdaMerging, higher for so few steps")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)
    started = time.perf_counter()
    hugging_face.set_verbosity_error()
    hugging_face.disable_progress_bar()

    tasks = read_tasks(settings.data, settings.tasks.split(","), settings)
    experts = train_experts(tasks, settings)
    suite = Suite(tasks, experts)
    scores = list(evaluate({}, {task: parts["test"] for task, parts in tasks.items()}, individual=experts).scores)
    for name, state in merges(suite, settings):
        found = suite.score(name, state)
        scores += found.scores
        print(found, flush=True)
    result = Evaluation(tuple(scores))
    print(result.markdown())
    result.save(settings.out / "evaluation.csv")
    result.save(settings.out / "evaluation.json")
    print(f"wrote {settings.out}: evaluation.csv, evaluation.json; {time.perf_counter() - started:.0f} s in all")
    return result


if __name__ == "__main__":
    main()
