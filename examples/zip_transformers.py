"""Two small BERTs trained apart, from different seeds on different halves of a data set, aligned and made one.

Attention moves by heads and within heads, the residual stream as one; plain averaging knows nothing of either.

    python examples/zip_transformers.py ag-news.tsv --csv transformers.csv

The file has the columns split (train, val, test), label and text. Needs ``pip install taskatlas[hf]``.
"""

import argparse
import csv
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import taskatlas as ta

VOCABULARY, LENGTH = 4096, 40
Texts = dict[str, Tensor]
WAYS: dict[str, dict[str, object]] = {
    "average": {"method": "identity", "calibration": None},
    "weight matching": {"method": "weight_matching", "calibration": None},
    "permute": {"method": "permute", "calibration": None},
    "zip": {"method": "zip", "calibration": None},
    "average, least squares": {"method": "identity"},
    "permute, least squares": {"method": "permute"},
    "zip, least squares": {"method": "zip"},
}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, help="TSV file with the columns split, label and text")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--match", type=int, default=1000, help="training texts to match and calibrate on")
    parser.add_argument("--on", choices=("val", "test"), default="test", help="which texts to score on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    chosen = parser.parse_args(arguments)

    x, y = read(chosen.texts, "train")
    texts, answers = read(chosen.texts, chosen.on)
    halves = torch.randperm(len(y), generator=torch.Generator().manual_seed(chosen.seed)).chunk(2)
    models = [
        train(taken(x, half), y[half], chosen.epochs, seed=2 * chosen.seed + position)
        for position, half in enumerate(halves)
    ]
    batches = [taken(x, rows) for rows in torch.arange(min(chosen.match, len(y))).split(50)]
    rows: list[dict[str, object]] = []
    for position, model in enumerate(models):
        rows.append({"way": f"model {position}", "right": accuracy([model], texts, answers)})
    rows.append({"way": "both, probabilities averaged", "right": accuracy(models, texts, answers)})
    for name, settings in WAYS.items():
        zipped = ta.zip_models(models, batches, outputs=["logits"], **settings)
        agreed = zipped.aligned.agreements.values()
        rows.append({"way": name, "right": accuracy([zipped.network], texts, answers)})
        if agreed:
            rows[-1]["agreement"] = round(sum(agreed) / len(agreed), 2)
    for row in rows:
        print("{way:30} {right:5.1f} % right".format(**row), row.get("agreement", ""))
    if chosen.csv is not None:
        with chosen.csv.open("w", newline="") as file:
            table = csv.DictWriter(file, ["way", "right", "agreement"])
            table.writeheader()
            table.writerows(rows)
    return rows


def read(place: Path, split: str) -> tuple[Texts, Tensor]:
    """Texts as numbers of their words, hashed, and their labels."""
    with place.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["split"] == split]
    words = torch.zeros(len(rows), LENGTH, dtype=torch.long)
    for row, content in enumerate(rows):
        for place_in_text, word in enumerate(content["text"].lower().split()[:LENGTH]):
            words[row, place_in_text] = 1 + zlib.crc32(word.strip(".,;:'\"()").encode()) % (VOCABULARY - 1)
    classes = sorted({row["label"] for row in rows})
    return (
        {"input_ids": words, "attention_mask": (words > 0).long()},
        torch.tensor([classes.index(row["label"]) for row in rows]),
    )


def taken(texts: Texts, rows: Tensor) -> Texts:
    return {name: values[rows] for name, values in texts.items()}


def bert(classes: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=LENGTH,
            num_labels=classes,
        )
    )


def train(texts: Texts, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = bert(int(labels.max()) + 1).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    steps = epochs * -(-len(labels) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(32):
            loss = F.cross_entropy(network(**taken(texts, rows)).logits, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(models: Sequence[nn.Module], texts: Texts, labels: Tensor) -> float:
    """Percent right, of the mean of all probabilities."""
    right = 0
    for rows in torch.arange(len(labels)).split(200):
        found = [model(**taken(texts, rows)).logits.softmax(1) for model in models]
        right += int((torch.stack(found).mean(0).argmax(1) == labels[rows]).sum())
    return round(100 * right / len(labels), 1)


if __name__ == "__main__":
    main()
