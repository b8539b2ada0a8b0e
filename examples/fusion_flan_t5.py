"""Data-adaptive fusion of eight LoRA experts of Flan-T5 on GLUE, as published: text in, text out, no labels.

    python examples/fusion_flan_t5.py --out t5-base
    python examples/fusion_flan_t5.py --model google/flan-t5-large --out t5-large --level layer

The setting is that of Tang et al. (IJCV 2025, section 5): each expert is a LoRA adapter of rank 16 on the query and
value projections, ``tanganke/flan-t5-base_glue-TASK_lora-16`` on the hub; features are a sentence encoder's mean over
tokens; the entropy of the first token that the decoder gives is minimised with AdamW at 5e-6, eight samples a batch.
Scores are exact match, and for STS-B Spearman's correlation. Folders do as well:

    python examples/fusion_flan_t5.py --model T5 --out out --data GLUE --extractor ENCODER --task cola=ADAPTER ...

where GLUE holds TASK.csv with GLUE's columns and a column split (train, validation). Learned is from the unlabelled
training split, or with --transductive from the validation samples that are scored.
"""

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import taskatlas as ta
from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.merge import Extractor, Placement, Unlabelled
from taskatlas.store import atomic_write

MODEL = "google/flan-t5-base"
EXTRACTOR = "sentence-transformers/all-MiniLM-L6-v2"
DATA = "nyu-mll/glue"
ADAPTER = "tanganke/{model}_glue-{task}_lora-16"

# What the published adapters were trained to answer, spelling included; another wording is another task to them.
PROMPTS: Mapping[str, tuple[str, tuple[str, ...] | None]] = {
    "cola": (
        'Indicate if the following sentence is grammatically correct or not: "{sentence}". '
        "Answere 'acceptable' or 'unacceptable'.",
        ("unacceptable", "acceptable"),
    ),
    "mnli": (
        "Does the premise: '{premise}' logically imply, contradict, or is neutral to the hypothesis: '{hypothesis}'? "
        "Answere with 'entailment', 'contradiction', or 'neutral'.",
        ("entailment", "neutral", "contradiction"),
    ),
    "mrpc": (
        "Are the following sentences '{sentence1}' and '{sentence2}' conveying the same meaning? "
        "Answere with 'yes' or 'no'.",
        ("no", "yes"),
    ),
    "qnli": (
        "Given the context: '{sentence}', does the question '{question}' have an answer based on the information "
        "provided? Answer with 'yes' or 'no'.",
        ("yes", "no"),
    ),
    "qqp": (
        "Do the questions '{question1}' and '{question2}' have the same intent? Answere with 'yes' or 'no'.",
        ("no", "yes"),
    ),
    "rte": (
        "Does the text: '{sentence1}' entail that '{sentence2}' is true? Provide 'yes' or 'no'.",
        ("yes", "no"),
    ),
    "sst2": (
        "Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?",
        ("negative", "positive"),
    ),
    "stsb": (
        "Consider the sentences '{sentence1}' and '{sentence2}'. On a scale from 1 (completely different) to 5 "
        "(completely similar), rate the similarity.",
        None,  # a number with one digit behind the point
    ),
}


def read_rows(source: str, task: str, split: str) -> list[dict[str, Any]]:
    """GLUE's rows of a task, from a folder of CSV files or from the hub."""
    file = Path(source) / f"{task}.csv"
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as opened:
            return [row for row in csv.DictReader(opened) if row["split"] == split]
    from datasets import load_dataset

    name = "validation_matched" if (task, split) == ("mnli", "validation") else split
    return list(load_dataset(source, task, split=name))


def as_text(task: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """What a row asks, and the answer."""
    prompt, answers = PROMPTS[task]
    label = float(row["label"])
    return prompt.format(**row), f"{label:.1f}" if answers is None else answers[int(label)]


def read_task(source: str, task: str, limit: int, seed: int) -> dict[str, tuple[ta.Probe, list[str]]]:
    """Prompts of both splits as probes, with the answers beside them; at most so many, drawn by the seed."""
    found = {}
    for split in ("train", "validation"):
        pairs = [as_text(task, row) for row in read_rows(source, task, split)]
        if not pairs:
            raise BadInput(f"{source} has no rows of the split {split} for {task}.")
        rows = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:limit])
        found[split] = ta.Probe.from_text([pairs[row][0] for row in rows]), [pairs[row][1] for row in rows]
    return found


def score(task: str, said: list[str], answers: list[str]) -> float:
    """Exact match; for STS-B Spearman's correlation, where what is no number counts as 0."""
    if PROMPTS[task][1] is not None:
        return float(np.mean([a.strip() == b for a, b in zip(said, answers, strict=True)]))
    found = spearmanr([as_number(text) for text in said], [float(answer) for answer in answers]).statistic
    return 0.0 if np.isnan(found) else float(found)  # the same number everywhere has no order


def as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def answers_of(fused: ta.DataAdaptive, samples: Unlabelled, tokenizer: Any) -> list[str]:
    """What the model says to every prompt, each with its own coefficients."""
    coefficients, said = fused.coefficients(samples), []
    for rows, batch in track(samples.with_rows(), "answering", total=len(samples)):
        with torch.no_grad(), fused.steered(coefficients[rows], batch) as network:
            here = {name: value.to(network.device) for name, value in batch.items()}
            tokens: Tensor = network.generate(**here, max_new_tokens=10, do_sample=False)
        said += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return said


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="hub id or folder of the base")
    parser.add_argument("--task", action="append", default=[], help="TASK=ADAPTER, some of GLUE's in place of all")
    parser.add_argument("--data", default=DATA, help="hub id, or folder with TASK.csv")
    parser.add_argument("--extractor", default=EXTRACTOR, help="hub id or folder of a sentence encoder")
    parser.add_argument("--level", choices=("task", "layer"), default="task")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=5e-6)
    parser.add_argument("--limit", type=int, default=1000, help="rows of each split of each task, at most")
    parser.add_argument("--transductive", action="store_true", help="learn from the samples that are scored")
    parser.add_argument("--device", default="cpu", help="of networks, task vectors, hypernetwork and extractor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    placement = Placement(chosen.device, chosen.device, (chosen.device,))
    short = chosen.model.rstrip("/").rpartition("/")[2]
    adapters = dict(text.split("=", 1) for text in chosen.task)
    adapters = adapters or {task: ADAPTER.format(model=short, task=task) for task in PROMPTS}
    unknown = [task for task in adapters if task not in PROMPTS]
    if unknown:
        raise BadInput(f"GLUE has no task {unknown[0]!r} here; it has {', '.join(PROMPTS)}.")
    data = {task: read_task(chosen.data, task, chosen.limit, chosen.seed) for task in adapters}

    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    base = AutoModelForSeq2SeqLM.from_pretrained(chosen.model, dtype=torch.float32).eval().to(chosen.device)

    def samples(task: str, split: str, shuffle: bool) -> Unlabelled:
        def prepare(texts: list[str]) -> dict[str, Tensor]:
            found = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
            return {name: found[name] for name in ("input_ids", "attention_mask")}

        return Unlabelled(data[task][split][0], prepare=prepare, batch_size=chosen.batch, shuffle=shuffle)

    fused = ta.DataAdaptive(
        base,
        {task: folder_of(adapter) for task, adapter in adapters.items()},
        Extractor.of(chosen.extractor, device=chosen.device),
        level=chosen.level,
        steps=chosen.steps,
        learning_rate=chosen.rate,
        optimizer="adamw",
        transductive=chosen.transductive,
        placement=placement,
        seed=chosen.seed,
    ).fit({task: samples(task, "validation" if chosen.transductive else "train", True) for task in adapters})
    print(fused, fused.family_.vectors, sep="\n", flush=True)
    fused.save(chosen.out / "hypernetwork.safetensors")
    result: dict[str, Any] = {"learned on": fused.adaptation_}
    for task in adapters:
        said = answers_of(fused, samples(task, "validation", False), tokenizer)
        result[task] = score(task, said, data[task]["validation"][1])
    for picture in ("tasks", "learning", *(["layers"] if chosen.level == "layer" else [])):
        fused.plot(picture).figure.savefig(chosen.out / f"{picture}.png", dpi=120)
    with atomic_write(chosen.out / "scores.json") as file:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return result


def folder_of(adapter: str) -> Path:
    """The folder of an adapter, fetched from the hub where it is an id."""
    if Path(adapter).is_dir():
        return Path(adapter)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(adapter, allow_patterns=["adapter_*"]))


if __name__ == "__main__":
    main()
