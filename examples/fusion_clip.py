"""Data-adaptive fusion of eight CLIP image encoders, as published: one hypernetwork on a frozen ResNet, no labels.

    python examples/fusion_clip.py --out clip-b32
    python examples/fusion_clip.py --model openai/clip-vit-large-patch14 --out clip-l14 --level layer
    python examples/fusion_clip.py --out clip-b32 --transfer-to openai/clip-vit-large-patch14

The setting is that of Tang et al. (IJCV 2025, section 5): CLIP's image tower is fine-tuned on each of eight tasks, the
text tower is not, and heads are zero-shot: a class is the mean of its names' embeddings in some templates. Experts are
``tanganke/MODEL_TASK`` on the hub, data sets ``tanganke/TASK`` and their like. Folders do as well:

    python examples/fusion_clip.py --model CLIP --extractor RESNET --task NAME=EXPERT,DATA --task ... --out out

EXPERT is a folder of a CLIP vision model; DATA holds train/ and test/, in each a folder of images for every class, by
the class's name. Learned is from the unlabelled training split, or with --transductive from the test samples
themselves, as published; every result says which.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPVisionModel

import taskatlas as ta
from taskatlas.errors import BadInput
from taskatlas.merge import Extractor, Placement, Unlabelled
from taskatlas.store import atomic_write

MODEL = "openai/clip-vit-base-patch32"
EXTRACTOR = "microsoft/resnet-18"


@dataclass(frozen=True)
class Task:
    """A task's data set, and how its classes are put into words.

    Attributes:
        expert: hub id or folder of the fine-tuned image tower; ``{model}`` stands for the base's short name.
        data: hub id of a data set, or a folder.
        templates: sentences with a place for a class's name.
    """

    expert: str
    data: str
    templates: tuple[str, ...] = ("a photo of a {}.", "a picture of the {}.")


TASKS = {
    "sun397": Task("tanganke/{model}_sun397", "tanganke/sun397", ("a photo of a {}.", "a photo of the {}.")),
    "stanford-cars": Task("tanganke/{model}_stanford-cars", "tanganke/stanford_cars", ("a photo of a {}, a car.",)),
    "resisc45": Task("tanganke/{model}_resisc45", "tanganke/resisc45", ("satellite imagery of {}.",)),
    "eurosat": Task("tanganke/{model}_eurosat", "tanganke/eurosat", ("a centered satellite photo of {}.",)),
    "svhn": Task("tanganke/{model}_svhn", "ufldl-stanford/svhn", ('a photo of the number: "{}".',)),
    "gtsrb": Task("tanganke/{model}_gtsrb", "tanganke/gtsrb", ('a close up photo of a "{}" traffic sign.',)),
    "mnist": Task("tanganke/{model}_mnist", "ylecun/mnist", ('a photo of the number: "{}".',)),
    "dtd": Task("tanganke/{model}_dtd", "tanganke/dtd", ("a photo of a {} texture.",)),
}


class ZeroShotHead(nn.Module):
    """Cosines between an image's embedding and those of the classes, times CLIP's temperature."""

    def __init__(self, clip: CLIPModel, classes: Tensor) -> None:
        super().__init__()
        self.projection = clip.visual_projection
        self.register_buffer("classes", classes)
        self.register_buffer("scale", clip.logit_scale.detach().exp())

    def forward(self, output: Any) -> Tensor:
        return self.scale * F.normalize(self.projection(output.pooler_output), dim=-1) @ self.classes.T


@torch.no_grad()
def zero_shot_head(clip: CLIPModel, tokenizer: Any, names: Sequence[str], templates: Sequence[str]) -> ZeroShotHead:
    """The head of classes that are given by their names."""
    classes = []
    for name in names:
        texts = [template.format(name.replace("_", " ")) for template in templates]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest_text(clip), return_tensors="pt")
        pooled = clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        embedded = F.normalize(clip.text_projection(pooled), dim=-1)
        classes.append(F.normalize(embedded.mean(0), dim=0))
    return ZeroShotHead(clip, torch.stack(classes))


def longest_text(clip: CLIPModel) -> int:
    return clip.config.text_config.max_position_embeddings


class Family:
    """CLIP at one size: the image towers of base and experts, heads on a device, and how images are prepared."""

    def __init__(
        self, model: str, tasks: Mapping[str, Task], class_names: Mapping[str, Sequence[str]], device: str = "cpu"
    ) -> None:
        clip = CLIPModel.from_pretrained(model).eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
        processor = CLIPImageProcessor.from_pretrained(model)
        short = model.rstrip("/").rpartition("/")[2]
        self.prepare = lambda images: {"pixel_values": processor(images=images, return_tensors="pt")["pixel_values"]}
        self.base = CLIPVisionModel.from_pretrained(model).eval()
        self.experts = {
            name: CLIPVisionModel.from_pretrained(task.expert.format(model=short)).eval()
            for name, task in tasks.items()
        }
        self.heads = {
            name: zero_shot_head(clip, tokenizer, class_names[name], task.templates).to(device)
            for name, task in tasks.items()
        }

    def samples(self, probe: ta.Probe, batch: int, shuffle: bool = True) -> Unlabelled:
        return Unlabelled(probe, prepare=self.prepare, batch_size=batch, shuffle=shuffle)


def read_data(source: str, limit: int, seed: int) -> dict[str, ta.Probe]:
    """Train and test images of a hub's data set, or of a folder with a folder for each; at most so many of each."""
    found = {}
    for split in ("train", "test"):
        here = Path(source) / split
        probe = ta.Probe.from_images(here) if here.is_dir() else ta.Probe.from_hf(source, split=split)
        rows = np.random.default_rng(seed).permutation(len(probe))[:limit]
        found[split] = probe.take(np.sort(rows))
        if found[split].class_names is None:
            raise BadInput(f"the images of {source} have no class names, which zero-shot heads are made of.")
    return found


def read_task(text: str) -> tuple[str, Task]:
    name, _, rest = text.partition("=")
    expert, _, data = rest.partition(",")
    if not (name and expert and data):
        raise BadInput(f"{text!r} is no task. Write NAME=EXPERT,DATA.")
    return name, Task(expert, data)


def scores(fused: ta.DataAdaptive, family: Family, data: Mapping[str, Mapping[str, ta.Probe]], batch: int) -> dict:
    """Accuracy of every task, its head known; and with the surest head."""
    found = {}
    for task, parts in data.items():
        samples = family.samples(parts["test"], batch, shuffle=False)
        found[task] = {"head known": fused.score(samples, task=task), "head inferred": fused.score(samples)}
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="hub id or folder of the base")
    parser.add_argument("--task", action="append", default=[], help="NAME=EXPERT,DATA in place of the eight tasks")
    parser.add_argument("--extractor", default=EXTRACTOR, help="hub id or folder of an image model")
    parser.add_argument("--level", choices=("task", "layer"), default="task")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-5)
    parser.add_argument("--limit", type=int, default=5000, help="images of each split of each task, at most")
    parser.add_argument("--transductive", action="store_true", help="learn from the samples that are scored")
    parser.add_argument("--transfer-to", help="score also on another CLIP, without training")
    parser.add_argument("--device", default="cpu", help="of networks, task vectors, hypernetwork and extractor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    placement = Placement(chosen.device, chosen.device, (chosen.device,))
    tasks = dict(map(read_task, chosen.task)) or TASKS
    data = {name: read_data(task.data, chosen.limit, chosen.seed) for name, task in tasks.items()}
    class_names = {name: parts["test"].class_names for name, parts in data.items()}

    family = Family(chosen.model, tasks, class_names, chosen.device)
    split = "test" if chosen.transductive else "train"
    fused = ta.DataAdaptive(
        family.base,
        family.experts,
        Extractor.of(chosen.extractor, device=chosen.device),
        level=chosen.level,
        heads=family.heads,
        steps=chosen.steps,
        learning_rate=chosen.rate,
        transductive=chosen.transductive,
        placement=placement,
        seed=chosen.seed,
    ).fit({name: family.samples(parts[split], chosen.batch) for name, parts in data.items()})
    print(fused, flush=True)
    result: dict[str, Any] = {"learned on": fused.adaptation_, chosen.model: scores(fused, family, data, chosen.batch)}
    fused.save(chosen.out / "hypernetwork.safetensors")
    for picture in ("tasks", "learning", *(["layers"] if chosen.level == "layer" else [])):
        fused.plot(picture).figure.savefig(chosen.out / f"{picture}.png", dpi=120)
    if chosen.transfer_to:
        other = Family(chosen.transfer_to, tasks, class_names, chosen.device)
        carried = fused.transferred(other.base, other.experts, heads=other.heads)
        result[f"transferred to {chosen.transfer_to}"] = scores(carried, other, data, chosen.batch)
    with atomic_write(chosen.out / "scores.json") as file:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
