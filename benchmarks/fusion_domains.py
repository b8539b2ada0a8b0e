"""The tasks, networks and corruptions that ``fusion_suite.py`` compares merging methods on: images and texts.

Both read data and networks that do not come with this project, from a folder that holds

    images: zoo/cifar10-resnets/*.th (Idelbayev's ResNets), data/cifar10-{train,test}.parquet, data/mnist.npz
    texts:  data/text/TASK.tsv (columns split, label, text); a sentence encoder's folder is named apart
"""

# ruff: noqa: D102

import importlib.util
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import taskatlas as ta
from taskatlas.merge.corruptions import CORRUPTIONS, corrupted
from taskatlas.merge.extractor import Extractor
from taskatlas.store import digest
from taskatlas.zoo import read_weights

SPLITS = ("train", "held_out", "validation", "test")


@dataclass(frozen=True)
class Tuning:
    """How an expert is made: AdamW on everything, head included, the rate falling to zero."""

    steps: int
    rate: float
    batch: int = 32


@dataclass(frozen=True)
class Adaptation:
    """How coefficients are learned from held-out samples without labels."""

    steps: int
    adamerging_rate: float
    rate: float
    batch: int = 16


@dataclass(frozen=True)
class Domain:
    """Everything that a suite needs.

    Attributes:
        tasks: task -> split -> its samples.
        families: name -> function from a number of classes to the base with a new head; the second is the one to which
            hypernetworks are transferred.
        prepare: raw samples -> what every network takes.
        extractor: of features.
        own: patterns of the head's tensors.
        corruptions: name -> function from a probe to a corrupted one.
        tuning: family -> how its experts are made.
        adaptation: how coefficients are learned.
    """

    tasks: Mapping[str, Mapping[str, ta.Probe]]
    families: Mapping[str, Callable[[int], nn.Module]]
    prepare: Callable[[list[Any]], Any]
    extractor: Extractor
    own: tuple[str, ...]
    corruptions: Mapping[str, Callable[[ta.Probe], ta.Probe]]
    tuning: Mapping[str, Tuning]
    adaptation: Adaptation

    def classes(self, task: str) -> int:
        return int(self.tasks[task]["train"].labels.max()) + 1


def images(inputs: Path, quick: bool) -> Domain:
    """A CIFAR-10 ResNet-20 as base, five tasks of three kinds of images; transferred to ResNet-32."""
    resnets = _cifar_resnets()
    folder = inputs / "zoo" / "cifar10-resnets"
    sizes = dict(zip(SPLITS, (300, 100, 60, 60) if quick else (3000, 300, 100, 200), strict=True))
    tuning = Tuning(steps=20 if quick else 100, rate=3e-3)
    extractor = _resnet(resnets, next(folder.glob("resnet56*")), 10)
    return Domain(
        tasks=_image_tasks(inputs / "data", sizes),
        families={name: partial(_resnet, resnets, next(folder.glob(f"{name}*"))) for name in ("resnet20", "resnet32")},
        prepare=resnets.prepare,
        extractor=Extractor.of(extractor, prepare=resnets.prepare, tap="linear:input"),
        own=("linear.*",),
        corruptions={kind: partial(corrupted, kind=kind, severity=3) for kind in CORRUPTIONS},
        tuning={"resnet20": tuning, "resnet32": tuning},
        adaptation=Adaptation(steps=10 if quick else 100, adamerging_rate=1e-2, rate=1e-3, batch=8),
    )


def texts(inputs: Path, quick: bool, encoder: Path) -> Domain:
    """MiniLM's first three layers as base, six tasks; transferred to all six layers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)

    def prepare(samples: list[str]) -> dict[str, Tensor]:
        found = tokenizer(samples, padding=True, truncation=True, max_length=24, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    sizes = dict(zip(SPLITS, (200, 60, 40, 40) if quick else (2400, 300, 250, 400), strict=True))
    names = ("sst2", "trec", "ag-news", "tweet-emotion", "tweet-irony", "tweet-offensive")
    return Domain(
        tasks={name: _text_splits(inputs / "data" / "text" / f"{name}.tsv", sizes) for name in names},
        families={"minilm-3": partial(_minilm, encoder, 3), "minilm-6": partial(_minilm, encoder, 6)},
        prepare=prepare,
        extractor=Extractor.of(encoder),
        own=("head.*",),
        corruptions={"typos": partial(_typos, rate=0.08)},
        tuning=dict.fromkeys(("minilm-3", "minilm-6"), Tuning(steps=10 if quick else 300, rate=3e-4)),
        adaptation=Adaptation(steps=5 if quick else 200, adamerging_rate=1e-2, rate=1e-3),
    )


# Images


def _image_tasks(data: Path, sizes: Mapping[str, int]) -> dict[str, dict[str, ta.Probe]]:
    """Vehicles and animals of CIFAR-10, digits of MNIST and of the UCI, and which way up a photograph is."""
    mnist = np.load(data / "mnist.npz")
    digits = load_digits()
    cifar = ta.Probe.open(data / "cifar10-train.parquet")
    vehicles, animals = (0, 1, 8, 9), (2, 3, 4, 5, 6, 7)
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return {
        "vehicles": _split(*_photographs(cifar, vehicles, sum(sizes.values()), 0), sizes),
        "animals": _split(*_photographs(cifar, animals, sum(sizes.values()), 1), sizes),
        "mnist": _split([_square(one) for one in mnist["x_train"][:6000]], mnist["y_train"][:6000], sizes),
        "digits": _split([_square(one) for one in pixels], digits.target, sizes),
        "orientation": _split(*_turned(cifar, sum(sizes.values())), sizes),
    }


def _photographs(cifar: ta.Probe, classes: tuple[int, ...], count: int, part: int) -> tuple[list, np.ndarray]:
    """Photographs of some classes, each task's from its own part of the training set, which the base has seen whole."""
    here = np.arange(part * 15000, (part + 1) * 15000)
    rows = here[np.isin(cifar.labels[here], classes)][:count]
    return [np.asarray(cifar.inputs[row]) for row in rows], np.searchsorted(classes, cifar.labels[rows])


def _turned(cifar: ta.Probe, count: int) -> tuple[list, np.ndarray]:
    rows = np.arange(30000, 30000 + count)
    quarters = np.random.default_rng(0).integers(0, 4, count)
    return [np.rot90(cifar.inputs[row], turn).copy() for row, turn in zip(rows, quarters, strict=True)], quarters


def _square(image: np.ndarray) -> np.ndarray:
    """A grey image as 32 x 32 pixels in three channels."""
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR).convert("RGB"))


def _split(inputs: list[Any], labels: np.ndarray, sizes: Mapping[str, int], kind: Any = "image") -> dict[str, ta.Probe]:
    """Disjoint parts; where there are too few samples, all parts shrink alike."""
    share = min(1.0, len(inputs) / sum(sizes.values()))
    order, start, parts = np.random.default_rng(0).permutation(len(inputs)), 0, {}
    for name, size in sizes.items():
        rows = order[start : (start := start + int(size * share))]
        ids = tuple(f"{row}" for row in rows)
        parts[name] = ta.Probe(kind, [inputs[row] for row in rows], ids, np.asarray(labels)[rows].astype(np.int64))
    return parts


def _cifar_resnets() -> Any:
    """The network of ``examples/cifar_resnet.py``."""
    place = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
    spec = importlib.util.spec_from_file_location("cifar_resnet", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _resnet(resnets: Any, weights: Path, classes: int) -> nn.Module:
    tensors = read_weights(weights)
    network, _ = resnets.build(tensors)
    network.load_state_dict(tensors)
    if classes != network.linear.out_features:
        network.linear = nn.Linear(network.linear.in_features, classes)
    return network.eval()


# Texts


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


def _minilm(encoder: Path, layers: int, classes: int) -> nn.Module:
    from transformers import AutoModel

    body = AutoModel.from_pretrained(encoder, add_pooling_layer=False, num_hidden_layers=layers)
    body.embeddings.requires_grad_(False)  # experts share them, so that their coefficients are dead
    return SentenceClassifier(body, classes).eval()


def _text_splits(path: Path, sizes: Mapping[str, int]) -> dict[str, ta.Probe]:
    train, test = ta.Probe.from_table(path, split="train"), ta.Probe.from_table(path, split="test")
    order = np.random.default_rng(0).permutation(len(train))
    parts, start = {}, 0
    for name in SPLITS[:-1]:
        parts[name] = train.take(order[start : (start := start + sizes[name])])
    return parts | {"test": test.take(np.random.default_rng(0).permutation(len(test))[: sizes["test"]])}


def _typos(probe: ta.Probe, rate: float) -> ta.Probe:
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
